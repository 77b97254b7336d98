//! A WebSocket that sends back every message, through the [`Wire`] of the WebSocket surfaces: what conformance suites
//! talk to (`tests/conformance/run.py`). With the feature `echo` only, which no release has. It asks for no key.

use axum::{
    extract::{
        WebSocketUpgrade,
        ws::{Message, WebSocket},
    },
    response::Response,
};
use tokio_tungstenite::tungstenite::Error;

use super::wire::{Turn, Wire};

/// Autobahn's largest messages have 16 MiB.
const MESSAGE: usize = 16 << 20;
const GOODBYE: std::time::Duration = std::time::Duration::from_secs(2);

pub async fn upgrade(upgrade: WebSocketUpgrade) -> Response {
    upgrade.max_frame_size(MESSAGE).max_message_size(MESSAGE).on_upgrade(echo)
}

async fn echo(socket: WebSocket) {
    let mut wire = Wire::new(socket);
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
fn close_code(error: &axum::Error) -> u16 {
    match std::error::Error::source(error).and_then(|source| source.downcast_ref::<Error>()) {
        Some(Error::Utf8(_)) => 1007,
        Some(Error::Capacity(_)) => 1009,
        _ => 1002,
    }
}
