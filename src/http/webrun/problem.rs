//! A refusal as WebRun clients read it: `message` and `error` for their two families, `code` and `details` beside.

use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use onlooker_protocol::code::{Code, Refusal};
use serde_json::{Map, Value, json};

/// What is wrong with a request. Its texts are shown to clients and hold neither secrets nor session ids.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem(Box<Parts>);

#[derive(Clone, Debug, PartialEq)]
struct Parts {
    status: StatusCode,
    code: &'static str,
    /// The core's own word for it, under which it is counted.
    counted: Code,
    message: String,
    details: Map<String, Value>,
    /// Members beside the envelope, such as `balance`.
    members: Map<String, Value>,
    /// Seconds.
    retry_after: Option<u64>,
}

impl Problem {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        let (details, members) = (Map::new(), Map::new());
        Self(Box::new(Parts {
            status,
            code,
            counted: counted_as(status),
            message,
            details,
            members,
            retry_after: None,
        }))
    }

    /// 400 for a body or message that has not the form documented.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "INVALID_PARAMS", message)
    }

    /// 400 for a parameter with a wrong value.
    pub fn parameter(name: &str, problem: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "INVALID_PARAMETER", format!("Invalid parameter '{name}': {problem}"))
            .with("parameter", name)
    }

    /// 400 for a parameter that must be there.
    pub fn missing(name: &str) -> Self {
        let message = format!("Missing required field: {name}");
        Self::new(StatusCode::BAD_REQUEST, "MISSING_REQUIRED_FIELD", message).with("field", name)
    }

    /// 404 for a path that nothing answers to.
    pub fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", "No such path")
    }

    /// 405.
    pub fn wrong_method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", "This path does not take this method")
    }

    #[must_use]
    pub fn with(mut self, name: &str, detail: impl Into<Value>) -> Self {
        self.0.details.insert(name.to_owned(), detail.into());
        self
    }

    #[must_use]
    pub fn with_member(mut self, name: &str, member: impl Into<Value>) -> Self {
        self.0.members.insert(name.to_owned(), member.into());
        self
    }

    /// `seconds` until it is worth trying again.
    #[must_use]
    pub fn with_retry_after(mut self, seconds: u64) -> Self {
        self.0.retry_after = Some(seconds);
        self
    }

    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The body of a response, and the argument of the event `error`.
    pub fn body(&self) -> Value {
        let parts = &self.0;
        let text = &parts.message;
        let mut body = json!({ "success": false, "message": text, "error": text, "code": parts.code });
        if !parts.details.is_empty() {
            body["details"] = Value::Object(parts.details.clone());
        }
        body.as_object_mut().expect("an object").extend(parts.members.clone());
        body
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.0.status, Json(self.body())).into_response();
        response.extensions_mut().insert(self.0.counted);
        if self.0.status == StatusCode::UNAUTHORIZED {
            let challenge = header::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(seconds) = self.0.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// What the core refuses, in WebRun's words where WebRun has some.
impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = StatusCode::from_u16(refusal.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let known = |code, message: &str| Self::new(status, code, message);
        let mut problem = match refusal.code {
            Code::NoRuntime => known("NO_INSTANCES_AVAILABLE", "No available instances."),
            Code::UnknownSession => known("SESSION_NOT_FOUND", "Session not found"),
            Code::SessionEnded => known("SESSION_EXPIRED", "Session has ended; start a new one"),
            Code::UnknownTask => known("TASK_NOT_FOUND", "Task not found"),
            Code::RateLimited => known("RATE_LIMIT_EXCEEDED", "Rate limit exceeded. Please try again later."),
            Code::Deactivated => known("ACCOUNT_DEACTIVATED", "Account is deactivated"),
            Code::InsufficientBalance => known("INSUFFICIENT_BALANCE", "Insufficient balance."),
            Code::NoOpenGuardrail => known("NO_OPEN_GUARDRAIL", "No guardrail is open in this session"),
            Code::Invalid => known("INVALID_PARAMS", &refusal.message),
            Code::Unavailable | Code::Stopping => known("INSTANCE_UNAVAILABLE", &refusal.message),
            Code::RuntimeAway => known("INSTANCE_UNAVAILABLE", "The session's instance is away; try again soon"),
            code => known(upper(code), &refusal.message),
        };
        problem.0.counted = refusal.code;
        if let Value::Object(details) = refusal.details {
            problem.0.details.extend(details);
        }
        problem.0.retry_after = refusal.retry_after.map(|milliseconds| milliseconds.div_ceil(1000));
        problem
    }
}

/// A refusal of this surface's own, in the core's terms.
fn counted_as(status: StatusCode) -> Code {
    match status {
        StatusCode::UNAUTHORIZED => Code::Unauthorized,
        StatusCode::PAYMENT_REQUIRED => Code::InsufficientBalance,
        StatusCode::FORBIDDEN => Code::Forbidden,
        StatusCode::NOT_FOUND => Code::NotFound,
        StatusCode::METHOD_NOT_ALLOWED => Code::WrongMethod,
        StatusCode::CONFLICT => Code::Conflict,
        StatusCode::PAYLOAD_TOO_LARGE => Code::TooLarge,
        StatusCode::UNSUPPORTED_MEDIA_TYPE => Code::UnsupportedMedia,
        StatusCode::TOO_MANY_REQUESTS => Code::RateLimited,
        StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
        status if status.is_client_error() => Code::Invalid,
        _ => Code::Internal,
    }
}

/// The core's other codes, written as WebRun writes its own.
fn upper(code: Code) -> &'static str {
    match code {
        Code::ControlHeld => "CONTROL_HELD",
        Code::NotInControl => "NOT_IN_CONTROL",
        Code::Ambiguous => "AMBIGUOUS",
        Code::StaleRevision => "STALE_REVISION",
        Code::UnknownGuardrail => "GUARDRAIL_NOT_FOUND",
        Code::AlreadyAnswered => "ALREADY_ANSWERED",
        Code::GuardrailClosed => "GUARDRAIL_CLOSED",
        Code::TooManyTasks => "TOO_MANY_TASKS",
        Code::TooManyCommands => "TOO_MANY_COMMANDS",
        Code::OverCapacity => "OVER_CAPACITY",
        Code::TooLarge => "TOO_LARGE",
        Code::Conflict => "CONFLICT",
        Code::Forbidden => "FORBIDDEN",
        Code::Unauthorized => "UNAUTHORIZED",
        _ => "INTERNAL_ERROR",
    }
}
