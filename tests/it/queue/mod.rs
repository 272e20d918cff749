//! What the queue promises about failures, on real processes over the simulated backend; and its statements called directly.

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
