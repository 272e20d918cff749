//! The steps of one attempt, as the job's owner sees them: recorded in memory, written to Postgres by the heartbeat.
//!
//! Each attempt starts without steps and has eight at most (one to inspect, five to provision, `undo` of the
//! failure and `undo` of the deadline), each with a detail of at most 2 KiB, so what a heartbeat writes stays small.

use std::sync::Arc;

use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio::sync::Notify;

use crate::core::{
    queue::step::{Step, StepName, StepStatus},
    text::CleanText,
};

/// The steps of one attempt.
pub struct Steps {
    state: Mutex<State>,
    /// Wakes the heartbeat when a step changes.
    changed: Arc<Notify>,
}

#[derive(Default)]
struct State {
    steps: Vec<Step>,
    /// Whether a change has not been written yet.
    is_unwritten: bool,
}

impl Steps {
    /// Returns an attempt without steps; `changed` is notified at each change.
    pub fn new(changed: Arc<Notify>) -> Self {
        Self { state: Mutex::default(), changed }
    }

    /// Records that a step begins.
    pub fn begin(&self, name: StepName) {
        self.change(|steps| {
            steps.push(Step {
                name,
                status: StepStatus::Running,
                started_at: OffsetDateTime::now_utc(),
                finished_at: None,
                detail: None,
            });
        });
    }

    /// Records the progress of the newest step of that name.
    pub fn progress(&self, name: StepName, detail: CleanText) {
        self.change(|steps| {
            if let Some(step) = newest(steps, name) {
                step.detail = Some(detail);
            }
        });
    }

    /// Records that the newest step of that name ended; `detail`: why it failed.
    pub fn end(&self, name: StepName, status: StepStatus, detail: Option<CleanText>) {
        self.change(|steps| {
            if let Some(step) = newest(steps, name) {
                step.status = status;
                step.finished_at = Some(OffsetDateTime::now_utc());
                step.detail = detail.or(step.detail.take());
            }
        });
    }

    /// Returns whether there are changes to write.
    pub fn has_unwritten(&self) -> bool {
        self.state.lock().is_unwritten
    }

    /// Returns the steps if there are changes to write, and counts them as written.
    pub fn take_unwritten(&self) -> Option<Vec<Step>> {
        let mut state = self.state.lock();
        std::mem::take(&mut state.is_unwritten).then(|| state.steps.clone())
    }

    /// Records that what `take_unwritten` returned could not be written.
    pub fn mark_unwritten(&self) {
        self.state.lock().is_unwritten = true;
    }

    /// Removes all details: Postgres has refused to store one of them.
    pub fn drop_details(&self) {
        self.state.lock().steps.iter_mut().for_each(|step| step.detail = None);
    }

    /// Returns all steps.
    pub fn all(&self) -> Vec<Step> {
        self.state.lock().steps.clone()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Step>)) {
        let mut state = self.state.lock();
        change(&mut state.steps);
        state.is_unwritten = true;
        drop(state);
        self.changed.notify_one();
    }
}

fn newest(steps: &mut [Step], name: StepName) -> Option<&mut Step> {
    steps.iter_mut().rev().find(|step| step.name == name)
}
