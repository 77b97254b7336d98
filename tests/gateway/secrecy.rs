//! No secret shows: redaction, fillers, sensitive windows.
