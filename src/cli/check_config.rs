//! `onlooker check-config`: the configuration as `serve` would read it, without starting anything.

use clap::Args;

use super::{failure::Failure, say, serve::Settings};

const EXAMPLES: &str = "\
Examples:
  onlooker check-config --config onlooker.toml
  onlooker check-config --config onlooker.toml && systemctl reload onlooker

Exits with 0 when `onlooker serve` with the same flags and environment would start, with 64 otherwise.";

/// Checks a configuration and starts nothing
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CheckConfig {
    #[command(flatten)]
    settings: Settings,
}

impl CheckConfig {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let loaded = self.settings.load()?;
        for warning in &loaded.warnings {
            eprintln!("warning: {warning}");
        }
        let keys = match loaded.config.keys.len() {
            0 => "open: no keys, only this machine can connect".to_owned(),
            1 => "1 key".to_owned(),
            many => format!("{many} keys"),
        };
        say(format_args!("ok: listens on {}; {keys}", loaded.config.listen.address))
    }
}
