//! Jobs: asynchronous work on one instance, leased to one worker at a time.

pub mod retry;
pub mod state;
pub mod step;
pub mod store;

pub use state::JobStatus;
