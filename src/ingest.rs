//! The one way into a session's log.

pub(crate) mod payload;
