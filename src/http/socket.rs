//! The socket of an upgraded connection, shared by those who write to it: the connection's own task, and the fan-outs of
//! the sessions that it follows.
//!
//! Whole frames are queued or written under one lock, so frames never interleave. Who finds nothing waiting writes at
//! once; what the kernel does not take waits here, in order, and the own task writes it when there is room. Only that
//! task waits for the socket: a write that would block registers its waker, whoever tried.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Mutex, MutexGuard},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::server::TlsStream;

use super::written::Held;

/// Pieces that one write takes at most.
const AT_ONCE: usize = 32;

/// What bytes go over.
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// For tests: anything that reads and writes.
    #[cfg(test)]
    Any(Box<dyn AnyStream>),
}

#[cfg(test)]
pub trait AnyStream: AsyncRead + AsyncWrite + Unpin + Send {}
#[cfg(test)]
impl<S: AsyncRead + AsyncWrite + Unpin + Send> AnyStream for S {}

/// Passes a call on to whichever stream it is.
macro_rules! on_stream {
    ($self:expr, $stream:ident => $call:expr) => {
        match $self {
            Stream::Plain($stream) => $call,
            Stream::Tls($stream) => $call,
            #[cfg(test)]
            Stream::Any($stream) => $call,
        }
    };
}

impl Stream {
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, stream => Pin::new(stream).poll_read(cx, into))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        on_stream!(self, stream => match pieces {
            [piece] => Pin::new(stream).poll_write(cx, piece),
            pieces => Pin::new(stream).poll_write_vectored(cx, pieces),
        })
    }

    /// Plain TCP keeps nothing back; TLS may.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, stream => Pin::new(stream).poll_flush(cx))
    }
}

/// A connection's socket and what waits for it.
pub struct Socket(Mutex<State>);

struct State {
    /// `None`: the connection is over.
    stream: Option<Stream>,
    /// Its place among all connections.
    held: Option<Held>,
    /// What waits, oldest first.
    out: VecDeque<Piece>,
    /// Of the oldest piece, bytes that the kernel has.
    sent: usize,
    /// Bytes that wait.
    waiting: usize,
    /// Of TLS: the stream has bytes that it could not write yet.
    unflushed: bool,
    /// Messages that were ever queued or written, and how many of them were handed on whole.
    queued: u64,
    handed_on: u64,
    /// Since when the peer has taken nothing of what waits.
    stalled_since: Option<Instant>,
    /// The close frame was queued, or a write failed: nothing comes behind that.
    closed: bool,
    /// Why a write failed, for the own task.
    broken: Option<io::Error>,
    /// The own task.
    owner: Option<Waker>,
}

/// Bytes that go out in one piece, and the messages that end with it.
struct Piece {
    bytes: Bytes,
    messages: u32,
}

impl Socket {
    pub(super) fn new(stream: Stream, held: Option<Held>) -> Self {
        Self(Mutex::new(State {
            stream: Some(stream),
            held,
            out: VecDeque::new(),
            sent: 0,
            waiting: 0,
            unflushed: false,
            queued: 0,
            handed_on: 0,
            stalled_since: None,
            closed: false,
            broken: None,
            owner: None,
        }))
    }

    /// Writes whole frames if nothing waits before them and the kernel takes some of it now; what it leaves waits.
    /// `false`: nothing of it was taken. Never blocks. For others than the own task, which is woken if it is to go on.
    pub fn offer(&self, bytes: &Bytes, messages: u32) -> bool {
        let mut state = self.lock();
        if state.closed || !state.out.is_empty() || state.unflushed {
            return false;
        }
        let Some(owner) = state.owner.take() else { return false };
        let taken = state.write_at_once(&mut Context::from_waker(&owner), bytes, messages);
        if !state.out.is_empty() || state.unflushed || state.closed {
            // It has a stall to watch over, or an end to come to.
            owner.wake_by_ref();
        }
        state.owner = Some(owner);
        taken
    }

