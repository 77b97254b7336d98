//! Every state, and a kill at every point: what the next process does.

use super::*;

/// What happens in the life of the first process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Its dispatcher runs.
    Run,
    /// It sends this one.
    Begun(usize),
    /// It has sent so many messages, and what came of them is written, if it can be.
    Sent(usize),
    /// The owner was told so, which is after it was written.
    Told(NoticeState),
    /// The record is in this state.
    Is(NoticeState),
    /// The question closes.
    Close,
    /// The lease will be written, and then nothing happens.
    StopBeforeSending,
    /// Of what comes of a send, nothing is written any more.
    StopBeforeWriting,
    /// From here on nobody wants it now.
    Covered,
    /// It is no longer wanted.
    Unwanted,
}

use Step::{Begun, Close, Covered, Is, Run, Sent, StopBeforeSending, StopBeforeWriting, Told, Unwanted};

struct Row {
    what: &'static str,
    script: &'static [Act],
    steps: &'static [Step],
    /// Every message of both processes: its type, whether it says that it is a repeat, and the card that it replaces.
    sent: &'static [(&'static str, bool, Option<&'static str>)],
    end: NoticeState,
}

const OPENED: &str = "guardrail.opened";
const RESOLVED: &str = "guardrail.resolved";
const FIRST: (&str, bool, Option<&str>) = (OPENED, false, None);
const AGAIN: (&str, bool, Option<&str>) = (OPENED, true, None);
const UPDATE: (&str, bool, Option<&str>) = (RESOLVED, false, None);
const EDIT: (&str, bool, Option<&str>) = (RESOLVED, false, Some("7"));
const EDIT_AGAIN: (&str, bool, Option<&str>) = (RESOLVED, true, Some("7"));

