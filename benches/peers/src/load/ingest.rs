//! What it costs to take an event in and acknowledge it, with nobody following.

use std::sync::{Arc, atomic::Ordering::SeqCst};

use super::{Moment, open, sleep};
use crate::{
    Outcome,
    spec::{Figures, Ingest, Spec},
    usage::Processes,
};

pub(super) fn measure(spec: &Spec, job: &Ingest) -> Outcome<Figures> {
    let server = Processes::of_group(spec.target.group)?;
    let (mut audience, publishing, _) = open(spec, 1, 0)?;
    let board = Arc::clone(&publishing.board);
    let publishing = publishing.to(1);
    let mut figures = Figures::default();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| audience.run());
        let writing = scope.spawn(|| publishing.ingest(job.bytes, job.batch, job.window));
        sleep(spec.times.warm_up);
        let mut measured = || -> Outcome<()> {
            let (before, had) = (Moment::new(&server)?, board.accepted.load(SeqCst));
            sleep(spec.times.window);
            let (after, has) = (Moment::new(&server)?, board.accepted.load(SeqCst));
            after.since(&before, has - had, &mut figures)
        };
        let outcome = measured();
        board.published_enough.store(true, SeqCst);
        board.wake();
        drop(writing.join());
        board.stop.store(true, SeqCst);
        drop(reading.join());
        board.check().and(outcome)
    })?;
    figures.rss = server.rss()?;
    Ok(figures)
}