    /// Queues a whole message, in pieces.
    pub(super) fn queue(&self, pieces: impl IntoIterator<Item = Bytes>, messages: u32) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        state.queued += u64::from(messages);
        for bytes in pieces.into_iter().filter(|bytes| !bytes.is_empty()) {
            state.push(Piece { bytes, messages: 0 });
        }
        if let Some(last) = state.out.back_mut() {
            last.messages += messages;
        }
    }

    /// Queues the last frame: nothing more is taken from anybody.
    pub(super) fn queue_last(&self, bytes: Bytes) {
        let mut state = self.lock();
        if !state.closed {
            state.push(Piece { bytes, messages: 0 });
            state.closed = true;
        }
    }

    /// Writes what waits, and makes the caller the one who is woken. For the own task alone. Ready with whether there
    /// was anything.
    ///
    /// # Errors
    /// When the transport is gone.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut state = self.lock();
        match &mut state.owner {
            Some(owner) => owner.clone_from(cx.waker()),
            owner => *owner = Some(cx.waker().clone()),
        }
        if let Some(error) = state.broken.take() {
            return Poll::Ready(Err(error));
        }
        if state.out.is_empty() && !state.unflushed {
            return Poll::Ready(Ok(false));
        }
        state.poll_out(cx).map_ok(|()| true)
    }

    /// Reads what came. For the own task alone. Ready with nothing read at the end of the stream.
    pub(super) fn poll_read(&self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.lock().stream {
            Some(stream) => stream.poll_read(cx, into),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Bytes that wait.
    pub(super) fn waiting(&self) -> usize {
        self.lock().waiting
    }

    pub(super) fn is_idle(&self) -> bool {
        let state = self.lock();
        state.out.is_empty() && !state.unflushed
    }

    pub(super) fn stalled_since(&self) -> Option<Instant> {
        self.lock().stalled_since
    }

    pub(super) fn queued(&self) -> u64 {
        self.lock().queued
    }

    pub(super) fn handed_on(&self) -> u64 {
        self.lock().handed_on
    }

    /// Ends the connection, whoever else still holds it.
    pub(super) fn shut(&self) {
        let mut state = self.lock();
        (state.closed, state.owner) = (true, None);
        state.out = VecDeque::new();
        let ended = (state.stream.take(), state.held.take());
        drop(state);
        // The socket is closed without the lock: that may take the kernel a while.
        drop(ended);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder panics")
    }
}

impl State {
    fn push(&mut self, piece: Piece) {
        self.waiting += piece.bytes.len();
        self.out.push_back(piece);
        self.stalled_since.get_or_insert_with(Instant::now);
    }

    fn write_at_once(&mut self, cx: &mut Context<'_>, bytes: &Bytes, messages: u32) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        match stream.poll_write(cx, &[IoSlice::new(bytes)]) {
            Poll::Pending => return false,
            Poll::Ready(Err(error)) => {
                self.fail(error);
                return false;
            }
            Poll::Ready(Ok(written)) => {
                self.queued += u64::from(messages);
                if written == bytes.len() {
                    self.handed_on += u64::from(messages);
                } else {
                    self.push(Piece { bytes: bytes.clone(), messages });
                    self.advance(written);
                }
            }
        }
        // The rest, and what TLS kept back: until it would block, so that the own task is woken when it would not.
        if (!self.out.is_empty() || self.is_tls())
            && let Poll::Ready(Err(error)) = self.poll_out(cx)
        {
            self.fail(error);
        }
        true
    }

    fn is_tls(&self) -> bool {
        matches!(self.stream, Some(Stream::Tls(_)))
    }

    fn fail(&mut self, error: io::Error) {
        (self.closed, self.broken) = (true, Some(error));
    }

    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        while !self.out.is_empty() {
            let stream = self.stream.as_mut().ok_or_else(gone)?;
            let mut slices = [IoSlice::new(&[]); AT_ONCE];
            let mut skip = self.sent;
            let mut count = 0;
            for (slice, piece) in slices.iter_mut().zip(&self.out) {
                *slice = IoSlice::new(&piece.bytes[skip..]);
                (skip, count) = (0, count + 1);
            }
            let written = std::task::ready!(stream.poll_write(cx, &slices[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            self.advance(written);
        }
        let stream = self.stream.as_mut().ok_or_else(gone)?;
        self.unflushed = stream.poll_flush(cx)?.is_pending();
        if self.unflushed {
            self.stalled_since.get_or_insert_with(Instant::now);
            return Poll::Pending;
        }
        self.stalled_since = None;
        Poll::Ready(Ok(()))
    }

    /// The kernel has taken so many bytes of what waits.
    fn advance(&mut self, mut written: usize) {
        self.waiting -= written;
        while let Some(piece) = self.out.front() {
            let left = piece.bytes.len() - self.sent;
            if written < left {
                self.sent += written;
                break;
            }
            written -= left;
            self.sent = 0;
            self.handed_on += u64::from(piece.messages);
            self.out.pop_front();
        }
        self.stalled_since = if self.out.is_empty() { None } else { Some(Instant::now()) };
        if self.out.is_empty() {
            // Whoever was slow once need not keep its longest queue's room.
            self.out = VecDeque::new();
        }
    }
}
