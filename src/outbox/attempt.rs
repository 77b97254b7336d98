//! One look at one notice: read, ask whether it is still wanted, lease, send, write down what came of it.
//!
//! The order carries the promises. The lease is written before the first byte is sent, so that a crash is found as an
//! unknown outcome; nothing is asked or sent again before the outcome is written; and an engine that fails in between
//! is asked until it answers, because forgetting an outcome means sending twice.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    NoticeKey, NoticeState, NoticeSubject, OutboxTimes, Owners, Shared, Verdict, decoded, due,
    record::{LONGEST_WAIT, Notice, Thread},
    record_key,
    schedule::{Begin, Due, Held},
    wall_ms,
};
use crate::{
    engine::{EngineError, RecordKey, Version},
    ids::{time_ordered_id, up_to},
    notifier::{Delivery, Extras, Message, Receipt, split_target},
    reach_out::ladder::Rung,
    sabotage::{self, Guard},
};

/// An owner that does not answer for this long is asked again later.
const OWNER_TIMEOUT: Duration = Duration::from_secs(10);
/// The shortest wait after a verdict, so that a confused owner costs no processor.
const LOOK_AGAIN_MIN: Duration = Duration::from_millis(50);
/// An update is not too old before it was tried this often: a clock that was set forward is no reason to leave buttons
/// behind that no longer work.
const UPDATE_TRIES: u32 = 10;
const ENGINE_WAIT_FIRST: Duration = Duration::from_millis(100);
const ENGINE_WAIT_LONGEST: Duration = Duration::from_secs(5);

/// How the dispatcher ends its attempts.
#[derive(Clone, Default)]
pub(super) struct Stop {
    /// Nothing new is sent.
    pub(super) soft: CancellationToken,
    /// What is being sent counts as unknown.
    pub(super) hard: CancellationToken,
}

pub(super) struct Attempt {
    pub(super) shared: Arc<Shared>,
    pub(super) owners: Arc<dyn Owners>,
    pub(super) stop: Stop,
    name: RecordKey,
    key: Option<NoticeKey>,
    /// Marks this attempt's lease. Found in the record before anything was sent, it says that a write which seemed to
    /// fail has happened.
    token: String,
    /// When its lease was written, or before.
    leased_at: Option<Instant>,
}

/// What an attempt is about, as it was when it began.
struct Sending {
    message: Message,
    /// It asks, as opposed to saying how it ended.
    asks: bool,
    attempt: u32,
}

impl Sending {
    fn of(notice: &Notice, extras: Extras) -> Self {
        Self { message: notice.message(extras), asks: notice.asks(), attempt: notice.current().attempts }
    }
}

/// How one pass over the record ended.
enum Pass {
    /// Nothing more to do now; when to look again.
    Done(Option<Due>),
    /// The record is leased to this attempt at this version.
    Leased(Box<Notice>, Version),
    /// … and the message may leave now.
    Ready(Box<(Sending, Notice, Version)>),
}

impl Attempt {
    pub(super) fn new(shared: Arc<Shared>, owners: Arc<dyn Owners>, stop: Stop, name: RecordKey) -> Self {
        Self { shared, owners, stop, name, key: None, token: time_ordered_id(), leased_at: None }
    }

    /// Works on the notice once. Dropped while sending, it leaves a lease that is later found to have run out.
    pub(super) async fn run(mut self, due: Due) -> Option<Due> {
        let mut wait = ENGINE_WAIT_FIRST;
        loop {
            let pass = match self.prepare(&due).await {
                Ok(Pass::Leased(notice, version)) => self.make_ready(*notice, version).await,
                other => other,
            };
            match pass {
                Ok(Pass::Done(next)) => return next,
                Ok(Pass::Ready(ready)) => return self.send(*ready).await,
                Ok(Pass::Leased(..)) => {}
                Err(EngineError::Conflict { .. }) => {}
                Err(error) => {
                    tracing::warn!(session.id = ?self.name.session, error = %error, "the engine keeps a notice waiting");
                    tokio::select! {
                        biased;
                        () = self.stop.soft.cancelled() => return None,
                        () = tokio::time::sleep(wait) => {}
                    }
                    wait = (wait * 2).min(ENGINE_WAIT_LONGEST);
                }
            }
        }
    }

