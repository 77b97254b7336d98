//! The accept loop: every connection is counted, bounded in time and memory, owned by one tracker, and drained at the
//! end. HTTP/1.1 only, because its upgrades are what the WebSocket surfaces need.
//!
//! Every request carries `ConnectInfo<SocketAddr>` (its peer) and [`Written`] (its response's end) in its extensions.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::ConnectInfo, http::StatusCode};
use hyper::{Method, Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use onlooker_protocol::code::{Code, Refusal};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use tower::ServiceExt as _;

use super::{
    body::TimedBody,
    written::{Link, NotifyBody, Patience, Tracked, Written},
};
use crate::config::Config;

/// The most that one connection buffers of a head or of unwritten small pieces; larger heads get 431.
const BUFFER_BYTES: usize = 16 * 1024;

/// Waits between failing accepts: from the first to the last, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The part of the configuration that the listener needs.
#[derive(Clone, Copy, Debug)]
pub struct ListenerLimits {
    pub connections: usize,
    pub header_read: Duration,
    pub body_read: Duration,
    pub send_stall: Duration,
    pub tls_handshake: Duration,
    pub keep_alive: Duration,
    pub drain: Duration,
}

impl From<&Config> for ListenerLimits {
    fn from(config: &Config) -> Self {
        let t = &config.times;
        Self {
            connections: config.limits.connections,
            header_read: t.header_read,
            body_read: t.body_read,
            send_stall: t.send_stall,
            tls_handshake: t.tls_handshake,
            keep_alive: t.keep_alive,
            drain: t.drain,
        }
    }
}

/// What happened at the door, for metrics.
#[derive(Debug, Default)]
pub struct ListenerCounts {
    pub connections_opened: AtomicU64,
    /// Of those opened; upgraded ones are closed when their socket is.
    pub connections_closed: AtomicU64,
    /// Turned away because all places were taken.
    pub connections_refused: AtomicU64,
    pub tls_failed: AtomicU64,
    pub accept_failed: AtomicU64,
}

/// How the drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were still there at the deadline. Those that carry a plain request were cut; upgraded ones
    /// belong to who upgraded them.
    pub left: usize,
}

/// Accepts until `shutdown`, then lets connections finish for `limits.drain`.
///
/// Cancel safety: dropping the future stops accepting; connections go on until their own end.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    limits: ListenerLimits,
    counts: Arc<ListenerCounts>,
    shutdown: CancellationToken,
) -> Drained {
    let door = Door {
        places: Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS))),
        tls: tls.map(TlsAcceptor::from),
        connections: TaskTracker::new(),
        sockets: TaskTracker::new(),
        shared: Arc::new(Shared { router, limits, counts, shutdown, cut: CancellationToken::new() }),
    };
    door.accept(&listener).await;
    drop(listener);
    door.drain().await
}

struct Door {
    places: Arc<Semaphore>,
    tls: Option<TlsAcceptor>,
    /// Tasks that speak HTTP.
    connections: TaskTracker,
    /// Sockets that are open, upgraded ones too.
    sockets: TaskTracker,
    shared: Arc<Shared>,
}

struct Shared {
    router: Router,
    limits: ListenerLimits,
    counts: Arc<ListenerCounts>,
    shutdown: CancellationToken,
    /// The drain's deadline has passed.
    cut: CancellationToken,
}

