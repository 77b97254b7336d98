//! Who counts as looking, over real sockets.
