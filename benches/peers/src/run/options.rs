//! What is asked for.

use std::path::PathBuf;

use super::{is_known, servers::Peer, works::NAMES};
use crate::{Outcome, machine, spec::Job};

pub(crate) const USAGE: &str = "\
run [options]
  --onlooker FILE     the released program (target/release/onlooker)
  --works a,a',b,…    some of: a a' b c d e f g h s
  --peers NAME,…      some of: limit onlooker nats nchan ws socket.io redis; the coalescing floor always runs
  --rounds N          clean rounds of each server (5)
  --most-rounds N     rounds after which too few are too few (15)
  --warm-up SECONDS   before each window (0.7)
  --window SECONDS    that is measured (1.2)
  --slow RATIO        a round counts if the floor took at most so much of its undisturbed time (1.25)
  --own-most SHARE    no verdict if the load generator used more of its processor (0.95)
  --cpus SERVER,LOAD  the processors (the first two)
  --quick             few of everything, one round, all at once: to see that it works
  --json FILE         every figure of every round
  --from FILE         measures nothing: an earlier run's JSON is judged and drawn again
  --svg FILE          a chart
  --gate              fails if Onlooker misses what it must reach, or if nobody can tell";

pub(crate) struct Options {
    pub onlooker: PathBuf,
    works: Vec<String>,
    peers: Vec<String>,
    pub rounds: usize,
    pub most_rounds: usize,
    pub warm_up: f64,
    pub window: f64,
    pub slow: f64,
    pub own_most: f64,
    cpus: [usize; 2],
    /// A third one, where there is one.
    spare: Option<usize>,
    pub quick: bool,
    pub json: Option<PathBuf>,
    pub from: Option<PathBuf>,
    pub svg: Option<PathBuf>,
    pub gate: bool,
}

/// Who runs where.
pub(crate) struct Cpus {
    pub server: Vec<usize>,
    pub load: Vec<usize>,
}

impl Options {
    pub fn read(words: impl Iterator<Item = String>) -> Outcome<Self> {
        let cpus = machine::cpus()?;
        let [server, load, rest @ ..] = &cpus[..] else { return Err("two processors are needed".into()) };
        let mut options = Self {
            onlooker: concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/release/onlooker").into(),
            works: Vec::new(),
            peers: Vec::new(),
            rounds: 5,
            most_rounds: 15,
            warm_up: 0.7,
            window: 1.2,
            slow: 1.25,
            own_most: 0.95,
            cpus: [*server, *load],
            spare: rest.first().copied(),
            quick: false,
            json: None,
            from: None,
            svg: None,
            gate: false,
        };
        options.take(words)?;
        options.check()?;
        Ok(options)
    }

    fn take(&mut self, mut words: impl Iterator<Item = String>) -> Outcome<()> {
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(USAGE);
            match word.as_str() {
                "--onlooker" => self.onlooker = value()?.into(),
                "--works" => self.works = list(&value()?),
                "--peers" => self.peers = list(&value()?),
                "--rounds" => self.rounds = value()?.parse()?,
                "--most-rounds" => self.most_rounds = value()?.parse()?,
                "--warm-up" => self.warm_up = value()?.parse()?,
                "--window" => self.window = value()?.parse()?,
                "--slow" => self.slow = value()?.parse()?,
                "--own-most" => self.own_most = value()?.parse()?,
                "--cpus" => self.cpus = two(&value()?).ok_or(USAGE)?,
                "--quick" => {
                    self.quick = true;
                    (self.rounds, self.most_rounds, self.warm_up, self.window) = (1, 1, 0.2, 0.4);
                }
                "--json" => self.json = Some(value()?.into()),
                "--from" => self.from = Some(value()?.into()),
                "--svg" => self.svg = Some(value()?.into()),
                "--gate" => self.gate = true,
                _ => return Err(USAGE.into()),
            }
        }
        Ok(())
    }

    fn check(&self) -> Outcome<()> {
        let unknown_work = self.works.iter().find(|work| !NAMES.contains(&work.as_str()));
        let unknown_peer = self.peers.iter().find(|peer| !is_known(peer, &Peer::ALL));
        match unknown_work.or(unknown_peer) {
            Some(name) => Err(format!("{name} is not known\n{USAGE}").into()),
            None if self.from.is_none() && !self.onlooker.exists() => {
                Err(format!("{} is missing: cargo build --release", self.onlooker.display()).into())
            }
            None => Ok(()),
        }
    }

    pub fn wants(&self, work: &str) -> bool {
        self.works.is_empty() || self.works.iter().any(|asked| asked == work)
    }

    pub fn wants_peer(&self, peer: Peer) -> bool {
        self.peers.is_empty() || self.peers.iter().any(|asked| asked == peer.name())
    }

    /// One processor for the server and one for the load, but two for servers that come back to life: the load has a
    /// third one then, or shares.
    pub fn cpus_for(&self, job: &Job) -> Cpus {
        let [server, load] = self.cpus;
        match (job, self.spare) {
            (Job::Resume(_), Some(spare)) => Cpus { server: vec![server, load], load: vec![spare] },
            (Job::Resume(_), None) => Cpus { server: vec![server, load], load: vec![server, load] },
            _ => Cpus { server: vec![server], load: vec![load] },
        }
    }
}

fn list(words: &str) -> Vec<String> {
    words.split(',').map(str::to_owned).collect()
}

fn two(words: &str) -> Option<[usize; 2]> {
    let (server, load) = words.split_once(',')?;
    let cpus = [server.parse().ok()?, load.parse().ok()?];
    (cpus[0] != cpus[1]).then_some(cpus)
}
