//! Socket.IO at `/socket.io/`, spoken by a small raw client: every packet is seen as it is on the wire.

pub mod client;
mod engine;
mod events;
mod joining;
mod packets;
mod proofs;
mod resuming;
mod traps;
mod upgrading;
