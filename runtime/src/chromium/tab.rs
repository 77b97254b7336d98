//! One session's page: navigation, real mouse and key events, pictures, and what the page shows.

use std::{sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use chromiumoxide::{
    Page,
    cdp::{
        browser_protocol::{
            browser::BrowserContextId,
            input::{DispatchMouseEventParams, DispatchMouseEventType, InsertTextParams, MouseButton},
            page::{CaptureScreenshotFormat, CaptureScreenshotParams, NavigateParams},
        },
        js_protocol::runtime::EvaluateParams,
    },
    error::CdpError,
};
use rand::RngExt;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{StepError, browser::Browser, keyboard::Chord, proxy::Proxy};

pub(super) const NAVIGATION_LIMIT: Duration = Duration::from_secs(15);
const ELEMENT_LIMIT: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(40);
const JPEG_QUALITY: i64 = 60;
/// Characters that are typed key by key where no human is played; longer texts are inserted whole, as if pasted.
const KEYS_AT_ONCE: usize = 512;
/// Between two keys of a human, in milliseconds.
const HUMAN_REST: std::ops::RangeInclusive<u64> = 40..=140;
/// The longest that a human's text takes, beside the browser's own time.
const HUMAN_MOST: Duration = Duration::from_secs(20);

/// How fast text is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Typing {
    AtOnce,
    /// With the same rest after each key.
    Steady(Duration),
    /// With rests that differ, as a person's do.
    Human,
}

impl Typing {
    /// The rest after one of `count` keys.
    fn rest(self, count: usize) -> Duration {
        match self {
            Self::AtOnce => Duration::ZERO,
            Self::Steady(rest) => rest,
            Self::Human => {
                let most = u64::try_from(HUMAN_MOST.as_millis()).unwrap_or(u64::MAX) / (count as u64).max(1);
                Duration::from_millis(rand::rng().random_range(HUMAN_REST).min(most))
            }
        }
    }
}

/// A page in a context of its own, which is closed when this is dropped.
pub(super) struct Tab {
    page: Page,
    context: Context,
    /// Whoever acts in the page holds it, so that a person's inputs and the agent's do not mix.
    hands: Mutex<()>,
}

struct Context {
    browser: Arc<Browser>,
    id: BrowserContextId,
    /// Ends what answers the proxy's questions.
    _proxy: DropGuard,
}

impl Drop for Context {
    fn drop(&mut self) {
        self.browser.close_context(self.id.clone());
    }
}

/// Where an element can be clicked, in page pixels, and what it is called.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Spot {
    pub x: f64,
    pub y: f64,
    pub label: String,
}

/// What the page shows, as far as a journey wants to know.
#[derive(Debug, Default, Deserialize)]
pub(super) struct View {
    /// Which of the shop's pages it is; empty elsewhere.
    pub page: String,
    pub url: String,
    pub title: String,
    pub heading: String,
    /// What the site says went wrong.
    pub error: Option<String>,
    /// Names of the products that can be chosen.
    pub products: Vec<String>,
    pub cart: u32,
    pub total: String,
    pub order: String,
}

const VIEW: &str = r#"(() => {
  const text = (selector) => (document.querySelector(selector)?.textContent ?? '').trim();
  return {
    page: document.body?.dataset.page ?? '', url: location.href, title: document.title,
    heading: text('h1'),
    error: text('[role=alert]') || null,
    products: [...document.querySelectorAll('[data-product]')].map((card) => card.dataset.product),
    cart: parseInt(text('#cart-count'), 10) || 0, total: text('#total'), order: text('#order-number'),
  };
})()"#;

impl Tab {
    /// Opens a blank page whose requests all go through the proxy, if there is one.
    pub(super) async fn open(browser: Arc<Browser>, proxy: &Proxy) -> Result<Self, StepError> {
        let id = browser.new_context(proxy.server()).await?;
        let over = CancellationToken::new();
        let context = Context { browser, id, _proxy: over.clone().drop_guard() };
        let page = context.browser.new_page(&context.id).await?;
        if let Some(login) = proxy.login() {
            context.browser.answer_proxy(page.target_id().as_ref(), login, over).await?;
        }
        Ok(Self { page, context, hands: Mutex::new(()) })
    }

