//! Publishes pictures of the page: after each step, and while it changes by itself.
//!
//! A picture like the one before is not published. While the shutter is closed none is taken: secrets are being typed.

use std::{
    convert::Infallible,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use serde_json::json;
use tokio::{
    sync::{Mutex, MutexGuard},
    time::sleep,
};

use super::{VIEWPORT, link::TaskLink, tab::Tab};

const WHILE_CHANGING: Duration = Duration::from_millis(500);
/// A page that waits for a person may stand still for hours.
const WHILE_STILL: Duration = Duration::from_secs(2);
/// Equal pictures after which a page counts as still.
const STILL_AFTER: u32 = 6;

pub(super) struct Camera<'a, L> {
    link: &'a L,
    tab: &'a Tab,
    /// The hash of the last picture published. Held from before a picture is taken until it is published.
    last: Mutex<Option<u64>>,
}

impl<'a, L: TaskLink> Camera<'a, L> {
    pub(super) fn new(link: &'a L, tab: &'a Tab) -> Self {
        Self { link, tab, last: Mutex::new(None) }
    }

    /// Takes pictures for as long as it is polled.
    pub(super) async fn run(&self) -> Infallible {
        let mut equal = 0;
        loop {
            sleep(if equal < STILL_AFTER { WHILE_CHANGING } else { WHILE_STILL }).await;
            equal = if self.shoot().await { 0 } else { equal.saturating_add(1) };
        }
    }

    /// Publishes a picture if it differs from the last. A picture that fails is left out: the step that comes next
    /// finds out what is wrong.
    pub(super) async fn shoot(&self) -> bool {
        let mut last = self.last.lock().await;
        let bytes = match self.tab.picture().await {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::debug!(%error, "no picture");
                return false;
            }
        };
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let hash = Some(hasher.finish());
        if *last == hash {
            return false;
        }
        let (width, height) = VIEWPORT;
        self.link.picture("image/jpeg", bytes, json!({"width": width, "height": height})).await;
        *last = hash;
        true
    }

    /// Keeps the shutter closed while the guard lives.
    pub(super) async fn close_shutter(&self) -> MutexGuard<'_, Option<u64>> {
        self.last.lock().await
    }
}
