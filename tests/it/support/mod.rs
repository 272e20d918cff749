//! What all integration tests share: clusters, processes that can be started and killed, proxies, and an HTTP
//! client.

pub mod client;
pub mod cluster;
pub mod docker_proxy;
pub mod env;
pub mod poll;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod redis_server;
pub mod registry;

pub use client::{Answer, Client};
pub use cluster::Cluster;
pub use docker_proxy::{DroppedStart, MiscountingEngine};
pub use poll::poll_until;
pub use postgres::Postgres;
pub use process::App;
pub use registry::Registry;
