//! Secrets among the parameters that a client passes through the gateway to a runtime: DESIGN's `proxy.password` and
//! `webhook.auth`, any text or number named `password`, and the userinfo of URLs.

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};
use url::Url;
use zeroize::Zeroizing;

/// Every value that must not show, in no particular order.
pub fn in_parameters(parameters: &Map<String, Value>) -> Vec<Zeroizing<String>> {
    let mut found = Vec::new();
    members(parameters, "", &mut found);
    found
}

fn members(object: &Map<String, Value>, parent: &str, found: &mut Vec<Zeroizing<String>>) {
    for (name, value) in object {
        let name = name.to_ascii_lowercase();
        if parent == "webhook" && name == "auth" {
            everything(value, found);
        } else if name == "password" && !matches!(value, Value::Object(_) | Value::Array(_)) {
            // An object of that name describes a password, as a schema does: its words are no secrets.
            everything(value, found);
        } else {
            look(value, &name, found);
        }
    }
}

fn look(value: &Value, name: &str, found: &mut Vec<Zeroizing<String>>) {
    match value {
        Value::Object(object) => members(object, name, found),
        Value::Array(items) => items.iter().for_each(|item| look(item, name, found)),
        Value::String(text) => userinfo(text, found),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A value that is a secret as a whole, whatever its form.
fn everything(value: &Value, found: &mut Vec<Zeroizing<String>>) {
    match value {
        Value::Object(object) => object.values().for_each(|value| everything(value, found)),
        Value::Array(items) => items.iter().for_each(|item| everything(item, found)),
        Value::String(text) => found.push(Zeroizing::new(text.clone())),
        Value::Number(number) => found.push(Zeroizing::new(number.to_string())),
        Value::Null | Value::Bool(_) => {}
    }
}

/// The password of a URL, or its user where there is no password: tokens are passed so.
fn userinfo(text: &str, found: &mut Vec<Zeroizing<String>>) {
    if !text.contains("://") || !text.contains('@') {
        return;
    }
    let urls = text.split(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>'));
    for url in urls.filter_map(|word| Url::parse(word).ok()) {
        let secret = url.password().or_else(|| Some(url.username()).filter(|user| !user.is_empty()));
        if let Some(secret) = secret {
            found.push(Zeroizing::new(secret.to_owned()));
            let decoded = percent_decode_str(secret).decode_utf8_lossy();
            if decoded != secret {
                found.push(Zeroizing::new(decoded.into_owned()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(parameters: &Value) -> Vec<String> {
        let mut found: Vec<String> =
            in_parameters(parameters.as_object().unwrap()).iter().map(|value| value.to_string()).collect();
        found.sort();
        found
    }

    #[test]
    fn passwords_webhook_auth_and_userinfo_are_secrets_and_nothing_else_is() {
        let parameters = serde_json::json!({
            "proxy": { "host": "p.example", "username": "u", "password": "pw1" },
            "webhook": { "url": "https://hook:pw2@h.example/", "auth": { "token": "tk1" } },
            "startingUrl": "see https://tk2@h.example/a and https://plain.example/@x",
            "list": [{ "Password": 4711 }],
            "auth": "no webhook's",
        });
        assert_eq!(found(&parameters), ["4711", "pw1", "pw2", "tk1", "tk2"]);
    }

    #[test]
    fn a_schema_that_describes_a_password_makes_no_secret_of_its_words() {
        let schema = serde_json::json!({ "properties": { "password": { "type": "string", "title": "Your word" } } });
        assert_eq!(found(&serde_json::json!({ "outputSchema": schema })), [""; 0]);
    }

    #[test]
    fn an_encoded_password_is_found_in_both_forms() {
        assert_eq!(found(&serde_json::json!({ "u": "http://u:p%40w@h/" })), ["p%40w", "p@w"]);
    }
}
