//! Placeholder page.

pub mod auth;
pub mod config;
pub mod http;