    /// Everything up to the lease. Errors and conflicts have sent nothing: call again.
    async fn prepare(&mut self, known: &Due) -> Result<Pass, EngineError> {
        let Some((version, bytes)) = self.shared.engine.get(self.name.clone()).await? else {
            return Ok(Pass::Done(None));
        };
        let Some(mut notice) = decoded(&self.name, &bytes) else { return Ok(Pass::Done(None)) };
        self.key = Some(notice.key(self.name.session));
        let mine = notice.is_leased_by(&self.token);
        let next = due(&notice, version);
        match &next {
            // Its owner may not have heard of it: another process may have written it, or the owner did not listen.
            None => {
                let heard = self.settled(&notice.key(self.name.session), notice.opened.state()).await;
                return Ok(Pass::Done(unheard(&notice, version, heard)));
            }
            // Somebody moved it since its time was computed.
            Some(next) if !mine && version != known.version && next.at > Instant::now() => {
                return Ok(Pass::Done(Some(next.clone())));
            }
            Some(_) => {}
        }
        if notice.is_leased() && !mine {
            return self.take_for_dead(notice, version).await;
        }
        if let Some(pass) = self.unwanted(&mut notice, version, mine).await? {
            return Ok(pass);
        }
        if self.stop.soft.is_cancelled() {
            return Ok(Pass::Done(None));
        }
        if mine {
            return Ok(Pass::Leased(Box::new(notice), version));
        }
        notice.lease(&self.token, self.shared.times.lease);
        self.leased_at = Some(Instant::now());
        let version = self.put(version, &notice).await?;
        Ok(Pass::Leased(Box::new(notice), version))
    }

    /// The lease has not changed for its whole length: its holder died while sending, or is about to find out.
    async fn take_for_dead(&self, mut notice: Notice, version: Version) -> Result<Pass, EngineError> {
        let outcome = Delivery::Unknown { error: "whoever sent it stopped before its outcome was known".to_owned() };
        let sending = Sending::of(&notice, Extras::default());
        let state = notice.settle(&outcome, wall_ms(), Duration::ZERO);
        let version = self.put(version, &notice).await?;
        self.tell(&sending, &outcome, state).await;
        Ok(Pass::Done(due(&notice, version)))
    }

    /// Asks the owner whether a notice is still wanted; an update is, until it is too old.
    async fn unwanted(&self, notice: &mut Notice, version: Version, mine: bool) -> Result<Option<Pass>, EngineError> {
        let key = notice.key(self.name.session);
        if !notice.asks() {
            let age = Duration::from_millis(wall_ms().saturating_sub(notice.current().at_ms));
            if age <= self.shared.times.retention || notice.current().attempts < UPDATE_TRIES {
                return Ok(None);
            }
            notice.give_update_up();
            self.put(version, notice).await?;
            tracing::warn!(notice.id = notice.current().id, notice.target = key.target, "update given up, too old");
            return Ok(Some(Pass::Done(None)));
        }
        let verdict = match self.recheck(&key).await {
            // Owners end while the gateway stops. That is not their word that nobody needs it.
            Verdict::Drop if self.stop.soft.is_cancelled() => Verdict::LookAgain(Duration::ZERO),
            verdict => verdict,
        };
        match verdict {
            Verdict::Send => Ok(None),
            Verdict::LookAgain(wait) => {
                let mut at_version = version;
                if mine {
                    notice.release();
                    at_version = self.put(version, notice).await?;
                }
                let at = Instant::now() + wait.max(LOOK_AGAIN_MIN);
                Ok(Some(Pass::Done(Some(Due { at, version: at_version, target: key.target.into() }))))
            }
            Verdict::Drop => {
                notice.drop_opened();
                let version = self.put(version, notice).await?;
                tracing::info!(
                    notice.id = notice.opened.id,
                    notice.target = key.target,
                    "notice dropped, no longer wanted"
                );
                self.settled(&key, NoticeState::Dropped).await;
                Ok(Some(Pass::Done(due(notice, version))))
            }
        }
    }

