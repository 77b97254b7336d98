//! Request bodies as JSON, and where they are not what is wrong with them: the place, never the text.

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
    http::{HeaderMap, StatusCode, header},
};
use serde_json::{Map, Value, error::Category};

use super::problem::Problem;
use crate::http::App;

/// A JSON body. An empty one is an empty object.
pub struct Sent(pub Value);

impl Sent {
    /// # Errors
    /// 400 for every other JSON.
    pub fn object(self) -> Result<Map<String, Value>, Problem> {
        match self.0 {
            Value::Object(members) => Ok(members),
            _ => Err(Problem::malformed("The body must be a JSON object")),
        }
    }
}

impl FromRequest<App> for Sent {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let is_json = says_json(request.headers());
        let bytes = Bytes::from_request(request, app).await.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                let message = "The request body is too large";
                let problem = Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "PAYLOAD_TOO_LARGE", message);
                problem.with("limit", app.config.limits.http_body_bytes)
            }
            _ => Problem::malformed("The request body could not be read"),
        })?;
        if bytes.is_empty() {
            return Ok(Self(Value::Object(Map::new())));
        }
        if !is_json {
            let message = "The content type must be application/json";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_MEDIA_TYPE", message));
        }
        serde_json::from_slice(&bytes).map(Self).map_err(|error| unreadable(&error))
    }
}

/// A body that says nothing of its type is taken for JSON.
fn says_json(headers: &HeaderMap) -> bool {
    let Some(said) = headers.get(header::CONTENT_TYPE) else { return true };
    let essence = said.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

fn unreadable(error: &serde_json::Error) -> Problem {
    let what = match error.classify() {
        Category::Eof => "The JSON body ends too early",
        _ => "The body is not JSON",
    };
    let (line, column) = (error.line(), error.column());
    let message = format!("{what}: line {line} column {column}");
    Problem::new(StatusCode::BAD_REQUEST, "INVALID_JSON", message).with("line", line).with("column", column)
}
