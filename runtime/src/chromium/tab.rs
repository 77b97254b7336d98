//! One session's page: navigation, real mouse and key events, pictures, and what the page shows.

use std::{sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use chromiumoxide::{
    Page,
    cdp::{
        browser_protocol::{
            browser::BrowserContextId,
            input::{
                DispatchKeyEventParams, DispatchKeyEventType, DispatchMouseEventParams, DispatchMouseEventType,
                InsertTextParams, MouseButton,
            },
            page::{CaptureScreenshotFormat, CaptureScreenshotParams, NavigateParams},
        },
        js_protocol::runtime::EvaluateParams,
    },
    error::CdpError,
    keys::get_key_definition,
};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::{Instant, sleep, timeout};

use super::{StepError, browser::Browser};

pub(super) const NAVIGATION_LIMIT: Duration = Duration::from_secs(15);
const ELEMENT_LIMIT: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(40);
const JPEG_QUALITY: i64 = 60;

/// A page in a context of its own, which is closed when this is dropped.
pub(super) struct Tab {
    page: Page,
    context: Context,
}

struct Context {
    browser: Arc<Browser>,
    id: BrowserContextId,
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
    page: document.body?.dataset.page ?? '', url: location.href, heading: text('h1'),
    error: text('[role=alert]') || null,
    products: [...document.querySelectorAll('[data-product]')].map((card) => card.dataset.product),
    cart: parseInt(text('#cart-count'), 10) || 0, total: text('#total'), order: text('#order-number'),
  };
})()"#;

impl Tab {
    pub(super) async fn open(browser: Arc<Browser>) -> Result<Self, StepError> {
        let id = browser.new_context().await?;
        let context = Context { browser, id };
        let page = context.browser.new_page(&context.id).await?;
        Ok(Self { page, context })
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

    /// Presses and releases a key: a DOM name such as `Enter`, or one character.
    ///
    /// Returns whether the keyboard has it.
    pub(super) async fn press(&self, key: &str) -> Result<bool, StepError> {
        let Some(known) = get_key_definition(key) else { return Ok(false) };
        let text = known.text.or((known.key.chars().count() == 1).then_some(known.key));
        let pressed = if text.is_some() { DispatchKeyEventType::KeyDown } else { DispatchKeyEventType::RawKeyDown };
        for kind in [pressed, DispatchKeyEventType::KeyUp] {
            let mut event = DispatchKeyEventParams::new(kind.clone());
            event.key = Some(known.key.to_owned());
            event.code = Some(known.code.to_owned());
            event.windows_virtual_key_code = Some(known.key_code);
            event.native_virtual_key_code = Some(known.key_code);
            event.text = text.filter(|_| kind == DispatchKeyEventType::KeyDown).map(str::to_owned);
            self.execute(event).await?;
        }
        Ok(true)
    }

    /// Types into what has the focus, key by key. Characters that the keyboard lacks are inserted.
    pub(super) async fn type_text(&self, text: &str, rest: Duration) -> Result<(), StepError> {
        let mut character = [0; 4];
        for c in text.chars() {
            let key = if c == '\n' { "Enter" } else { &*c.encode_utf8(&mut character) };
            if !self.press(key).await? {
                self.execute(InsertTextParams::new(key)).await?;
            }
            sleep(rest).await;
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
