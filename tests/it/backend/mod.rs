//! Backends: one conformance suite for all of them, and tests of what only one of them has.

mod conformance;
mod docker;
mod simulated;
