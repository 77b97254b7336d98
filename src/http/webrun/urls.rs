//! Under which name a client has reached us: what it is given to poll and to connect to has the same one.

use std::net::{IpAddr, SocketAddr};

use axum::{
    extract::{ConnectInfo, FromRequestParts},
    http::{HeaderMap, StatusCode, Uri, header, request},
};
use url::Url;

use super::problem::Problem;
use crate::{http::App, ids::SessionId};

/// The scheme, host and port that a request was for, as `https://host:port`, without a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base(String);

impl Base {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn poll(&self, session: SessionId, task: &str) -> String {
        format!("{}/task/{session}/{task}", self.0)
    }

    pub fn view(&self, session: SessionId) -> String {
        format!("{}/view/{session}", self.0)
    }

    /// `proxies`: peers whose word on the original request is taken.
    fn of(uri: &Uri, headers: &HeaderMap, peer: Option<IpAddr>, is_tls: bool, proxies: &[IpAddr]) -> Option<Self> {
        let trusted = peer.is_some_and(|peer| proxies.iter().any(|proxy| proxy.to_canonical() == peer.to_canonical()));
        let forwarded = |name: &str| {
            let value = headers.get(name).filter(|_| trusted)?.to_str().ok()?;
            // Proxies in a row append; the first value is what the client said.
            value.split(',').next().map(str::trim).filter(|value| !value.is_empty())
        };
        let scheme = forwarded("x-forwarded-proto").filter(|scheme| matches!(*scheme, "http" | "https"));
        let scheme = scheme.unwrap_or(if is_tls { "https" } else { "http" });
        let said = || headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let authority = || uri.authority().map(axum::http::uri::Authority::as_str);
        let host = forwarded("x-forwarded-host").or_else(authority).or_else(said)?;
        origin(scheme, host).map(Self)
    }
}

/// `scheme://host[:port]`, if `host` is nothing else.
fn origin(scheme: &str, host: &str) -> Option<String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:[]%".contains(&byte);
    if host.is_empty() || !host.bytes().all(is_plain) {
        return None;
    }
    let url = Url::parse(&format!("{scheme}://{host}/")).ok()?;
    Some(url.origin().ascii_serialization())
}

impl FromRequestParts<App> for Base {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut request::Parts, app: &App) -> Result<Self, Problem> {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
        let is_tls = app.config.listen.tls_cert.is_some();
        let proxies = &app.config.webrun.trusted_proxies;
        Self::of(&parts.uri, &parts.headers, peer, is_tls, proxies).ok_or_else(|| {
            let message = "The Host header is not a name or address with an optional port";
            Problem::new(StatusCode::BAD_REQUEST, "INVALID_HOST", message)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(headers: &[(&'static str, &str)], peer: &str, is_tls: bool) -> Option<String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let proxies = ["10.0.0.5".parse().unwrap()];
        let base = Base::of(&Uri::from_static("/start/run-task"), &map, peer.parse().ok(), is_tls, &proxies);
        base.map(|base| base.0)
    }

    #[test]
    fn a_client_is_sent_where_it_came_from() {
        for (host, is_tls, wanted) in [
            ("onlooker.example", false, Some("http://onlooker.example")),
            ("onlooker.example:8787", true, Some("https://onlooker.example:8787")),
            ("ONLOOKER.example:443", true, Some("https://onlooker.example")),
            ("[::1]:8787", false, Some("http://[::1]:8787")),
            ("", false, None),
            ("a b", false, None),
            ("user@evil.example", false, None),
            ("evil.example/path", false, None),
            ("evil.example#", false, None),
            ("evil.example\\x", false, None),
            ("host:port", false, None),
            ("host:99999", false, None),
            ("[::1", false, None),
        ] {
            assert_eq!(base(&[("host", host)], "192.0.2.1", is_tls).as_deref(), wanted, "{host}");
        }
        assert_eq!(base(&[], "192.0.2.1", false), None);
    }

    #[test]
    fn only_a_proxy_of_the_operators_is_believed_what_it_forwards() {
        let said = [("host", "inner:80"), ("x-forwarded-host", "outer.example"), ("x-forwarded-proto", "https")];
        assert_eq!(base(&said, "10.0.0.5", false).as_deref(), Some("https://outer.example"));
        assert_eq!(base(&said, "::ffff:10.0.0.5", false).as_deref(), Some("https://outer.example"));
        assert_eq!(base(&said, "10.0.0.6", false).as_deref(), Some("http://inner"));
        let chain =
            [("host", "inner"), ("x-forwarded-host", "outer.example:8443, middle"), ("x-forwarded-proto", "ftp")];
        assert_eq!(base(&chain, "10.0.0.5", false).as_deref(), Some("http://outer.example:8443"));
    }
}
