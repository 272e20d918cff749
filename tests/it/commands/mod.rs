//! Each subcommand as an operator uses it: exit codes, output and refused arguments.

mod config;
mod correlation;
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
