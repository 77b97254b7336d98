//! Every metric, named in one place, with its meaning. Exported in the OpenMetrics text form under `onlooker_`.

use std::sync::{Mutex, atomic::Ordering};

use onlooker_protocol::Code;
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

/// Counters and gauges. Cheap to touch from anywhere.
pub struct Metrics {
    pub events: Counter,
    pub sessions_created: Counter,
    pub sessions_ended: Counter,
    pub sessions_evicted: Counter,
    pub guardrails_raised: Counter,
    pub guardrails_answered: Counter,
    pub no_target: Counter,
    pub engine_retries: Counter,
    pub answers_lost: Counter,
    pub owners_fenced: Counter,
    pub epochs_broken: Counter,
    pub subscribers_opened: Counter,
    pub subscribers_closed: Counter,
    pub runtimes_opened: Counter,
    pub runtimes_closed: Counter,
    pub frames_sent: Counter,
    pub gaps: Counter,
    refusals: Family<[(&'static str, &'static str); 1], Counter>,
    closes: Family<[(&'static str, &'static str); 1], Counter>,
    notices: Family<[(&'static str, &'static str); 1], Gauge>,
    notice_outcomes: Family<[(&'static str, String); 2], Counter>,
    notices_dead: Family<[(&'static str, String); 1], Gauge>,
    task_webhooks: Family<[(&'static str, &'static str); 1], Counter>,
    callbacks_refused: Family<[(&'static str, &'static str); 2], Counter>,
    pictures_reduced: Family<[(&'static str, &'static str); 1], Counter>,
    chats_working: Family<[(&'static str, &'static str); 1], Gauge>,
    sessions: Gauge,
    connections: Gauge,
    stored_bytes: Gauge,
    guardrails_unreached: Gauge,
    oldest_unreached_seconds: Gauge<f64, std::sync::atomic::AtomicU64>,
    registry: Mutex<Registry>,
}

/// What is measured at the moment of asking.
#[derive(Clone, Copy, Debug, Default)]
pub struct Present {
    pub sessions: usize,
    pub connections: usize,
    pub stored_bytes: u64,
    pub guardrails_unreached: usize,
    pub oldest_unreached_seconds: f64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

macro_rules! counters {
    ($registry:ident, $($name:ident: $help:literal;)+) => {
        $(let $name = Counter::default();
        $registry.register(stringify!($name), $help, $name.clone());)+
    };
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("onlooker");
        counters! { registry,
            events: "Events appended to logs";
            sessions_created: "Sessions begun";
            sessions_ended: "Sessions ended";
            sessions_evicted: "Ended sessions let go of before their retention ended, because room was needed";
            guardrails_raised: "Questions asked";
            guardrails_answered: "Questions answered";
            no_target: "Results that nobody could be told of, because no target is configured";
            answers_lost: "Accepted answers that were lost with a process before their runtimes had them, and asked anew";
            engine_retries: "Writes of the gateway's own that the engine did not take at once";
            owners_fenced: "Owners that found their log taken over";
            epochs_broken: "Logs that a runtime could not continue";
            subscribers_opened: "Subscriber connections opened";
            subscribers_closed: "Subscriber connections closed";
            runtimes_opened: "Runtime connections opened";
            runtimes_closed: "Runtime connections closed";
            frames_sent: "Frames sent to subscribers";
            gaps: "Gaps told to subscribers";
        }
        let (refusals, closes, notices) = (Family::default(), Family::default(), Family::default());
        registry.register("refusals", "Requests and events refused, by code", refusals.clone());
        registry.register("closes", "Connections closed by the gateway, by code", closes.clone());
        registry.register("notices", "Notices by what became of them", notices.clone());
        let chats_working = Family::default();
        let help = "Whether a chat accepts our credential: 1, or 0 until somebody changes something";
        registry.register("chats_working", help, chats_working.clone());
        let (notice_outcomes, notices_dead) = (Family::default(), Family::default());
        let help = "What became of attempts to send notices, by notifier";
        registry.register("notice_outcomes", help, notice_outcomes.clone());
        let help = "Notices that were rejected or given up, by notifier: nobody has them for certain";
        registry.register("notices_dead", help, notices_dead.clone());
        let callbacks_refused = Family::default();
        let help = "What came from chats and was refused, by chat and reason";
        registry.register("callbacks_refused", help, callbacks_refused.clone());
        let task_webhooks = Family::default();
        registry.register("task_webhooks", "Task webhooks by what became of them", task_webhooks.clone());
        let pictures_reduced = Family::default();
        let help = "Pictures that somebody wanted reduced: made smaller, passed on as they were, or skipped";
        registry.register("pictures_reduced", help, pictures_reduced.clone());
        let (sessions, connections, stored_bytes) = (Gauge::default(), Gauge::default(), Gauge::default());
        registry.register("sessions", "Sessions known", sessions.clone());
        registry.register("connections", "Connections open", connections.clone());
        registry.register_with_unit("stored", "Bytes in logs", Unit::Bytes, stored_bytes.clone());
        let guardrails_unreached = Gauge::default();
        let help = "Open guardrails whose mode reaches out, neither covered, claimed nor notified";
        registry.register("guardrails_unreached", help, guardrails_unreached.clone());
        let oldest_unreached_seconds = Gauge::default();
        let help = "Age of the oldest of them";
        registry.register("oldest_unreached_seconds", help, oldest_unreached_seconds.clone());
        Self {
            events,
            sessions_created,
            sessions_ended,
            sessions_evicted,
            guardrails_raised,
            guardrails_answered,
            no_target,
            engine_retries,
            answers_lost,
            owners_fenced,
            epochs_broken,
            subscribers_opened,
            subscribers_closed,
            runtimes_opened,
            runtimes_closed,
            frames_sent,
            gaps,
            refusals,
            closes,
            notices,
            notice_outcomes,
            notices_dead,
            task_webhooks,
            callbacks_refused,
            pictures_reduced,
            chats_working,
            sessions,
            connections,
            stored_bytes,
            guardrails_unreached,
            oldest_unreached_seconds,
            registry: Mutex::new(registry),
        }
    }

    pub fn refused(&self, code: Code) {
        self.refusals.get_or_create(&[("code", code.name())]).inc();
    }

    pub fn closed(&self, code: Code) {
        self.closes.get_or_create(&[("code", code.name())]).inc();
    }

    /// Sets a count of notices, as the outbox keeps it.
    pub fn notices(&self, state: &'static str, count: u64) {
        self.notices.get_or_create(&[("state", state)]).set(count.cast_signed());
    }

    /// Sets a count of what became of one notifier's notices, as the outbox keeps it.
    pub fn notice_outcomes(&self, notifier: &str, outcome: &'static str, count: u64) {
        let labels = [("notifier", notifier.to_owned()), ("outcome", outcome.to_owned())];
        self.notice_outcomes.get_or_create(&labels).inner().store(count, Ordering::Relaxed);
    }

    pub fn notices_dead(&self, notifier: &str, count: u64) {
        self.notices_dead.get_or_create(&[("notifier", notifier.to_owned())]).set(count.cast_signed());
    }

    /// Something that came from a chat was refused.
    pub fn callback_refused(&self, chat: &'static str, why: &'static str) {
        self.callbacks_refused.get_or_create(&[("chat", chat), ("reason", why)]).inc();
    }

    pub fn chat_works(&self, chat: &'static str, works: bool) {
        self.chats_working.get_or_create(&[("chat", chat)]).set(i64::from(works));
    }

    /// What became of a picture that somebody wanted reduced.
    pub fn picture_reduced(&self, outcome: &'static str) {
        self.pictures_reduced.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// What became of a task's webhook.
    pub fn task_webhook(&self, outcome: &'static str) {
        self.task_webhooks.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// Everything, in the OpenMetrics text form.
    pub fn text(&self, present: Present) -> String {
        self.sessions.set(present.sessions as i64);
        self.connections.set(present.connections as i64);
        self.stored_bytes.set(present.stored_bytes.cast_signed());
        self.guardrails_unreached.set(present.guardrails_unreached as i64);
        self.oldest_unreached_seconds.set(present.oldest_unreached_seconds);
        let mut text = String::new();
        let registry = self.registry.lock().expect("no holder panics");
        encode(&mut text, &registry).expect("writing to a string does not fail");
        text
    }
}
