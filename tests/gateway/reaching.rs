//! Reach-out over the whole gateway: who is told, when, and why.
