//! The surfaces over HTTP.

pub mod body;
pub mod guard;
pub mod listener;
pub mod tls;
pub mod written;
