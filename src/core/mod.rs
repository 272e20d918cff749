//! The rules and the data of the control plane; nothing here depends on HTTP, containers or the command line.
//!
//! `identity`, `db` and `queue` are shared by the API and the workers. The nouns (`instances`, `networks`, `tenants`,
//! `hosts`) hold their types, their statements and a service; where a statement changes two nouns, it lies with the one that
//! the client named. The other modules are values and rules that several of them use.

pub mod breaker;
pub mod db;
pub mod hosts;
pub mod id;
pub mod idempotency;
pub mod identity;
pub mod instances;
pub mod invalid;
pub mod label;
pub mod maintenance;
pub mod networks;
pub mod page;
pub mod queue;
pub mod random;
pub mod read_your_writes;
pub mod redis;
pub mod tenants;
pub mod text;
pub mod text_enum;
