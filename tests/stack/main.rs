//! Tests the whole system in containers on a real Docker, started by the command of the README. `make test-stack` runs
//! it and sets the environment variables that it reads.
//!
//! The system is started once. Then the steps run in order; the name, result and duration of each are printed. After a
//! failed step the others still run. At the end everything is removed. With arguments, only the steps run whose names
//! contain one of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "the integration tests use the rest")]
#[path = "../it/support/client.rs"]
mod client;
mod faults;
mod instances;
mod isolation;
mod load;
mod metrics;
mod nginx;
mod replicas;
mod stack;
mod two_stacks;
mod up;

use std::{
    panic::AssertUnwindSafe,
    process::ExitCode,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::LocalBoxFuture};

use stack::Stack;

type Step = (&'static str, for<'a> fn(&'a Stack) -> LocalBoxFuture<'a, ()>);

/// The name and the function of each step, in the order in which they run.
macro_rules! steps {
    ($($module:ident :: $name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), |stack| $module::$name(stack).boxed_local())),*]
    };
}

const STEPS: &[Step] = steps![
    up::second_up_changes_nothing,
    up::services_are_healthy_and_only_nginx_publishes_a_port,
    up::image_is_small_and_has_no_shell,
    up::sockets_on_volumes_accept_connections,
    instances::created_instance_serves_a_page_on_its_published_port,
    nginx::metrics_are_not_public,
    nginx::request_id_is_forwarded_or_generated,
    nginx::errors_of_nginx_are_problem_json,
    nginx::http_1_0_and_upgrade_requests_are_served,
    nginx::only_requests_without_a_key_are_rate_limited,
    nginx::access_log_is_json_without_secrets,
    nginx::streams_are_unbuffered_and_a_post_is_sent_once,
    replicas::requests_are_spread_evenly,
    replicas::every_replica_serves_every_request,
    replicas::every_replica_rejects_a_revoked_key,
    faults::scaling_up_and_down_loses_no_request,
    faults::lists_survive_a_restart_of_the_read_replica,
    faults::read_replica_without_its_slot_copies_the_primary_again,
    faults::restart_of_redis_loses_no_request,
    faults::reload_of_nginx_loses_no_request,
    faults::killed_replica_loses_no_request,
    faults::instances_run_on_while_the_worker_restarts,
    metrics::prometheus_scrapes_all_targets,
    isolation::instance_reaches_no_service_of_the_system,
    two_stacks::clusters_on_one_docker_are_independent,
];

fn main() -> ExitCode {
    let only: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    runtime.block_on(run(&only))
}

async fn run(only: &[String]) -> ExitCode {
    let started = Instant::now();
    let Ok(stack) = AssertUnwindSafe(Stack::up()).catch_unwind().await else {
        return ExitCode::FAILURE;
    };
    report("up", started.elapsed(), "ok");
    let mut failed = Vec::new();
    for (name, step) in
        STEPS.iter().filter(|(name, _)| only.is_empty() || only.iter().any(|only| name.contains(only.as_str())))
    {
        let started = Instant::now();
        let ended = AssertUnwindSafe(step(&stack)).catch_unwind().await;
        report(name, started.elapsed(), if ended.is_ok() { "ok" } else { "FAILED" });
        if ended.is_err() {
            failed.push(*name);
        }
    }
    if !failed.is_empty() {
        stack.print_logs();
    }
    let started = Instant::now();
    let down = AssertUnwindSafe(async { stack.down() }).catch_unwind().await;
    report(
        "down: no container, network or volume is left",
        started.elapsed(),
        if down.is_ok() { "ok" } else { "FAILED" },
    );
    if failed.is_empty() && down.is_ok() {
        return ExitCode::SUCCESS;
    }
    eprintln!("failed: {}", failed.join(", "));
    ExitCode::FAILURE
}

fn report(name: &str, duration: Duration, result: &str) {
    eprintln!("step {name} … {result} ({:.1} s)", duration.as_secs_f64());
}

/// Repeats `check` until it succeeds. Panics with its last error after `seconds`.
async fn poll_until<T: std::fmt::Debug>(seconds: u64, what: &str, mut check: impl AsyncFnMut() -> Result<(), T>) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        match check().await {
            Ok(()) => return,
            Err(last) if Instant::now() > deadline => panic!("{what}: not within {seconds} s; last: {last:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}
