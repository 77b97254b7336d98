//! A WebSocket as its connection's own task uses it: what is to be sent waits in one small bounded place, reading goes on
//! meanwhile, and a peer that takes nothing is found out.
//!
//! tungstenite is in charge of the protocol: it reads frames, answers pings and closes. Messages to the peer are framed
//! here, because the same bytes go to many: a server's frames are not masked (RFC 6455, 5.1).

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, Cursor, Read, Write},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use onlooker_protocol::Code;
use serde::Serialize;
use tokio::{
    io::ReadBuf,
    time::{Instant, timeout},
};
use tokio_tungstenite::tungstenite::{
    self, Message, Utf8Bytes,
    protocol::{
        CloseFrame, Role, WebSocketConfig, WebSocketContext,
        frame::{
            FrameHeader,
            coding::{Data, OpCode},
        },
    },
};

use super::socket::Socket;

/// What a turn came to.
pub enum Turn {
    Received(Message),
    /// The peer's close frame, with its code if it had one.
    Closed(Option<u16>),
    /// A frame was larger than allowed, not UTF-8, or broke the protocol; or the transport is gone.
    Broken(tungstenite::Error),
    /// Everything that waited is with the kernel.
    Flushed,
}

/// What a peer may send.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Bytes of one frame, and of one message.
    pub message: u32,
    /// Bytes that are read at once: what is much larger than most messages saves calls, and is shared by all
    /// connections of a thread. An idle connection keeps none of it.
    pub read: u32,
    /// Bytes that an idle connection keeps for its next frame.
    pub room: u32,
}

/// A limit of the configuration in bytes. What is beyond 4 GiB is no smaller limit than 4 GiB.
pub fn limit(bytes: usize) -> u32 {
    bytes.try_into().unwrap_or(u32::MAX)
}

/// With this much waiting, nothing more is read: answers that nobody takes must not pile up.
const READ_WHILE: usize = 1024 * 1024;
/// What one thread reads at once, at most.
const READ: usize = 64 * 1024;
/// A longer payload is not copied behind its header.
const COPIED: usize = 2048;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into());
}

pub struct Wire {
    socket: Arc<Socket>,
    /// `None` while there is nothing to remember of what came: idle connections are many.
    protocol: Option<Box<WebSocketContext>>,
    boundary: Boundary,
    /// Bytes that came and were not taken apart yet.
    input: Bytes,
    limits: Limits,
    /// The peer broke the protocol: where its next frame begins is unknown.
    broken: bool,
}

/// Frames that go out in one piece.
#[derive(Default)]
pub struct Together {
    bytes: BytesMut,
    messages: u32,
}

impl Together {
    pub fn add<T: Serialize>(&mut self, frame: &T) {
        let text = serde_json::to_vec(frame).expect("a frame is plain data");
        begin_frame(Data::Text, text.len(), &mut self.bytes);
        self.bytes.put_slice(&text);
        self.messages += 1;
    }

    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

impl Wire {
    pub(super) fn new(socket: Socket, input: Bytes, limits: Limits) -> Self {
        let mut boundary = Boundary::default();
        boundary.follow(&input);
        Self { socket: Arc::new(socket), protocol: None, boundary, input, limits, broken: false }
    }

    /// The socket, for those who write to it from elsewhere.
    pub fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    /// Bytes that wait and are not with the kernel yet.
    pub fn waiting(&self) -> usize {
        self.socket.waiting()
    }

    pub fn is_idle(&self) -> bool {
        self.socket.is_idle()
    }

    /// Since when the peer has taken nothing although something waits.
    pub fn stalled_since(&self) -> Option<Instant> {
        self.socket.stalled_since()
    }

    pub fn send<T: Serialize>(&mut self, frame: &T) {
        let text = serde_json::to_vec(frame).expect("a frame is plain data");
        self.queue(Data::Text, text.into());
    }

    /// Sends finished JSON.
    pub fn send_text(&mut self, text: Bytes) {
        debug_assert!(std::str::from_utf8(&text).is_ok(), "frames in the log are UTF-8");
        self.queue(Data::Text, text);
    }

    /// Sends a text that others send too.
    pub fn send_text_shared(&mut self, text: Utf8Bytes) {
        self.queue(Data::Text, text.into());
    }

    pub fn send_binary(&mut self, frame: Bytes) {
        self.queue(Data::Binary, frame);
    }

