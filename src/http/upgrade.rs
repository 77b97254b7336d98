//! From a request to a WebSocket: the checks of the handshake (RFC 6455, 4.2.1), and the socket below.
//!
//! Axum checks the request. The socket is taken out of hyper's connection, so that frames are written to it directly
//! and an idle connection holds no buffer of HTTP.

use axum::{
    body::Body,
    extract::{
        FromRequestParts,
        ws::{WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::task::TaskTracker;

use super::{
    socket::{Socket, Stream},
    wire::{Limits, Wire},
    written::Tracked,
};

/// A request that may become a WebSocket.
pub struct Upgrade {
    checked: WebSocketUpgrade,
    socket: OnUpgrade,
    accept: HeaderValue,
}

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = WebSocketUpgradeRejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let socket = parts.extensions.get::<OnUpgrade>().cloned();
        let checked = WebSocketUpgrade::from_request_parts(parts, state).await?;
        let key = parts.headers.get(header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
        let accept = derive_accept_key(key).try_into().expect("base64 is a header's value");
        Ok(Self { checked, socket: socket.expect("it was checked that the connection can be upgraded"), accept })
    }
}

impl Upgrade {
    /// Says yes to this subprotocol, if the client offers it.
    pub fn protocol(mut self, known: &'static str) -> Self {
        self.checked = self.checked.protocols([known]);
        self
    }

    /// Answers the request, and hands the connection to `serve` once it is a WebSocket. `serve` runs to its end in a
    /// task of `tasks`, whose future lives as long as the connection unless `serve` begins another task.
    pub fn begin<F>(
        self,
        tasks: &TaskTracker,
        limits: Limits,
        serve: impl FnOnce(Wire) -> F + Send + 'static,
    ) -> Response
    where
        F: Future<Output = ()> + Send,
    {
        let socket = self.socket;
        tasks.spawn(async move {
            match socket.await {
                Ok(upgraded) => match taken_out(upgraded) {
                    Some((socket, input)) => serve(Wire::new(socket, input, limits)).await,
                    None => tracing::error!("an upgraded connection is over no known transport"),
                },
                Err(error) => tracing::debug!(%error, "a connection was not upgraded"),
            }
        });
        let mut response = (
            StatusCode::SWITCHING_PROTOCOLS,
            [
                (header::CONNECTION, HeaderValue::from_static("upgrade")),
                (header::UPGRADE, HeaderValue::from_static("websocket")),
                (header::SEC_WEBSOCKET_ACCEPT, self.accept),
            ],
            Body::empty(),
        )
            .into_response();
        if let Some(protocol) = self.checked.selected_protocol() {
            response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol.clone());
        }
        response
    }
}

/// The socket, and what was read from it behind the request.
fn taken_out(upgraded: Upgraded) -> Option<(Socket, bytes::Bytes)> {
    let upgraded = match upgraded.downcast::<TokioIo<Tracked<TcpStream>>>() {
        Ok(parts) => {
            let (stream, held) = parts.io.into_inner().into_parts();
            return Some((Socket::new(Stream::Plain(stream), Some(held)), parts.read_buf));
        }
        Err(upgraded) => upgraded,
    };
    let parts = upgraded.downcast::<TokioIo<Tracked<TlsStream<TcpStream>>>>().ok()?;
    let (stream, held) = parts.io.into_inner().into_parts();
    Some((Socket::new(Stream::Tls(Box::new(stream)), Some(held)), parts.read_buf))
}
