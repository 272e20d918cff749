//! The whole path, front door to container.

mod docker;
mod foreign;
mod page;
mod registry;
mod restart;
mod texts;
