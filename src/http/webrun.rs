//! The WebRun surfaces: REST for existing WebRun clients, and what their Socket.IO surface says and hears.
//!
//! Everything here translates. What a client may send in any of its documented generations becomes a command of the
//! core ([`message`], [`parameters`]); what the log has becomes the bodies and frames that those clients read
//! ([`frames`], [`tasks`]); what is refused becomes a [`problem::Problem`]. [`files`] has their uploads.

pub mod access;
pub mod body;
pub mod files;
pub mod frames;
pub mod health;
pub mod message;
mod multipart;
pub mod parameters;
pub mod problem;
pub mod rates;
pub mod send;
pub mod start;
pub mod tasks;
pub mod urls;

use axum::{
    Router,
    routing::{get, post},
};

use super::App;

/// The routes over REST.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/start/start-session", post(start::start_session))
        .route("/start/run-task", post(start::run_task))
        .route("/start/send-message", post(send::send_message))
        .route("/start/health", get(health::health))
        .route("/start/active-sockets", get(health::active_sockets))
        .route("/start/session-status/{session}", get(health::session_status))
        .route("/task/{session}/{task}", get(tasks::poll))
}

/// Whether a path is one of these surfaces', also where nothing answers to it: its refusals are in WebRun's form.
pub fn is_ours(path: &str) -> bool {
    ["/start", "/task", "/files"]
        .iter()
        .any(|prefix| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}
