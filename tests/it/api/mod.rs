//! The HTTP contract: real API processes and a client, with SQL where the API does not show a state.

mod accepting;
mod auth;
mod bodies;
mod connections;
mod errors;
mod forms;
mod idempotency;
mod keys;
mod limit;
mod lists;
mod malformed;
mod openapi;
mod operations;
mod pages;
mod problem;
mod raw;
mod repeated_changes;
mod unreadable;
mod waits;
