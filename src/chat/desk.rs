//! What people say in chats, understood: answers, claims, codes that link.

use futures::future::BoxFuture;

use super::{Desk, Reply, Said};
use crate::session::Directory;

/// The desk over the sessions of this node.
pub struct ChatDesk {
    #[expect(dead_code, reason = "answers go to their sessions")]
    directory: Directory,
}

impl ChatDesk {
    pub fn new(directory: Directory) -> Self {
        Self { directory }
    }
}

impl Desk for ChatDesk {
    fn hear(&self, _: Said) -> BoxFuture<'_, Reply> {
        Box::pin(async { Reply::default() })
    }
}