    async fn recheck(&self, key: &NoticeKey) -> Verdict {
        if sabotage::is_off(Guard::Recheck) {
            return Verdict::Send;
        }
        match timeout(OWNER_TIMEOUT, self.owners.recheck(key)).await {
            Ok(verdict) => verdict,
            Err(_) => {
                tracing::warn!(session.id = ?key.session, "the session's owner does not say whether to send a notice");
                Verdict::LookAgain(Duration::from_secs(1))
            }
        }
    }

    /// Dresses the message and waits for its turn, then asks once more: all of it has taken its time, and so has writing
    /// the lease. From this answer to the first byte nothing is waited for.
    async fn make_ready(&self, mut notice: Notice, version: Version) -> Result<Pass, EngineError> {
        let mut sending = Sending::of(&notice, self.dress(&notice).await);
        sending.message.thread = self.thread(&notice).await;
        if let Some(until) = self.held_until().await {
            return Ok(Pass::Done(self.give_back(notice, version, until).await));
        }
        if let Some(pass) = self.unwanted(&mut notice, version, true).await? {
            return Ok(pass);
        }
        if self.may_lose_its_lease() {
            return Ok(Pass::Done(self.give_back(notice, version, Instant::now()).await));
        }
        Ok(Pass::Ready(Box::new((sending, notice, version))))
    }

    /// Another process could take the lease for a dead one's before a send that begins now is cut off: then two would
    /// send, and neither as a repeat of the other.
    fn may_lose_its_lease(&self) -> bool {
        let is_old = || self.leased_at.is_none_or(|at| at.elapsed() >= self.shared.times.lease / 2);
        !self.shared.engine.before().sole_user && is_old()
    }

    async fn send(&self, (sending, notice, version): (Sending, Notice, Version)) -> Option<Due> {
        let outcome = self.deliver(&notice.target, &sending.message).await;
        self.obey(&notice.target, &outcome);
        let (state, notice, version) = self.keep(notice, version, &sending, &outcome).await?;
        let heard = match state {
            Some(state) => self.tell(&sending, &outcome, state).await,
            None => true,
        };
        due(&notice, version).or_else(|| unheard(&notice, version, heard))
    }

    /// Waits for its turn by the notifier's pace. Returns until when it must not be sent, if that was said meanwhile.
    async fn held_until(&self) -> Option<Instant> {
        loop {
            match self.shared.schedule.begin(&self.name, Instant::now()) {
                Begin::Now => return None,
                Begin::At(at) => sleep_until(at).await,
                Begin::Held(until) => return Some(until),
            }
        }
    }

    /// Gives the lease back, so that nobody takes it for a dead one's.
    async fn give_back(&self, mut notice: Notice, mut version: Version, until: Instant) -> Option<Due> {
        let mut wait = ENGINE_WAIT_FIRST;
        while notice.is_leased_by(&self.token) {
            notice.release();
            match self.put(version, &notice).await {
                Ok(written) => {
                    let held = |due: Due| Due { at: due.at.max(until), ..due };
                    return due(&notice, written).map(held);
                }
                Err(EngineError::Conflict { .. }) => {}
                Err(_) => tokio::time::sleep(wait).await,
            }
            wait = (wait * 2).min(ENGINE_WAIT_LONGEST);
            (version, notice) = self.read_until_it_answers().await?;
        }
        due(&notice, version)
    }

