//! The whole path from an HTTP request to a container on a real engine.

mod docker;
mod foreign;
mod page;
mod registry;
mod restart;
mod texts;
