//! The HTTP contract, judged from outside: real API processes, a client, and SQL to look behind the scenes.

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
