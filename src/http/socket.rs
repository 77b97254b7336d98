//! The socket of an upgraded connection, shared by those who write to it: the connection's own task, and the fan-outs of
//! the sessions that it follows.
//!
//! Whole frames are queued or written under one lock, so frames never interleave. Who finds nothing waiting writes at
//! once; what the kernel does not take waits here, in order, and the own task writes it when there is room. Only that
//! task waits for the socket: a write that would block registers its waker, whoever tried.
//!
//! A connection that follows many sessions gathers: what their fan-outs bring waits until the own task has had a turn
//! behind them, and is one write.

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
/// With so many bytes waiting nothing more is gathered: fan-outs leave the rest to the own task, which reads the log.
const GATHERED: usize = 64 * 1024;

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
    /// `None` while nothing waits: most sockets are idle, and many.
    backlog: Option<Box<Backlog>>,
    /// Messages that were ever queued or written, and how many of them were handed on whole.
    queued: u64,
    handed_on: u64,
    /// The close frame was queued, or a write failed: nothing comes behind that.
    closed: bool,
    /// Others than the own task do not write at once.
    gathers: bool,
    /// Why a write failed, for the own task.
    broken: Option<io::Error>,
    /// The own task.
    owner: Option<Waker>,
}

/// What the kernel has not taken. Without pieces: TLS has bytes that it could not write yet.
struct Backlog {
    /// Oldest first.
    pieces: VecDeque<Piece>,
    /// Of the oldest piece, bytes that the kernel has.
    sent: usize,
    /// Bytes that wait.
    bytes: usize,
    /// Since when the peer has taken nothing.
    stalled_since: Instant,
    waits_for: WaitsFor,
}

