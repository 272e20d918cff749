//! The steps of one attempt as its owner will see them; kept here, written along with the heartbeat.
//!
//! Each attempt starts with none and has eight at most (`jobs/`: the look for a container, five to provision, `undo` of the failure
//! and `undo` of the deadline), each with a detail of 2 KiB at most, so what is written stays small.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;
use tokio::sync::Notify;

use crate::core::{
    queue::step::{Step, StepName, StepStatus},
    text::CleanText,
};

pub struct Steps {
    state: Mutex<State>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct State {
    steps: Vec<Step>,
    changed: bool,
}

impl Steps {
    pub fn new(changed: Arc<Notify>) -> Self {
        Self { state: Mutex::default(), changed }
    }

    /// A step begins.
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

    /// The newest step of that name made progress.
    pub fn progress(&self, name: StepName, detail: CleanText) {
        self.change(|steps| {
            if let Some(step) = newest(steps, name) {
                step.detail = Some(detail);
            }
        });
    }

    /// The newest step of that name ended. `detail`: why it failed.
    pub fn end(&self, name: StepName, status: StepStatus, detail: Option<CleanText>) {
        self.change(|steps| {
            if let Some(step) = newest(steps, name) {
                step.status = status;
                step.finished_at = Some(OffsetDateTime::now_utc());
                step.detail = detail.or(step.detail.take());
            }
        });
    }

    pub fn has_changed(&self) -> bool {
        self.state().changed
    }

    /// The steps, if they have changed since the last time.
    pub fn take_changed(&self) -> Option<Vec<Step>> {
        let mut state = self.state();
        std::mem::take(&mut state.changed).then(|| state.steps.clone())
    }

    /// What was taken could not be written: it is still to be written.
    pub fn put_back(&self) {
        self.state().changed = true;
    }

    /// Postgres refuses the steps because of their details: from now on they are written without.
    pub fn drop_details(&self) {
        self.state().steps.iter_mut().for_each(|step| step.detail = None);
    }

    /// All of them, for the end.
    pub fn all(&self) -> Vec<Step> {
        self.state().steps.clone()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Step>)) {
        let mut state = self.state();
        change(&mut state.steps);
        state.changed = true;
        drop(state);
        self.changed.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn newest(steps: &mut [Step], name: StepName) -> Option<&mut Step> {
    steps.iter_mut().rev().find(|step| step.name == name)
}
