//! The proxy of a session: what its parameter means, and who tells the proxy its user name and password.
//!
//! A session that asks for a proxy is never served without it: that would show the address that it wants hidden.

use std::{collections::HashSet, sync::Arc};

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, tungstenite::Message};
use tokio_util::sync::CancellationToken;
use url::Host;
use zeroize::Zeroizing;

/// Requests whose challenge was answered once; a proxy that asks for the same again has refused.
const ANSWERED_MAX: usize = 1024;

/// How a session's pages reach the network. Has no `Debug`: the login is a secret.
pub(super) enum Proxy {
    Direct,
    Through { server: String, login: Option<Login> },
}

#[derive(Clone)]
pub(super) struct Login {
    user: Arc<str>,
    password: Arc<Zeroizing<String>>,
}

/// Why a session cannot have the proxy that it wants. The texts hold nothing of the parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProxyError {
    #[error("this runtime has no proxies of its own; name one with source `custom`, or leave `proxy` out")]
    NoPool,
    #[error("Chromium cannot log in at a SOCKS proxy; use one without a user name, or one of type `http`")]
    SocksLogin,
    #[error("the proxy's `{0}` is missing or wrong")]
    Wrong(&'static str),
}

impl Proxy {
    /// Reads a session's `proxy` parameter.
    pub(super) fn read(parameter: &Value) -> Result<Self, ProxyError> {
        if parameter.is_null() {
            return Ok(Self::Direct);
        }
        let text = |name: &str| parameter.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        match text("source") {
            Some("custom") => {}
            Some(source) if source.eq_ignore_ascii_case("webrun") => return Err(ProxyError::NoPool),
            _ => return Err(ProxyError::Wrong("source")),
        }
        let scheme = match text("type") {
            Some("http") => "http",
            Some("socks") => "socks5",
            _ => return Err(ProxyError::Wrong("type")),
        };
        let host = text("host").and_then(|host| Host::parse(host).ok()).ok_or(ProxyError::Wrong("host"))?;
        let port = match parameter.get("port") {
            Some(Value::String(port)) => port.parse().ok(),
            Some(port) => port.as_u64().and_then(|port| u16::try_from(port).ok()),
            None => None,
        };
        let port = port.filter(|port| *port != 0).ok_or(ProxyError::Wrong("port"))?;
        let login = text("username").map(|user| Login {
            user: user.into(),
            password: Arc::new(Zeroizing::new(text("password").unwrap_or_default().to_owned())),
        });
        if scheme == "socks5" && login.is_some() {
            return Err(ProxyError::SocksLogin);
        }
        Ok(Self::Through { server: format!("{scheme}://{host}:{port}"), login })
    }

    /// As Chromium wants it named.
    pub(super) fn server(&self) -> Option<&str> {
        match self {
            Self::Direct => None,
            Self::Through { server, .. } => Some(server),
        }
    }

    pub(super) fn login(&self) -> Option<Login> {
        match self {
            Self::Direct => None,
            Self::Through { login, .. } => login.clone(),
        }
    }
}

/// A DevTools connection of its own that answers a proxy's challenges in one page, and nobody else's: a site that asks
/// for a login must never get the proxy's.
pub(super) struct Gatekeeper {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    session: Value,
    login: Login,
    answered: HashSet<String>,
    last: u64,
}

impl Gatekeeper {
    /// Attaches to a page that has not begun to load. `None` when the browser does not let it.
    pub(super) async fn attach(address: &str, target: &str, login: Login) -> Option<Self> {
        let (socket, _) = tokio_tungstenite::connect_async(address).await.ok()?;
        let mut own = Self { socket, session: Value::Null, login, answered: HashSet::new(), last: 0 };
        let attached = own.call("Target.attachToTarget", json!({"targetId": target, "flatten": true})).await?;
        own.session = attached["sessionId"].clone();
        let all = json!({"handleAuthRequests": true, "patterns": [{"urlPattern": "*"}]});
        own.call("Fetch.enable", all).await?;
        Some(own)
    }

