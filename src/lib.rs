//! Placeholder page.
pub mod ingest;
pub mod redact;
pub mod sabotage;
pub mod secrets;
