//! Placeholder page.
pub mod sabotage;
