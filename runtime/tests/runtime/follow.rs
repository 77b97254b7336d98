use futures::StreamExt;
use onlooker_protocol::{
    Position, VERSION,
    event::Since,
    picture::{self, ShownPicture},
    subscriber::{AuthNeed, GatewayToSubscriber, Subscribe, SubscriberLimits, SubscriberToGateway},
};
use onlooker_runtime::{
    Follow, Frame, Recording,
    record::{RecordOptions, record},
};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{
    Message,
    handshake::server::{Request, Response},
};

use crate::peer::{Gateway, Peer, soon};

fn hello() -> GatewayToSubscriber {
    GatewayToSubscriber::Hello {
        version: VERSION,
        connection: "c".to_owned(),
        auth: AuthNeed::None,
        auth_within: 5_000,
        ping_every: 10_000,
        live_window: 20_000,
        limits: SubscriberLimits { frame: 65_536, subscriptions: 1_000 },
    }
}

fn at(offset: u64) -> Position {
    format!("aaaaaaaa:{offset}").parse().unwrap()
}

fn event(offset: u64, second: u32, kind: &str, data: Value) -> Value {
    json!({
        "type": "event", "session": "s", "position": at(offset), "id": "i", "task": "t",
        "at": format!("2026-03-01T00:00:{second:02}.000Z"), "event": {"type": kind, "data": data},
    })
}

async fn accept(gateway: &Gateway) -> Peer {
    let mut peer = gateway.accept_subscriber().await;
    peer.send(&hello()).await;
    peer
}

async fn subscribed(peer: &mut Peer) -> Subscribe {
    match peer.receive().await {
        SubscriberToGateway::Subscribe(subscribe) => subscribe,
        _ => panic!("subscribe was expected"),
    }
}

impl Gateway {
    async fn accept_subscriber(&self) -> Peer {
        // The subprotocol is offered by the client and echoed by the gateway.
        let echo = |request: &Request, mut response: Response| {
            let name = request.headers().get("sec-websocket-protocol").unwrap().clone();
            assert_eq!(name, "onlooker.v1");
            response.headers_mut().insert("sec-websocket-protocol", name);
            Ok(response)
        };
        let stream = self.stream().await;
        Peer { socket: soon(tokio_tungstenite::accept_hdr_async(stream, echo)).await.unwrap() }
    }
}

async fn next(follow: &mut Follow) -> Frame {
    soon(follow.next()).await.expect("a frame")
}

#[tokio::test]
async fn a_lost_connection_is_resumed_after_the_last_frame_shown() {
    let gateway = Gateway::start().await;
    let url = gateway.url();
    let (follow, mut peer) = tokio::join!(Follow::connect(&url, None), accept(&gateway));
    let mut follow = follow.unwrap();
    follow.subscribe(Subscribe { session: Some("s".to_owned()), since: Since::Start, ..Default::default() }).unwrap();
    let (shown, ()) = tokio::join!(next(&mut follow), async {
        assert_eq!(subscribed(&mut peer).await.since, Since::Start);
        peer.send(&event(7, 0, "action", json!({}))).await;
    });
    assert!(matches!(shown, Frame::Text(GatewayToSubscriber::Event(frame)) if frame.position == at(7)));
    drop(peer);
    let (shown, peer) = tokio::join!(next(&mut follow), async {
        let mut peer = accept(&gateway).await;
        assert_eq!(subscribed(&mut peer).await.since, Since::After(at(7)));
        peer.send(&GatewayToSubscriber::Ping { id: 1, positions: [("s".to_owned(), at(9))].into() }).await;
        assert!(matches!(peer.receive().await, SubscriberToGateway::Pong { id: 1 }));
        peer.send(&GatewayToSubscriber::Ok { reference: None, result: Default::default() }).await;
        peer
    });
    assert!(matches!(shown, Frame::Text(GatewayToSubscriber::Ok { .. })));
    drop(peer);
    let ((), _) = tokio::join!(
        async {
            let mut peer = accept(&gateway).await;
            // What a filter left out is not asked for again.
            assert_eq!(subscribed(&mut peer).await.since, Since::After(at(9)));
            peer.close(4500).await;
        },
        async { assert!(soon(follow.next()).await.is_none()) }
    );
    assert!(follow.error().unwrap().to_string().contains("check the key"));
}

