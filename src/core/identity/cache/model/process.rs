//! Keys kept in the process: no verification that begins after a revocation has returned is answered with a revoked
//! key.

use super::{
    assert_safe, assert_violated,
    process_model::ProcessModel,
    process_state::{PRODUCTION, Rules},
};

#[test]
fn process_with_all_guards_is_safe() {
    const QUIET: Rules = Rules { flushall: false, burst: false, ..PRODUCTION };
    const LOSSES: Rules = Rules { losses: true, burst: false, ..PRODUCTION };
    assert_safe("process, no failures", &ProcessModel::new(&QUIET));
    assert_safe("process, FLUSHALL, an overflowing log", &ProcessModel::new(&PRODUCTION));
    assert_safe("process, FLUSHALL, lost and late polls", &ProcessModel::new(&LOSSES));
}

/// Two guards that the guarantee does not need. The second check of the fence refuses keys also to a verification that
/// began before the revocation and slept. And a value that is inserted without a fence is dropped before the next
/// fence.
#[test]
fn process_without_either_of_two_extra_guards_is_safe() {
    const ONE_CHECK: Rules = Rules { fence_after: false, ..PRODUCTION };
    const UNFENCED: Rules = Rules { snapshot_fenced: false, burst: false, ..PRODUCTION };
    assert_safe("the fence is checked before the entry only", &ProcessModel::new(&ONE_CHECK));
    assert_safe("values are inserted without a fence", &ProcessModel::new(&UNFENCED));
}

/// Redis must keep what it confirmed. Where it does not, the version feed bounds how long a revoked key is accepted.
#[test]
fn redis_restarted_with_old_data_accepts_a_revoked_key() {
    const OLD: Rules = Rules { old_data: true, ..PRODUCTION };
    assert_violated("Redis restarts with old data", &ProcessModel::new(&OLD));
}

/// Takes one guard away from the model with all failures.
macro_rules! guards {
    ($($test:ident: $name:literal, $($guard:ident: $without:expr),+;)+) => {$(
        #[test]
        fn $test() {
            const WITHOUT: Rules = Rules { $($guard: $without),+, ..PRODUCTION };
            assert_violated($name, &ProcessModel::new(&WITHOUT));
        }
    )+};
}

guards! {
    needs_generations: "no generation", generation: false;
    needs_epochs: "a flush voids nothing", epoch: false;
    needs_the_fence: "no fence", fence: false;
    needs_the_fence_before_the_entry: "the fence is checked after the entry only", fence_before: false;
    needs_the_fence_from_sending: "the fence counts from the reply", fence_from_sending: false;
    needs_the_snapshot_before_the_get: "the snapshot is taken when GET is answered", snapshot_first: false;
    needs_the_wait_for_processes: "the revocation does not wait", waits: false;
    needs_a_settled_redis: "the revocation trusts a Redis that has lost its list of processes", settled: false;
    needs_to_check_it_when_counting: "whether Redis is settled is checked when it is written", settled_at_count: false;
    needs_the_age_of_the_epoch: "a new epoch counts as settled", epoch_age: false;
    needs_to_start_over_on_a_gap: "a gap in the log is not noticed", detects_gap: false;
    needs_to_poll_again_after_a_full_batch: "a full batch is taken for all entries", full_batch: false;
    needs_registration: "processes do not register", registers: false;
    needs_to_register_what_was_applied: "processes register what is on its way to them", registers_applied: false;
    needs_to_wait_as_long_as_a_fence: "a process that is silent for half a fence is not waited for", silent_for: 1;
}
