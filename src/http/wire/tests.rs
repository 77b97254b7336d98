//! What comes over a wire, however it is cut, and how a wire ends.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::{super::socket::Stream, *};

const LIMITS: Limits = Limits { message: 64 << 10, read: 4096, room: 32 };

fn wire() -> (Wire, DuplexStream) {
    let (near, far) = tokio::io::duplex(1 << 20);
    (Wire::new(Socket::new(Stream::Any(Box::new(near)), None), Bytes::new(), LIMITS), far)
}

/// A client's frame. A mask of zeros leaves the payload as it is.
fn frame(is_final: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![u8::from(is_final) << 7 | opcode];
    match payload.len() {
        length @ 0..=125 => frame.push(0x80 | length as u8),
        length => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn messages_are_the_same_however_their_bytes_are_cut(
        cuts in prop::collection::vec(1_usize..40, 1..60),
        long in 126_usize..5000,
    ) {
        let long = "l".repeat(long);
        let sent = [
            frame(true, 1, b"whole"),
            frame(false, 1, b"in "),
            frame(true, 9, b"ping"),
            frame(false, 0, b"three "),
            frame(true, 0, b"parts"),
            frame(true, 1, long.as_bytes()),
            frame(true, 2, b"bytes"),
            frame(true, 1, b"last"),
        ];
        let bytes = sent.concat();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let got = runtime.block_on(async {
            let (mut wire, mut far) = wire();
            let writing = tokio::spawn(async move {
                let (mut rest, mut cuts) = (bytes.as_slice(), cuts.into_iter().cycle());
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                    far.write_all(now).await.unwrap();
                    tokio::task::yield_now().await;
                    rest = later;
                }
                far
            });
            let mut got = Vec::new();
            while got.len() < 5 {
                match wire.turn().await {
                    Turn::Received(Message::Text(text)) => got.push(text.as_str().to_owned()),
                    Turn::Received(Message::Binary(bytes)) => got.push(format!("{bytes:?}")),
                    Turn::Received(_) | Turn::Flushed => {}
                    Turn::Closed(_) | Turn::Broken(_) => panic!("it goes on"),
                }
            }
            // The pong left by itself.
            while !wire.is_idle() {
                wire.turn().await;
            }
            let mut pong = [0; 6];
            writing.await.unwrap().read_exact(&mut pong).await.unwrap();
            assert_eq!(&pong, b"\x8a\x04ping");
            got
        });
        prop_assert_eq!(got, ["whole", "in three parts", long.as_str(), r#"b"bytes""#, "last"]);
    }
}

#[tokio::test]
async fn between_messages_nothing_is_remembered() {
    let (mut wire, mut far) = wire();
    far.write_all(&frame(true, 1, b"whole")).await.unwrap();
    assert!(matches!(wire.turn().await, Turn::Received(_)));
    far.write_all(&frame(false, 1, b"begun")).await.unwrap();
    assert!(poll_fn(|cx| Poll::Ready(wire.poll_turn(cx).is_pending())).await);
    assert!(wire.protocol.is_some(), "a message has begun");
    far.write_all(&frame(true, 0, b"ended")).await.unwrap();
    assert!(matches!(wire.turn().await, Turn::Received(_)));
    assert!(poll_fn(|cx| Poll::Ready(wire.poll_turn(cx).is_pending())).await);
    assert!(wire.protocol.is_none(), "it is idle");
}

#[tokio::test]
async fn a_close_is_answered_before_anybody_hears_of_it() {
    let (mut wire, mut far) = wire();
    far.write_all(&frame(true, 8, &1000_u16.to_be_bytes())).await.unwrap();
    assert!(matches!(wire.turn().await, Turn::Closed(Some(1000))));
    drop(wire);
    let mut answer = Vec::new();
    far.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"\x88\x02\x03\xe8");
}

#[tokio::test(start_paused = true)]
async fn whoever_breaks_the_close_frame_is_not_waited_for() {
    let (mut wire, mut far) = wire();
    // A payload of one byte holds no code (RFC 6455, 5.5.1).
    far.write_all(&frame(true, 8, b"x")).await.unwrap();
    assert!(matches!(wire.turn().await, Turn::Broken(_)));
    let begun = Instant::now();
    wire.close_with(1002, "", Duration::from_secs(2), true).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "no frame of it can be read any more");
    let mut answer = Vec::new();
    far.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"\x88\x02\x03\xea");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_read_behind_a_frame_that_is_too_large_while_the_goodbye_cannot_leave() {
    let (near, mut far) = tokio::io::duplex(4096);
    let mut wire = Wire::new(Socket::new(Stream::Any(Box::new(near)), None), Bytes::new(), LIMITS);
    wire.send_text(vec![b'x'; 10_000].into());
    let mut large = vec![0x81, 0xff];
    large.extend_from_slice(&100_000_u64.to_be_bytes());
    large.extend_from_slice(&[0; 200]);
    far.write_all(&large).await.unwrap();
    assert!(matches!(wire.turn().await, Turn::Broken(tungstenite::Error::Capacity(_))));
    far.write_all(&[0; 2000]).await.unwrap();
    wire.close_with(1009, "", Duration::from_secs(2), true).await;
    let mut got = Vec::new();
    far.read_to_end(&mut got).await.unwrap();
    assert!(got.len() >= 4096, "what waited went first");
}
