//! The runtime's client and the subscriber's against a gateway that each test plays by hand, over real sockets.

#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "a test that cannot go on panics, and reads best with values"
)]

mod client;
mod follow;
mod peer;
mod recording;
