//! The shop journey in a real Chromium, with a scripted task link. Without Chromium each test says so and passes.

mod journey;
mod script;
