//! `webhook`: where a task's result is sent.

use serde_json::{Map, Value};
use url::Url;

use super::{Problem, values::Members};

const FORMS: &[&str] = &["full_response", "ai_response", "just_ping"];

/// Checks it where it stands. An empty one, as a documented sample has it, is none.
pub(super) fn check(task: &mut Map<String, Value>) -> Result<(), Problem> {
    let Some(said) = task.take("webhook") else { return Ok(()) };
    let Value::Object(webhook) = said else { return Err(Problem::parameter("webhook", "must be an object")) };
    if webhook.is_empty() {
        return Ok(());
    }
    for required in ["name", "url", "submittedData"] {
        if !webhook.has(required) {
            return Err(Problem::missing(&format!("webhook.{required}")));
        }
    }
    let text = |name: &str| webhook[name].as_str().unwrap_or_default();
    if text("name").is_empty() {
        return Err(Problem::parameter("webhook.name", "must be a string that is not empty"));
    }
    let is_http = |url: Url| matches!(url.scheme(), "http" | "https") && url.has_host();
    if !Url::parse(text("url")).is_ok_and(is_http) {
        return Err(Problem::parameter("webhook.url", "must be an http or https URL"));
    }
    if !FORMS.contains(&text("submittedData")) {
        let problem = format!("must be one of: {}", FORMS.join(", "));
        return Err(Problem::parameter("webhook.submittedData", &problem));
    }
    if webhook.has("auth") && !webhook["auth"].as_str().is_some_and(is_header_value) {
        return Err(Problem::parameter("webhook.auth", "must be a string that can be the value of a header"));
    }
    task.insert("webhook".to_owned(), Value::Object(webhook));
    Ok(())
}

fn is_header_value(text: &str) -> bool {
    axum::http::HeaderValue::from_str(text).is_ok()
}
