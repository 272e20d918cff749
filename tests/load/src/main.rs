//! The load: users who each have a key and a connection of their own, poll their instance (80 %), list what their
//! tenant has (15 %), and now and then delete it or make a new one (5 %). Driven and measured by goose.
//!
//! `APP_LOAD_KEYS` names a file of keys, one a line: a user each. `APP_LOAD_THINK_MS` is how long a user thinks between
//! requests. Goose's own options say where, how many and for how long (`--host`, `--users`, `--run-time`, …). Shows one line
//! every five seconds, and in the end a table in Markdown; `APP_LOAD_SUMMARY` names a file for the figures that others
//! compute with. Fails when a request did not end as it should.

mod report;
mod user;

use std::{process::ExitCode, time::Duration};

use goose::prelude::*;

use self::user::{begin, change, list, poll};

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    user::read_keys()?;
    let think: u64 = std::env::var("APP_LOAD_THINK_MS").unwrap_or_else(|_| "1000".into()).parse()?;
    let mut scenario = scenario!("tenant")
        .register_transaction(transaction!(begin).set_on_start())
        .register_transaction(transaction!(poll).set_weight(16)?)
        .register_transaction(transaction!(list).set_weight(3)?)
        .register_transaction(transaction!(change).set_weight(1)?);
    if think > 0 {
        // Spread, so that users do not march in step.
        let (least, most) = (Duration::from_millis(think / 2), Duration::from_millis(think + think / 2));
        scenario = scenario.set_wait_time(least, most)?;
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
