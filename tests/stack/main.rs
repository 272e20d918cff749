//! The whole system in containers, by the user's own command, on a real Docker. Run by `make test-stack`, which says
//! where things are.
//!
//! Set up once; then steps in their order, each named and timed. One that fails is told, and the others go on. All is
//! taken down at the end. With arguments, only the steps whose names hold one of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "the integration tests need more of it")]
#[path = "../it/support/client.rs"]
mod client;
mod edge;
mod faults;
mod instances;
mod isolation;
mod load;
mod metrics;
mod neighbour;
mod replicas;
mod stack;
mod up;

use std::{
    panic::AssertUnwindSafe,
    process::ExitCode,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::LocalBoxFuture};

use stack::Stack;

type Step = (&'static str, for<'a> fn(&'a Stack) -> LocalBoxFuture<'a, ()>);

/// One row per step, in their order.
macro_rules! steps {
    ($($module:ident :: $name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), |stack| $module::$name(stack).boxed_local())),*]
    };
}

const STEPS: &[Step] = steps![
    up::migrated_once_and_a_second_up_changes_nothing,
    up::three_replicas_are_healthy_and_only_nginx_publishes_a_port,
    up::the_image_is_small_and_has_no_shell,
    up::the_sockets_on_their_volumes_work_too,
    instances::a_request_through_nginx_becomes_a_page_on_its_published_port,
    edge::metrics_are_for_the_inside,
    edge::request_ids_are_passed_on_or_made,
    edge::errors_of_nginx_are_problems,
    edge::old_clients_and_offers_of_an_upgrade_are_served,
    edge::requests_without_a_key_are_limited_and_those_with_one_are_not,
    edge::the_log_is_json_and_holds_no_secret,
    edge::streams_pass_upgrades_do_not_and_a_post_is_not_replayed,
    replicas::requests_are_spread_evenly,
    replicas::any_replica_may_be_asked_anything,
    replicas::a_revoked_key_is_refused_by_all,
    faults::five_replicas_and_three_again,
    faults::the_read_replica_serves_lists_and_may_go_and_come,
    faults::a_read_replica_that_was_away_for_too_long_is_copied_anew,
    faults::redis_restarts,
    faults::nginx_reloads,
    faults::a_replica_is_killed,
    faults::the_worker_restarts_and_instances_do_not_notice,
    metrics::prometheus_sees_all_targets_up_and_counters_move,
    isolation::an_instance_reaches_nothing_of_the_system,
    neighbour::two_stacks_on_one_docker_leave_each_other_alone,
];

fn main() -> ExitCode {
    let only: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    runtime.block_on(run(&only))
}

async fn run(only: &[String]) -> ExitCode {
    let began = Instant::now();
    let Ok(stack) = AssertUnwindSafe(Stack::up()).catch_unwind().await else {
        return ExitCode::FAILURE;
    };
    tell("up", began.elapsed(), "ok");
    let mut failed = Vec::new();
    for (name, step) in
        STEPS.iter().filter(|(name, _)| only.is_empty() || only.iter().any(|only| name.contains(only.as_str())))
    {
        let began = Instant::now();
        let ended = AssertUnwindSafe(step(&stack)).catch_unwind().await;
        tell(name, began.elapsed(), if ended.is_ok() { "ok" } else { "FAILED" });
        if ended.is_err() {
            failed.push(*name);
        }
    }
    if !failed.is_empty() {
        stack.tell_logs();
    }
    let began = Instant::now();
    let left = AssertUnwindSafe(async { stack.down() }).catch_unwind().await;
    tell("down, and nothing is left", began.elapsed(), if left.is_ok() { "ok" } else { "FAILED" });
    if failed.is_empty() && left.is_ok() {
        return ExitCode::SUCCESS;
    }
    eprintln!("failed: {}", failed.join(", "));
    ExitCode::FAILURE
}

fn tell(name: &str, took: Duration, how: &str) {
    eprintln!("step {name} … {how} ({:.1} s)", took.as_secs_f64());
}

/// Asks again until it is so; panics with what was seen last.
async fn eventually<T: std::fmt::Debug>(seconds: u64, what: &str, mut look: impl AsyncFnMut() -> Result<(), T>) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        match look().await {
            Ok(()) => return,
            Err(seen) if Instant::now() > deadline => panic!("{what}: not within {seconds} s; last: {seen:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}
