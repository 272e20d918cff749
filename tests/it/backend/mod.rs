//! Backends: one suite for all of them, and what only one of them can show.

mod conformance;
mod docker;
mod simulated;
