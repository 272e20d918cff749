//! The Docker backend: containers and bridge networks of one Docker engine.
//!
//! Promises: everything it makes is named `app-<id>` and carries `app.cluster`; what carries another cluster's id, or
//! none, is neither adopted, started, stopped nor removed. The engine may be down when it is built and may go away and
//! come back: each operation then answers `Unavailable` until the engine does. Works from API 1.41 (engine 20.10) on.
//! Refuses: overlapping CIDRs on one host (a bridge network cannot have them), registries that ask for a password, and
//! those that are not on public addresses unless they are named.
//!
//! This is the only place that knows bollard.

mod bridge;
mod client;
mod compute;
mod error;
mod events;
mod image;
mod labels;
mod locks;
mod network;
mod observe;
mod registry;
mod spec;

pub use compute::DockerCompute;
pub use network::DockerNetwork;