#[tokio::test]
async fn a_ping_is_answered_only_after_the_frames_before_it_were_taken() {
    let gateway = Gateway::start().await;
    let url = gateway.url();
    let (follow, mut peer) = tokio::join!(Follow::connect(&url, None), accept(&gateway));
    let mut follow = follow.unwrap();
    peer.send(&event(1, 0, "action", json!({}))).await;
    peer.send(&GatewayToSubscriber::Ping { id: 5, positions: Default::default() }).await;
    assert!(matches!(next(&mut follow).await, Frame::Text(GatewayToSubscriber::Event(_))));
    let early = tokio::time::timeout(std::time::Duration::from_millis(50), peer.socket.next()).await;
    assert!(early.is_err(), "a pong came before the caller was back");
    tokio::select! {
        _ = follow.next() => panic!("no further frame was sent"),
        pong = peer.receive::<SubscriberToGateway>() => assert!(matches!(pong, SubscriberToGateway::Pong { id: 5 })),
    }
}

#[tokio::test]
async fn a_session_is_recorded_with_its_pictures_and_without_the_wait_for_an_answer() {
    use futures::SinkExt;
    let gateway = Gateway::start().await;
    let folder = crate::recording::Folder::new();
    let options = RecordOptions { gateway: gateway.url(), token: None };
    let mut written = 0;
    let recorded = record(options, "s", folder.path(), |_| written += 1);
    let played = async {
        let mut peer = accept(&gateway).await;
        let asked = subscribed(&mut peer).await;
        assert_eq!(asked.since, Since::Start);
        let history = vec![
            event(0, 0, "session_started", json!({})),
            event(1, 1, "task_started", json!({"taskId": "t"})),
            event(
                2,
                2,
                "guardrail_trigger",
                json!({"guardrailId": "g", "revision": 1, "value": "Go?", "kind": "captcha"}),
            ),
        ];
        let session = "s".to_owned();
        peer.send(&GatewayToSubscriber::Replay { session, replay: true, events: history }).await;
        peer.send(&event(3, 40, "guardrail_resolved", json!({"guardrailId": "g", "outcome": "answered"}))).await;
        peer.send(&event(4, 41, "screenshot", json!({"id": "p", "size": 3, "media": "image/png"}))).await;
        peer.send(&event(5, 41, "screenshot", json!({"id": "withheld"}))).await;
        let header =
            ShownPicture { session: "s".to_owned(), id: "p".to_owned(), media: "image/png".to_owned(), size: 3 };
        peer.socket.send(Message::binary(picture::encode(&header, b"png"))).await.unwrap();
        peer.send(&event(6, 42, "task_completed", json!({"message": "done"}))).await;
        while let Some(Ok(_)) = peer.socket.next().await {}
    };
    let (recorded, ()) = soon(async { tokio::join!(recorded, played) }).await;
    recorded.unwrap();
    assert_eq!(written, 4);
    let recording = Recording::open(folder.path()).unwrap();
    let lines: Vec<_> = recording.lines().iter().map(|l| (l.at, l.kind.as_str(), &l.data)).collect();
    let (question, empty, message) =
        (json!({"value": "Go?", "kind": "captcha"}), json!({}), json!({"message": "done"}));
    let expected =
        [(1.0, "guardrail_trigger", &question), (2.0, "screenshot", &empty), (3.0, "task_completed", &message)];
    assert_eq!(lines, expected);
    assert_eq!(recording.picture("0001.png").unwrap(), ("image/png", "png".into()));
}
