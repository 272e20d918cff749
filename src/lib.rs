//! `app`: a self-hosted control plane that turns `POST /instances` into a running, networked container.
//!
//! `api` accepts requests, `worker` does them, `core` is what they share, `backend` runs containers. `roles` wire them
//! into subcommands. Arrows point inwards and are tested: see `docs/architecture.md`.

pub mod api;
pub mod backend;

pub mod cli;
pub mod commands;
pub mod config;
pub mod core;
pub mod http;
pub mod shutdown;
pub mod startup;
pub mod telemetry;
pub mod worker;
