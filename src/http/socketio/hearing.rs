//! What a client says once it is connected.

use std::time::Duration;

use axum::http::StatusCode;
use onlooker_protocol::{
    code::{Code, Refusal},
    view::{GuardrailView, Outcome},
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::{
    super::webrun::{
        attachments::attach_to,
        message::{Done, Message, too_late},
        problem::Problem,
    },
    connection::{Connection, Ended},
    packet::{self, Event, Packet},
};
use crate::{
    config::key::Scope,
    control::{Holder, HolderKey},
    guardrail::Actor,
    session::unnamed::Heard,
    watch::Leave,
};

/// How long an owner may take before its client is told that it does not answer.
pub(super) const OWNER: Duration = Duration::from_secs(10);

/// A packet whose attachments are still to come. They are counted and not kept: no message has a place for one.
pub(super) struct Partial {
    event: Option<Event>,
    missing: usize,
    room: usize,
    pub until: Instant,
}

impl Connection {
    /// A Socket.IO packet.
    pub(super) async fn hear(&mut self, text: &str) -> Result<(), Ended> {
        if self.partial.is_some() {
            return Err(Ended::Misused);
        }
        let packet = Packet::parse(text).map_err(|_| Ended::Misused)?;
        match packet {
            Packet::Connect { auth } => self.connect(&auth).await,
            Packet::Elsewhere { namespace, connects: true } => {
                self.send(packet::refused(&namespace, &json!({ "message": "Invalid namespace" })));
                Ok(())
            }
            // Everything else presupposes a connection.
            _ if self.joined.is_none() => Err(Ended::Misused),
            Packet::Elsewhere { connects: false, .. } => Err(Ended::Misused),
            Packet::Disconnect => {
                self.leave(Leave::Clean).await;
                self.join_until = Instant::now() + self.app.config.times.auth_within;
                Ok(())
            }
            Packet::Ack { attachments: 0 } => Ok(()),
            Packet::Ack { attachments } => {
                self.await_attachments(None, attachments);
                Ok(())
            }
            Packet::Event(event) if event.attachments > 0 => {
                let attachments = event.attachments;
                self.await_attachments(Some(event), attachments);
                Ok(())
            }
            Packet::Event(event) => {
                self.serve(event).await;
                Ok(())
            }
        }
    }

    fn await_attachments(&mut self, event: Option<Event>, missing: usize) {
        let until = Instant::now() + self.app.config.times.auth_within;
        let room = self.app.config.limits.client_frame_bytes;
        self.partial = Some(Box::new(Partial { event, missing, room, until }));
    }

    pub(super) fn hear_attachment(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        let Some(partial) = &mut self.partial else { return Err(Ended::Misused) };
        partial.room = partial.room.checked_sub(bytes.len()).ok_or(Ended::TooLarge)?;
        partial.missing -= 1;
        if partial.missing > 0 {
            return Ok(());
        }
        if let Some(event) = self.partial.take().and_then(|partial| partial.event) {
            self.reply(event.ack, Err(Problem::malformed("A message is a JSON object without attachments")));
        }
        Ok(())
    }

    async fn serve(&mut self, event: Event) {
        let Event { name, arguments, ack, .. } = event;
        let done = match name.as_str() {
            "message" => self.message(arguments.into_iter().next().unwrap_or_default()).await,
            _ => Err(Problem::malformed("Clients send the event `message`, with one object")),
        };
        self.reply(ack, done);
    }

    async fn message(&mut self, message: Value) -> Result<Value, Problem> {
        let message = Message::read(message)?;
        let Some(joined) = &mut self.joined else { return Err(Refusal::plain(Code::NotSubscribed).into()) };
        let scope = if matches!(message, Message::Answer(_)) { Scope::Answer } else { Scope::Control };
        joined.rights.allow(scope)?;
        joined.touched = true;
        let holder = Holder { who: joined.rights.who.to_string(), by: HolderKey::Connection(self.id) };
        let actor = Actor { holder, via: "socketio" };
        let session = joined.following.session().clone();
        let shown = joined.shown.as_deref().cloned();
        if let Message::NewTask(task) = &message {
            attach_to(&self.app, &session, task).await?;
        }
        let sent = timeout(OWNER, message.send(&session, actor, shown)).await;
        match sent.unwrap_or_else(|_| Err(Refusal::plain(Code::Unavailable).with_retry_after(1000)))? {
            Done::Queued(task) => Ok(json!({ "success": true, "taskId": task })),
            Done::Accepted | Done::Answered(Heard::Applied(_)) => Ok(json!({ "success": true })),
            Done::Answered(Heard::TooLate(view)) => Err(lost(&view)),
        }
    }

    /// Tells its sender what a message came to: an acknowledgement where one is asked for, and the event `error`.
    fn reply(&mut self, ack: Option<u64>, done: Result<Value, Problem>) {
        let body = match done {
            Ok(body) => body,
            Err(problem) => {
                let body = problem.body();
                self.send(packet::event("error", &body, None));
                body
            }
        };
        if let Some(id) = ack {
            self.send(packet::acknowledgement(id, &body));
        }
    }
}

/// An answer that came too late: who was first, and by what channel.
fn lost(view: &GuardrailView) -> Problem {
    let resolution = view.resolution.as_ref();
    let answered = resolution.filter(|it| matches!(it.outcome, Outcome::Answered | Outcome::Declined));
    let (code, message) = match answered {
        Some(resolution) => {
            let by = resolution.by.as_deref().unwrap_or("somebody");
            ("ALREADY_ANSWERED", format!("This guardrail was already answered by {by} via {}", resolution.via))
        }
        None => ("GUARDRAIL_CLOSED", "This guardrail is closed and takes no answer any more".to_owned()),
    };
    let problem = Problem::new(StatusCode::CONFLICT, code, message);
    too_late(view).into_iter().fold(problem, |problem, (name, member)| problem.with_member(&name, member))
}
