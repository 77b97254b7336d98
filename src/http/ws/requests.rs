//! What a subscriber asks for, frame by frame.

use std::{sync::Arc, time::Duration};

use onlooker_protocol::{
    code::{Code, Refusal},
    subscriber::{Answer, Attention, GatewayToSubscriber, Role, SessionCommand, Subscribe, SubscriberToGateway},
};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout};

use super::{
    super::allowed,
    connection::{BoardFollowing, Connection, Ended},
    followings::Followed,
};
use crate::{
    config::key::Scope,
    control::HolderKey,
    subscriber::{Following, Wanted},
    watch::{Attentive, Leave, Newcomer},
};

/// How long an owner may take before the subscriber is told that it does not answer.
const OWNER: Duration = Duration::from_secs(10);
/// A connection that follows so many sessions gets what they bring together: a turn of its own task costs less than that
/// many writes.
const GATHERS: usize = 8;
/// Event types that one filter may name.
const FILTER: usize = 64;

type Asked = Result<Map<String, Value>, Refusal>;

impl Connection {
    pub(super) async fn receive(&mut self, text: &str) -> Result<(), Ended> {
        match serde_json::from_str::<SubscriberToGateway>(text) {
            Ok(frame) => self.serve(frame).await,
            Err(error) => {
                let reference = reference_of(text);
                self.refuse(reference, super::super::unreadable(&error));
            }
        }
        self.check_patience()
    }

    async fn serve(&mut self, frame: SubscriberToGateway) {
        match frame {
            SubscriberToGateway::Auth { .. } => {}
            SubscriberToGateway::Subscribe(subscribe) => self.subscribe(subscribe),
            SubscriberToGateway::Unsubscribe { session, project } => self.unsubscribe(session.as_deref(), project),
            SubscriberToGateway::Attention { session, state } => self.attention(session.as_deref(), state),
            SubscriberToGateway::Ack { session, position } => match self.followings.of_session(&session) {
                Some(following) => following.acknowledged(position, Instant::now()),
                None => self.refuse(None, Refusal::plain(Code::NotSubscribed)),
            },
            SubscriberToGateway::Pong { id } => self.pong(id),
            SubscriberToGateway::Answer { reference, session, guardrail_id, answer } => {
                let asked = self.answer(&session, guardrail_id, answer).await;
                self.reply(reference, asked);
            }
            SubscriberToGateway::Claim { reference, session, guardrail_id, revision, duration } => {
                let asked = self.claim(&session, guardrail_id, revision, duration).await;
                self.reply(reference, asked);
            }
            SubscriberToGateway::Release { reference, session, guardrail_id, revision } => {
                let asked = self.release(&session, guardrail_id, revision).await;
                self.reply(reference, asked);
            }
            SubscriberToGateway::Command { reference, session, command } => {
                let asked = self.command(&session, command).await;
                self.reply(reference, asked);
            }
            SubscriberToGateway::Unknown => {
                self.refuse(None, Refusal::new(Code::Invalid, "this version does not know that frame type"));
            }
        }
    }

    fn reply(&mut self, reference: Option<String>, asked: Asked) {
        match asked {
            Ok(result) => self.wire.send(&GatewayToSubscriber::Ok { reference, result }),
            Err(refusal) => self.refuse(reference, refusal),
        }
    }

    async fn answer(&mut self, session: &str, guardrail: String, answer: Answer) -> Asked {
        allowed(&self.grant, Scope::Answer)?;
        let session = self.session(session)?;
        let view = in_time(session.answer(guardrail, answer, self.actor())).await?;
        Ok(Map::from_iter([("guardrail".to_owned(), json!(view))]))
    }

    async fn release(&mut self, session: &str, guardrail: String, revision: u32) -> Asked {
        allowed(&self.grant, Scope::Answer)?;
        let session = self.session(session)?;
        in_time(session.release(guardrail.clone(), revision, self.actor())).await?;
        let view = in_time(session.guardrail(guardrail)).await?;
        Ok(Map::from_iter([("guardrail".to_owned(), json!(view))]))
    }

    async fn claim(&mut self, session: &str, guardrail: String, revision: u32, duration: Option<u64>) -> Asked {
        allowed(&self.grant, Scope::Answer)?;
        let session = self.session(session)?;
        self.touched.get_or_insert_default().insert(session.id);
        in_time(session.claim(guardrail.clone(), revision, duration, self.actor())).await?;
        let view = in_time(session.guardrail(guardrail)).await?;
        Ok(Map::from_iter([("guardrail".to_owned(), json!(view))]))
    }

