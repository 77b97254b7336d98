//! A real Chromium, driven over its DevTools protocol by as much of a client as these tests need.
//!
//! The browser is shared by the tests of a process; each test has a browser context, and with it a renderer process,
//! of its own. A shell guards the browser: when this process ends, however it ends, the guard's standard input closes,
//! and the guard kills the browser's whole process group and removes the profile.

use std::{
    io::Write,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, tungstenite::Message};

use crate::harness::BOUND;

/// A cold start on a busy small machine takes several seconds.
const START_LIMIT: Duration = Duration::from_secs(60);

const ARGUMENTS: &[&str] = &[
    "--headless=new",
    "--remote-debugging-port=0",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-breakpad",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--mute-audio",
    "--password-store=basic",
    "--lang=en-US",
    "--window-size=1280,800",
];

/// `$PROFILE` is the browser's folder, the arguments its command line.
const GUARD: &str = r#"
setsid "$@" </dev/null >/dev/null 2>&1 &
browser=$!
cat >/dev/null
kill -9 "-$browser"
wait
for try in 1 2 3 4 5; do rm -rf "$PROFILE" && break; sleep 0.1; done
"#;

/// A running browser. Dropping it ends it.
pub struct Chromium {
    address: String,
    guard: Child,
}

impl Chromium {
    /// The browser of this process; none where there is no Chromium, which is an error in CI.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Chromium>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref()
    }

    /// A browser of its caller's own, for tests that stop its processes.
    #[expect(clippy::zombie_processes, reason = "the guard ends with this process, and ends the browser with it")]
    pub fn start() -> Option<Self> {
        let executable = executable()?;
        let profile = std::env::temp_dir().join(format!("onlooker-pages-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&profile).unwrap();
        let mut guard = Command::new("sh")
            .args(["-c", GUARD, "guard"])
            .arg(executable)
            .args(ARGUMENTS)
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg("about:blank")
            .env("PROFILE", &profile)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        loop {
            let written = std::fs::read_to_string(profile.join("DevToolsActivePort")).unwrap_or_default();
            if let Some((port, path)) = written.split_once('\n').filter(|(_, path)| path.starts_with("/devtools/")) {
                return Some(Self { address: format!("ws://127.0.0.1:{port}{}", path.trim_end()), guard });
            }
            if started.elapsed() > START_LIMIT {
                drop(guard.stdin.take());
                let _ = guard.wait();
                panic!("Chromium did not start within {} s", START_LIMIT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A page of a context of its own.
    pub async fn page(&self, url: &str) -> Page {
        let mut devtools = DevTools::connect(&self.address).await;
        let wanted = json!({ "disposeOnDetach": true });
        let context = devtools.call(None, "Target.createBrowserContext", wanted).await["browserContextId"].clone();
        let (target, cdp) = devtools.open_tab(&context, url).await;
        Page { devtools, context, target, cdp }
    }

    /// The browser's renderer processes.
    pub async fn renderers(&self) -> Vec<Renderer> {
        let mut devtools = DevTools::connect(&self.address).await;
        let answer = devtools.call(None, "SystemInfo.getProcessInfo", json!({})).await;
        let processes = answer["processInfo"].as_array().unwrap();
        let renderers = processes.iter().filter(|process| process["type"] == "renderer");
        renderers.map(|process| Renderer { pid: process["id"].as_u64().unwrap() }).collect()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

fn executable() -> Option<PathBuf> {
    let named = std::env::var_os("CHROMIUM").map(PathBuf::from);
    let path = named.unwrap_or_else(|| PathBuf::from("/usr/bin/chromium"));
    if path.exists() {
        return Some(path);
    }
    let missing = format!("there is no Chromium at {}; CHROMIUM may name one", path.display());
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{missing}");
    // Not through `eprintln!`, which the test harness shows for failures alone.
    let _ = writeln!(std::io::stderr(), "skipped: {missing}");
    None
}

/// A renderer process, stopped and continued by signals.
pub struct Renderer {
    pid: u64,
}

impl Renderer {
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.pid);
        let _ = Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status();
    }
}

/// One connection to the browser. Only its own calls are read, one after the other.
struct DevTools {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    last: u64,
}

impl DevTools {
    async fn connect(address: &str) -> Self {
        let (socket, _) = tokio_tungstenite::connect_async(address).await.expect("the browser's DevTools answer");
        Self { socket, last: 0 }
    }

    /// Sends a command and does not wait for what comes of it.
    async fn tell(&mut self, cdp: Option<&str>, method: &str, parameters: Value) -> u64 {
        self.last += 1;
        let mut command = json!({ "id": self.last, "method": method, "params": parameters });
        if let Some(cdp) = cdp {
            command["sessionId"] = json!(cdp);
        }
        self.socket.send(Message::text(command.to_string())).await.expect("the browser reads");
        self.last
    }

    async fn call(&mut self, cdp: Option<&str>, method: &str, parameters: Value) -> Value {
        let id = self.tell(cdp, method, parameters).await;
        loop {
            let next = timeout(BOUND, self.socket.next()).await;
            let next = next.unwrap_or_else(|_| panic!("{method} was not answered"));
            let Some(Ok(Message::Text(text))) = next else { panic!("the browser is gone: {next:?}") };
            let mut answer: Value = serde_json::from_str(&text).unwrap();
            if answer["id"] == id {
                assert!(answer.get("error").is_none(), "{method}: {}", answer["error"]);
                return answer["result"].take();
            }
        }
    }

    async fn open_tab(&mut self, context: &Value, url: &str) -> (String, String) {
        let wanted = json!({ "url": url, "browserContextId": context });
        let target = self.call(None, "Target.createTarget", wanted).await["targetId"].as_str().unwrap().to_owned();
        let wanted = json!({ "targetId": target, "flatten": true });
        let attached = self.call(None, "Target.attachToTarget", wanted).await;
        (target, attached["sessionId"].as_str().unwrap().to_owned())
    }
}

/// A tab. Its context ends with it.
pub struct Page {
    devtools: DevTools,
    context: Value,
    target: String,
    cdp: String,
}

impl Page {
    pub async fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.devtools.call(Some(&self.cdp), method, parameters).await
    }

    /// The value of an expression in the page.
    pub async fn evaluate(&mut self, expression: &str) -> Value {
        let wanted = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut answer = self.call("Runtime.evaluate", wanted).await;
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].take()
    }

    /// Starts an expression and leaves the page to it.
    pub async fn begin(&mut self, expression: &str) {
        self.devtools.tell(Some(&self.cdp), "Runtime.evaluate", json!({ "expression": expression })).await;
    }

    /// Waits until an expression is true in whatever document the tab has by then.
    pub async fn wait_for(&mut self, expression: &str) {
        let waiting = async {
            loop {
                // While a document is replaced there may be none to ask.
                let wanted = json!({ "expression": format!("Boolean({expression})"), "returnByValue": true });
                if self.call("Runtime.evaluate", wanted).await["result"]["value"] == true {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(BOUND, waiting).await.is_err() {
            let shown = self.evaluate("document.body.innerText").await;
            panic!("waited in vain until {expression}; the page shows {shown}");
        }
    }

    pub async fn move_mouse(&mut self, x: f64, y: f64) {
        self.mouse("mouseMoved", x, y).await;
    }

    /// Clicks in the middle of the element that an expression gives, as a person's mouse would.
    pub async fn click(&mut self, element: &str) {
        self.wait_for(&format!("{element}?.getClientRects().length")).await;
        let middle = format!(
            "(() => {{ const e = {element}; e.scrollIntoView({{ block: 'center' }}); const r = e.getBoundingClientRect(); \
             return [r.x + r.width / 2, r.y + r.height / 2]; }})()"
        );
        let middle = self.evaluate(&middle).await;
        let (x, y) = (middle[0].as_f64().unwrap(), middle[1].as_f64().unwrap());
        for kind in ["mouseMoved", "mousePressed", "mouseReleased"] {
            self.mouse(kind, x, y).await;
        }
    }

    async fn mouse(&mut self, kind: &str, x: f64, y: f64) {
        let button = if kind == "mouseMoved" { "none" } else { "left" };
        let event = json!({ "type": kind, "x": x, "y": y, "button": button, "clickCount": 1 });
        self.call("Input.dispatchMouseEvent", event).await;
    }

    /// Types into what has the focus, key by key.
    pub async fn type_text(&mut self, text: &str) {
        for key in text.chars() {
            for kind in ["keyDown", "keyUp"] {
                let typed = if kind == "keyDown" { key.to_string() } else { String::new() };
                let event = json!({ "type": kind, "key": key.to_string(), "text": typed });
                self.call("Input.dispatchKeyEvent", event).await;
            }
        }
    }

    /// Opens another tab in front of this one.
    pub async fn cover(&mut self) -> String {
        let context = self.context.clone();
        self.devtools.open_tab(&context, "about:blank").await.0
    }

    pub async fn bring_to_front(&mut self) {
        let target = json!({ "targetId": self.target });
        self.devtools.call(None, "Target.activateTarget", target).await;
    }

    /// Loads the page anew, as its reload button would, and waits for the new document.
    pub async fn reload(&mut self) {
        self.evaluate("window.isOld = true").await;
        self.call("Page.reload", json!({})).await;
        self.wait_for("!window.isOld && document.readyState === 'complete'").await;
    }

    pub async fn close(mut self) {
        let target = json!({ "targetId": self.target });
        self.devtools.call(None, "Target.closeTarget", target).await;
    }

    /// Keeps a picture where `ONLOOKER_TEST_PICTURES` says, for people to look at.
    pub async fn keep_picture(&mut self, name: &str, (width, height): (u32, u32)) {
        use base64::Engine;

        let Some(folder) = std::env::var_os("ONLOOKER_TEST_PICTURES") else { return };
        let screen = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", screen).await;
        // Two frames, so that the new size is drawn.
        self.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))").await;
        let picture = self.call("Page.captureScreenshot", json!({ "format": "png" })).await;
        let picture = base64::prelude::BASE64_STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
        std::fs::write(PathBuf::from(folder).join(format!("{name}-{width}.png")), picture).unwrap();
        self.call("Emulation.clearDeviceMetricsOverride", json!({})).await;
    }
}
