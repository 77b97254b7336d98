//! The other ends of notices: they confirm, refuse, reject, lose, hang, break, and sometimes take the gateway with them.

use std::{sync::Arc, time::Duration};

use futures::future::{BoxFuture, FutureExt as _, pending};
use onlooker_protocol::notice::{Notice, NoticeType};
use rand::{RngExt, rngs::StdRng};
use tokio::time::sleep;

use super::{
    plan::Manners,
    trace::{Event, Outcome, Subject},
    world::World,
};
use crate::notifier::{Delivery, Message, Notifier, Receipt};

/// All addresses of one carrier.
pub(super) struct Carrier {
    pub(super) world: Arc<World>,
    pub(super) name: &'static str,
}

enum Act {
    Take,
    Refuse,
    Reject,
    /// Nobody knows; with whether it arrived.
    Lose(bool),
    Hang(bool),
    Panic(bool),
    /// The gateway is killed meanwhile.
    Die(bool),
}

impl Carrier {
    fn manners(&self, target: &str) -> Manners {
        let all = self.world.plan.tiers.iter().flatten();
        let manners = all.filter(|(name, _)| *name == target).map(|(_, manners)| *manners).next();
        manners.filter(|_| !self.world.is_quiet()).unwrap_or_default()
    }

    fn draw(&self, target: &str, random: &mut StdRng) -> (Act, u64) {
        let manners = self.manners(target);
        let took_ms = random.random_range(0..=manners.slow_ms.max(20));
        let (mut dice, arrives) = (random.random_range(0..1000), random.random_bool(0.5));
        let acts = [
            (manners.refuses, Act::Refuse),
            (manners.rejects, Act::Reject),
            (manners.loses, Act::Lose(arrives)),
            (manners.hangs, Act::Hang(arrives)),
            (manners.panics, Act::Panic(arrives)),
            (if self.world.kill.may_strike() { manners.dies } else { 0 }, Act::Die(arrives)),
        ];
        for (share, act) in acts {
            if dice < share {
                return (act, took_ms);
            }
            dice -= share;
        }
        (Act::Take, took_ms)
    }

    async fn attempt(&self, message: &Message) -> Delivery {
        let trace = &self.world.trace;
        let target = if message.address.is_empty() {
            self.name.to_owned()
        } else {
            format!("{}:{}", self.name, message.address)
        };
        let nth = trace.serial();
        let notice = message.notice().expect("a notice is of the protocol");
        trace.push(Event::Sends {
            nth,
            target: target.clone(),
            id: message.id.clone(),
            kind: kind(&notice).to_owned(),
            repeat: message.repeat,
            step: notice.step.unwrap_or(0),
            subject: subject(&self.world, &notice),
            card: message.card.is_some(),
        });
        let (act, took_ms) = self.world.with_random(|random| self.draw(&target, random));
        let arrives = |arrives: bool| {
            if arrives {
                trace.push(Event::Arrives { nth });
            }
        };
        sleep(Duration::from_millis(took_ms / 2)).await;
        let (mut wish_ms, mut all) = (0, false);
        let (outcome, delivery) = match act {
            Act::Take => {
                arrives(true);
                sleep(Duration::from_millis(took_ms / 2)).await;
                let shown = self.name != "webhook";
                let delivery = if shown { Delivery::Shown(Receipt(nth.to_string())) } else { Delivery::Confirmed };
                (Outcome::Confirmed, delivery)
            }
            Act::Refuse => {
                let (wishes, of_all) =
                    self.world.with_random(|random| (random.random_bool(0.3), random.random_bool(0.3)));
                (wish_ms, all) = if wishes { (10_000, of_all) } else { (0, false) };
                let (error, wish) = ("busy".to_owned(), Duration::from_millis(wish_ms));
                let delivery = if all {
                    Delivery::Throttled { error, retry_after: wish }
                } else {
                    Delivery::Refused { error, retry_after: wishes.then_some(wish) }
                };
                (Outcome::Refused, delivery)
            }
            Act::Reject => (Outcome::Rejected, Delivery::Rejected { error: "blocked".to_owned() }),
            Act::Lose(arrived) => {
                arrives(arrived);
                (Outcome::Unknown, Delivery::Unknown { error: "no answer".to_owned() })
            }
            Act::Hang(arrived) => {
                arrives(arrived);
                return pending().await;
            }
            Act::Panic(arrived) => {
                arrives(arrived);
                // As a panic, without its words.
                std::panic::resume_unwind(Box::new("broken"));
            }
            Act::Die(arrived) => {
                arrives(arrived);
                self.world.kill.strike();
                return pending().await;
            }
        };
        trace.push(Event::Sent { nth, outcome, wish_ms, all });
        delivery
    }
}

impl Notifier for Carrier {
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Delivery> {
        self.attempt(message).boxed()
    }
}

fn kind(notice: &Notice) -> &'static str {
    match notice.kind {
        NoticeType::GuardrailOpened => "opened",
        NoticeType::GuardrailUpdated | NoticeType::GuardrailResolved => "update",
        NoticeType::TaskCompleted | NoticeType::TaskFailed => "result",
        NoticeType::Test => "test",
    }
}

fn subject(world: &World, notice: &Notice) -> Subject {
    let session = world.trace.nth(notice.session.parse().expect("a session's id"));
    match (&notice.guardrail, &notice.task) {
        (Some(guardrail), _) => {
            Subject::Question { session, id: guardrail.guardrail_id.clone(), revision: guardrail.revision }
        }
        (None, task) => Subject::Result { session, task: task.clone().unwrap_or_default() },
    }
}