/// What is to happen before what waits is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitsFor {
    /// Whoever is about to run may bring more: the own task lets them, once.
    Others,
    OwnTask,
    /// The kernel takes no more.
    Kernel,
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
            backlog: None,
            queued: 0,
            handed_on: 0,
            closed: false,
            gathers: false,
            broken: None,
            owner: None,
        }))
    }

    /// Writes whole frames if nothing waits before them and the kernel takes some of it now; what it leaves waits.
    /// `false`: nothing of it was taken. Never blocks. For others than the own task, which is woken if it is to go on.
    pub fn offer(&self, pieces: &[Bytes], messages: u32) -> bool {
        let mut state = self.lock();
        if state.closed {
            return false;
        }
        if state.gathers {
            return state.gather(pieces, messages);
        }
        if state.backlog.is_some() {
            return false;
        }
        let Some(owner) = state.owner.take() else { return false };
        let taken = state.write_at_once(&mut Context::from_waker(&owner), pieces, messages);
        if state.backlog.is_some() || state.closed {
            // It has a stall to watch over, or an end to come to.
            owner.wake_by_ref();
        }
        state.owner = Some(owner);
        taken
    }

    /// Whether what fan-outs bring is gathered and goes out in one write, instead of one each.
    pub(super) fn set_gathers(&self, gathers: bool) {
        self.lock().gathers = gathers;
    }

    /// Queues a whole message, in pieces.
    pub(super) fn queue(&self, pieces: impl IntoIterator<Item = Bytes>, messages: u32) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        state.queued += u64::from(messages);
        state.push(pieces, messages);
    }

    /// Queues the last frame: nothing more is taken from anybody.
    pub(super) fn queue_last(&self, bytes: Bytes) {
        let mut state = self.lock();
        if !state.closed {
            state.push([bytes], 0);
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
        match &mut state.backlog {
            None => return Poll::Ready(Ok(false)),
            Some(backlog) if backlog.waits_for == WaitsFor::Others => {
                backlog.waits_for = WaitsFor::OwnTask;
                // Asked for again from within its own turn, a task comes behind those that are to run already.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(_) => {}
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
        self.lock().backlog.as_ref().map_or(0, |backlog| backlog.bytes)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.lock().backlog.is_none()
    }

    pub(super) fn stalled_since(&self) -> Option<Instant> {
        self.lock().backlog.as_ref().map(|backlog| backlog.stalled_since)
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
        let ended = (state.stream.take(), state.held.take(), state.backlog.take());
        drop(state);
        // The socket is closed without the lock: that may take the kernel a while.
        drop(ended);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder panics")
    }
}

impl State {
    fn backlog(&mut self) -> &mut Backlog {
        self.backlog.get_or_insert_with(|| {
            let (stalled_since, waits_for) = (Instant::now(), WaitsFor::OwnTask);
            Box::new(Backlog { pieces: VecDeque::new(), sent: 0, bytes: 0, stalled_since, waits_for })
        })
    }

    /// So many messages, which end with the last piece.
    fn push(&mut self, pieces: impl IntoIterator<Item = Bytes>, messages: u32) {
        let backlog = self.backlog();
        for bytes in pieces.into_iter().filter(|bytes| !bytes.is_empty()) {
            backlog.bytes += bytes.len();
            backlog.pieces.push_back(Piece { bytes, messages: 0 });
        }
        if let Some(last) = backlog.pieces.back_mut() {
            last.messages += messages;
        }
    }

    /// `false`: nothing of it was taken.
    fn gather(&mut self, pieces: &[Bytes], messages: u32) -> bool {
        let Some(owner) = &self.owner else { return false };
        match &self.backlog {
            None => owner.wake_by_ref(),
            Some(waits) if waits.waits_for == WaitsFor::Kernel || waits.bytes >= GATHERED => return false,
            Some(_) => {}
        }
        let is_first = self.backlog.is_none();
        self.queued += u64::from(messages);
        self.push(pieces.iter().cloned(), messages);
        if is_first {
            self.backlog().waits_for = WaitsFor::Others;
        }
        true
    }

    fn write_at_once(&mut self, cx: &mut Context<'_>, pieces: &[Bytes], messages: u32) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let mut slices = [IoSlice::new(&[]); AT_ONCE];
        let count = slices.iter_mut().zip(pieces).map(|(slice, piece)| *slice = IoSlice::new(piece)).count();
        let written = match stream.poll_write(cx, &slices[..count]) {
            Poll::Pending => return false,
            Poll::Ready(Err(error)) => {
                self.fail(error);
                return false;
            }
            Poll::Ready(Ok(written)) => written,
        };
        self.queued += u64::from(messages);
        let is_all = written == pieces.iter().map(Bytes::len).sum::<usize>();
        if is_all {
            self.handed_on += u64::from(messages);
        } else {
            self.push(pieces.iter().cloned(), messages);
            self.advance(written);
        }
        // The rest, and what TLS kept back: until it would block, so that the own task is woken when it would not.
        if (!is_all || matches!(self.stream, Some(Stream::Tls(_))))
            && let Poll::Ready(Err(error)) = self.poll_out(cx)
        {
            self.fail(error);
        }
        true
    }

    fn fail(&mut self, error: io::Error) {
        (self.closed, self.broken) = (true, Some(error));
    }

    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = self.poll_write_out(cx);
        if written.is_pending() {
            self.backlog().waits_for = WaitsFor::Kernel;
        }
        written
    }

    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        while let Some(backlog) = self.backlog.as_ref().filter(|backlog| !backlog.pieces.is_empty()) {
            let stream = self.stream.as_mut().ok_or_else(gone)?;
            let mut slices = [IoSlice::new(&[]); AT_ONCE];
            let mut count = 0;
            for (slice, piece) in slices.iter_mut().zip(&backlog.pieces) {
                let skip = if count == 0 { backlog.sent } else { 0 };
                *slice = IoSlice::new(&piece.bytes[skip..]);
                count += 1;
            }
            let written = std::task::ready!(stream.poll_write(cx, &slices[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
        }
        let stream = self.stream.as_mut().ok_or_else(gone)?;
        std::task::ready!(stream.poll_flush(cx))?;
        self.backlog = None;
        Poll::Ready(Ok(()))
    }

    /// The kernel has taken so many bytes of what waits.
    fn advance(&mut self, mut written: usize) {
        let Some(backlog) = &mut self.backlog else { return };
        backlog.bytes -= written;
        backlog.stalled_since = Instant::now();
        while let Some(piece) = backlog.pieces.front() {
            let left = piece.bytes.len() - backlog.sent;
            if written < left {
                backlog.sent += written;
                break;
            }
            written -= left;
            backlog.sent = 0;
            self.handed_on += u64::from(piece.messages);
            backlog.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
