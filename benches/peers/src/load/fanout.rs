//! What one delivered message costs, and how long it takes.

use std::{
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

use super::{
    JOINING, Moment,
    audience::Audience,
    board::Board,
    open,
    publishing::{Phase, Publishing},
    sleep,
};
use crate::{
    Outcome,
    spec::{Fanout, Figures, Pace, Spec},
    speech::audience,
    usage::Processes,
};

/// From the last one's joining to the first message.
const SETTLE: Duration = Duration::from_millis(200);
/// With so many sessions a server still has to do with their beginning: Onlooker writes each one's record 5 s later.
const MANY_SESSIONS: usize = 5_000;
const AFTERMATH: Duration = Duration::from_secs(6);
/// It is over when less than a tenth of a processor was used for so long, or the server is never quiet.
const QUIET: Duration = Duration::from_millis(500);
const QUIET_WITHIN: usize = 60;
/// Everything is lost that has not come when nothing has come for so long.
const SILENCE: Duration = Duration::from_secs(2);
/// Filling is over after this, or does not end.
const FILLED_WITHIN: Duration = Duration::from_secs(120);
/// Messages under way while something is filled.
const FILL_WINDOW: u64 = 8;

pub(super) fn measure(spec: &Spec, job: &Fanout) -> Outcome<Figures> {
    let server = Processes::of_group(spec.target.group)?;
    let (mut audience_side, publishing, _) = open(spec, job.channels, job.quiet)?;
    let mut figures = Figures::default();
    let before = server.rss()?;
    audience_side.join(&audience(job), JOINING)?;
    audience_side.live(SETTLE)?;
    if job.channels + job.quiet >= MANY_SESSIONS {
        await_quiet(&server, &mut audience_side)?;
    }
    figures.connections = audience_side.len();
    figures.connection_bytes = (server.rss()? as f64 - before as f64) / audience_side.len() as f64;
    // They are kept to the end: a closed one would be no burden.
    let deaf = audience_side.join_deaf(job.deaf, &(0..1))?;
    let window = if let Pace::Window(window) = job.pace { window } else { 1 };
    audience_side.tally.complete(job.channels, job.subscribers, window.max(FILL_WINDOW));
    run(spec, job, &server, audience_side, publishing.to(job.channels), &mut figures)?;
    figures.growth = figures.rss as f64 - before as f64;
    drop(deaf);
    Ok(figures)
}

fn await_quiet(server: &Processes, audience: &mut Audience) -> Outcome<()> {
    audience.live(AFTERMATH)?;
    for _ in 0..QUIET_WITHIN {
        let before = server.cpu()?;
        audience.live(QUIET)?;
        if u128::from(server.cpu()? - before) < QUIET.as_nanos() / 10 {
            return Ok(());
        }
    }
    Err("the server does not come to rest".into())
}

fn run(
    spec: &Spec,
    job: &Fanout,
    server: &Processes,
    mut audience: Audience,
    publishing: Publishing,
    figures: &mut Figures,
) -> Outcome<()> {
    let board = std::sync::Arc::clone(&publishing.board);
    let phases = [
        Phase { pace: Pace::Window(FILL_WINDOW), messages: Some(job.fill.messages), bytes: job.fill.bytes },
        Phase { pace: job.pace, messages: None, bytes: job.bytes },
    ];
    let outcome = std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            audience.run();
            audience
        });
        let writing = scope.spawn(|| publishing.run(&phases));
        let outcome = watch(spec, job, server, &board, figures);
        board.published_enough.store(true, SeqCst);
        board.wake();
        let ended = writing.join().is_ok();
        let outcome = outcome.and_then(|()| drain(&board, job.subscribers as u64, figures));
        board.stop.store(true, SeqCst);
        let audience = reading.join().map_err(|_| "the reading thread failed")?;
        if !ended {
            return Err("the publishing thread failed".into());
        }
        outcome.map(|()| audience)
    });
    let audience = outcome?;
    board.check()?;
    let micros = |share| audience.tally.latencies.at(share).map_or(0.0, |time| time as f64 / 1e3);
    (figures.p50_us, figures.p99_us) = (micros(0.5), micros(0.99));
    (figures.skipped, figures.repeated) = (audience.tally.skipped, audience.tally.repeated);
    Ok(())
}

fn watch(spec: &Spec, job: &Fanout, server: &Processes, board: &Board, figures: &mut Figures) -> Outcome<()> {
    let began = Instant::now();
    while board.phases.load(SeqCst) == 0 || board.published.load(SeqCst) < job.fill.messages {
        if began.elapsed() > FILLED_WITHIN {
            return Err("filling did not end".into());
        }
        sleep(0.001);
        board.check()?;
    }
    sleep(spec.times.warm_up);
    board.check()?;
    board.measuring.store(true, SeqCst);
    let (before, had) = (Moment::new(server)?, board.delivered.load(SeqCst));
    sleep(spec.times.window);
    let (after, has) = (Moment::new(server)?, board.delivered.load(SeqCst));
    board.measuring.store(false, SeqCst);
    board.check()?;
    after.since(&before, has - had, figures)?;
    figures.rss = server.rss()?;
    Ok(())
}

/// Waits for what is under way, and counts what does not come.
fn drain(board: &Board, audience: u64, figures: &mut Figures) -> Outcome<()> {
    let expected = board.published.load(SeqCst) * audience;
    let come = || board.delivered.load(SeqCst) + board.skipped.load(SeqCst);
    let mut last = (come(), Instant::now());
    while come() < expected {
        board.check()?;
        sleep(0.005);
        if last.0 < come() {
            last = (come(), Instant::now());
        } else if last.1.elapsed() > SILENCE {
            break;
        }
    }
    figures.lost = expected.saturating_sub(come());
    Ok(())
}
