//! Keys kept in the process: no verification that begins after a revocation returned is answered from there.

use super::{
    goes_wrong, is_safe,
    process_state::{OURS, Rules},
    process_world::Process,
};

#[test]
fn with_all_guards_it_is_safe() {
    const QUIET: Rules = Rules { flushall: false, burst: false, ..OURS };
    const LOSSES: Rules = Rules { losses: true, burst: false, ..OURS };
    is_safe("process, nothing happens to it", &Process::new(&QUIET));
    is_safe("process, FLUSHALL, an overflowing log", &Process::new(&OURS));
    is_safe("process, FLUSHALL, lost and late questions", &Process::new(&LOSSES));
}

/// Two precautions that the promise does not need. The second look at the fence refuses keys to a verification that began
/// before the revocation and slept. And what would be put in without a fence would be dropped before the next one.
#[test]
fn two_guards_are_there_for_good_measure() {
    const ONE_LOOK: Rules = Rules { fence_after: false, ..OURS };
    const UNFENCED: Rules = Rules { snapshot_fenced: false, burst: false, ..OURS };
    is_safe("the fence is looked at before the entry only", &Process::new(&ONE_LOOK));
    is_safe("values are put in without a fence", &Process::new(&UNFENCED));
}

/// Redis must keep what it confirmed; where it does not, the feed finds out.
#[test]
fn an_old_file_is_what_the_feed_is_for() {
    const OLD: Rules = Rules { old_file: true, ..OURS };
    goes_wrong("Redis restarts with an old file", &Process::new(&OLD));
}

/// Each guard is taken away from the world with all accidents: then something goes wrong.
macro_rules! needs {
    ($($test:ident: $name:literal, $($guard:ident: $without:expr),+;)+) => {$(
        #[test]
        fn $test() {
            const WITHOUT: Rules = Rules { $($guard: $without),+, ..OURS };
            goes_wrong($name, &Process::new(&WITHOUT));
        }
    )+};
}

needs! {
    a_generation: "no generation", generation: false;
    an_epoch: "a flush voids nothing", epoch: false;
    a_fence: "no fence", fence: false;
    a_fence_before_the_entry: "the fence is looked at after the entry only", fence_before: false;
    a_fence_from_sending: "the fence counts from the answer", fence_from_sending: false;
    a_snapshot_before_asking: "the snapshot is taken when GET is answered", snapshot_first: false;
    a_revoker_that_waits: "the revocation does not wait", waits: false;
    a_settled_redis: "the revocation trusts a Redis that forgot who listens", settled: false;
    to_judge_that_when_asking: "whether Redis is settled is judged when it is told", settled_then: false;
    a_birth_time: "an epoch counts as settled from its birth", birth: false;
    a_start_over_on_a_gap: "a gap in the log is not noticed", gap: false;
    to_ask_again_after_a_full_batch: "a full batch is taken for all there is", full_batch: false;
    to_register: "processes do not register", registers: false;
    to_register_what_was_taken_in: "processes register what is on its way to them", registers_taken: false;
    to_wait_as_long_as_a_fence: "who was silent for half a fence is not waited for", silent_for: 1;
}
