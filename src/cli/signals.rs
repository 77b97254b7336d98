//! The two signals that ask a program to stop.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::Failure;

pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From here on the signals are waited for and no longer end the process by themselves.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let of = |kind| signal(kind).map_err(|error| Failure::failed(format!("cannot wait for signals: {error}")));
        Ok(Self { interrupt: of(SignalKind::interrupt())?, terminate: of(SignalKind::terminate())? })
    }

    /// The next SIGINT or SIGTERM. Cancel safe.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Does what is left to do at the end, unless another signal asks to leave it.
    ///
    /// # Errors
    /// When it was left undone.
    pub(crate) async fn or_at_once(&mut self, ending: impl Future<Output = ()>) -> Result<(), Failure> {
        tokio::select! {
            biased;
            () = ending => Ok(()),
            () = self.next() => Err(Failure::failed("stopped at once by a second signal")),
        }
    }
}
