//! The driver: starts one server at a time, has it measured between two runs of the floor, and compares.

mod chart;
mod earlier;
mod launch;
mod options;
mod programs;
mod report;
mod rounds;
mod servers;
mod verdict;
mod works;

use std::collections::HashMap;

use crate::{
    Outcome, machine,
    spec::{Figures, Spec, Target, Times},
};

use self::{
    earlier::Earlier,
    launch::Load,
    options::Options,
    programs::Programs,
    report::Report,
    rounds::{Rounds, Sample},
    servers::{Peer, Server},
    works::{Entry, Work},
};

/// A server that fails so often in one work is not tried again in it.
const FAILURES: usize = 2;

pub fn main() -> Outcome<()> {
    let mut words = std::env::args().skip(1);
    let options = match words.next().as_deref() {
        // This program again, on its way to become another one.
        Some(launch::WORD) => return launch::become_program(words),
        _ => Options::read(std::env::args().skip(1))?,
    };
    let open_files = machine::raise_open_files()?;
    let works = works::all(&options, open_files).into_iter().filter(|work| options.wants(work.name));
    let report = match &options.from {
        Some(file) => look_again(&options, &Earlier::read(file)?, works)?,
        None => measure(&options, works)?,
    };
    report.print();
    if options.gate { report.gate() } else { Ok(()) }
}

fn measure(options: &Options, works: impl Iterator<Item = Work>) -> Outcome<Report> {
    launch::stop_all_on_signals()?;
    servers::remove_left_over();
    let programs = Programs::find(options)?;
    let mut report = Report::new(options, &programs)?;
    for work in works {
        let bench = Bench { options, programs: &programs };
        let rounds = bench.run(&work);
        report.add(work, rounds);
        // After each one: a full run takes long, and may be broken off.
        keep(&report, options)?;
    }
    Ok(report)
}

fn look_again(options: &Options, earlier: &Earlier, works: impl Iterator<Item = Work>) -> Outcome<Report> {
    let mut report = Report::of(options, earlier);
    for work in works {
        if let Some(rounds) = earlier.rounds(&work, options.slow) {
            report.add(work, rounds);
        }
    }
    keep(&report, options)?;
    Ok(report)
}

fn keep(report: &Report, options: &Options) -> Outcome<()> {
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_vec_pretty(&report.json())?)?;
    }
    if let Some(file) = &options.svg {
        std::fs::write(file, chart::draw(report))?;
    }
    Ok(())
}

struct Bench<'a> {
    options: &'a Options,
    programs: &'a Programs,
}

impl Bench<'_> {
    /// Rounds until each server has enough clean ones, or there have been too many.
    fn run(&self, work: &Work) -> Rounds {
        println!("==> {}: {}", work.name, work.title);
        let mut rounds = Rounds::new(self.options.slow);
        let mut failures: HashMap<usize, usize> = HashMap::new();
        let wanted: Vec<usize> =
            (0..work.entries.len()).filter(|entry| self.takes_part(&work.entries[*entry])).collect();
        let (enough, most) = (work.rounds(self.options), self.options.most_rounds.max(work.rounds(self.options)));
        for round in 0..most {
            let missing = |entry: &usize| {
                let may = failures.get(entry).is_none_or(|failures| *failures < FAILURES);
                // Onlooker is compared with itself too, so all of its ways run in every round.
                may && (rounds.clean(*entry).len() < enough || work.entries[*entry].peer.is_onlooker())
            };
            let entries: Vec<usize> = wanted.iter().copied().filter(missing).collect();
            let all_have_enough = entries.iter().all(|entry| rounds.clean(*entry).len() >= enough);
            if all_have_enough {
                break;
            }
            if let Err(failure) = self.round(work, round, &entries, &mut rounds, &mut failures) {
                println!("    {failure}");
                wanted.iter().for_each(|entry| rounds.fail(*entry, &failure.to_string()));
                break;
            }
        }
        rounds
    }

    fn takes_part(&self, entry: &Entry) -> bool {
        let wanted = self.options.wants_peer(entry.peer);
        let missing = self.programs.missing(entry.peer);
        if let (true, Some(why)) = (wanted, missing) {
            println!("    {} is left out: {why}", entry.label);
        }
        wanted && missing.is_none()
    }

    /// The floor, then each server with the floor behind it.
    fn round(
        &self,
        work: &Work,
        round: usize,
        entries: &[usize],
        rounds: &mut Rounds,
        failures: &mut HashMap<usize, usize>,
    ) -> Outcome<()> {
        let mut before = self.probe(work)?;
        for entry in entries {
            let found = self.measure(&work.entries[*entry], work);
            let after = self.probe(work)?;
            match found {
                Ok(figures) => {
                    println!("    {round} {}", report::line(&work.entries[*entry], &figures, after.as_ref()));
                    rounds.add(Sample { round, entry: *entry, figures, before, after: after.clone() });
                }
                Err(failure) => {
                    println!("    {round} {}: {failure}", work.entries[*entry].label);
                    *failures.entry(*entry).or_default() += 1;
                    rounds.fail(*entry, &failure.to_string());
                }
            }
            before = after;
        }
        Ok(())
    }

    fn probe(&self, work: &Work) -> Outcome<Option<Figures>> {
        let measure =
            |entry| self.measure(entry, work).map_err(|failure| format!("the floor failed: {failure}").into());
        work.probe.as_ref().map(measure).transpose()
    }

    fn measure(&self, entry: &Entry, work: &Work) -> Outcome<Figures> {
        let cpus = self.options.cpus_for(&entry.job);
        let server = Server::start(entry.peer, entry.speech, self.programs, &cpus.server)?;
        let target: Target = server.target.clone();
        let times = Times { warm_up: self.options.warm_up, window: self.options.window.max(work.least_window) };
        let figures = Load { program: &self.programs.load, cpus: &cpus.load }.measure(&Spec {
            target,
            job: entry.job.clone(),
            times,
            cpus: cpus.load.clone(),
        });
        figures.map_err(|failure| match server.last_words() {
            Some(words) => format!("{failure}; it said: {words}").into(),
            None => failure,
        })
    }
}

/// Whether somebody is asked for who is not among these.
fn is_known(name: &str, known: &[Peer]) -> bool {
    known.iter().any(|peer| peer.name() == name)
}