    /// Answers until `over`, or until the page or the browser is gone.
    pub(super) async fn run(mut self, over: CancellationToken) {
        let answering = async {
            while let Some(event) = self.next().await {
                if self.answer(&event).await.is_none() {
                    break;
                }
            }
        };
        tokio::select! {
            biased;
            () = over.cancelled() => {}
            () = answering => {}
        }
    }

    /// `None` when the browser is gone.
    async fn answer(&mut self, event: &Value) -> Option<()> {
        let request = &event["params"]["requestId"];
        match event["method"].as_str().unwrap_or_default() {
            "Fetch.requestPaused" => {
                self.tell("Fetch.continueRequest", json!({"requestId": request})).await.map(|_| ())
            }
            "Fetch.authRequired" => {
                let by_proxy = event["params"]["authChallenge"]["source"] == "Proxy";
                let response = if by_proxy && self.is_first(request) {
                    json!({
                        "response": "ProvideCredentials",
                        "username": &*self.login.user,
                        "password": self.login.password.as_str(),
                    })
                } else {
                    // The browser's own dialogue would wait for somebody who does not see it.
                    json!({"response": "CancelAuth"})
                };
                let answer = json!({"requestId": request, "authChallengeResponse": response});
                self.tell("Fetch.continueWithAuth", answer).await.map(|_| ())
            }
            _ => Some(()),
        }
    }

    fn is_first(&mut self, request: &Value) -> bool {
        if self.answered.len() >= ANSWERED_MAX {
            self.answered.clear();
        }
        self.answered.insert(request.as_str().unwrap_or_default().to_owned())
    }

    async fn tell(&mut self, method: &str, params: Value) -> Option<u64> {
        self.last += 1;
        let mut command = json!({"id": self.last, "method": method, "params": params});
        if !self.session.is_null() {
            command["sessionId"] = self.session.clone();
        }
        self.socket.send(Message::text(command.to_string())).await.ok().map(|()| self.last)
    }

    async fn call(&mut self, method: &str, params: Value) -> Option<Value> {
        let id = self.tell(method, params).await?;
        loop {
            let mut answer = self.next().await?;
            if answer["id"] == id {
                return answer.get("error").is_none().then(|| answer["result"].take());
            }
        }
    }

    /// The next message; `None` at the connection's end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Message::Text(text) = self.socket.next().await?.ok()? {
                return serde_json::from_str(&text).ok();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(parameter: &Value) -> Result<(String, bool), ProxyError> {
        Proxy::read(parameter).map(|proxy| (proxy.server().unwrap_or("direct").to_owned(), proxy.login().is_some()))
    }

    #[test]
    fn a_proxy_is_taken_as_documented_or_refused() {
        assert_eq!(read(&Value::Null).unwrap().0, "direct");
        let mut custom = json!({
            "source": "custom", "type": "http", "host": "proxy.example", "port": "8080", "username": "u", "password": "p",
        });
        assert_eq!(read(&custom), Ok(("http://proxy.example:8080".to_owned(), true)));
        custom["port"] = json!(3128);
        assert_eq!(read(&custom).unwrap().0, "http://proxy.example:3128");
        custom["type"] = json!("socks");
        assert_eq!(read(&custom), Err(ProxyError::SocksLogin));
        custom["username"] = Value::Null;
        assert_eq!(read(&custom), Ok(("socks5://proxy.example:3128".to_owned(), false)));
        for (name, wrong) in [("host", json!("a b")), ("port", json!(0)), ("port", json!("x")), ("type", json!("ftp"))]
        {
            let mut custom = custom.clone();
            custom[name] = wrong;
            assert_eq!(read(&custom), Err(ProxyError::Wrong(name)));
        }
        assert_eq!(read(&json!({"source": "WebRun", "country": "US"})), Err(ProxyError::NoPool));
        assert_eq!(read(&json!("http://proxy.example")), Err(ProxyError::Wrong("source")));
    }
}
