//! What the queue promises about failures, on real processes over the simulated backend; and its statements called directly.

mod budget;
mod claim;
mod contention;
mod crash;
mod delete;
mod doorbell;
mod drain;
mod fairness;
mod hosts;
mod interleavings;
mod lab;
mod lease;
mod ledger;
mod placement;
mod restart;
mod texts;
mod watchdog;