    /// Waits until nobody else acts in the page, and keeps others away while the guard lives.
    pub(super) async fn hands(&self) -> MutexGuard<'_, ()> {
        self.hands.lock().await
    }

    pub(super) fn lives(&self) -> bool {
        self.context.browser.lives()
    }

    /// Waits until the browser is gone.
    pub(super) async fn lost(&self) {
        self.context.browser.gone().await;
    }

    pub(super) async fn goto(&self, url: &str) -> Result<(), StepError> {
        let loaded = self.page.goto(NavigateParams::new(url));
        tokio::select! {
            biased;
            () = self.lost() => Err(StepError::BrowserLost),
            result = timeout(NAVIGATION_LIMIT, loaded) => match result {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(CdpError::Timeout)) | Err(_) => Err(StepError::NavigationTimeout),
                Ok(Err(CdpError::ChromeMessage(_))) => Err(StepError::Unreachable),
                Ok(Err(_)) => Err(StepError::BrowserLost),
            },
        }
    }

    /// What names the present document: a new one begins at another time.
    pub(super) async fn document(&self) -> Result<f64, StepError> {
        self.evaluate("performance.timeOrigin").await
    }

    /// Waits until another document than `left` is loaded.
    pub(super) async fn loaded_after(&self, left: f64) -> Result<(), StepError> {
        let until = Instant::now() + NAVIGATION_LIMIT;
        while Instant::now() < until {
            // Between two documents there is nothing to ask, which is no failure yet.
            match self.evaluate::<(f64, String)>("[performance.timeOrigin, document.readyState]").await {
                Ok((document, state)) if document != left && state == "complete" => return Ok(()),
                Err(StepError::BrowserLost) => return Err(StepError::BrowserLost),
                _ => sleep(LOOK_AGAIN).await,
            }
        }
        Err(StepError::NavigationTimeout)
    }

    pub(super) async fn view(&self) -> Result<View, StepError> {
        self.evaluate(VIEW).await
    }

    /// Waits for the element, brings it into view and says where it is.
    pub(super) async fn find(&self, selector: &str) -> Result<Spot, StepError> {
        let script = format!(
            r#"(() => {{
              const found = document.querySelector({selector});
              if (!found) return null;
              found.scrollIntoView({{block: 'nearest', behavior: 'instant'}});
              const box = found.getBoundingClientRect();
              const label = found.dataset.product ?? found.closest('label')?.innerText ?? found.innerText ?? '';
              return {{x: Math.round(box.x + box.width / 2), y: Math.round(box.y + box.height / 2), label: label.trim()}};
            }})()"#,
            selector = serde_json::Value::from(selector),
        );
        let until = Instant::now() + ELEMENT_LIMIT;
        loop {
            match self.evaluate::<Option<Spot>>(&script).await {
                Ok(Some(spot)) => return Ok(spot),
                Err(StepError::BrowserLost) => return Err(StepError::BrowserLost),
                _ if Instant::now() >= until => return Err(StepError::ElementNotFound(selector.to_owned())),
                _ => sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// Moves the mouse there and clicks `count` times.
    pub(super) async fn click(&self, x: f64, y: f64, count: i64) -> Result<(), StepError> {
        self.execute(DispatchMouseEventParams::new(DispatchMouseEventType::MouseMoved, x, y)).await?;
        for nth in 1..=count {
            for kind in [DispatchMouseEventType::MousePressed, DispatchMouseEventType::MouseReleased] {
                let mut event = DispatchMouseEventParams::new(kind, x, y);
                event.button = Some(MouseButton::Left);
                event.click_count = Some(nth);
                self.execute(event).await?;
            }
        }
        Ok(())
    }

    /// Turns the mouse wheel.
    pub(super) async fn scroll(&self, x: f64, y: f64, down: f64) -> Result<(), StepError> {
        let mut event = DispatchMouseEventParams::new(DispatchMouseEventType::MouseWheel, x, y);
        event.delta_x = Some(0.0);
        event.delta_y = Some(down);
        self.execute(event).await
    }

    /// Presses and releases a key with its modifiers. A character that no key has is inserted.
    pub(super) async fn press(&self, chord: &Chord<'_>) -> Result<(), StepError> {
        match chord.strokes() {
            Some(strokes) => {
                for stroke in strokes {
                    self.execute(stroke).await?;
                }
            }
            None => {
                if let Some(text) = chord.text() {
                    self.execute(InsertTextParams::new(text)).await?;
                }
            }
        }
        Ok(())
    }

    /// Types into what has the focus.
    pub(super) async fn type_text(&self, text: &str, typing: Typing) -> Result<(), StepError> {
        let count = text.chars().count();
        if typing == Typing::AtOnce && count > KEYS_AT_ONCE {
            return self.execute(InsertTextParams::new(text)).await;
        }
        let mut character = [0; 4];
        for c in text.chars() {
            let key = if c == '\n' { "Enter" } else { &*c.encode_utf8(&mut character) };
            self.press(&Chord::of(key)).await?;
            let rest = typing.rest(count);
            if !rest.is_zero() {
                sleep(rest).await;
            }
        }
        Ok(())
    }

    /// The visible part of the page as JPEG.
    pub(super) async fn picture(&self) -> Result<Bytes, StepError> {
        let wanted = CaptureScreenshotParams {
            format: Some(CaptureScreenshotFormat::Jpeg),
            quality: Some(JPEG_QUALITY),
            optimize_for_speed: Some(true),
            ..CaptureScreenshotParams::default()
        };
        let taken = self.context.browser.command(self.page.execute(wanted)).await?;
        let encoded: &str = taken.result.data.as_ref();
        let bytes = BASE64_STANDARD.decode(encoded).map_err(|_| StepError::Refused(CdpError::NoResponse))?;
        Ok(bytes.into())
    }

    async fn evaluate<T: DeserializeOwned>(&self, script: &str) -> Result<T, StepError> {
        let mut wanted = EvaluateParams::new(script);
        wanted.return_by_value = Some(true);
        let result = self.context.browser.command(self.page.execute(wanted)).await?.result;
        if result.exception_details.is_some() {
            return Err(StepError::Refused(CdpError::NotFound));
        }
        let value = result.result.value.unwrap_or_default();
        serde_json::from_value(value).map_err(|error| StepError::Refused(CdpError::Serde(error)))
    }

    async fn execute<C: chromiumoxide::Command>(&self, command: C) -> Result<(), StepError> {
        self.context.browser.command(self.page.execute(command)).await.map(|_| ())
    }
}
