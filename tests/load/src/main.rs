//! The load generator. Each user has its own API key and connection, polls its instance (80 % of requests), lists the
//! instances of its tenant (15 %), and deletes its instance or creates a new one (5 %). goose runs the users and
//! measures the response times.
//!
//! `APP_LOAD_KEYS` names a file with one API key per line; each user takes one. `APP_LOAD_THINK_MS` is the think time
//! between two requests of a user. goose's options set the target and the amount (`--host`, `--users`, `--run-time`,
//! …). The program prints a line every five seconds and a Markdown table at the end, and writes the figures to the file
//! that `APP_LOAD_SUMMARY` names. It exits with a failure when a response was not the expected one.

mod report;
mod user;

use std::{process::ExitCode, time::Duration};

use goose::prelude::*;

use self::user::{change, list, poll, start};

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    user::read_keys()?;
    let think: u64 = std::env::var("APP_LOAD_THINK_MS").unwrap_or_else(|_| "1000".into()).parse()?;
    let mut scenario = scenario!("tenant")
        .register_transaction(transaction!(start).set_on_start())
        .register_transaction(transaction!(poll).set_weight(16)?)
        .register_transaction(transaction!(list).set_weight(3)?)
        .register_transaction(transaction!(change).set_weight(1)?);
    if think > 0 {
        // Random, so that the users do not send their requests at the same moment.
        let (min, max) = (Duration::from_millis(think / 2), Duration::from_millis(think + think / 2));
        scenario = scenario.set_wait_time(min, max)?;
    }
    tokio::spawn(report::progress());
    let metrics = GooseAttack::initialize()?
        .register_scenario(scenario)
        .set_scheduler(GooseScheduler::Random)
        .set_default(GooseDefault::NoTelnet, true)?
        .set_default(GooseDefault::NoPrintMetrics, true)?
        .set_default(GooseDefault::Quiet, 2)?
        .execute()
        .await?;
    Ok(if report::table(&metrics)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