impl Door {
    async fn accept(&self, listener: &TcpListener) {
        let mut pause = FIRST_PAUSE;
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.shared.shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    pause = FIRST_PAUSE;
                    self.admit(stream, peer);
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    // Out of files or memory: the pause lets connections end, and keeps the loop from spinning.
                    self.shared.counts.accept_failed.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(%error, "cannot accept connections");
                    tokio::select! {
                        () = self.shared.shutdown.cancelled() => return,
                        () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                    }
                }
            }
        }
    }

    fn admit(&self, stream: TcpStream, peer: SocketAddr) {
        let counts = &self.shared.counts;
        let Ok(permit) = self.places.clone().try_acquire_owned() else {
            counts.connections_refused.fetch_add(1, Ordering::Relaxed);
            if self.tls.is_none() {
                // Fits every empty send buffer; if not, the connection is closed without it.
                let _ = stream.try_write(REFUSED.as_bytes());
            }
            return;
        };
        counts.connections_opened.fetch_add(1, Ordering::Relaxed);
        // Frames are small and wanted now. Fails only on a socket that is closed already.
        let _ = stream.set_nodelay(true);
        let place = (permit, Place { _socket: self.sockets.token(), counts: counts.clone() });
        let (shared, tls) = (self.shared.clone(), self.tls.clone());
        self.connections.spawn(async move {
            match tls {
                None => shared.speak(stream, peer, place).await,
                Some(tls) => match shared.shake_hands(&tls, stream).await {
                    Some(stream) => shared.speak(stream, peer, place).await,
                    None => drop(place),
                },
            }
        });
    }

    async fn drain(self) -> Drained {
        self.connections.close();
        self.sockets.close();
        let finished = timeout(self.shared.limits.drain, async {
            self.connections.wait().await;
            self.sockets.wait().await;
        });
        if finished.await.is_ok() {
            return Drained { left: 0 };
        }
        let left = self.sockets.len();
        self.shared.cut.cancel();
        self.connections.wait().await;
        Drained { left }
    }
}

/// A connection's place among all; given back when its socket is dropped.
pub(super) struct Place {
    _socket: TaskTrackerToken,
    counts: Arc<ListenerCounts>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.counts.connections_closed.fetch_add(1, Ordering::Relaxed);
    }
}

impl Shared {
    async fn shake_hands(
        &self,
        tls: &TlsAcceptor,
        stream: TcpStream,
    ) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
        let shaken = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => return None,
            shaken = timeout(self.limits.tls_handshake, tls.accept(stream)) => shaken,
        };
        let problem = match shaken {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it took too long".to_owned(),
        };
        self.counts.tls_failed.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(problem, "TLS handshake failed");
        None
    }

    /// One connection until its end or its upgrade.
    async fn speak<S>(self: Arc<Self>, stream: S, peer: SocketAddr, place: (OwnedSemaphorePermit, Place))
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let link = Arc::new(Link::default());
        let patience = Patience { header: self.limits.header_read, stall: self.limits.send_stall };
        let stream = TokioIo::new(Tracked::new(stream, link.clone(), patience, place));
        let shared = self.clone();
        let service = service_fn(move |request| shared.clone().answer(request, peer, Written::begin(&link)));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // hyper's clock also runs between requests; `Tracked` has the shorter one for heads that have begun.
            .header_read_timeout(self.limits.keep_alive.max(self.limits.header_read))
            .max_buf_size(BUFFER_BYTES)
            .serve_connection(stream, service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            biased;
            () = self.cut.cancelled() => return,
            ended = connection.as_mut() => Some(ended),
            () = self.shutdown.cancelled() => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    biased;
                    () = self.cut.cancelled() => return,
                    ended = connection => ended,
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "connection ended early");
        }
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: SocketAddr,
        written: Written,
    ) -> Result<Response<NotifyBody>, Infallible> {
        let limit = self.limits.body_read;
        let is_head = request.method() == Method::HEAD;
        let mut request = request.map(|body| match http_body::Body::is_end_stream(&body) {
            true => Body::empty(),
            false => Body::new(TimedBody::new(body, limit)),
        });
        request.extensions_mut().insert(ConnectInfo(peer));
        request.extensions_mut().insert(written.clone());
        let response = self.router.clone().oneshot(request).await?;
        if is_head {
            // Nothing of the body is sent, and the router has emptied it: it would look complete.
            written.give_up();
        }
        let upgrades = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        Ok(response.map(|body| NotifyBody::new(body, written, upgrades)))
    }
}

/// Whether an error is about a connection that went away before it was accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// The whole response to a connection that finds all places taken.
static REFUSED: LazyLock<String> = LazyLock::new(|| {
    let body = serde_json::to_string(&Refusal::plain(Code::OverCapacity)).expect("a refusal can be written as JSON");
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 5\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
});

#[cfg(test)]
mod tests;
