//! The WebRun surfaces: REST for existing WebRun clients, and what their Socket.IO surface says and hears.
//!
//! Everything here translates. What a client may send in any of its documented generations becomes a command of the
//! core ([`message`], [`parameters`]); what the log has becomes the bodies and frames that those clients read
//! ([`frames`]); what is refused becomes a [`problem::Problem`]. [`files`] has their uploads.

pub mod files;
pub mod frames;
pub mod message;
mod multipart;
pub mod parameters;
pub mod problem;
