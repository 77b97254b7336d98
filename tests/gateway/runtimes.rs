//! Runtimes: assignment, claims, reconnects, commands, the HTTP pair.
