//! The two databases: who serves what, and what their failures cost.

mod pool;
mod replica;
