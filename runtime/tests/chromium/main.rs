//! The shop journey in a real Chromium, with a scripted task link. Without Chromium each test says so and passes.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what is wanted")]

mod journey;
mod script;
