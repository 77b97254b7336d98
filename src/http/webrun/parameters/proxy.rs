//! `proxy`: through which the whole session's traffic goes.

use serde_json::{Map, Value};
use url::Host;

use super::{Problem, countries, values::Members};

const LEVELS: &[&str] = &["system", "chrome"];

/// Checks it where it stands. Its port is passed on as a string, as documented.
pub(super) fn check(session: &mut Map<String, Value>) -> Result<(), Problem> {
    let Some(said) = session.take("proxy") else { return Ok(()) };
    let Value::Object(mut proxy) = said else { return Err(Problem::parameter("proxy", "must be an object")) };
    let checked = match proxy.get("source").and_then(Value::as_str) {
        Some("WebRun") => provided(&proxy),
        Some("custom") => custom(&mut proxy),
        None if !proxy.has("source") => return Err(Problem::missing("proxy.source")),
        _ => return Err(Problem::parameter("proxy.source", "must be one of: WebRun, custom")),
    };
    checked?;
    one_of(&proxy, "level", LEVELS)?;
    session.insert("proxy".to_owned(), Value::Object(proxy));
    Ok(())
}

fn provided(proxy: &Map<String, Value>) -> Result<(), Problem> {
    let Some(country) = proxy.get("country").filter(|country| !country.is_null()) else {
        return Err(Problem::missing("proxy.country"));
    };
    if country.as_str().is_some_and(|country| country == "random" || countries::is_code(country)) {
        return Ok(());
    }
    let problem = "must be an ISO 3166-1 alpha-2 country code, such as US, or random";
    Err(Problem::parameter("proxy.country", problem))
}

fn custom(proxy: &mut Map<String, Value>) -> Result<(), Problem> {
    for required in ["type", "host", "port"] {
        if !proxy.has(required) {
            return Err(Problem::missing(&format!("proxy.{required}")));
        }
    }
    one_of(proxy, "type", &["http", "socks"])?;
    let is_host = |host: &str| Host::parse(host).is_ok() || host.parse::<std::net::Ipv6Addr>().is_ok();
    if !proxy["host"].as_str().is_some_and(is_host) {
        return Err(Problem::parameter("proxy.host", "must be a host name or an IP address"));
    }
    let port = port(&proxy["port"]).ok_or_else(|| {
        Problem::parameter("proxy.port", "must be a number from 1 to 65535").with("min", 1).with("max", 65_535)
    })?;
    proxy.insert("port".to_owned(), port.to_string().into());
    match ["username", "password"].iter().find(|name| proxy.has(name) && !proxy[**name].is_string()) {
        Some(name) => Err(Problem::parameter(&format!("proxy.{name}"), "must be a string")),
        None => Ok(()),
    }
}

fn one_of(proxy: &Map<String, Value>, name: &str, words: &[&str]) -> Result<(), Problem> {
    let fits = |said: &Value| said.is_null() || said.as_str().is_some_and(|said| words.contains(&said));
    match proxy.get(name) {
        Some(said) if !fits(said) => {
            Err(Problem::parameter(&format!("proxy.{name}"), &format!("must be one of: {}", words.join(", "))))
        }
        _ => Ok(()),
    }
}

fn port(said: &Value) -> Option<u16> {
    let port = match said {
        Value::String(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok()?,
        Value::Number(number) => u16::try_from(number.as_u64()?).ok()?,
        _ => return None,
    };
    (port != 0).then_some(port)
}
