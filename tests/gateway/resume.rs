//! Resuming: what was missed comes once, or a gap says so.
