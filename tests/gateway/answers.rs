//! Guardrails: raising, answering, deadlines, claims, control.
