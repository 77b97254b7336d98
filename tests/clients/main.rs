//! Existing clients against a real gateway: programs written as WebRun documents its flows, npm's Socket.IO clients of
//! several versions, Python's, `curl`, and the protocols' own checks. Each program runs as a process of its own and
//! knows nothing but the gateway's address.
//!
//! `make clients` installs what they need. Without that every test here fails and says so.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the right answer, also outside of the test functions")]
#![expect(unreachable_pub, reason = "modules of one test binary")]

#[path = "../gateway/harness.rs"]
#[expect(dead_code, reason = "another test binary uses the rest of it")]
mod harness;

#[path = "../gateway/attention/tunnel.rs"]
#[expect(dead_code, reason = "another test binary uses the rest of it")]
mod tunnel;

mod namespace;
mod program;
mod proxy;
mod world;

mod attention;
mod load;
mod parsers;
mod protocol;
mod python;
mod rest;
mod socket;