    /// The other end's wish to be left alone is for everything that it would hear.
    fn obey(&self, target: &str, outcome: &Delivery) {
        let (who, wish) = match outcome {
            Delivery::Refused { retry_after: Some(wish), .. } => (Held::Target, *wish),
            Delivery::Throttled { retry_after, .. } => (Held::Notifier, *retry_after),
            _ => return,
        };
        self.shared.schedule.hold(target, who, Instant::now() + wish.min(LONGEST_WAIT));
    }

    /// What only holds now, and under which message it belongs.
    async fn dress(&self, notice: &Notice) -> Extras {
        let key = notice.key(self.name.session);
        let dressed = timeout(OWNER_TIMEOUT, self.owners.dress(&key, &notice.opened.id)).await;
        dressed.unwrap_or_default()
    }

    /// A message that is not there, or cannot be found now, is no reason to wait.
    async fn thread(&self, notice: &Notice) -> Option<Receipt> {
        let Thread { guardrail, revision } = notice.thread.clone()?;
        let subject = NoticeSubject::Guardrail { id: guardrail, revision };
        let key = NoticeKey { subject, rung: Rung::default(), ..notice.key(self.name.session) };
        let (_, above) = self.shared.read(&record_key(&key)).await.ok()??;
        above.opened.receipt
    }

    async fn deliver(&self, target: &str, message: &Message) -> Delivery {
        let Some(notifier) = self.shared.notifiers.get(target) else {
            return Delivery::Rejected { error: "no notifier is configured for this target".to_owned() };
        };
        let unknown = |error: &str| Delivery::Unknown { error: error.to_owned() };
        let attempt = AssertUnwindSafe(async { notifier.send(message).await }).catch_unwind();
        tokio::select! {
            biased;
            result = timeout(self.shared.times.lease / 2, attempt) => match result {
                Ok(Ok(delivery)) => delivery,
                Ok(Err(_)) => unknown("the notifier broke while sending"),
                Err(_) => unknown("the notifier took too long"),
            },
            () = self.stop.hard.cancelled() => unknown("the gateway stopped while sending"),
        }
    }

    /// Writes the outcome, however long the engine takes. Returns the state that it led to (`None`: it changed
    /// nothing, the lease was lost) and the record as it now is; `None` when there is no record any more.
    async fn keep(
        &self,
        mut notice: Notice,
        mut version: Version,
        sending: &Sending,
        outcome: &Delivery,
    ) -> Option<(Option<NoticeState>, Notice, Version)> {
        let mut wait = ENGINE_WAIT_FIRST;
        let mut state = None;
        let retry = wait_after(&self.shared.times, sending.attempt, outcome);
        loop {
            match notice.conclude((&self.token, &sending.message.id), outcome, wall_ms(), retry) {
                Some(led_to) => state = Some(led_to),
                // Either an earlier try of this loop has written it, or the lease was lost.
                None => return Some((state, notice, version)),
            }
            match self.put(version, &notice).await {
                Ok(written) => return Some((state, notice, written)),
                Err(EngineError::Conflict { .. }) => state = None,
                Err(error) => {
                    tracing::warn!(notice.id = sending.message.id, error = %error, "the outcome of a notice cannot be written yet");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(ENGINE_WAIT_LONGEST);
                }
            }
            (version, notice) = self.read_until_it_answers().await?;
        }
    }

    async fn read_until_it_answers(&self) -> Option<(Version, Notice)> {
        let mut wait = ENGINE_WAIT_FIRST;
        loop {
            match self.shared.read(&self.name).await {
                Ok(found) => return found,
                Err(_) => tokio::time::sleep(wait).await,
            }
            wait = (wait * 2).min(ENGINE_WAIT_LONGEST);
        }
    }

    async fn put(&self, version: Version, notice: &Notice) -> Result<Version, EngineError> {
        let version = self.shared.engine.put(self.name.clone(), Some(version), notice.encode()).await?;
        self.shared.index.follow(&self.name, version, notice);
        Ok(version)
    }

