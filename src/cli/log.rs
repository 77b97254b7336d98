//! The log, on standard error.
//!
//! Libraries print whole messages, secrets among them, at finer levels than `info`. So nothing but our own crates ever
//! logs finer than that, whatever the filter asks for.

use std::io::{self, IsTerminal as _};

use clap::ValueEnum;
use onlooker::sabotage::{self, Guard};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{EnvFilter, filter::filter_fn, fmt::MakeWriter, layer::SubscriberExt as _};

use super::failure::Failure;

/// The variables that may hold the filter; the first that is set.
const FILTERS: [&str; 2] = ["ONLOOKER_LOG", "RUST_LOG"];
const OURS: [&str; 3] = ["onlooker", "onlooker_protocol", "onlooker_runtime"];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Text,
    Json,
}

/// Starts the log of this process.
///
/// # Errors
/// When the filter in the environment cannot be read.
pub(crate) fn start(format: Format, default: &str) -> Result<(), Failure> {
    let found =
        FILTERS.iter().find_map(|name| Some((*name, std::env::var(name).ok().filter(|text| !text.is_empty())?)));
    let (name, text) = found.unwrap_or(("the log filter", default.to_owned()));
    let filter = EnvFilter::try_new(&text)
        .map_err(|error| Failure::usage(format!("{name} is no log filter: {error}; try `info` or `onlooker=debug`")))?;
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // A second start in one process keeps the first.
    let _ = tracing::subscriber::set_global_default(subscriber(format, filter, colour, io::stderr));
    super::panics::keep_quiet();
    Ok(())
}

fn subscriber<W>(format: Format, filter: EnvFilter, colour: bool, to: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let base = tracing_subscriber::registry().with(filter).with(filter_fn(may_be_logged));
    match format {
        Format::Text => Box::new(base.with(tracing_subscriber::fmt::layer().with_ansi(colour).with_writer(to))),
        Format::Json => Box::new(base.with(tracing_subscriber::fmt::layer().json().with_writer(to))),
    }
}

/// Targets may be named by their code, so that the first part is the crate.
fn may_be_logged(about: &Metadata<'_>) -> bool {
    let of = about.target().split("::").next().unwrap_or_default();
    *about.level() <= Level::INFO || OURS.contains(&of) || sabotage::is_off(Guard::LogCap)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn libraries_stay_at_info_whatever_the_filter_asks_for() {
        for format in [Format::Text, Format::Json] {
            let written = Written::default();
            let (filter, to) = (EnvFilter::new("trace,tungstenite=trace,onlooker=trace"), written.clone());
            tracing::subscriber::with_default(subscriber(format, filter, false, move || to.clone()), || {
                tracing::trace!(target: "tungstenite::protocol", "whole frame");
                tracing::debug!(target: "tokio_tungstenite", "whole message");
                tracing::debug!(target: "hyper::proto::h1", "whole head");
                tracing::trace!(target: "rustls::client", "whole handshake");
                tracing::debug!(target: "chromiumoxide::conn", "whole command");
                tracing::debug!(target: "onlooker_other_crate", "whole name");
                tracing::info!(target: "reqwest::connect", "a library may inform");
                tracing::trace!(target: "onlooker::hub", "ours may go deep");
                tracing::debug!(target: "onlooker_runtime::follow", "the runtime too");
            });
            let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
            assert!(!text.contains("whole"), "{text}");
            for kept in ["a library may inform", "ours may go deep", "the runtime too"] {
                assert!(text.contains(kept), "{kept} is missing: {text}");
            }
        }
    }
}
