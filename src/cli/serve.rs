//! `onlooker serve`: the gateway.

use std::path::PathBuf;

use clap::Args;
use onlooker::{
    config::load::{Loaded, Sources, load},
    gateway::Gateway,
};

use super::{
    failure::Failure,
    log::{self, Format},
    say,
    signals::Signals,
};

const EXAMPLES: &str = "\
Examples:
  onlooker serve
  onlooker serve --listen 127.0.0.1:0 --notify-webhook https://hooks.example.com/onlooker
  onlooker serve --config /etc/onlooker.toml --log-format json
  onlooker serve --config onlooker.toml --listen 0.0.0.0:8787 --tls-cert cert.pem --tls-key key.pem

Settings come from the file, then the environment (ONLOOKER_LISTEN and so on), then flags; the last one wins.
Without keys only this machine can connect. `onlooker key` makes keys, `onlooker check-config` checks a file.
ONLOOKER_LOG (or RUST_LOG) filters the log: `info`, `onlooker=debug`.
Sessions, guardrails and notices are kept in ./onlooker-data and outlive the process, however it ends; `--data-dir`
names another place, `--ephemeral` keeps nothing. Secrets are never written. `onlooker inspect DIR` shows what is there.";

/// Runs the gateway until SIGINT or SIGTERM
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Serve {
    #[command(flatten)]
    settings: Settings,
    /// How the log on standard error is written
    #[arg(long, value_enum, default_value_t)]
    log_format: Format,
}

/// Flags that are settings of the same name. What they do not say, the environment and the file may.
#[derive(Args, Default)]
pub(crate) struct Settings {
    /// Where to listen; port 0 takes a free one [default: 127.0.0.1:8787]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to send notices that no chat is linked for
    #[arg(long, value_name = "URL")]
    notify_webhook: Option<String>,
    /// Where everything that outlives the process is kept [default: onlooker-data]
    #[arg(long, value_name = "DIR", conflicts_with = "ephemeral")]
    data_dir: Option<String>,
    /// Keep everything in memory: nothing outlives the process
    #[arg(long)]
    ephemeral: bool,
    /// When something counts as kept: `fsync`, on the disk, or `os`, given to the system [default: fsync]
    #[arg(long, value_name = "WHEN")]
    durability: Option<String>,
    /// Where people outside reach forms and callbacks
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// The certificate chain, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<String>,
    /// The certificate's private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<String>,
    /// A proxy in front of it speaks TLS
    #[arg(long)]
    plaintext_behind_proxy: bool,
}

impl Settings {
    /// Puts the configuration together.
    ///
    /// # Errors
    /// Says which value of which source is wrong.
    pub(crate) fn load(self) -> Result<Loaded, Failure> {
        let given = |flag: bool| flag.then(|| "true".to_owned());
        let flags = [
            ("listen", self.listen),
            ("notify_webhook", self.notify_webhook),
            ("data_dir", self.data_dir),
            ("ephemeral", given(self.ephemeral)),
            ("durability", self.durability),
            ("public_url", self.public_url),
            ("tls_cert", self.tls_cert),
            ("tls_key", self.tls_key),
            ("plaintext_behind_proxy", given(self.plaintext_behind_proxy)),
        ];
        let flags = flags.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Ok(load(&Sources { file: self.config, environment, flags })?)
    }
}

impl Serve {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let Loaded { config, warnings } = self.settings.load()?;
        log::start(self.log_format, "info")?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        let open = config.keys.is_empty();
        let silent = config.reach_out.notify_webhook.is_none()
            && config.telegram.token.is_none()
            && config.slack.bot_token.is_none();
        let mut signals = Signals::listen()?;
        let gateway = Gateway::start(config).await?;
        say(format_args!("listening on {}", gateway.url()))?;
        if open {
            tracing::warn!("open: no keys are configured; only this machine can connect");
        }
        if silent {
            tracing::warn!("nobody can be told of a guardrail: set --notify-webhook, or connect Telegram or Slack");
        }
        signals.next().await;
        tracing::info!("stopping; a second signal ends at once");
        signals.or_at_once(gateway.stop()).await
    }
}
