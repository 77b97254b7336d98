//! The shop journey in a real Chromium, with a scripted task link, and people at its wheel through a real gateway. Without Chromium each test says so and passes.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what is wanted")]

mod house;
mod journey;
mod proxies;
mod script;
mod wheel;
