//! Form bodies that are read as they come. The parser collects without a limit until it has found a part's end or
//! headers; this feeds it piece by piece and stops when it gets nowhere.

use std::{
    error::Error,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest as _, Multipart, Request, multipart::Field},
    http::header,
};
use futures::{Stream, StreamExt as _};
use http_body::Body as _;
use tokio::time::timeout;

use super::problem::Problem;
use crate::http::body::BodyError;

/// What may come before the parser has found something: a boundary, a part's headers. The listener's pieces are not
/// larger than this.
const FRUITLESS_BYTES: usize = 16 * 1024;
/// For how long a sender is listened to that was refused in the middle of its body. Without it the connection would be
/// reset, and most senders would never read why.
const LINGER: Duration = Duration::from_secs(2);

/// The parts of a form, one after the other.
pub(super) struct Form {
    parts: Multipart,
    feed: Feed,
}

/// The rest of a form's body.
#[derive(Clone)]
struct Feed(Arc<Mutex<Fed>>);

struct Fed {
    body: Body,
    /// Bytes since something was found.
    fruitless: usize,
    /// The parser reads for as long as there is something at once; one piece at a time is enough.
    paused: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("a boundary or the headers of a part are too long")]
struct Fruitless;

impl Form {
    /// # Errors
    /// 415 for another content type, 400 without a boundary.
    pub(super) async fn new(request: Request) -> Result<Self, Problem> {
        let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("multipart/form-data") {
            return Err(Problem::new(
                axum::http::StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "UNSUPPORTED_MEDIA_TYPE",
                "Content-Type must be multipart/form-data",
            ));
        }
        let (head, body) = request.into_parts();
        let feed = Feed(Arc::new(Mutex::new(Fed { body, fruitless: 0, paused: false })));
        let request = Request::from_parts(head, Body::from_stream(feed.clone()));
        let parts = Multipart::from_request(request, &()).await;
        let parts = parts.map_err(|_| Problem::malformed("Content-Type has no boundary that can be used"))?;
        Ok(Self { parts, feed })
    }

    /// The next part, whatever was left of the one before.
    ///
    /// # Errors
    /// 400 for a body that cannot be read, 408 for one that comes too slowly.
    pub(super) async fn next(&mut self) -> Result<Option<Part<'_>>, Problem> {
        let field = self.parts.next_field().await.map_err(|error| unreadable(&error))?;
        self.feed.found();
        Ok(field.map(|field| Part { field, feed: &self.feed }))
    }

    /// Reads on for a moment and keeps nothing of it.
    pub(super) fn linger(self) -> impl Future<Output = ()> + Send + 'static {
        let Self { parts, feed } = self;
        drop(parts);
        async move {
            let mut rest = feed;
            let read = async {
                while let Some(Ok(_)) = rest.next().await {
                    rest.found();
                }
            };
            let _: Result<(), _> = timeout(LINGER, read).await;
        }
    }
}

pub(super) struct Part<'a> {
    field: Field<'a>,
    feed: &'a Feed,
}

impl Part<'_> {
    pub(super) fn name(&self) -> Option<&str> {
        self.field.name()
    }

    pub(super) fn file_name(&self) -> Option<&str> {
        self.field.file_name()
    }

    /// The next bytes of its content, at least one.
    ///
    /// # Errors
    /// As [`Form::next`].
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            let chunk = self.field.chunk().await.map_err(|error| unreadable(&error))?;
            self.feed.found();
            if chunk.as_ref().is_none_or(|chunk| !chunk.is_empty()) {
                return Ok(chunk);
            }
        }
    }
}

impl Feed {
    fn found(&self) {
        self.0.lock().expect("no holder panics").fruitless = 0;
    }
}

impl Stream for Feed {
    type Item = Result<Bytes, axum::BoxError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut fed = self.0.lock().expect("no holder panics");
        if std::mem::take(&mut fed.paused) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if fed.fruitless > FRUITLESS_BYTES {
            return Poll::Ready(Some(Err(Fruitless.into())));
        }
        loop {
            let frame = match Pin::new(&mut fed.body).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
                Poll::Ready(Some(Ok(frame))) => frame,
            };
            // Trailers say nothing here.
            if let Ok(bytes) = frame.into_data() {
                fed.fruitless += bytes.len();
                fed.paused = true;
                return Poll::Ready(Some(Ok(bytes)));
            }
        }
    }
}

/// The texts are our own: those of the parser hold names that the sender chose.
fn unreadable(error: &(dyn Error + 'static)) -> Problem {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if matches!(error.downcast_ref(), Some(BodyError::TooSlow)) {
            let status = axum::http::StatusCode::REQUEST_TIMEOUT;
            return Problem::new(status, "REQUEST_TIMEOUT", "The request's body came too slowly");
        }
        cause = error.source();
    }
    Problem::malformed("The body is not a complete multipart form")
}
