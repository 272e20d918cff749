//! `app`: a self-hosted control plane that turns `POST /instances` into a running, networked container.
//!
//! `api` accepts requests, `worker` carries them out, `core` holds what the two share, and `backend` runs containers.
//! `commands` has one file per subcommand, and `startup` builds and starts the parts that they need. Which module may
//! import which is a test: see `docs/architecture.md`.

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
