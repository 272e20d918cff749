//! The queue under failures: some tests run real processes over the simulated backend, others call the queue's
//! statements directly.

mod budget;
mod claim;
mod contention;
mod crash;
mod delete;
mod drain;
mod fairness;
mod fixture;
mod hosts;
mod interleavings;
mod lease;
mod placement;
mod restart;
mod simulated_host;
mod texts;
mod wakeups;
mod watchdog;
