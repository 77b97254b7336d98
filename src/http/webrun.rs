//! The WebRun surfaces: REST for existing WebRun clients, and what their Socket.IO surface says and hears.
//!
//! Everything here translates. What a client may send in any of its documented generations becomes a command of the
//! core ([`message`], [`parameters`]); what the log has becomes the bodies and frames that those clients read
//! ([`frames`], [`tasks`]); what is refused becomes a [`problem::Problem`]. [`files`] has their uploads.

pub mod access;
pub mod attachments;
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
    extract::DefaultBodyLimit,
    routing::{delete, get, post},
};

use super::App;
use crate::config::Limits;

/// The routes over REST.
pub fn routes(limits: &Limits) -> Router<App> {
    // The store of files has bounds of its own, and takes bodies as they come.
    let uploading = Router::new().route("/files/upload", post(files::upload)).layer(DefaultBodyLimit::disable());
    Router::new()
        .route("/start/start-session", post(start::start_session))
        .route("/start/run-task", post(start::run_task))
        .route("/start/send-message", post(send::send_message))
        .route("/start/health", get(health::health))
        .route("/start/active-sockets", get(health::active_sockets))
        .route("/start/session-status/{session}", get(health::session_status))
        .route("/task/{session}/{task}", get(tasks::poll))
        .route("/files/{file}", get(files::download))
        .route("/environments/{environment}/files", get(files::of_environment))
        .route("/environments/{environment}/files/{file}", delete(files::delete))
        .layer(DefaultBodyLimit::max(limits.http_body_bytes))
        .merge(uploading)
}

/// Whether a path is one of these surfaces', also where nothing answers to it: its refusals are in WebRun's form.
pub fn is_ours(path: &str) -> bool {
    ["/start", "/task", "/files", "/environments"]
        .iter()
        .any(|prefix| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}
