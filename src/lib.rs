//! Placeholder page.
pub mod redact;
pub mod sabotage;
