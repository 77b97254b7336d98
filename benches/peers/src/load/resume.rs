//! Everybody is cut off at once, and comes back for what was missed.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

use super::{
    JOINING, Moment,
    audience::Audience,
    open,
    publishing::{Phase, Publishing},
};
use crate::{
    Outcome,
    spec::{Figures, Pace, Resume, Spec},
    speech,
    usage::Processes,
};

/// Everybody wants to come back at once; this is what listening sockets take at once.
const RETURNING: usize = 512;
const TURN: Duration = Duration::from_millis(10);
const SILENCE: Duration = Duration::from_secs(10);
const PUBLISHED_AT_ONCE: u64 = 8;

pub(super) fn measure(spec: &Spec, job: &Resume) -> Outcome<Figures> {
    let server = Processes::of_group(spec.target.group)?;
    let (mut audience, publishing, sessions) = open(spec, 1, 0)?;
    let everybody = vec![0..1; job.subscribers];
    audience.join(&everybody, JOINING)?;
    let (mut audience, position) = publish(audience, publishing, job)?;
    let since = back(&position, job.back).ok_or_else(|| format!("{position} is no position"))?;
    audience.speak(speech::resuming(&spec.target, &sessions, &since).into());
    audience.tally.begin_at = job.back;
    server.forget_peak()?;
    let rss = server.rss()?;
    audience.cut()?;
    let before = Moment::new(&server)?;
    audience.join(&everybody, RETURNING)?;
    let expected = job.subscribers as u64 * u64::from(job.back);
    wait_for(&mut audience, expected)?;
    let after = Moment::new(&server)?;
    let mut figures = Figures { connections: audience.len(), rss: server.peak()?, ..Figures::default() };
    let tally = &audience.tally;
    after.since(&before, tally.delivered, &mut figures)?;
    figures.lost = expected.saturating_sub(tally.delivered + tally.skipped);
    (figures.skipped, figures.repeated) = (tally.skipped, tally.repeated);
    figures.growth = figures.rss as f64 - rss as f64;
    Ok(figures)
}

/// As many messages as are missed later, twice, to everybody. Returns where the last one stands.
fn publish(mut audience: Audience, publishing: Publishing, job: &Resume) -> Outcome<(Audience, String)> {
    let messages = 2 * u64::from(job.back);
    audience.tally.complete(1, job.subscribers, PUBLISHED_AT_ONCE);
    let board = Arc::clone(&publishing.board);
    let publishing = publishing.to(1);
    let phases = [Phase { pace: Pace::Window(PUBLISHED_AT_ONCE), messages: Some(messages), bytes: job.bytes }];
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| publishing.run(&phases));
        let outcome = wait_for(&mut audience, messages * job.subscribers as u64);
        board.published_enough.store(true, SeqCst);
        board.wake();
        drop(writing.join());
        outcome
    })?;
    // All of them have been accepted before anybody got them; the word of it may still be on the way.
    let began = Instant::now();
    while board.accepted.load(SeqCst) < messages && began.elapsed() < SILENCE {
        audience.turn(TURN)?;
    }
    board.check()?;
    board.position().map(|position| (audience, position)).ok_or_else(|| "nothing was accepted".into())
}

/// Reads until so much has come, or nothing comes any more.
fn wait_for(audience: &mut Audience, messages: u64) -> Outcome<()> {
    let mut last = (0, Instant::now());
    while audience.tally.delivered + audience.tally.skipped < messages {
        audience.turn(TURN)?;
        if last.0 < audience.tally.delivered {
            last = (audience.tally.delivered, Instant::now());
        } else if last.1.elapsed() > SILENCE {
            return Err(format!("only {} of {messages} messages came", audience.tally.delivered).into());
        }
    }
    Ok(())
}

/// The position so many events earlier.
fn back(position: &str, events: u32) -> Option<String> {
    let (epoch, offset) = position.split_once(':')?;
    let offset = offset.parse::<u64>().ok()?.checked_sub(events.into())?;
    Some(format!("{epoch}:{offset}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_position_goes_back_within_its_epoch() {
        assert_eq!(super::back("k3:217", 200).as_deref(), Some("k3:17"));
        assert_eq!(super::back("k3:199", 200), None);
        assert_eq!(super::back("k3", 1), None);
    }
}
