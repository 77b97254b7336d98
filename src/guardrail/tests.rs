//! Unit tests of guardrails.