    async fn command(&mut self, session: &str, command: SessionCommand) -> Asked {
        allowed(&self.grant, Scope::Control)?;
        let session = self.session(session)?;
        if matches!(command, SessionCommand::TakeControl) {
            self.touched.get_or_insert_default().insert(session.id);
        }
        in_time(session.command(command, self.actor())).await
    }

    fn subscribe(&mut self, subscribe: Subscribe) {
        let reference = subscribe.reference.clone();
        let result = match (&subscribe.session, subscribe.project) {
            (Some(session), false) => {
                let session = session.clone();
                self.follow_session(&session, subscribe)
            }
            (None, true) => self.follow_project(reference.clone()),
            _ => Err(Refusal::new(Code::Invalid, "subscribe names a `session`, or says `project: true`")),
        };
        if let Err(refusal) = result {
            self.refuse(reference, refusal);
        }
    }

    fn follow_session(&mut self, id: &str, subscribe: Subscribe) -> Result<(), Refusal> {
        let session = self.session(id)?;
        if self.followings.slot_of(session.id).is_some() {
            return Err(Refusal::plain(Code::AlreadySubscribed));
        }
        self.check_room()?;
        if subscribe.filter.len() > FILTER {
            return Err(Refusal::new(Code::TooLarge, format!("a filter names at most {FILTER} types")));
        }
        let wanted = Wanted {
            since: subscribe.since,
            filter: subscribe.filter,
            pictures: subscribe.pictures,
            viewer: HolderKey::Connection(self.id),
        };
        let newcomer = Newcomer {
            subscriber: self.id.into(),
            who: Arc::clone(&self.grant.who),
            via: "websocket",
            observer: subscribe.role == Role::Observer,
            able: self.grant.may(Scope::Answer) && wanted.sees_guardrails(),
            sees_results: wanted.sees_results(),
            attentive: if subscribe.attention == Attention::Active { Attentive::Active } else { Attentive::Idle },
        };
        let slot = self.followings.new_slot();
        let engine = Arc::clone(&self.app.directory.services().engine);
        let hub = self.app.hub.clone();
        let mut following = Following::begin(session.clone(), engine, &hub, (&self.signal, slot), wanted, newcomer);
        following.set_outlet(Arc::clone(self.wire.socket()) as _);
        let reference = subscribe.reference.map(String::into_boxed_str);
        self.followings.insert(slot, Followed { following, reference });
        self.wire.socket().set_gathers(self.followings.len() >= GATHERS);
        Ok(())
    }

    fn follow_project(&mut self, reference: Option<String>) -> Result<(), Refusal> {
        if self.board.is_some() {
            return Err(Refusal::plain(Code::AlreadySubscribed));
        }
        self.check_room()?;
        let board = self.app.directory.services().boards.of(&self.grant.project);
        self.board = Some(Box::new(BoardFollowing::new(board, reference)));
        Ok(())
    }

    fn check_room(&self) -> Result<(), Refusal> {
        let limit = self.app.config.limits.subscriptions_per_connection;
        if self.followings.len() + usize::from(self.board.is_some()) < limit {
            return Ok(());
        }
        Err(Refusal::plain(Code::TooManySubscriptions).with_details(json!({ "limit": limit })))
    }

    fn unsubscribe(&mut self, session: Option<&str>, project: bool) {
        if project && self.board.take().is_some() {
            return;
        }
        let slot = session.and_then(|id| id.parse().ok()).and_then(|id| self.followings.slot_of(id));
        match slot.and_then(|slot| self.followings.remove(slot)) {
            Some(following) => following.end(Leave::Clean),
            None => self.refuse(None, Refusal::plain(Code::NotSubscribed)),
        }
    }

    fn attention(&mut self, session: Option<&str>, state: Attention) {
        let (now, active) = (Instant::now(), state == Attention::Active);
        match session {
            None => self.followings.iter().for_each(|following| following.guard().attention(active, now)),
            Some(session) => match self.followings.of_session(session) {
                Some(following) => following.guard().attention(active, now),
                None => self.refuse(None, Refusal::plain(Code::NotSubscribed)),
            },
        }
    }
}

/// An owner that does not answer in time is unavailable; what was asked may still happen, and is idempotent.
async fn in_time<T>(asked: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    timeout(OWNER, asked).await.unwrap_or_else(|_| Err(Refusal::plain(Code::Unavailable).with_retry_after(1000)))
}

/// The `ref` of a frame that could not be read as a whole, so that its sender learns which it was.
fn reference_of(text: &str) -> Option<String> {
    let value: Value = serde_json::from_str(text).ok()?;
    value.get("ref")?.as_str().map(str::to_owned)
}