    /// Counts and logs an outcome, and tells the owner of a notice that asks. `false`: it did not listen.
    async fn tell(&self, sending: &Sending, outcome: &Delivery, state: NoticeState) -> bool {
        let Some(key) = &self.key else { return true };
        self.count(&key.target, sending.asks, outcome, state);
        tracing::info!(
            notice.id = sending.message.id,
            notice.target = key.target,
            state = state.as_str(),
            attempt = sending.attempt,
            repeat = sending.message.repeat,
            asks = sending.asks,
            error = error_of(outcome),
            "notice attempted"
        );
        self.warn(&key.target, outcome);
        !sending.asks || self.settled(key, state).await
    }

    /// Says once that a target takes nothing any more, and once that it does again.
    fn warn(&self, target: &str, outcome: &Delivery) {
        let notifier = split_target(target).0;
        match outcome {
            Delivery::Rejected { error } if self.shared.rejecting.begins(target) => tracing::error!(
                notifier,
                notice.target = target,
                error,
                "a target rejects notices until somebody changes something there: look at the notifier's address and \
                 credential, and whether its chat still exists; notices are tried again slowly, and `onlooker notices \
                 --state dead` lists them"
            ),
            Delivery::Confirmed | Delivery::Shown(_) if self.shared.rejecting.ends(target) => {
                tracing::warn!(notifier, notice.target = target, "a target that rejected notices takes them again");
            }
            _ => {}
        }
    }

    fn count(&self, target: &str, asks: bool, outcome: &Delivery, state: NoticeState) {
        let stats = &self.shared.stats;
        stats.add(target, |stats| match outcome {
            Delivery::Confirmed | Delivery::Shown(_) if asks => &stats.confirmed,
            Delivery::Confirmed | Delivery::Shown(_) => &stats.updates,
            Delivery::Refused { .. } | Delivery::Throttled { .. } => &stats.refused,
            Delivery::Rejected { .. } => &stats.rejected,
            Delivery::Unknown { .. } => &stats.unknown,
        });
        match state {
            NoticeState::Unknown => stats.add(target, |stats| &stats.repeated),
            NoticeState::GivenUp if asks => stats.add(target, |stats| &stats.given_up),
            _ => {}
        }
    }

    async fn settled(&self, key: &NoticeKey, state: NoticeState) -> bool {
        let heard = timeout(OWNER_TIMEOUT, self.owners.settled(key, state)).await.is_ok();
        if !heard {
            tracing::warn!(session.id = ?key.session, "the session's owner does not listen to a notice's state");
        }
        heard
    }
}

/// When to look again at a notice that is over, but whose owner does not know that.
fn unheard(notice: &Notice, version: Version, heard: bool) -> Option<Due> {
    let again = Due { at: Instant::now() + OWNER_TIMEOUT, version, target: notice.target.as_str().into() };
    (!heard).then_some(again)
}

fn error_of(outcome: &Delivery) -> Option<&str> {
    match outcome {
        Delivery::Confirmed | Delivery::Shown(_) => None,
        Delivery::Refused { error, .. }
        | Delivery::Throttled { error, .. }
        | Delivery::Rejected { error }
        | Delivery::Unknown { error } => Some(error),
    }
}

/// Exponential with full jitter: between nothing and a bound that doubles. Not before the other end's own wish, and where
/// it rejects, not before the longest bound. Both have jitter on top, so that what was refused together does not come
/// back together.
pub(super) fn wait_after(times: &OutboxTimes, attempts: u32, outcome: &Delivery) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    let bound = times.retry_first.saturating_mul(1 << doublings).min(times.retry_longest);
    let wish = match outcome {
        Delivery::Refused { retry_after: Some(wish), .. } | Delivery::Throttled { retry_after: wish, .. } => {
            wish.saturating_add(up_to(times.retry_first))
        }
        Delivery::Rejected { .. } => times.retry_longest.saturating_add(up_to(times.retry_longest / 4)),
        _ => Duration::ZERO,
    };
    up_to(bound).max(wish).min(LONGEST_WAIT)
}
