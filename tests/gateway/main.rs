//! A real gateway on port 0, real sockets, real time with shortened windows. One binary, because linking is what costs.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the right answer, also outside of the test functions")]
#![expect(unreachable_pub, reason = "modules of one test binary")]

mod harness;

mod answers;
mod attention;
mod bad_input;
mod desk;
mod doors;
mod engine;
mod files;
mod flow;
mod forms;
mod ladder;
mod links;
mod model;
mod notices;
mod pages;
mod parley;
mod pictures;
mod reaching;
mod rest;
mod restart;
mod resume;
mod runtimes;
mod secrecy;
mod slow;
mod socketio;
mod task_webhooks;
mod telegram;
mod view;
mod watching;
mod webrun;
