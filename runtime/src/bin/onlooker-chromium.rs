//! A runtime with a real Chromium that shops in a demo shop of its own.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;
use onlooker_runtime::{
    Options,
    chromium::{ChromiumAgent, Settings, find_chromium, labels},
    run,
    shop::Shop,
};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, filter::filter_fn, layer::SubscriberExt, util::SubscriberInitExt};
use url::Url;

/// `EX_UNAVAILABLE` of sysexits: something that this program needs is not there.
const UNAVAILABLE: u8 = 69;

const EXAMPLES: &str = "\
Examples:
  onlooker-chromium --gateway http://127.0.0.1:7600
  onlooker-chromium --gateway wss://gateway.example --token \"$KEY\" --capacity 4
  onlooker-chromium --gateway http://127.0.0.1:7600 --shop-listen 127.0.0.1:8090

The shop's account and its answers are printed on its own pages. Give a session a task such as
\"Buy a reading lamp\"; it asks for the login, the code and the purchase.";

/// Runs sessions in a real Chromium, on a demo shop that it serves itself.
#[derive(Parser)]
#[command(name = "onlooker-chromium", version, after_help = EXAMPLES)]
struct Arguments {
    /// The gateway to register at
    #[arg(long, value_name = "URL", env = "ONLOOKER_GATEWAY")]
    gateway: Url,
    /// An API key that may publish
    #[arg(long, value_name = "TOKEN", env = "ONLOOKER_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Sessions at once
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    capacity: u32,
    /// The browser; the first Chromium or Chrome on the PATH when absent
    #[arg(long, value_name = "PATH")]
    chromium: Option<PathBuf>,
    /// Where to serve the shop; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    shop_listen: SocketAddr,
    /// Start Chromium without its sandbox, for containers that do not allow one; always so for root
    #[arg(long)]
    no_sandbox: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_log();
    let executable = match find_chromium(arguments.chromium.as_deref()) {
        Ok(executable) => executable,
        Err(error) => {
            eprintln!("onlooker-chromium needs Chromium: {error}");
            eprintln!("On Debian and Ubuntu: apt-get install chromium");
            return ExitCode::from(UNAVAILABLE);
        }
    };
    let runtime = tokio::runtime::Runtime::new().expect("the system allows threads and a poller");
    match runtime.block_on(serve(arguments, executable)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("onlooker-chromium: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

async fn serve(arguments: Arguments, executable: PathBuf) -> Result<(), Box<dyn std::error::Error>> {
    let shutdown = CancellationToken::new();
    let signals = tokio::spawn(cancel_on_signal(shutdown.clone()));
    let shop = Shop::listen(arguments.shop_listen).await?;
    tracing::info!(shop = %shop.url, chromium = %executable.display(), "the demo shop is open at {}", shop.url);
    let agent = ChromiumAgent::new(Settings {
        executable,
        sandbox: !arguments.no_sandbox,
        shop: shop.url.clone(),
        pace: Duration::from_millis(700),
    });
    let options = Options {
        gateway: arguments.gateway,
        token: arguments.token,
        name: "chromium".to_owned(),
        capacity: arguments.capacity,
        labels: labels(),
    };
    let result = run(options, Arc::new(agent.clone()), shutdown).await;
    signals.abort();
    agent.shutdown().await;
    drop(shop);
    Ok(result?)
}

async fn cancel_on_signal(shutdown: CancellationToken) {
    use tokio::signal::{
        ctrl_c,
        unix::{SignalKind, signal},
    };
    let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be listened to");
    tokio::select! {
        _ = ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("stopping");
    shutdown.cancel();
}

/// Dependencies print whole messages, keys typed among them, at finer levels than `info`, whatever the filter says.
fn start_log() {
    // The DevTools crate warns of each event that is newer than its list; that is no news to anybody here.
    let quiet = "chromiumoxide::handler=error".parse().expect("a directive");
    let wanted = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    let wanted = wanted.add_directive(quiet);
    let capped = filter_fn(|about| about.target().starts_with("onlooker") || *about.level() <= tracing::Level::INFO);
    tracing_subscriber::registry()
        .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr))
        .with(wanted)
        .with(capped)
        .init();
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
