//! A WebSocket to a gateway: its address, the frames in it, and what its end means.
//!
//! Both ends of this crate use it: the runtime's on `/v1/runtime`, the subscriber's on `/v1/ws`.

use std::time::Duration;

use onlooker_protocol::{Code, code::ComeBack};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest,
        http::{HeaderValue, StatusCode, header::SEC_WEBSOCKET_PROTOCOL},
        protocol::CloseFrame,
    },
};
use url::Url;

pub(crate) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Longer than a busy gateway needs, shorter than a person waits.
const CONNECT_WITHIN: Duration = Duration::from_secs(15);

/// Why there is no connection, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("{0} is no address of a gateway: it begins with http://, https://, ws:// or wss://")]
    Address(String),
    #[error(
        "{url} answers with HTTP {status} where a gateway opens a WebSocket: check the address, and the host and origin that it allows"
    )]
    NotAGateway { url: String, status: u16 },
    #[error("the gateway asks for a key: give one that allows this")]
    KeyNeeded,
    #[error(
        "the gateway speaks version {theirs} of the protocol and this program version {ours}: update the older one"
    )]
    Version { theirs: u32, ours: u32 },
    #[error("the gateway closed the connection for good: {code} ({}): {reason}; {}", .code.number(), advice(*.code))]
    Refused { code: Code, reason: String },
    #[error("the connection was lost: {reason}")]
    Lost { reason: String, come_back: ComeBack },
}

impl SocketError {
    pub(crate) fn lost(reason: impl Into<String>) -> Self {
        Self::Lost { reason: reason.into(), come_back: ComeBack::Now }
    }

    /// Whether to connect again. `Never` holds for everything that would fail the same way again.
    pub(crate) fn come_back(&self) -> ComeBack {
        match self {
            Self::Lost { come_back, .. } => *come_back,
            _ => ComeBack::Never,
        }
    }

    /// What a refusal outside any session means for the connection.
    pub(crate) fn of_code(code: Code, reason: &str) -> Self {
        match code.come_back() {
            ComeBack::Never => Self::Refused { code, reason: reason.to_owned() },
            come_back => Self::Lost { reason: format!("{code} ({}): {reason}", code.number()), come_back },
        }
    }

    pub(crate) fn of_close(frame: Option<&CloseFrame>) -> Self {
        match frame.map(|f| (u16::from(f.code), f.reason.as_str())) {
            // The standard's own codes are not in the table of codes: all of them may pass.
            Some((number, reason)) if number < 3000 => Self::lost(format!("closed with {number} {reason}")),
            Some((number, reason)) => Self::of_code(Code::from_number(number), reason),
            None => Self::lost("closed without a code"),
        }
    }
}

/// What a person does about a code that says not to come back.
fn advice(code: Code) -> &'static str {
    match code {
        Code::AuthFailed | Code::Unauthorized => "check the key or token",
        Code::AuthTimeout => "the key or token came too late; check the network",
        Code::NotAllowed | Code::Forbidden => "use a key whose scopes and sessions allow this",
        Code::OriginRefused | Code::HostRefused => "use an address that the gateway's configuration allows",
        Code::UnsupportedVersion => "update the older of the two programs",
        Code::Replaced => "another process took this one's place; run only one under this name",
        Code::FrameTooLarge => "send less at once, or raise the gateway's limit",
        _ => "the gateway's log says more",
    }
}

/// The address of a socket below a gateway's base address.
pub(crate) fn address(gateway: &Url, path: &str) -> Result<Url, SocketError> {
    let wrong = || SocketError::Address(shown(gateway));
    let scheme = match gateway.scheme() {
        "http" | "ws" => "ws",
        "https" | "wss" => "wss",
        _ => return Err(wrong()),
    };
    let mut url = gateway.clone();
    url.set_scheme(scheme).map_err(|()| wrong())?;
    url.set_path(&format!("{}{path}", gateway.path().trim_end_matches('/')));
    url.set_query(None);
    url.set_fragment(None);
    Ok(url)
}

/// An address as errors and logs may show it: without userinfo, which is a secret.
pub(crate) fn shown(url: &Url) -> String {
    format!("{}://{}{}", url.scheme(), url.authority().rsplit('@').next().unwrap_or_default(), url.path())
}

pub(crate) async fn connect(url: &Url, subprotocol: Option<&'static str>) -> Result<Socket, SocketError> {
    let mut request = url.as_str().into_client_request().map_err(|_| SocketError::Address(shown(url)))?;
    if let Some(name) = subprotocol {
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    match tokio::time::timeout(CONNECT_WITHIN, connect_async_with_config(request, None, true)).await {
        Ok(Ok((socket, _))) => Ok(socket),
        Ok(Err(Error::Http(response))) => Err(of_status(url, response.status())),
        Ok(Err(error)) => {
            Err(SocketError::Lost { reason: format!("{}: {error}", shown(url)), come_back: ComeBack::Now })
        }
        Err(_) => Err(SocketError::lost(format!("{} did not answer in {CONNECT_WITHIN:?}", shown(url)))),
    }
}

fn of_status(url: &Url, status: StatusCode) -> SocketError {
    let passing = status.is_server_error()
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS | StatusCode::TOO_EARLY);
    if passing {
        let reason = format!("{} answers with HTTP {}", shown(url), status.as_u16());
        return SocketError::Lost { reason, come_back: ComeBack::Later };
    }
    SocketError::NotAGateway { url: shown(url), status: status.as_u16() }
}

pub(crate) fn text<F: Serialize>(frame: &F) -> Message {
    Message::text(serde_json::to_string(frame).expect("a frame is plain data"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(base: &str) -> String {
        address(&base.parse().unwrap(), "/v1/runtime").map_or_else(|e| e.to_string(), |u| u.to_string())
    }

    #[test]
    fn an_address_takes_the_scheme_and_keeps_a_path_before_it() {
        assert_eq!(at("http://localhost:4444"), "ws://localhost:4444/v1/runtime");
        assert_eq!(at("https://gate.example/onlooker/?x=1"), "wss://gate.example/onlooker/v1/runtime");
        assert!(at("ftp://gate.example").contains("begins with"));
    }

    #[test]
    fn an_address_in_an_error_has_no_userinfo() {
        let text = address(&"ftp://me:hunter2@gate.example".parse().unwrap(), "/v1/ws").unwrap_err().to_string();
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn the_range_of_a_close_code_says_whether_to_come_back() {
        let close = |code: u16| {
            SocketError::of_close(Some(&CloseFrame { code: code.into(), reason: "because".into() })).come_back()
        };
        assert_eq!([1000, 1006, 1011].map(close), [ComeBack::Now; 3]);
        assert_eq!(close(4000), ComeBack::Now);
        assert_eq!(close(4107), ComeBack::Later);
        assert_eq!([4500, 4507, 4999].map(close), [ComeBack::Never; 3]);
        assert_eq!(SocketError::of_close(None).come_back(), ComeBack::Now);
    }
}
