//! The surfaces over HTTP.
