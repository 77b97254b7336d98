//! The browser's process: started, connected, kept by one task, killed at the end.
//!
//! The process is started here rather than by the DevTools library, so that it has only the arguments wanted, a
//! profile of its own that is removed with it, and its death is noticed at once.

use std::{
    future::Future,
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use chromiumoxide::{
    Handler,
    cdp::browser_protocol::{
        browser::BrowserContextId,
        target::{CreateBrowserContextParams, CreateTargetParams},
    },
    error::CdpError,
    handler::{HandlerConfig, viewport::Viewport},
};
use futures::StreamExt;
use rand::RngExt;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::{
    Settings, StepError, VIEWPORT,
    proxy::{Gatekeeper, Login},
};

/// A cold start on a busy small machine takes several seconds.
const START_LIMIT: Duration = Duration::from_secs(30);
/// One command, be it a key or a picture.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);

/// A running browser. Its process ends when this is dropped, and with the agent.
pub(super) struct Browser {
    pub(super) process: Option<u32>,
    /// Where the DevTools listen.
    address: String,
    devtools: chromiumoxide::Browser,
    tasks: TaskTracker,
    /// Cancelled when the process or the connection to it has ended.
    gone: CancellationToken,
    _stop: DropGuard,
}

impl Browser {
    /// Starts Chromium and connects to it. `tasks` gets the task that keeps it until `stop`.
    pub(super) async fn start(
        settings: &Settings,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Self, StepError> {
        let failed = |error: io::Error| StepError::Start(error.to_string());
        let profile = Profile::create().map_err(failed)?;
        let mut process = Command::new(&settings.executable)
            .args(arguments(settings, &profile))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A Ctrl-C in the terminal is for us; we end the browser when its tasks are told.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let connected = timeout(START_LIMIT, async {
            let address = devtools_address(&mut process, &profile.path).await.map_err(failed)?;
            let (width, height) = VIEWPORT;
            let viewport = Viewport { width, height, ..Viewport::default() };
            let config =
                HandlerConfig { viewport: Some(viewport), request_timeout: START_LIMIT, ..HandlerConfig::default() };
            chromiumoxide::Browser::connect_with_config(&address, config)
                .await
                .map(|(devtools, connection)| (address, devtools, connection))
                .map_err(|_| StepError::Start("it does not speak the DevTools protocol".to_owned()))
        });
        let (address, devtools, connection) = match connected.await {
            Ok(Ok(connected)) => connected,
            failure => {
                end(process, profile).await;
                let slow = || StepError::Start(format!("it was not ready within {} s", START_LIMIT.as_secs()));
                return Err(failure.map_or_else(|_| slow(), |failure| failure.err().unwrap_or_else(slow)));
            }
        };
        let id = process.id();
        let gone = CancellationToken::new();
        let stop = stop.child_token();
        tasks.spawn(keep(process, connection, profile, stop.clone(), gone.clone().drop_guard()));
        Ok(Self { process: id, address, devtools, tasks: tasks.clone(), gone, _stop: stop.drop_guard() })
    }

    pub(super) fn lives(&self) -> bool {
        !self.gone.is_cancelled()
    }

    pub(super) async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// A fresh context: no cookies, no cache, shared with nobody.
    pub(super) async fn new_context(&self, proxy: Option<&str>) -> Result<BrowserContextId, StepError> {
        let wanted = CreateBrowserContextParams {
            dispose_on_detach: Some(true),
            proxy_server: proxy.map(str::to_owned),
            ..Default::default()
        };
        self.command(self.devtools.create_browser_context(wanted)).await
    }

    pub(super) async fn new_page(&self, context: &BrowserContextId) -> Result<chromiumoxide::Page, StepError> {
        let mut wanted = CreateTargetParams::new("about:blank");
        wanted.browser_context_id = Some(context.clone());
        self.command(self.devtools.new_page(wanted)).await
    }

    /// Answers what the proxy asks in this page, in a task that ends with `over` and with the browser.
    pub(super) async fn answer_proxy(
        &self,
        page: &str,
        login: Login,
        over: CancellationToken,
    ) -> Result<(), StepError> {
        let attached = timeout(COMMAND_LIMIT, Gatekeeper::attach(&self.address, page, login)).await;
        let gatekeeper = attached.ok().flatten().ok_or(StepError::BrowserLost)?;
        self.tasks.spawn(gatekeeper.run(over));
        Ok(())
    }

    /// Closes a context with all its pages, in a task that ends with the browser.
    pub(super) fn close_context(self: &std::sync::Arc<Self>, context: BrowserContextId) {
        if !self.lives() || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let browser = std::sync::Arc::clone(self);
        self.tasks.spawn(async move {
            if let Err(error) = browser.command(browser.devtools.dispose_browser_context(context)).await {
                tracing::debug!(%error, "a browser context could not be closed");
            }
        });
    }

    /// Waits for a command, but neither for ever nor for a browser that is gone.
    pub(super) async fn command<T>(&self, command: impl Future<Output = Result<T, CdpError>>) -> Result<T, StepError> {
        tokio::select! {
            biased;
            () = self.gone.cancelled() => Err(StepError::BrowserLost),
            result = timeout(COMMAND_LIMIT, command) => match result {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(CdpError::ChannelSendError(_) | CdpError::Ws(_) | CdpError::Io(_))) => Err(StepError::BrowserLost),
                Ok(Err(error)) => Err(StepError::Refused(error)),
                Err(_) => Err(StepError::Refused(CdpError::Timeout)),
            },
        }
    }
}

fn arguments(settings: &Settings, profile: &Profile) -> Vec<String> {
    let (width, height) = VIEWPORT;
    let mut arguments: Vec<String> = [
        "--headless=new",
        "--remote-debugging-port=0",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-background-timer-throttling",
        "--disable-backgrounding-occluded-windows",
        "--disable-renderer-backgrounding",
        "--disable-breakpad",
        "--disable-component-update",
        "--disable-default-apps",
        "--disable-extensions",
        "--disable-sync",
        "--disable-features=Translate,PasswordManagerOnboarding,AutofillServerCommunication",
        "--force-color-profile=srgb",
        // Pages must not learn an address that a proxy hides.
        "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
        "--webrtc-ip-handling-policy=disable_non_proxied_udp",
        "--hide-scrollbars",
        "--lang=en-US",
        "--mute-audio",
        "--no-default-browser-check",
        "--no-first-run",
        "--password-store=basic",
        "--use-mock-keychain",
    ]
    .map(str::to_owned)
    .into();
    arguments.push(format!("--window-size={width},{height}"));
    arguments.push(format!("--user-data-dir={}", profile.path.display()));
    if !settings.sandbox || is_root() {
        arguments.push("--no-sandbox".to_owned());
    }
    arguments.push("about:blank".to_owned());
    arguments
}

/// Chromium refuses to run as root with its sandbox.
fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Waits for the file in which Chromium says where it listens: a port, then a path.
async fn devtools_address(process: &mut Child, profile: &Path) -> io::Result<String> {
    loop {
        if let Some(status) = process.try_wait()? {
            return Err(io::Error::other(format!("it ended at once ({status})")));
        }
        let written = tokio::fs::read_to_string(profile.join("DevToolsActivePort")).await.unwrap_or_default();
        if let Some((port, path)) = written.split_once('\n').filter(|(_, path)| path.starts_with("/devtools/browser/"))
        {
            return Ok(format!("ws://127.0.0.1:{port}{}", path.trim_end()));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Drives the connection until the browser is to stop or has stopped, then ends the process.
async fn keep(mut process: Child, mut connection: Handler, profile: Profile, stop: CancellationToken, gone: DropGuard) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            status = process.wait() => {
                tracing::warn!(?status, "chromium ended");
                break;
            }
            next = connection.next() => match next {
                Some(Ok(())) => {}
                Some(Err(_)) | None => {
                    tracing::warn!("the connection to chromium ended");
                    break;
                }
            }
        }
    }
    drop(gone);
    drop(connection);
    end(process, profile).await;
}

async fn end(mut process: Child, mut profile: Profile) {
    if let Err(error) = process.kill().await {
        tracing::debug!(%error, "chromium could not be killed");
    }
    profile.remove().await;
}

/// A temporary folder for one browser's profile, for its owner's eyes only. Removed when dropped.
struct Profile {
    path: PathBuf,
    removed: bool,
}

impl Profile {
    fn create() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("onlooker-chromium-{:032x}", rand::rng().random::<u128>()));
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self { path, removed: false })
    }

    /// The browser's helper processes end a moment after it and may still write, hence the tries.
    async fn remove(&mut self) {
        for _ in 0..30 {
            match tokio::fs::remove_dir_all(&self.path).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => sleep(Duration::from_millis(100)).await,
                _ => {
                    self.removed = true;
                    return;
                }
            }
        }
        tracing::warn!(path = %self.path.display(), "a browser profile could not be removed");
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        if !self.removed {
            // The last try of a path that was cut short; there is nobody left to tell.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
