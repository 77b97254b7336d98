//! The load generator: one thread reads all subscribers, one publishes, and the first one looks at the clock.

mod audience;
mod board;
mod fanout;
mod idle;
mod ingest;
mod publishing;
mod resume;

use std::{io::Read, sync::Arc, time::Duration};

use crate::{
    Outcome, machine,
    spec::{Figures, Job, Spec},
    speech::{self, Publisher},
    usage::{self, Processes},
};

use self::{audience::Audience, board::Board, publishing::Publishing};

/// Subscribers that may be joining at one moment.
const JOINING: usize = 128;

/// Reads a [`Spec`] from standard input, and writes [`Figures`] to standard output.
pub fn main() -> Outcome<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let spec: Spec = serde_json::from_str(&text)?;
    machine::pin(&spec.cpus)?;
    machine::raise_open_files()?;
    machine::sleep_exactly();
    println!("{}", serde_json::to_string(&measure(&spec)?)?);
    Ok(())
}

pub fn measure(spec: &Spec) -> Outcome<Figures> {
    match &spec.job {
        Job::Fanout(job) => fanout::measure(spec, job),
        Job::Idle(job) => idle::measure(spec, job),
        Job::Resume(job) => resume::measure(spec, job),
        Job::Ingest(job) => ingest::measure(spec, job),
    }
}

/// A publisher taken apart: what it says goes to a thread of its own, what it hears to the audience's.
fn set_up(publisher: Publisher) -> Outcome<(Audience, Publishing, Vec<String>)> {
    let board = Arc::<Board>::default();
    let Publisher { stream, reader, mouth, ear, acknowledged, subscribing, sessions } = publisher;
    let mut audience = Audience::new(Arc::clone(&board), subscribing.into())?;
    audience.listen(stream.try_clone()?, reader, ear)?;
    Ok((audience, Publishing::new(board, stream, mouth, acknowledged), sessions))
}

fn open(spec: &Spec, channels: usize, quiet: usize) -> Outcome<(Audience, Publishing, Vec<String>)> {
    set_up(speech::open(&spec.target, channels, quiet)?)
}

/// What was used, and what had come, at one moment.
struct Moment {
    at: u64,
    server: u64,
    own: u64,
}

impl Moment {
    fn new(server: &Processes) -> Outcome<Self> {
        Ok(Self { at: machine::now(), server: server.cpu()?, own: usage::own_cpu()? })
    }

    /// Fills in what follows from the time since an earlier moment, in which so many messages came.
    fn since(&self, before: &Self, delivered: u64, figures: &mut Figures) -> Outcome<()> {
        if delivered == 0 {
            return Err("nothing was delivered".into());
        }
        let time = (self.at - before.at) as f64;
        figures.delivered = delivered;
        figures.cpu_us = (self.server - before.server) as f64 / 1e3 / delivered as f64;
        figures.per_second = delivered as f64 / time * 1e9;
        figures.own_share = (self.own - before.own) as f64 / time;
        figures.seconds = time / 1e9;
        Ok(())
    }
}

fn sleep(seconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(seconds));
}
