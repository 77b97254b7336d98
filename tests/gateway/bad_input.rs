//! Bad input gets a clear code, and only its sender suffers.
