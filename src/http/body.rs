//! Request bodies that must arrive in time.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

/// What a client must bring to be given one more second: slow lines get through, a byte a second does not.
const BYTES_PER_SECOND: u64 = 16 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the request's body came too slowly")]
    TooSlow,
    #[error("the request's body could not be read")]
    Broken(#[source] axum::BoxError),
}

/// A body whose sender has `limit` in all to be waited for, and earns more with what it brings. Time in which nobody
/// asks for more is not counted.
pub struct TimedBody<B> {
    inner: B,
    limit: Duration,
    left: Duration,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl<B> TimedBody<B> {
    pub fn new(inner: B, limit: Duration) -> Self {
        Self { inner, limit, left: limit, waiting: None }
    }

    fn stop_waiting(&mut self, bytes: usize) {
        if let Some((since, _)) = self.waiting.take() {
            let earned = Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND as f64);
            self.left = (self.left.saturating_sub(since.elapsed()) + earned).min(self.limit);
        }
    }
}

impl<B> Body for TimedBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<axum::BoxError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
            this.stop_waiting(bytes);
            return Poll::Ready(frame.map(|frame| frame.map_err(|error| BodyError::Broken(error.into()))));
        }
        let left = this.left;
        let (_, sleep) = this.waiting.get_or_insert_with(|| (Instant::now(), Box::pin(tokio::time::sleep(left))));
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(Some(Err(BodyError::TooSlow)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
