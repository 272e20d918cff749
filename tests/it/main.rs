//! Integration tests through the front door: real processes of this program on real Postgres, Redis and Docker.
//!
//! One binary, so that services are shared and linking is done once. Run by `make test`, which says where they are.

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
