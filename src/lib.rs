//! Onlooker: a realtime session gateway for AI agents that browse and act.

pub mod clock;
pub mod control;
pub mod engine;
pub mod guardrail;
pub mod ids;
pub mod reach_out;
pub mod sabotage;
pub mod watch;
