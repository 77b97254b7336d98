//! Cross-origin calls of the WebRun surfaces: any page may make them, none with the browser's credentials.
//!
//! Which origins get this far is the guard's decision (see [`super::guard`]).

use std::time::Duration;

use axum::http::Method;
use tower_http::cors::{AllowHeaders, Any, CorsLayer};

/// For how long a browser may keep the answer to a preflight.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// Answers preflights and lets every page read the responses.
pub fn layer() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(Any)
        .max_age(MAX_AGE)
}
