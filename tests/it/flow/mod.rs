//! The whole path, front door to container.

mod docker;
mod page;
mod registry;
