//! The frames, codes and views that travel between an Onlooker gateway and its two kinds of peer.
//!
//! * [`runtime`]: what runtimes and the gateway say to each other on `/v1/runtime`.
//! * [`subscriber`]: what subscribers and the gateway say to each other on `/v1/ws`.
//! * [`view`]: the state that snapshots and REST answers show.
//! * [`notice`]: what is said to people who are not looking.
//! * [`event`]: the events in a session's log, and their positions.
//! * [`code`]: every error and close code, and when to come back after it.
//!
//! `PROTOCOL.md` beside this crate says the same in prose; the files in `fixtures/` are read by the tests of every
//! client. Unknown members are ignored and unknown frame types decode to `Unknown`, so that both ends may grow apart.

pub mod code;
pub mod event;
pub mod notice;
pub mod picture;
pub mod runtime;
pub mod subscriber;
pub mod view;

pub use code::Code;
pub use event::Position;

/// The protocol's version, as both hellos carry it.
pub const VERSION: u32 = 1;
/// The WebSocket subprotocol of subscribers. Offered by the client, echoed by the gateway.
pub const SUBPROTOCOL: &str = "onlooker.v1";
