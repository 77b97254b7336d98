//! Onlooker beside other realtime servers and a bare write loop. `README.md` says how to run it and what is measured.
//!
//! Three programs: `floor` is the bare loop, `load` subscribes, publishes and measures, `run` starts one server at a
//! time and compares.

pub mod client;
pub mod floor;
pub mod frames;
pub mod histogram;
pub mod load;
pub mod machine;
pub mod mark;
pub mod run;
pub mod spec;
pub mod speech;
pub mod usage;

/// Of everything that may go wrong, a sentence.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
