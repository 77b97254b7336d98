//! The runtimes that ship with Onlooker, and the two ends that they and the command line are made of.
//!
//! * [`agent`]: what the author of a runtime writes and calls.
//! * [`client`]: the socket to `/v1/runtime`, with numbering, acknowledgement and reconnects.
//! * [`recording`], [`replay`], [`mod@record`]: recordings as files, as an agent, and made from a live session.
//! * [`follow`]: a subscriber on `/v1/ws` that reconnects and resumes.

pub mod agent;
#[cfg(feature = "chromium")]
pub mod chromium;
pub mod client;
pub mod follow;
pub mod record;
pub mod recording;
pub mod replay;
#[cfg(feature = "chromium")]
pub mod shop;

mod backoff;
mod ids;
mod socket;

pub use agent::{Agent, Completed, Failed, Options, RunError, Task, run};
pub use follow::{Follow, Frame};
pub use recording::{Line, Recording};
pub use replay::Replay;
