//! What whoever said something is told, where they said it and so that nobody else sees it.
//!
//! A tap brings an address for replies, which shows them to that person alone. Otherwise the reply is an ephemeral
//! message, or a plain one where the chat has no other reader: Slack shows ephemeral messages only to who is there now.

use std::time::Duration;

use serde_json::json;
use url::Url;

use super::{
    api::{Api, Failure, Token},
    blocks::{self, Drawn},
};
use crate::chat::Reply;

/// How long a reply waits for Slack's leave, at most.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Where a reply goes.
pub(super) struct Back {
    pub(super) channel: String,
    pub(super) user: String,
    /// The message that starts the thread in which it was said.
    pub(super) thread: Option<String>,
    pub(super) response_url: Option<Url>,
}

/// Best effort: what was said has had its effect, and the card shows it.
pub(super) async fn reply(api: &Api, back: &Back, reply: &Reply) {
    let Some(drawn) = blocks::reply(reply) else { return };
    let mut sent = send(api, back, &drawn).await;
    if let Err(Failure::Busy { wait, .. }) = &sent {
        tokio::time::sleep(wait.unwrap_or_default().min(WAIT_MAX)).await;
        sent = send(api, back, &drawn).await;
    }
    if let Err(failure) = sent {
        tracing::warn!(?failure, "a reply did not reach its reader in Slack");
    }
}

async fn send(api: &Api, back: &Back, drawn: &Drawn) -> Result<(), Failure> {
    if let Some(url) = back.response_url.as_ref().filter(|url| api.may_respond(url)) {
        let body = json!({
            "response_type": "ephemeral",
            "replace_original": false,
            "text": drawn.text,
            "blocks": drawn.blocks,
        });
        match api.respond(url, &body).await {
            // It holds for half an hour and a few replies.
            Err(Failure::Wrong { .. }) => {}
            sent => return sent,
        }
    }
    let mut body = json!({
        "channel": back.channel,
        "text": drawn.text,
        "blocks": drawn.blocks,
        "parse": "none",
        "link_names": false,
    });
    if let Some(thread) = &back.thread {
        body["thread_ts"] = thread.as_str().into();
    }
    let method = if is_direct(&back.channel) {
        for preview in ["unfurl_links", "unfurl_media"] {
            body[preview] = false.into();
        }
        "chat.postMessage"
    } else {
        body["user"] = back.user.as_str().into();
        "chat.postEphemeral"
    };
    api.call(method, Token::Bot, Some(&body)).await.map(drop)
}

/// Whether a chat is one person's with us.
pub(super) fn is_direct(channel: &str) -> bool {
    channel.starts_with('D')
}