const TABLE: &[Row] = &[
    Row { what: "queued, never looked at", script: &[], steps: &[], sent: &[FIRST], end: NoticeState::Confirmed },
    Row {
        what: "queued, covered",
        script: &[],
        steps: &[Covered, Run, Is(NoticeState::Queued)],
        sent: &[FIRST],
        end: NoticeState::Confirmed,
    },
    Row {
        what: "leased, not sent: nobody can tell",
        script: &[],
        steps: &[StopBeforeSending, Run, Is(NoticeState::Leased)],
        sent: &[AGAIN],
        end: NoticeState::Confirmed,
    },
    Row {
        what: "being sent",
        script: &[Act::Hang],
        steps: &[Run, Sent(1)],
        sent: &[FIRST, AGAIN],
        end: NoticeState::Confirmed,
    },
    Row {
        what: "sent, not written",
        script: &[],
        steps: &[StopBeforeWriting, Run, Sent(1)],
        sent: &[FIRST, AGAIN],
        end: NoticeState::Confirmed,
    },
    Row {
        what: "refused, not written",
        script: &[Act::Refuse],
        steps: &[StopBeforeWriting, Run, Sent(1)],
        sent: &[FIRST, AGAIN],
        end: NoticeState::Confirmed,
    },
    Row {
        what: "confirmed",
        script: &[],
        steps: &[Run, Told(NoticeState::Confirmed)],
        sent: &[FIRST],
        end: NoticeState::Confirmed,
    },
    Row {
        what: "failed",
        script: &[Act::Refuse],
        steps: &[Run, Told(NoticeState::Failed), Is(NoticeState::Failed)],
        sent: &[FIRST, FIRST],
        end: NoticeState::Confirmed,
    },
    Row {
        what: "failed, with a wish for silence",
        script: &[Act::Later(900)],
        steps: &[Run, Told(NoticeState::Failed)],
        sent: &[FIRST, FIRST],
        end: NoticeState::Confirmed,
    },
    Row {
        what: "rejected",
        script: &[Act::Reject, Act::Reject],
        steps: &[Run, Told(NoticeState::Rejected), Is(NoticeState::Rejected)],
        sent: &[FIRST, FIRST, FIRST],
        end: NoticeState::Confirmed,
    },
    Row {
        what: "rejected, then closed",
        script: &[Act::Reject],
        steps: &[Run, Told(NoticeState::Rejected), Close],
        sent: &[FIRST],
        end: NoticeState::Dropped,
    },
    Row {
        what: "unknown, queued as a repeat",
        script: &[Act::Unknown],
        steps: &[Run, Begun(1), Covered, Told(NoticeState::Unknown), Is(NoticeState::Queued)],
        sent: &[FIRST, AGAIN],
        end: NoticeState::Confirmed,
    },
    Row {
        what: "the repeat was refused",
        script: &[Act::Unknown, Act::Refuse],
        steps: &[Run, Told(NoticeState::Failed)],
        sent: &[FIRST, AGAIN, AGAIN],
        end: NoticeState::Confirmed,
    },
    Row {
        what: "the repeat is being sent",
        script: &[Act::Unknown, Act::Hang],
        steps: &[Run, Sent(2)],
        sent: &[FIRST, AGAIN],
        end: NoticeState::GivenUp,
    },
    Row {
        what: "given up",
        script: &[Act::Unknown, Act::Unknown],
        steps: &[Run, Told(NoticeState::GivenUp)],
        sent: &[FIRST, AGAIN],
        end: NoticeState::GivenUp,
    },
    Row {
        what: "given up, then closed: somebody may have it",
        script: &[Act::Unknown, Act::Unknown],
        steps: &[Run, Told(NoticeState::GivenUp), Covered, Close],
        sent: &[FIRST, AGAIN, UPDATE],
        end: NoticeState::GivenUp,
    },
    Row {
        what: "dropped",
        script: &[],
        steps: &[Unwanted, Run, Told(NoticeState::Dropped)],
        sent: &[],
        end: NoticeState::Dropped,
    },
    Row { what: "closed before anybody was told", script: &[], steps: &[Close], sent: &[], end: NoticeState::Dropped },
    Row {
        what: "closed while it was being sent",
        script: &[Act::Hang],
        steps: &[Run, Sent(1), Close],
        sent: &[FIRST, UPDATE],
        end: NoticeState::GivenUp,
    },
    Row {
        what: "closed between lease and sending",
        script: &[],
        steps: &[StopBeforeSending, Run, Is(NoticeState::Leased), Close],
        sent: &[UPDATE],
        end: NoticeState::GivenUp,
    },
    Row {
        what: "shown, then closed, and the edit is not written",
        script: &[Act::Show(7)],
        steps: &[Run, Told(NoticeState::Confirmed), StopBeforeWriting, Close, Sent(2)],
        sent: &[FIRST, EDIT, EDIT_AGAIN],
        end: NoticeState::Confirmed,
    },
    Row {
        what: "the edit is being sent",
        script: &[Act::Show(7), Act::Hang],
        steps: &[Run, Told(NoticeState::Confirmed), Close, Sent(2)],
        sent: &[FIRST, EDIT, EDIT_AGAIN],
        end: NoticeState::Confirmed,
    },
    Row {
        what: "the edit was refused",
        script: &[Act::Show(7), Act::Refuse, Act::Refuse],
        steps: &[Run, Told(NoticeState::Confirmed), Close, Sent(2)],
        sent: &[FIRST, EDIT, EDIT, EDIT],
        end: NoticeState::Confirmed,
    },
    Row {
        what: "the edit was rejected: its message is gone",
        script: &[Act::Show(7), Act::Reject],
        steps: &[Run, Told(NoticeState::Confirmed), Close, Sent(2)],
        sent: &[FIRST, EDIT],
        end: NoticeState::Confirmed,
    },
    Row {
        what: "an update without a card was rejected: its receiver may be repaired",
        script: &[Act::Confirm, Act::Reject],
        steps: &[Run, Told(NoticeState::Confirmed), Close, Sent(2)],
        sent: &[FIRST, UPDATE, UPDATE],
        end: NoticeState::Confirmed,
    },
    Row {
        what: "the edit is written",
        script: &[Act::Show(7), Act::Show(8)],
        steps: &[Run, Told(NoticeState::Confirmed), Close, Sent(2)],
        sent: &[FIRST, EDIT],
        end: NoticeState::Confirmed,
    },
];

