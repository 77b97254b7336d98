//! Onlooker: a realtime session gateway for AI agents that browse and act.

pub mod control;
pub mod engine;
pub mod ids;
pub mod notifier;
pub mod outbox;
pub mod reach_out;
pub mod sabotage;
pub mod watch;
