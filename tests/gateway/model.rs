//! Random subscribers, stalls, cuts and reconnects, against a model.
