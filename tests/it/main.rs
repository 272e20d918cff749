//! Integration tests: real processes of this program on real Postgres, Redis and Docker, driven over HTTP.
//!
//! All of them are one binary, so that services are shared and the program is linked once. `make test` starts the
//! services and passes their addresses.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod api;
mod backend;
mod commands;
mod db;
mod flow;
mod identity;
mod metrics;
mod parsers;
mod queue;
mod support;
