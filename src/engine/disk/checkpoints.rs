//! When what is committed moves from the write-ahead log to the main file, so that the log stays short.
//!
//! A thread of its own does it beside the commits. Where nothing was committed meanwhile, the log begins anew; where
//! commits never pause, the committer moves the little that is left itself when the log is long.

use std::{
    fs::File,
    path::Path,
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use super::store::{Checkpointer, StoreError, Writer};

/// What is written between two runs of the thread, in bytes of frames and values.
const EVERY_BYTES: usize = 16 << 20;
/// From this length of the log on the committer moves what is left: a commit waits for a sync of the main file.
const LONG_BYTES: usize = 64 << 20;
/// What is left then is no more than this, except where the log is twice as long: the disk is too slow for the thread.
const REST_BYTES: usize = 2 << 20;
/// What an operation writes beside its frames and values, about.
const OVERHEAD_BYTES: usize = 1 << 10;

pub(super) struct Checkpoints {
    /// In the log.
    log: usize,
    /// Since the thread was started.
    since: usize,
    running: bool,
    start: Option<mpsc::Sender<()>>,
    done: mpsc::Receiver<Result<(), StoreError>>,
    thread: Option<JoinHandle<()>>,
    /// Closed after the store.
    _main: Arc<File>,
}

impl Checkpoints {
    pub(super) fn start(path: &Path) -> Result<Self, StoreError> {
        let checkpointer = Checkpointer::open(path)?;
        let main = checkpointer.main();
        let (start, starts) = mpsc::channel::<()>();
        let (tell, done) = mpsc::channel();
        let work = move || {
            for () in starts {
                if tell.send(checkpointer.run()).is_err() {
                    return;
                }
            }
        };
        let named = std::thread::Builder::new().name("disk-checkpoint".to_owned());
        let thread = named.spawn(work).expect("the system has a thread to give");
        Ok(Self { log: 0, since: 0, running: false, start: Some(start), done, thread: Some(thread), _main: main })
    }

    pub(super) fn written(&mut self, bytes: usize) {
        self.log += bytes + OVERHEAD_BYTES;
        self.since += bytes + OVERHEAD_BYTES;
    }

    /// Between two commits. Fails only where the disk failed to keep something.
    pub(super) fn follow(&mut self, writer: &Writer) -> Result<(), StoreError> {
        if !self.running {
            if self.since >= EVERY_BYTES {
                self.start_thread();
            }
            return Ok(());
        }
        let Ok(mut moved) = self.done.try_recv() else { return Ok(()) };
        self.running = false;
        if moved.is_ok() && self.since > 0 {
            if self.log < LONG_BYTES {
                return Ok(());
            }
            if self.since > REST_BYTES && self.log < 2 * LONG_BYTES {
                self.start_thread();
                return Ok(());
            }
            moved = writer.checkpoint();
        }
        // After a failure too: the next time comes when as much again is written.
        self.log = 0;
        match moved {
            Err(error @ StoreError::Sync(_)) => Err(error),
            Err(error) => {
                // The log grows until it can be moved; the next time tries again.
                tracing::warn!(error = &error as &dyn std::error::Error, "what is committed stays in the log for now");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn start_thread(&mut self) {
        self.since = 0;
        self.running = self.start.as_ref().is_some_and(|start| start.send(()).is_ok());
    }

    /// Ends the thread. Idempotent.
    pub(super) fn stop(&mut self) {
        self.start = None;
        if let Some(thread) = self.thread.take() {
            // A panic was reported when it happened.
            drop(thread.join());
        }
    }
}
