//! Host and Origin checks: they keep web pages that the operator does not know away from the gateway.
//!
//! Open (no keys): only loopback names in `Host`, and an absent or loopback `Origin`; otherwise a page could reach the
//! gateway through its visitor's browser, by a name that it points at 127.0.0.1 (DNS rebinding).
//! Closed: native surfaces accept an absent `Origin`, the configured ones, and the gateway's own while it is bound to
//! loopback. WebRun surfaces take every origin, because browser clients call them cross-origin.
//! A form's page tells nobody where it was, so that browsers send its answer with the origin `null`; forms check
//! themselves that the answer comes from their page.
//! Either way the host of `public_url` is accepted on callbacks, forms and session views, and nowhere else.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use onlooker_protocol::code::{Code, Refusal};
use url::{Host, Url};

use super::Refused;
use crate::config::Listen;

/// Reached from chats and from chat users' browsers.
const PUBLIC: &[&str] = &["/v1/hooks/", FORM, "/view/"];
const FORM: &str = "/form/";
/// Answered with CORS `*` and without credentials.
const WEBRUN: &[&str] = &["/start/", "/task/", "/files/", "/environments/", "/socket.io/", "/view/"];

/// The rules of one gateway.
#[derive(Clone, Debug)]
pub struct Guard {
    open: bool,
    origins: Vec<String>,
    public: Option<Public>,
}

#[derive(Clone, Debug)]
struct Public {
    host: Host,
    origin: String,
}

/// What a request says of itself: every value of the header, as text where it is text.
#[derive(Clone, Copy, Debug)]
pub enum Said<'a> {
    Nothing,
    Once(&'a str),
    /// Twice, or not as text.
    Unclear,
}

impl Guard {
    /// `bound` is the address that the listener really has.
    pub fn new(listen: &Listen, bound: SocketAddr, open: bool) -> Self {
        let mut origins = listen.origins.clone();
        if bound.ip().to_canonical().is_loopback() {
            let scheme = if listen.tls_cert.is_some() { "https" } else { "http" };
            let names = ["localhost".to_owned(), "127.0.0.1".to_owned(), "[::1]".to_owned()];
            origins.extend(names.iter().filter_map(|name| origin(&format!("{scheme}://{name}:{}", bound.port()))));
        }
        let public = listen
            .public_url
            .as_ref()
            .and_then(|url| Some(Public { host: host(url.host_str()?)?, origin: url.origin().ascii_serialization() }));
        Self { open, origins, public }
    }

    /// Whether a request for this path may pass.
    pub fn check(&self, path: &str, host: Said<'_>, origin: Said<'_>) -> Result<(), Code> {
        let public = self.public.as_ref().filter(|_| begins(path, PUBLIC));
        if self.open && !host_is(host, |host| is_loopback(host) || public.is_some_and(|public| public.host == *host)) {
            return Err(Code::HostRefused);
        }
        let origin = match origin {
            Said::Nothing => return Ok(()),
            Said::Once("null") if path.starts_with(FORM) => return Ok(()),
            Said::Once(origin) => origin,
            Said::Unclear => return Err(Code::OriginRefused),
        };
        let known = match self.open {
            true => {
                Url::parse(origin).is_ok_and(|url| url.host_str().and_then(self::host).is_some_and(|h| is_loopback(&h)))
            }
            false => begins(path, WEBRUN) || self.origins.iter().any(|known| known == origin),
        };
        if known || public.is_some_and(|public| public.origin == origin) { Ok(()) } else { Err(Code::OriginRefused) }
    }

    fn check_request(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Code> {
        let origin = said(headers, &header::ORIGIN);
        self.check(uri.path(), said(headers, &header::HOST), origin)?;
        // A request line may name a host too (`GET http://…`); both must be right.
        uri.authority().map_or(Ok(()), |named| self.check(uri.path(), Said::Once(named.as_str()), origin))
    }
}

/// The middleware: `axum::middleware::from_fn_with_state(guard, guard::check)` around the whole router.
pub async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    match guard.check_request(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(code) => {
            let path = without_ids(request.uri().path());
            tracing::debug!(code = code.name(), path, "request refused by its host or origin");
            Refused(refusal(code)).into_response()
        }
    }
}

fn refusal(code: Code) -> Refusal {
    let hint = match code {
        Code::HostRefused => "this gateway has no keys and answers only to localhost; give it keys, or set public_url",
        _ => "pages of this origin may not call the gateway; add it to `origins` in the configuration",
    };
    Refusal::new(code, hint)
}

fn said<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Said<'a> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Said::Nothing,
        (Some(value), None) => value.to_str().map_or(Said::Unclear, Said::Once),
        _ => Said::Unclear,
    }
}

/// A path as logs may show it: on the WebRun surfaces, what follows the first part may be a session's id, which opens
/// it.
fn without_ids(path: &str) -> &str {
    WEBRUN.iter().find(|prefix| path.starts_with(**prefix)).unwrap_or(&path)
}

fn begins(path: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| path.starts_with(prefix))
}

fn host_is(said: Said<'_>, right: impl Fn(&Host) -> bool) -> bool {
    matches!(said, Said::Once(text) if without_port(text).and_then(host).is_some_and(|host| right(&host)))
}

