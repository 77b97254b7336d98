//! A WebSocket as both WebSocket surfaces use it: what is to be sent waits in one small bounded place, reading goes on
//! meanwhile, and a peer that takes nothing is found out.

use std::{collections::VecDeque, future::poll_fn, task::Poll, time::Duration};

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket};
use bytes::Bytes;
use futures::{Sink, Stream, StreamExt};
use onlooker_protocol::Code;
use serde::Serialize;
use tokio::time::{Instant, timeout};

/// What a turn came to.
pub enum Turn {
    Received(Message),
    /// The peer's close frame, with its code if it had one.
    Closed(Option<u16>),
    /// A frame was larger than allowed, not UTF-8, or broke the protocol; or the transport is gone.
    Broken(axum::Error),
    /// Everything that waited is with the kernel.
    Flushed,
}

/// With this much waiting, nothing more is read: answers that nobody takes must not pile up.
const READ_WHILE: usize = 1024 * 1024;

pub struct Wire {
    socket: WebSocket,
    out: VecDeque<Message>,
    waiting_bytes: usize,
    unflushed: bool,
    /// Messages that were ever queued.
    queued: u64,
    /// Since when the peer has taken nothing of what waits.
    stalled_since: Option<Instant>,
}

impl Wire {
    pub fn new(socket: WebSocket) -> Self {
        Self { socket, out: VecDeque::new(), waiting_bytes: 0, unflushed: false, queued: 0, stalled_since: None }
    }

    /// Bytes that wait and were not handed to the socket yet.
    pub fn waiting(&self) -> usize {
        self.waiting_bytes
    }

    pub fn is_idle(&self) -> bool {
        self.out.is_empty() && !self.unflushed
    }

    /// Since when the peer has taken nothing although something waits.
    pub fn stalled_since(&self) -> Option<Instant> {
        self.stalled_since
    }

    pub fn send<T: Serialize>(&mut self, frame: &T) {
        let text = serde_json::to_string(frame).expect("a frame is plain data");
        self.queue(Message::Text(text.into()));
    }

    /// Sends finished JSON.
    pub fn send_text(&mut self, text: Bytes) {
        match Utf8Bytes::try_from(text) {
            Ok(text) => self.queue(Message::Text(text)),
            Err(_) => debug_assert!(false, "frames in the log are UTF-8"),
        }
    }

    /// Sends a text that others send too.
    pub fn send_text_shared(&mut self, text: Utf8Bytes) {
        self.queue(Message::Text(text));
    }

    /// Messages that were ever queued.
    pub fn queued(&self) -> u64 {
        self.queued
    }

    /// Of those, how many the socket has taken.
    pub fn handed_on(&self) -> u64 {
        self.queued - self.out.len() as u64
    }

    pub fn send_binary(&mut self, frame: Bytes) {
        self.queue(Message::Binary(frame));
    }

    fn queue(&mut self, message: Message) {
        self.waiting_bytes += size(&message);
        self.queued += 1;
        self.out.push_back(message);
        self.stalled_since.get_or_insert_with(Instant::now);
    }

    /// Sends what waits and receives what comes, whichever is first. Cancel safe.
    pub async fn turn(&mut self) -> Turn {
        poll_fn(|cx| {
            if let Poll::Ready(turn) = self.poll_send(cx) {
                return Poll::Ready(turn);
            }
            if self.waiting_bytes > READ_WHILE {
                // Sending wakes this; a peer that takes nothing is found out by its stall.
                return Poll::Pending;
            }
            self.socket.poll_next_unpin(cx).map(|next| match next {
                Some(Ok(Message::Close(frame))) => Turn::Closed(frame.map(|frame| frame.code)),
                Some(Ok(message)) => Turn::Received(message),
                Some(Err(error)) => Turn::Broken(error),
                None => Turn::Closed(None),
            })
        })
        .await
    }

    fn poll_send(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Turn> {
        let mut socket = std::pin::Pin::new(&mut self.socket);
        while !self.out.is_empty() {
            match Sink::poll_ready(socket.as_mut(), cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Turn::Broken(error)),
                Poll::Pending => return Poll::Pending,
            }
            let message = self.out.pop_front().expect("not empty");
            self.waiting_bytes -= size(&message);
            self.unflushed = true;
            self.stalled_since = Some(Instant::now());
            if let Err(error) = Sink::start_send(socket.as_mut(), message) {
                return Poll::Ready(Turn::Broken(error));
            }
        }
        if !self.unflushed {
            return Poll::Pending;
        }
        match Sink::poll_flush(socket, cx) {
            Poll::Ready(Ok(())) => {
                self.unflushed = false;
                self.stalled_since = None;
                Poll::Ready(Turn::Flushed)
            }
            Poll::Ready(Err(error)) => Poll::Ready(Turn::Broken(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Says goodbye with a code, within the time given. What waits is sent first, unless the peer is too slow.
    pub async fn close(self, code: Code, reason: &str, within: Duration) {
        self.close_with(code.number(), reason, within, code != Code::TooSlow).await;
    }

    /// The same with a code of RFC 6455. `flush`: what waits is sent first.
    pub async fn close_with(mut self, code: u16, reason: &str, within: Duration, flush: bool) {
        // A control frame holds 125 bytes, two of them the code (RFC 6455, 5.5).
        let end = reason.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= 123).last();
        let reason = &reason[..end.unwrap_or(0)];
        let frame = CloseFrame { code, reason: reason.into() };
        if flush && !self.is_idle() {
            let _ = timeout(within, async {
                while !self.is_idle() && !matches!(self.turn().await, Turn::Broken(_) | Turn::Closed(_)) {}
            })
            .await;
        }
        let closing = async {
            let mut socket = std::pin::Pin::new(&mut self.socket);
            poll_fn(|cx| Sink::poll_ready(socket.as_mut(), cx)).await?;
            Sink::start_send(socket.as_mut(), Message::Close(Some(frame)))?;
            poll_fn(|cx| Sink::poll_flush(socket.as_mut(), cx)).await?;
            // Until the peer's own close frame: it then knows the code.
            while poll_fn(|cx| socket.as_mut().poll_next(cx)).await.is_some_and(|next| next.is_ok()) {}
            Ok::<(), axum::Error>(())
        };
        let _ = timeout(within, closing).await;
    }
}

fn size(message: &Message) -> usize {
    match message {
        Message::Text(text) => text.len(),
        Message::Binary(bytes) | Message::Ping(bytes) | Message::Pong(bytes) => bytes.len(),
        Message::Close(_) => 0,
    }
}

/// How a broken turn is closed: by what was wrong with the peer's frame, as far as it can be told.
pub fn close_code(error: &axum::Error) -> Option<(Code, &'static str)> {
    use tokio_tungstenite::tungstenite::Error;
    use tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake;
    let source = std::error::Error::source(error)?.downcast_ref::<Error>()?;
    match source {
        // Nobody is there any more: no frame of theirs was wrong.
        Error::Protocol(ResetWithoutClosingHandshake) => None,
        Error::Capacity(_) => Some((Code::FrameTooLarge, "the frame is larger than allowed")),
        Error::Utf8(_) => Some((Code::UnreadableFrame, "text frames are UTF-8")),
        // The listener's own clock for peers that take nothing; it may strike before the connection's.
        Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            Some((Code::TooSlow, "nothing was read for too long; reconnect and resume"))
        }
        Error::Protocol(_) => Some((Code::UnreadableFrame, "this breaks the WebSocket protocol")),
        _ => None,
    }
}
