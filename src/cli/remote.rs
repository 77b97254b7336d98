//! A gateway's REST surface, as commands use it.

use std::time::Duration;

use clap::Args;
use onlooker_protocol::code::Refusal;
use reqwest::{Client, Method, Response};
use serde::{Serialize, de::DeserializeOwned};
use url::Url;

use super::failure::{Failure, Status, chain};

/// Longer than the gateway takes for anything that it does not stream.
const ANSWER_WITHIN: Duration = Duration::from_secs(40);

/// Which gateway, and as whom. Has no `Debug`: the token is a secret.
#[derive(Args, Clone)]
pub(crate) struct At {
    /// The gateway's address
    #[arg(long, value_name = "URL", env = "ONLOOKER_GATEWAY", default_value = "http://127.0.0.1:8787")]
    #[arg(value_parser = address)]
    pub(crate) gateway: Url,
    /// A key or token, where the gateway asks for one
    #[arg(long, value_name = "TOKEN", env = "ONLOOKER_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
}

fn address(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(url),
        _ => Err("it begins with http:// or https://".to_owned()),
    }
}

pub(crate) struct Remote {
    at: At,
    client: Client,
}

/// A path in parts, and a query.
pub(crate) type Query<'a> = &'a [(&'a str, &'a str)];

impl Remote {
    /// # Errors
    /// When TLS cannot be set up on this machine.
    pub(crate) fn new(at: At) -> Result<Self, Failure> {
        let mut builder = Client::builder().timeout(ANSWER_WITHIN).redirect(reqwest::redirect::Policy::none());
        let local = match at.gateway.host() {
            Some(url::Host::Domain(name)) => name == "localhost",
            Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
            Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
            None => false,
        };
        if local {
            // A proxy elsewhere would reach itself, not this machine.
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| Failure::failed(chain(&error)))?;
        Ok(Self { at, client })
    }

    /// # Errors
    /// When the gateway cannot be reached or refuses; the failure says which, and what to do.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &[&str], query: Query<'_>) -> Result<T, Failure> {
        read(self.send(Method::GET, path, query, None::<&()>).await?).await
    }

    /// # Errors
    /// As [`Self::get`].
    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &[&str], body: &impl Serialize) -> Result<T, Failure> {
        read(self.send(Method::POST, path, &[], Some(body)).await?).await
    }

    /// Like [`Self::post`], but a refusal is not yet a failure.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<Result<T, Refusal>, Failure> {
        match understand(self.send(Method::POST, path, &[], Some(body)).await?).await? {
            Ok(response) => Ok(Ok(json(response).await?)),
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// # Errors
    /// As [`Self::get`].
    pub(crate) async fn delete(&self, path: &[&str]) -> Result<(), Failure> {
        understand(self.send(Method::DELETE, path, &[], None::<&()>).await?).await??;
        Ok(())
    }

    async fn send(
        &self,
        method: Method,
        path: &[&str],
        query: Query<'_>,
        body: Option<&impl Serialize>,
    ) -> Result<Response, Failure> {
        let mut url = self.at.gateway.clone();
        url.path_segments_mut().expect("an http address has a path").pop_if_empty().extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.client.request(method, url);
        if let Some(token) = self.at.token.as_deref().filter(|token| !token.is_empty()) {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        request.send().await.map_err(|error| {
            let gateway = self.at.gateway.origin().ascii_serialization();
            // Without its address, which may hold a password.
            let error = chain(&error.without_url());
            let next = "is it running? Start one with `onlooker serve`, or name another with --gateway";
            Failure::new(Status::Unavailable, format!("cannot reach the gateway at {gateway}: {next} ({error})"))
        })
    }
}

async fn read<T: DeserializeOwned>(response: Response) -> Result<T, Failure> {
    json(understand(response).await??).await
}

async fn json<T: DeserializeOwned>(response: Response) -> Result<T, Failure> {
    let unreadable = |error: reqwest::Error| {
        Failure::failed(format!(
            "the gateway's answer cannot be read, it may be of another version: {}",
            chain(&error.without_url())
        ))
    };
    response.json().await.map_err(unreadable)
}

async fn understand(response: Response) -> Result<Result<Response, Refusal>, Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(Ok(response));
    }
    match response.json::<Refusal>().await {
        Ok(refusal) => Ok(Err(refusal)),
        Err(_) => {
            let text = format!("what answers there (HTTP {status}) is no gateway; check --gateway");
            Err(Failure::new(Status::Unavailable, text))
        }
    }
}
