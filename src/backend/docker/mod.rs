//! The Docker backend: containers and bridge networks of one Docker engine, by bollard, which is used nowhere else.
//!
//! Everything it creates is named `app-<id>` and labelled with the cluster's id. What has another cluster's label, or
//! none, is neither adopted, started, stopped nor removed. The engine may be down when the backend is built, and may go
//! away and come back: operations fail with `Unavailable` until it answers. It needs API 1.41 (engine 20.10) or later.
//!
//! Its limits: networks of one host cannot overlap, since bridge networks cannot; registries that require a password
//! cannot be used; and registries without a public address only if the operator allows them (`registry`).

mod bridge;
mod client;
mod compute;
mod error;
mod events;
mod image;
mod inspect;
mod labels;
mod locks;
mod network;
mod registry;
mod spec;

pub use compute::DockerCompute;
pub use network::DockerNetwork;