struct First {
    engine: Arc<dyn Engine>,
    faults: Arc<Faults>,
    owner: Arc<Owner>,
    target: Target,
    outbox: Outbox,
    dispatcher: Option<Dispatcher>,
    task: Option<JoinHandle<()>>,
    unwritten: bool,
}

impl First {
    async fn queued(script: &[Act]) -> Self {
        let faults = Arc::new(Faults::default());
        let engine: Arc<dyn Engine> = Arc::new(FaultyEngine::new(memory(), Arc::clone(&faults), 1));
        let target = Target { latency: Duration::from_millis(10), ..Target::new(script, Act::Confirm) };
        let notifier = Arc::new(target.clone()) as Arc<dyn Notifier>;
        let notifiers = [("t".to_owned(), notifier)].into_iter().collect();
        let (outbox, dispatcher) = Outbox::new(Arc::clone(&engine), notifiers, OutboxTimes::default());
        outbox.queue(draft("t")).await.unwrap();
        let owner = Owner::new(Verdict::Send);
        let dispatcher = Some(dispatcher);
        Self { engine, faults, owner, target, outbox, dispatcher, task: None, unwritten: false }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Run => {
                let dispatcher = self.dispatcher.take().unwrap();
                let owners = Arc::clone(&self.owner) as Arc<dyn Owners>;
                self.task = Some(tokio::spawn(dispatcher.run(owners, CancellationToken::new())));
            }
            Begun(times) => drop(self.target.seen_times(times).await),
            Sent(times) => {
                self.target.seen_times(times).await;
                if self.unwritten {
                    self.faults.failing_per_mille.store(1000, Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(12)).await;
            }
            Told(state) => drop(self.owner.told(state).await),
            Is(state) => {
                tokio::time::sleep(Duration::from_millis(5)).await;
                assert_eq!(self.outbox.state(&key("t")).await.unwrap(), Some(state));
            }
            Close => self.outbox.close(key("t").session, "g1", 1, body(RESOLVED)).await.unwrap(),
            StopBeforeSending => *self.owner.dressing.lock().unwrap() = Duration::from_secs(5),
            StopBeforeWriting => self.unwritten = true,
            Covered => *self.owner.verdict.lock().unwrap() = Verdict::LookAgain(Duration::from_secs(900)),
            Unwanted => *self.owner.verdict.lock().unwrap() = Verdict::Drop,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_a_killed_process_was_at_the_next_one_goes_on_from_there() {
    for row in TABLE {
        let mut first = First::queued(row.script).await;
        for step in row.steps {
            first.step(*step).await;
        }
        if let Some(task) = first.task.take() {
            task.abort();
            drop(task.await);
        }
        first.faults.failing_per_mille.store(0, Ordering::Relaxed);

        let next = Running::start(&first.engine, &[("t", &first.target)], &Owner::new(Verdict::Send));
        next.outbox.resume(key("t").session).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3000)).await;
        let sent: Vec<_> = first.target.seen().into_iter().map(|(message, _)| message).collect();
        let shown: Vec<_> = sent
            .iter()
            .map(|message| (kind(message), message.repeat, message.card.as_ref().map(|card| card.0.clone())))
            .collect();
        let expected: Vec<_> = row
            .sent
            .iter()
            .map(|(kind, repeat, card)| ((*kind).to_owned(), *repeat, card.map(str::to_owned)))
            .collect();
        assert_eq!(shown, expected, "{}", row.what);
        assert_eq!(next.outbox.state(&key("t")).await.unwrap(), Some(row.end), "{}", row.what);
        for kinds in [OPENED, RESOLVED] {
            let mut ids: Vec<_> = sent.iter().filter(|message| kind(message) == kinds).map(|m| &m.id).collect();
            ids.dedup();
            assert!(ids.len() <= 1, "one id: {}", row.what);
        }
        next.crash().await;
    }
}
