//! The runtimes that ship with Onlooker: recordings, and a real Chromium.

pub mod agent;
#[cfg(feature = "chromium")]
pub mod chromium;
mod client;
#[cfg(feature = "chromium")]
pub mod shop;

pub use agent::{Agent, Completed, Failed, Task};
pub use client::{Options, RunError, run};
