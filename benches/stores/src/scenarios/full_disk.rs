//! A disk that fills up in the middle of appends: what is said, what goes on, what is needed afterwards.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use super::{Figures, Run};
use crate::{
    stores::{Outcome, Store},
    workload::{Load, RECORD, SessionWrite, records_of},
};

/// Size of the disk, for `mount`.
pub const DISK: &str = "size=96m";
const BALLAST: usize = 24 << 20;
/// More commits of 150 kB than the disk has room for.
const COMMITS: usize = 2_000;
/// Tries after the first failure and after the space is free, and the time between them.
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(50);
/// A store that has said nothing for so long hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was found so far, kept where the watchdog can print it.
type Found = Arc<Mutex<Figures>>;

struct Bench {
    store: Box<dyn Store>,
    load: Load,
    /// By session, the records that are acknowledged.
    acknowledged: BTreeMap<u64, u64>,
    found: Found,
}

pub fn full(run: &Run) -> Outcome<Figures> {
    let found = Found::default();
    watch(Arc::clone(&found));
    let ballast = run.dir.join("ballast");
    fs::File::create(&ballast)?.write_all(&vec![1; BALLAST])?;
    let inner = Run { dir: run.dir.join("store"), store: run.store.clone(), ..*run };
    let (store, load) = (inner.open()?, Load::new(100, None));
    let mut bench = Bench { store, load, acknowledged: BTreeMap::new(), found: Arc::clone(&found) };

    let (refused, failure) = bench.fill()?;
    let mebibytes = bench.acknowledged.values().sum::<u64>() * RECORD as u64 / (1 << 20);
    bench.note("error", &failure);
    bench.note("payload before it", &format!("{mebibytes} MiB"));
    bench.note_commits("commits while full", &refused);
    bench.note_reads("reads while full");
    fs::remove_file(&ballast)?;
    let goes_on = bench.note_commits("same handle, space free", &refused);
    bench.note_reads("reads, space free");
    if !goes_on {
        // The old handle must be gone before the directory can be opened again.
        drop(bench.store);
        bench.store = inner.open()?;
        bench.note_reads("reads after reopening");
        bench.note_commits("commits after reopening", &refused);
    }
    bench.start_on_a_full_disk(&inner)?;
    let found = found.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(found)
}

impl Bench {
    /// Commits until one fails, and returns the group that was refused and why.
    fn fill(&mut self) -> Outcome<(Vec<SessionWrite>, String)> {
        for _ in 0..COMMITS {
            let group = self.load.group(20, 25);
            if let Err(failure) = self.commit(&group) {
                return Ok((group, failure));
            }
        }
        Err("the disk did not fill up".into())
    }

    /// Fills the disk once more and opens the store anew while it is full, as a restarted process would.
    fn start_on_a_full_disk(mut self, run: &Run) -> Outcome<()> {
        self.fill()?;
        let Bench { store, load, acknowledged, found } = self;
        drop(store);
        match run.open() {
            Ok(store) => {
                let bench = Bench { store, load, acknowledged, found };
                bench.note("opens while full", "yes");
                bench.note_reads("reads, opened while full");
            }
            Err(failure) => note(&found, "opens while full", &format!("no: {failure}")),
        }
        Ok(())
    }

    fn commit(&mut self, group: &[SessionWrite]) -> Result<(), String> {
        self.store.commit(group).map_err(|failure| failure.to_string())?;
        for write in group {
            self.acknowledged.insert(write.session, write.first + records_of(&write.chunk));
        }
        Ok(())
    }

    /// Tries the refused group until it is taken, then some more.
    fn note_commits(&mut self, name: &str, refused: &[SessionWrite]) -> bool {
        let mut last = String::new();
        for tried in 0..TRIES {
            match self.commit(refused) {
                Ok(()) => {
                    self.note(name, &format!("go on at try {}", tried + 1));
                    return true;
                }
                Err(failure) => last = failure,
            }
            thread::sleep(PAUSE);
        }
        self.note(name, &format!("no: {last}"));
        false
    }

    fn note_reads(&self, name: &str) {
        let outcome = self.check().map_or_else(|failure| format!("no: {failure}"), |()| "all there".to_owned());
        self.note(name, &outcome);
    }

    /// Reads everything that is acknowledged; a head that says more is a group that is there by half or unasked.
    fn check(&self) -> Outcome<()> {
        let mut reader = self.store.reader()?;
        let mut heads = BTreeMap::new();
        reader.heads(&mut |session, head| {
            heads.insert(session, head.first_chunk().map_or(0, |next| u64::from_be_bytes(*next)));
        })?;
        for (session, records) in &self.acknowledged {
            let mut bytes = Vec::new();
            let chunks = reader.read(*session, 0, *records, &mut bytes)?;
            if chunks as u64 * 25 != *records {
                return Err(format!("session {session} has {chunks} chunks of {records} records").into());
            }
        }
        if heads == self.acknowledged { Ok(()) } else { Err("heads differ from what was acknowledged".into()) }
    }

    fn note(&self, name: &str, text: &str) {
        note(&self.found, name, text);
    }
}

fn note(found: &Found, name: &str, text: &str) {
    let short: String = text.chars().take(60).collect();
    found.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), short.into());
}

/// Ends the process, with what was found so far, when a store hangs.
fn watch(found: Found) {
    thread::spawn(move || {
        thread::sleep(PATIENCE);
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner).clone();
        found.insert("then".to_owned(), format!("nothing for {} s", PATIENCE.as_secs()).into());
        println!("{}", serde_json::Value::Object(found));
        std::process::exit(0);
    });
}