    /// Sends finished frames: so many messages.
    pub fn send_frames(&mut self, frames: Bytes, messages: u32) {
        self.socket.queue([frames], messages);
    }

    pub fn send_together(&mut self, frames: Together) {
        if frames.messages > 0 {
            self.send_frames(frames.bytes.freeze(), frames.messages);
        }
    }

    fn queue(&mut self, kind: Data, payload: Bytes) {
        let mut frame = BytesMut::with_capacity(frame_size(payload.len().min(COPIED)));
        begin_frame(kind, payload.len(), &mut frame);
        if payload.len() <= COPIED {
            frame.put_slice(&payload);
            self.socket.queue([frame.freeze()], 1);
        } else {
            self.socket.queue([frame.freeze(), payload], 1);
        }
    }

    /// Messages that were ever queued, by anybody.
    pub fn queued(&self) -> u64 {
        self.socket.queued()
    }

    /// Of those, how many are with the kernel.
    pub fn handed_on(&self) -> u64 {
        self.socket.handed_on()
    }

    /// Sends what waits and receives what comes, whichever is first. Cancel safe.
    pub async fn turn(&mut self) -> Turn {
        poll_fn(|cx| self.poll_turn(cx)).await
    }

    pub fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        match self.socket.poll_flush(cx) {
            Poll::Ready(Ok(true)) => return Poll::Ready(Turn::Flushed),
            Poll::Ready(Ok(false)) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Turn::Broken(error.into())),
            // Sending wakes this; a peer that takes nothing is found out by its stall.
            Poll::Pending if self.waiting() > READ_WHILE => return Poll::Pending,
            Poll::Pending => {}
        }
        if self.broken {
            // tungstenite must not be asked again behind an error.
            return Poll::Pending;
        }
        let received = ready!(self.poll_message(cx));
        // Answers to pings, and the answer to a close, are on their way before anybody acts on what was received.
        if let Poll::Ready(Err(error)) = self.socket.poll_flush(cx) {
            return Poll::Ready(Turn::Broken(error.into()));
        }
        Poll::Ready(match received {
            Ok(Message::Close(frame)) => Turn::Closed(frame.map(|frame| frame.code.into())),
            Ok(message) => Turn::Received(message),
            Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed) => Turn::Closed(None),
            Err(error) => {
                self.broken = true;
                Turn::Broken(error)
            }
        })
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message, tungstenite::Error>> {
        loop {
            if let Some(read) = self.take_apart(false) {
                return Poll::Ready(read);
            }
            let at_end = ready!(self.poll_input(cx))?;
            if at_end {
                let read = self.take_apart(true);
                return Poll::Ready(read.unwrap_or(Err(tungstenite::Error::ConnectionClosed)));
            }
        }
    }

    /// Reads what came into `input`, which is empty. Ready with whether that was the end of the stream.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        BUFFER.with_borrow_mut(|buffer| {
            let mut into = ReadBuf::new(&mut buffer[..(self.limits.read as usize).min(READ)]);
            ready!(self.socket.poll_read(cx, &mut into))?;
            self.input = Bytes::copy_from_slice(into.filled());
            self.boundary.follow(&self.input);
            Poll::Ready(Ok(into.filled().is_empty()))
        })
    }

    /// The next message in `input`, if it is whole.
    fn take_apart(&mut self, at_end: bool) -> Option<Result<Message, tungstenite::Error>> {
        if self.protocol.is_none() && self.input.is_empty() && !at_end {
            return None;
        }
        let protocol = self.protocol.get_or_insert_with(|| Box::new(begin(self.limits)));
        let mut ends = Ends { input: &mut self.input, at_end, out: Vec::new() };
        let read = protocol.read(&mut ends);
        if matches!(read, Ok(Message::Ping(_) | Message::Close(_))) {
            // What answers it is made by the next call otherwise. Its error says that all is over, as `read` will.
            let _ = protocol.flush(&mut ends);
        }
        let (out, is_active) = (ends.out, protocol.can_write());
        match (out.is_empty(), is_active) {
            (true, _) => {}
            (false, true) => self.socket.queue([out.into()], 0),
            (false, false) => self.socket.queue_last(out.into()),
        }
        match read {
            Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                if is_active && self.boundary.is_between_messages() {
                    self.protocol = None;
                }
                None
            }
            read => Some(read),
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
        if flush && !self.is_idle() {
            let _ = timeout(within, async {
                while !self.is_idle() && !matches!(self.turn().await, Turn::Broken(_) | Turn::Closed(_)) {}
            })
            .await;
        }
        let mut ends = Ends { input: &mut Bytes::new(), at_end: false, out: Vec::new() };
        let frame = CloseFrame { code: code.into(), reason: reason.into() };
        let protocol = self.protocol.get_or_insert_with(|| Box::new(begin(self.limits)));
        if protocol.close(&mut ends, Some(frame)).is_ok() {
            self.socket.queue_last(ends.out.into());
        }
        let closing = async {
            // Until the peer's own close frame: it then knows the code. None can be read behind what broke the protocol,
            // and it waits for the end of the connection (RFC 6455, 7.1.7).
            loop {
                if self.broken && self.is_idle() {
                    return;
                }
                if let Turn::Broken(_) | Turn::Closed(_) = self.turn().await {
                    return;
                }
            }
        };
        let _ = timeout(within, closing).await;
    }
}

