//! "A completely written response": how a poll proves that its reader got what it carried.
//!
//! The socket is wrapped in [`Tracked`], the response's body in [`NotifyBody`]. hyper flushes the socket only once its
//! own buffer is empty, and hands a body's last piece to that buffer in the step in which it drops the body. So the
//! first successful flush after a complete body was dropped means that head and body are with the kernel. What breaks
//! before drops the callbacks uncalled.
//!
//! [`Tracked`] also ends a connection whose peer sends a request's head too slowly, or takes nothing for too long.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use super::listener::Place;
use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
    time::Sleep,
};

type Callback = Box<dyn FnOnce() + Send>;

/// What the two ends of one connection, its socket and its requests, share.
#[derive(Default)]
pub(super) struct Link {
    /// Of complete responses that the socket has not flushed yet.
    unflushed: Mutex<Vec<Callback>>,
    /// Whether `unflushed` holds something, to be seen without the lock.
    waiting: AtomicBool,
    /// Requests begun so far.
    begun: AtomicU32,
    /// Whether a request is being answered, or the connection was upgraded.
    busy: AtomicBool,
    /// The connection was upgraded: its surface finds out a peer that takes nothing, and closes it with a code.
    upgraded: AtomicBool,
}

impl Link {
    fn callbacks(&self) -> MutexGuard<'_, Vec<Callback>> {
        self.unflushed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flushed(&self) {
        if self.waiting.swap(false, Ordering::AcqRel) {
            let callbacks = std::mem::take(&mut *self.callbacks());
            callbacks.into_iter().for_each(|callback| callback());
        }
    }
}

/// One response's end, found in its request's extensions. Clones are the same response.
#[derive(Clone)]
pub struct Written {
    shared: Arc<Response>,
}

struct Response {
    link: Arc<Link>,
    /// `None` once the response is complete or given up.
    callbacks: Mutex<Option<Vec<Callback>>>,
}

impl Written {
    pub(super) fn begin(link: &Arc<Link>) -> Self {
        link.begun.fetch_add(1, Ordering::Relaxed);
        link.busy.store(true, Ordering::Release);
        Self { shared: Arc::new(Response { link: link.clone(), callbacks: Mutex::new(Some(Vec::new())) }) }
    }

    /// Calls back, on the connection's task, once the whole response is with the socket. Dropped uncalled when the
    /// connection breaks before, when the response has no body to write (`HEAD`), or when it is complete already.
    /// The callback must be quick and must not block.
    pub fn after_response(&self, callback: Callback) {
        if let Some(callbacks) = self.callbacks().as_mut() {
            callbacks.push(callback);
        }
    }

    fn callbacks(&self) -> MutexGuard<'_, Option<Vec<Callback>>> {
        self.shared.callbacks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops what was registered, and what may still be.
    pub(super) fn give_up(&self) {
        self.end(false);
    }

    /// The body is over. Complete: the next flush calls back.
    fn end(&self, complete: bool) {
        let callbacks = self.callbacks().take().unwrap_or_default();
        let link = &self.shared.link;
        if complete && !callbacks.is_empty() {
            link.callbacks().extend(callbacks);
            link.waiting.store(true, Ordering::Release);
        }
    }
}

/// A response's body that tells its [`Written`] whether all of it was taken.
pub struct NotifyBody {
    inner: Body,
    written: Written,
    /// Bytes of a body that says its length; hyper does not ask such a body for its end.
    length: Option<u64>,
    taken: u64,
    ended: bool,
    /// After an upgrade no further request follows on this connection.
    last: bool,
}

impl NotifyBody {
    pub(super) fn new(inner: Body, written: Written, upgrades: bool) -> Self {
        written.shared.link.upgraded.store(upgrades, Ordering::Release);
        let length = http_body::Body::size_hint(&inner).exact();
        Self { inner, written, length, taken: 0, ended: false, last: upgrades }
    }
}

impl http_body::Body for NotifyBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => self.taken += frame.data_ref().map_or(0, |data| data.len() as u64),
            Poll::Ready(None) => self.ended = true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for NotifyBody {
    fn drop(&mut self) {
        let complete = self.ended || self.length == Some(self.taken) || http_body::Body::is_end_stream(&self.inner);
        self.written.end(complete);
        if !self.last {
            self.written.shared.link.busy.store(false, Ordering::Release);
        }
    }
}

/// How long a peer may keep a connection waiting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// From the first byte of a request (the connection's start for the first) to the end of its head.
    pub header: Duration,
    /// Without taking anything that is to be written.
    pub stall: Duration,
}

/// A connection's place among all, held for as long as its socket is open, also after an upgrade.
pub(super) type Held = (OwnedSemaphorePermit, Place);

/// A socket that knows when responses are written.
pub(super) struct Tracked<S> {
    inner: S,
    link: Arc<Link>,
    patience: Patience,
    /// Runs while a head is being read.
    head: Option<Pin<Box<Sleep>>>,
    /// How many requests had begun when `head` was last looked at.
    seen: u32,
    /// Runs while the peer takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    held: Held,
}

impl<S> Tracked<S> {
    pub(super) fn new(inner: S, link: Arc<Link>, patience: Patience, held: Held) -> Self {
        let head = Some(Box::pin(tokio::time::sleep(patience.header)));
        Self { inner, link, patience, head, seen: 0, stalled: None, held }
    }

    /// What is left of it after an upgrade.
    pub(super) fn into_parts(self) -> (S, Held) {
        (self.inner, self.held)
    }

    /// Passes a result of writing on, unless the peer has taken nothing for too long.
    fn progress<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() || self.link.upgraded.load(Ordering::Acquire) {
            self.stalled = None;
            return result;
        }
        let stall = self.patience.stall;
        let sleep = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        sleep.as_mut().poll(cx).map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tracked<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let begun = this.link.begun.load(Ordering::Relaxed);
        if begun != this.seen {
            (this.seen, this.head) = (begun, None);
        }
        let before = buf.filled().len();
        let result = Pin::new(&mut this.inner).poll_read(cx, buf);
        if this.link.busy.load(Ordering::Acquire) {
            return result;
        }
        if result.is_ready() {
            if this.head.is_none() && buf.filled().len() > before {
                this.head = Some(Box::pin(tokio::time::sleep(this.patience.header)));
            }
        } else if this.head.as_mut().is_some_and(|head| head.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the request's head came too slowly")));
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tracked<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.progress(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.progress(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        if let Poll::Ready(Ok(())) = result {
            self.link.flushed();
        }
        self.progress(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.progress(cx, result)
    }
}
