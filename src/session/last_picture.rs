//! A session's last picture, kept behind its events: the newest wins, at most one write a second, and nobody waits.

use std::{sync::Arc, time::Duration};

use futures::future::{BoxFuture, FutureExt, pending};
use tokio::time::Instant;

use super::{owner::Owner, restoring::picture_key};
use crate::engine::{EngineError, Version};

const EVERY: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct LastPicture {
    /// The picture in the engine, or on its way there.
    id: Option<Arc<str>>,
    version: Option<Version>,
    writing: Option<BoxFuture<'static, Result<Version, EngineError>>>,
    not_before: Option<Instant>,
    /// There may be a newer one.
    stale: bool,
}

impl LastPicture {
    pub(super) fn restored(&mut self, id: &str, version: Version) {
        self.id = Some(id.into());
        self.version = Some(version);
    }

    pub(super) fn changed(&mut self) {
        self.stale = true;
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.not_before.filter(|_| self.stale && self.writing.is_none())
    }

    /// Resolves when a write has ended; never, while there is none. Cancel safe.
    pub(super) async fn written(&mut self) {
        let Some(writing) = &mut self.writing else { return pending().await };
        let result = writing.await;
        self.writing = None;
        match result {
            Ok(version) => self.version = Some(version),
            Err(error) => {
                tracing::debug!(%error, "a picture could not be kept; the next one is tried");
                self.id = None;
                if let EngineError::Conflict { found } = error {
                    self.version = found;
                }
            }
        }
    }
}

impl Owner {
    /// Begins to write the newest picture that everybody may see, if it is not written yet.
    pub(super) fn keep_picture(&mut self, now: Instant) {
        let pictures = &mut self.pictures;
        if !pictures.stale || pictures.writing.is_some() || pictures.not_before.is_some_and(|at| now < at) {
            return;
        }
        pictures.stale = false;
        let Some(picture) = self.session.images.latest_for_all(self.log.next) else { return };
        if pictures.id.as_deref() == Some(&*picture.id) {
            return;
        }
        pictures.id = Some(Arc::clone(&picture.id));
        pictures.not_before = Some(now + EVERY);
        let (engine, key) = (Arc::clone(&self.services.engine), picture_key(self.session.id));
        let (seen, frame) = (pictures.version, picture.frame.clone());
        pictures.writing = Some(async move { engine.put(key, seen, frame).await }.boxed());
    }
}
