//! For operators and orchestrators: health, readiness, metrics, and the live page.

use std::sync::atomic::Ordering;

use axum::{
    Router,
    extract::State,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use onlooker_protocol::code::{Code, Refusal};
use tokio::time::Instant;

use super::{App, Refused, bearer};
use crate::{chat::Health, config::key::Scope, metrics::Present, outbox::OutboxStats};

/// The process does its work. When it no longer can, starting it again is the cure: the disk failed to sync.
pub async fn healthz(State(app): State<App>) -> Result<&'static str, Refused> {
    if !app.directory.services().engine.needs_restart() {
        return Ok("ok\n");
    }
    let message = "the disk failed to keep what was written: look at the disk, then start the gateway again";
    Err(Refused(Refusal::new(Code::Unavailable, message)))
}

/// It takes sessions and subscribers: the engine answers, and it is not stopping.
pub async fn readyz(State(app): State<App>) -> Result<&'static str, Refused> {
    if app.ready.load(Ordering::Acquire) && !app.stopping.is_cancelled() {
        return Ok("ready\n");
    }
    Err(Refused(Refusal::plain(Code::Unavailable).with_retry_after(1000)))
}

/// In the OpenMetrics text form. With keys it needs one with the scope `admin`.
pub async fn metrics(State(app): State<App>, headers: axum::http::HeaderMap) -> Result<Response, Refused> {
    let grant = app.auth.authenticate(bearer(&headers).unwrap_or_default());
    let grant = grant.map_err(|_| Refusal::plain(Code::Unauthorized))?;
    super::allowed(&grant, Scope::Admin)?;
    let services = app.directory.services();
    let (guardrails_unreached, oldest) = services.unreached.totals(Instant::now());
    count_notices(&app);
    for chat in app.connectors.iter() {
        app.metrics.chat_works(chat.name(), chat.health() == Health::Working);
    }
    let text = app.metrics.text(Present {
        sessions: app.directory.len(),
        connections: app.connections.load(Ordering::Relaxed),
        stored_bytes: services.engine.stored_bytes(),
        guardrails_unreached,
        oldest_unreached_seconds: oldest.as_secs_f64(),
    });
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], text).into_response())
}

fn count_notices(app: &App) {
    let (outbox, metrics) = (&app.directory.services().outbox, &app.metrics);
    for (state, count) in counts(outbox.stats()) {
        metrics.notices(state, count);
    }
    for (notifier, stats) in outbox.stats_by_notifier() {
        for (outcome, count) in counts(stats) {
            metrics.notice_outcomes(notifier, outcome, count);
        }
    }
    for (notifier, count) in outbox.dead() {
        metrics.notices_dead(notifier, count);
    }
}

fn counts(stats: &OutboxStats) -> [(&'static str, u64); 8] {
    [
        ("queued", &stats.queued),
        ("confirmed", &stats.confirmed),
        ("refused", &stats.refused),
        ("rejected", &stats.rejected),
        ("unknown", &stats.unknown),
        ("repeated", &stats.repeated),
        ("given_up", &stats.given_up),
        ("updates", &stats.updates),
    ]
    .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
}

/// The live page: static files in the binary. They hold no data, so that they need no key; what they ask for does.
pub fn dashboard() -> Router<App> {
    macro_rules! files {
        ($($path:literal $file:literal $kind:literal;)+) => {
            Router::new()$(.route($path, get(|| async {
                file($kind, include_str!(concat!("../../dashboard/", $file)))
            })))+
        };
    }
    files! {
        "/" "index.html" "text/html; charset=utf-8";
        "/style.css" "style.css" "text/css; charset=utf-8";
        "/icon.svg" "icon.svg" "image/svg+xml";
        "/app.js" "app.js" "text/javascript; charset=utf-8";
        "/connection.js" "connection.js" "text/javascript; charset=utf-8";
        "/state.js" "state.js" "text/javascript; charset=utf-8";
        "/view.js" "view.js" "text/javascript; charset=utf-8";
        "/cards.js" "cards.js" "text/javascript; charset=utf-8";
        "/attention.js" "attention.js" "text/javascript; charset=utf-8";
    }
}

const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; \
                              connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn file(kind: &'static str, text: &'static str) -> Response {
    let fixed = HeaderValue::from_static;
    let headers: [(HeaderName, HeaderValue); 5] = [
        (header::CONTENT_TYPE, fixed(kind)),
        (header::CONTENT_SECURITY_POLICY, fixed(CONTENT_POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, fixed("nosniff")),
        (header::REFERRER_POLICY, fixed("same-origin")),
        (header::CACHE_CONTROL, fixed("no-cache")),
    ];
    (StatusCode::OK, headers, text).into_response()
}
