//! The webhooks of a session's tasks: kept from the task's creation on, sent at most once after its end.
//!
//! A webhook is found due by looking at its task, so that no step of ending a task can forget it, also not one that a
//! killed process had no time for. `Sending` is on the disk before the request leaves.

use std::collections::BTreeMap;

use onlooker_protocol::{
    code::{Code, Refusal},
    subscriber::NewTask,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Duration, Instant};
use url::Url;

use super::{
    owner::{Owner, OwnershipLost},
    publishing::invalid,
};
use crate::task_webhook::{Authorization, Due, Post, Standing, SubmittedData, Webhook, body};

/// Webhooks of one session that are not settled.
const WEBHOOKS: usize = 64;
/// When the carrier has no room.
const AGAIN: Duration = Duration::from_secs(1);

/// By task.
#[derive(Default)]
pub(super) struct Webhooks {
    open: BTreeMap<String, Open>,
    /// Some found no room.
    offer_at: Option<Instant>,
}

struct Open {
    webhook: Webhook,
    /// The URL and the name as the redactor leaves them.
    kept: (String, String),
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// For the end of its task, or for room.
    Waits,
    Offered,
    Sending,
}

/// What is kept of a webhook.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StoredWebhook {
    name: String,
    url: String,
    submitted_data: SubmittedData,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    structured: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    had_secrets: bool,
    /// It may have reached its receiver.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    sending: bool,
}

impl Webhooks {
    pub(super) fn are_settled(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn next_offer(&self) -> Option<Instant> {
        self.offer_at
    }

    pub(super) fn stored(&self) -> BTreeMap<String, StoredWebhook> {
        self.open.iter().map(|(task, open)| (task.clone(), open.stored())).collect()
    }

    pub(super) fn insert(&mut self, task: String, webhook: NewWebhook) {
        let NewWebhook { webhook, kept } = webhook;
        self.open.insert(task, Open { webhook, kept, stage: Stage::Waits });
    }
}

/// A webhook whose task is about to be queued.
pub(super) struct NewWebhook {
    webhook: Webhook,
    kept: (String, String),
}

impl Open {
    fn stored(&self) -> StoredWebhook {
        let (url, name) = self.kept.clone();
        StoredWebhook {
            had_secrets: !matches!(self.webhook.authorization, Authorization::None) || url != self.webhook.url.as_str(),
            name,
            url,
            submitted_data: self.webhook.form,
            structured: self.webhook.structured,
            sending: self.stage == Stage::Sending,
        }
    }
}

impl Owner {
    /// The webhook of a task that is checked; the redactor knows the task's secrets already.
    ///
    /// # Errors
    /// `invalid`, `too_many_tasks`.
    pub(super) fn webhook_of(&self, task: &NewTask) -> Result<Option<NewWebhook>, Refusal> {
        let Some(webhook) = Webhook::read(&task.parameters).map_err(invalid)? else { return Ok(None) };
        if self.webhooks.open.len() >= WEBHOOKS {
            return Err(Refusal::plain(Code::TooManyTasks).with_details(json!({ "limit": WEBHOOKS })));
        }
        let redacted = |text: &str| self.redactor.redact_str(text).into_owned();
        let kept = (redacted(webhook.url.as_str()), redacted(&webhook.name));
        Ok(Some(NewWebhook { webhook, kept }))
    }

    /// Webhooks that another process left. One that was being sent may have arrived: it is not sent again.
    pub(super) fn restore_webhooks(&mut self, stored: &BTreeMap<String, StoredWebhook>) {
        for (task, stored) in stored {
            if stored.sending {
                self.services.metrics.task_webhook("unknown");
                tracing::warn!(session.id = ?self.id(), "the gateway ended while a task webhook was being sent; it is not repeated");
                self.keeping.changed();
                continue;
            }
            let Ok(url) = Url::parse(&stored.url) else { continue };
            let authorization = if stored.had_secrets { Authorization::Lost } else { Authorization::None };
            let (name, form, structured) = (stored.name.clone(), stored.submitted_data, stored.structured);
            let webhook = Webhook { name, url, form, structured, authorization };
            let kept = (stored.url.clone(), stored.name.clone());
            self.webhooks.open.insert(task.clone(), Open { webhook, kept, stage: Stage::Waits });
        }
    }

    /// Offers what has become due, and lets go of what never will.
    pub(super) fn offer_webhooks(&mut self, now: Instant) {
        self.webhooks.offer_at = None;
        if self.webhooks.open.is_empty() {
            return;
        }
        let waiting = |(task, open): (&String, &Open)| (open.stage == Stage::Waits).then(|| task.clone());
        for task in self.webhooks.open.iter().filter_map(waiting).collect::<Vec<_>>() {
            match self.standing_of(&task) {
                Some(Standing::NotOver) => {}
                Some(Standing::Over(_)) => self.offer_webhook(task, now),
                // Without a task: it was never queued, or its result is no longer known.
                Some(Standing::NothingToTell) | None => self.drop_webhook(&task),
            }
        }
    }

    fn standing_of(&self, task: &str) -> Option<Standing> {
        self.state.task(task).map(|view| Standing::of(view, self.state.session()))
    }

    fn offer_webhook(&mut self, task: String, now: Instant) {
        let Some(open) = self.webhooks.open.get_mut(&task) else { return };
        if matches!(open.webhook.authorization, Authorization::Lost) {
            self.services.metrics.task_webhook("secrets_lost");
            tracing::warn!(session.id = ?self.id(), "a task webhook is not sent: what authorizes it was lost in a restart");
            self.drop_webhook(&task);
        } else if self.services.webhooks.offer(Due { session: self.session.id, task }) {
            open.stage = Stage::Offered;
        } else {
            self.webhooks.offer_at = Some(now + AGAIN);
        }
    }

    fn drop_webhook(&mut self, task: &str) {
        if self.webhooks.open.remove(task).is_some() {
            self.keeping.changed();
        }
    }

    /// The request, once it is recorded that it is being sent.
    pub(super) async fn begin_webhook(&mut self, task: &str) -> Result<Option<Post>, OwnershipLost> {
        let Some(Standing::Over(ending)) = self.standing_of(task) else {
            // So many tasks have ended since that this one's result is no longer known.
            self.services.metrics.task_webhook("given_up");
            self.drop_webhook(task);
            return Ok(None);
        };
        let Some(open) = self.webhooks.open.get_mut(task).filter(|open| open.stage == Stage::Offered) else {
            return Ok(None);
        };
        open.stage = Stage::Sending;
        self.keep_surely().await?;
        let (Some(open), Some(view)) = (self.webhooks.open.get_mut(task), self.state.task(task)) else {
            return Ok(None);
        };
        let webhook = &mut open.webhook;
        let authorization = match std::mem::replace(&mut webhook.authorization, Authorization::Lost) {
            Authorization::Held(value) => Some(value),
            Authorization::None | Authorization::Lost => None,
        };
        let body = body(self.session.id.as_str(), view, &ending, webhook.form, webhook.structured);
        let body = serde_json::to_vec(&body).expect("JSON is written as JSON");
        Ok(Some(Post { url: webhook.url.clone(), authorization, body }))
    }

    /// The only attempt is over; that is kept soon, because until then it counts as unknown.
    pub(super) fn webhook_done(&mut self, task: &str) {
        if self.webhooks.open.remove(task).is_some() {
            self.keeping.changed_for_people();
        }
    }
}