fn begin(limits: Limits) -> WebSocketContext {
    let config = WebSocketConfig::default()
        .read_buffer_size(limits.room as usize)
        .write_buffer_size(0)
        .max_message_size(Some(limits.message as usize))
        .max_frame_size(Some(limits.message as usize));
    WebSocketContext::new(Role::Server, Some(config))
}

/// Where the frames end in what came: between messages tungstenite has nothing to remember.
#[derive(Default)]
struct Boundary {
    /// Bytes of the frame that has begun which are still to come.
    left: u64,
    /// The last frame of a message is still to come.
    in_message: bool,
    /// A header came in two parts, or what came is no frame: from there on nothing is known.
    lost: bool,
}

impl Boundary {
    fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.lost {
            let skipped = self.left.min(bytes.len() as u64);
            self.left -= skipped;
            bytes = &bytes[skipped as usize..];
            if !bytes.is_empty() {
                bytes = self.behind_header(bytes);
            }
        }
    }

    fn behind_header<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let mut cursor = Cursor::new(bytes);
        let Ok(Some((header, length))) = FrameHeader::parse(&mut cursor) else {
            self.lost = true;
            return &[];
        };
        self.left = length;
        if matches!(header.opcode, OpCode::Data(_)) {
            self.in_message = !header.is_final;
        }
        &bytes[cursor.position() as usize..]
    }

    fn is_between_messages(&self) -> bool {
        self.left == 0 && !self.in_message && !self.lost
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.socket.shut();
    }
}

/// Both ends of the connection, as tungstenite sees them: bytes that came, and bytes that are to go.
struct Ends<'a> {
    input: &'a mut Bytes,
    at_end: bool,
    out: Vec<u8>,
}

impl Read for Ends<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return if self.at_end { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        let taken = into.len().min(self.input.len());
        self.input.copy_to_slice(&mut into[..taken]);
        if self.input.is_empty() {
            // An idle connection keeps nothing of what it was sent.
            *self.input = Bytes::new();
        }
        Ok(taken)
    }
}

impl Write for Ends<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a message of so many bytes takes up as one frame.
pub(super) fn frame_size(payload: usize) -> usize {
    // The longest header of a frame without a mask.
    payload + 10
}

/// Writes the header of a message that is one frame, unmasked.
pub(super) fn begin_frame(kind: Data, payload: usize, into: &mut BytesMut) {
    let header = FrameHeader { opcode: OpCode::Data(kind), ..FrameHeader::default() };
    header.format(payload as u64, &mut into.writer()).expect("memory takes all of it");
}

/// How a broken turn is closed: by what was wrong with the peer's frame, as far as it can be told.
pub fn close_code(error: &tungstenite::Error) -> Option<(Code, &'static str)> {
    use tungstenite::{Error, error::ProtocolError::ResetWithoutClosingHandshake};
    match error {
        // Nobody is there any more: no frame of theirs was wrong.
        Error::Protocol(ResetWithoutClosingHandshake) => None,
        Error::Capacity(_) => Some((Code::FrameTooLarge, "the frame is larger than allowed")),
        Error::Utf8(_) => Some((Code::UnreadableFrame, "text frames are UTF-8")),
        Error::Protocol(_) => Some((Code::UnreadableFrame, "this breaks the WebSocket protocol")),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
