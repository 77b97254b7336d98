//! Onlooker: a realtime session gateway for AI agents that browse and act.
//!
//! Data flows one way. A runtime publishes ([`http::runtime`]), [`ingest`] checks and redacts, the session's owner
//! ([`session`]) appends to the log ([`engine`]), the [`hub`] wakes those who follow, and each [`subscriber`] reads
//! from its own position to its surface ([`http`]). Answers go back through the owner ([`guardrail`]) to the runtime
//! ([`runtime_link`]). Beside it, [`watch`] knows who is looking, [`reach_out`] decides whether somebody must be told,
//! and the [`outbox`] tells them through a [`notifier`].
//!
//! `ARCHITECTURE.md` has the map, the invariants and walkthroughs.

pub mod gateway;

pub mod http;
pub mod ingest;
pub mod redact;
pub mod session;

pub mod engine;
pub mod hub;
pub mod subscriber;

pub mod control;
pub mod guardrail;
pub mod runtime_link;
pub mod secrets;

pub mod chat;
pub mod forms;
pub mod links;
pub mod notifier;
pub mod outbox;
pub mod reach_out;
pub mod task_result;
pub mod task_webhook;
pub mod watch;

pub mod auth;
pub mod board;
pub mod clock;
pub mod config;
pub mod files;
pub mod ids;
pub mod images;
pub mod metrics;
pub mod sabotage;
pub mod tries;
