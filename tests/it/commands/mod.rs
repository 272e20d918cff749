//! Each subcommand as its operator sees it: exit codes, what is printed where, and what is refused.

mod config;
mod dev;
mod exited;
mod healthcheck;
mod help;
mod host_name;
mod keys;
mod log_pipe;
mod migrate;
mod parts;
mod production;
mod purge;
mod secrets;
mod settings;
