//! Slow and dead readers harm nobody else.