/// The name in a `Host` header; `None` when what follows it is no port.
fn without_port(text: &str) -> Option<&str> {
    let end = match text.strip_prefix('[') {
        Some(rest) => rest.find(']')? + 2,
        None => text.find(':').unwrap_or(text.len()),
    };
    let (name, port) = text.split_at(end);
    let is_port = |port: &str| port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    (port.is_empty() || is_port(port)).then_some(name)
}

/// Parsed and normalised as browsers do it, so that one name has one form.
fn host(text: &str) -> Option<Host> {
    Host::parse(text).ok()
}

fn is_loopback(host: &Host) -> bool {
    match host {
        Host::Domain(name) => name == "localhost",
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => IpAddr::V6(*address).to_canonical().is_loopback(),
    }
}

fn origin(text: &str) -> Option<String> {
    Url::parse(text).ok().map(|url| url.origin().ascii_serialization())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(open: bool) -> Guard {
        let listen = Listen {
            origins: vec!["https://console.example".to_owned()],
            public_url: Some("https://Tunnel.example".parse().unwrap()),
            ..Listen::default()
        };
        Guard::new(&listen, "127.0.0.1:8787".parse().unwrap(), open)
    }

    #[test]
    fn an_open_gateway_answers_only_to_loopback_names() {
        let accepted =
            ["localhost", "LOCALHOST:1", "127.0.0.1:8787", "127.3.2.1", "[::1]:80", "[::1]", "[::ffff:127.0.0.1]"];
        let refused = [
            "evil.example",
            "localhost.evil.example",
            "evil-localhost",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "0.0.0.0",
            "[::]",
            "[::2]:80",
            "localhost:x",
            "localhost:",
            "localhost:80:80",
            "",
            "[::1",
            "[::1]x",
            "user@localhost",
            "tunnel.example",
            "localhost/evil",
            "128.0.0.1",
        ];
        for host in accepted {
            assert_eq!(guard(true).check("/v1/ws", Said::Once(host), Said::Nothing), Ok(()), "{host}");
        }
        for host in refused {
            let got = guard(true).check("/v1/ws", Said::Once(host), Said::Nothing);
            assert_eq!(got, Err(Code::HostRefused), "{host}");
        }
        assert_eq!(guard(true).check("/", Said::Nothing, Said::Nothing), Err(Code::HostRefused));
        assert_eq!(guard(true).check("/", Said::Unclear, Said::Nothing), Err(Code::HostRefused));
    }

    #[test]
    fn origins_are_checked_by_mode_and_surface() {
        let (open, closed) = (true, false);
        let table = [
            (open, "/v1/ws", "http://localhost:3000", true),
            (open, "/v1/ws", "https://[::1]", true),
            (open, "/v1/ws", "http://127.0.0.1:5173", true),
            (open, "/v1/ws", "http://localhost.evil.example", false),
            (open, "/v1/ws", "https://console.example", false),
            (open, "/start/run", "https://evil.example", false),
            (open, "/v1/ws", "null", false),
            (open, "/v1/ws", "file://", false),
            (open, "/form/x", "https://tunnel.example", true),
            (open, "/v1/ws", "https://tunnel.example", false),
            (open, "/form/x", "null", true),
            (open, "/form/x", "https://evil.example", false),
            (closed, "/form/x", "null", true),
            (closed, "/view/x", "null", true),
            (closed, "/v1/hooks/x", "null", false),
            (closed, "/v1/ws", "https://console.example", true),
            (closed, "/v1/ws", "https://console.example:444", false),
            (closed, "/v1/ws", "http://console.example", false),
            (closed, "/v1/ws", "https://console.example.evil", false),
            (closed, "/v1/ws", "http://localhost:8787", true),
            (closed, "/v1/ws", "http://localhost:8788", false),
            (closed, "/v1/ws", "null", false),
            (closed, "/v1/ws", "https://tunnel.example", false),
            (closed, "/v1/hooks/telegram", "https://tunnel.example", true),
            (closed, "/v1/hooks", "https://tunnel.example", false),
            (closed, "/start/run", "https://anything.example", true),
            (closed, "/socket.io/", "https://anything.example", true),
            (closed, "/starter", "https://anything.example", false),
        ];
        for (mode, path, origin, wanted) in table {
            let got = guard(mode).check(path, Said::Once("localhost"), Said::Once(origin));
            assert_eq!(got, if wanted { Ok(()) } else { Err(Code::OriginRefused) }, "open {mode} {path} {origin}");
        }
        assert_eq!(guard(true).check("/", Said::Once("localhost"), Said::Unclear), Err(Code::OriginRefused));
    }

    #[test]
    fn the_public_host_reaches_callbacks_forms_and_views_only() {
        for (path, wanted) in [
            ("/v1/hooks/slack", Ok(())),
            ("/form/abc", Ok(())),
            ("/view/abc", Ok(())),
            ("/", Err(Code::HostRefused)),
            ("/v1/sessions", Err(Code::HostRefused)),
            ("/formula", Err(Code::HostRefused)),
        ] {
            assert_eq!(guard(true).check(path, Said::Once("tunnel.example:443"), Said::Nothing), wanted, "{path}");
        }
        assert_eq!(guard(false).check("/v1/sessions", Said::Once("anything.example"), Said::Nothing), Ok(()));
    }
}
