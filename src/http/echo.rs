//! A WebSocket that sends back every message, through the [`Wire`] of the WebSocket surfaces: what conformance suites
//! talk to (`tests/conformance/run.py`). With the feature `echo` only, which no release has. It asks for no key.

use axum::{extract::State, response::Response};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{
    App,
    upgrade::Upgrade,
    wire::{Limits, Turn, Wire},
};

/// Autobahn's largest messages have 16 MiB.
const LIMITS: Limits = Limits { message: 16 << 20, read: 64 << 10, room: 32 };
const GOODBYE: std::time::Duration = std::time::Duration::from_secs(2);

pub async fn upgrade(State(app): State<App>, upgrade: Upgrade) -> Response {
    upgrade.begin(&app.tasks, LIMITS, echo)
}

async fn echo(mut wire: Wire) {
    loop {
        match wire.turn().await {
            Turn::Received(Message::Text(text)) => wire.send_text_shared(text),
            Turn::Received(Message::Binary(bytes)) => wire.send_binary(bytes),
            Turn::Received(_) | Turn::Flushed => {}
            Turn::Broken(error) => return wire.close_with(close_code(&error), "", GOODBYE, true).await,
            Turn::Closed(_) => return,
        }
    }
}

/// RFC 6455, 7.4.1. The surfaces have codes of their own for this, which the suite does not know.
fn close_code(error: &Error) -> u16 {
    match error {
        Error::Utf8(_) => 1007,
        Error::Capacity(_) => 1009,
        _ => 1002,
    }
}
