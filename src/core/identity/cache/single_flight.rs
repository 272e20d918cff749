//! Callers that ask about the same key at once share one answer, by the one rule that is safe: whoever joins must have
//! joined before the primary is read.
//!
//! Joining later would hand a caller that began after a revocation an answer from before it. So a flight boards until
//! its read begins; those who come later board the next one, which takes off when this one has landed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedMutexGuard, watch};

use super::KeyHash;

type Turn = Arc<tokio::sync::Mutex<()>>;

/// The flights of a process.
pub struct SingleFlight<T> {
    state: Mutex<State<T>>,
}

struct State<T> {
    boarding: HashMap<KeyHash, watch::Receiver<Option<T>>>,
    turns: HashMap<KeyHash, Turn>,
}

/// A caller's part in a flight.
pub enum Seat<'a, T> {
    /// Does the work and lands.
    Leader(Flight<'a, T>),
    Follower(watch::Receiver<Option<T>>),
}

/// A flight on its way; dropped without landing, its passengers ask again.
pub struct Flight<'a, T> {
    flights: &'a SingleFlight<T>,
    key: KeyHash,
    landing: watch::Sender<Option<T>>,
    airborne: Option<OwnedMutexGuard<()>>,
}

impl<T: Clone> SingleFlight<T> {
    pub fn new() -> Self {
        Self { state: Mutex::new(State { boarding: HashMap::new(), turns: HashMap::new() }) }
    }

    /// Joins the flight that boards, or opens one.
    pub fn join(&self, key: KeyHash) -> Seat<'_, T> {
        let mut state = self.state();
        if let Some(follower) = state.boarding.get(&key) {
            return Seat::Follower(follower.clone());
        }
        let (landing, follower) = watch::channel(None);
        state.boarding.insert(key, follower);
        Seat::Leader(Flight { flights: self, key, landing, airborne: None })
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone> Flight<'_, T> {
    /// Waits until the flight before has landed; from here on nobody may join, and the primary may be read.
    pub async fn seal(&mut self) {
        if self.airborne.is_some() {
            return;
        }
        let turn = self.flights.state().turns.entry(self.key).or_default().clone();
        self.airborne = Some(turn.lock_owned().await);
        self.close_doors();
    }

    /// Hands the answer to all who joined.
    pub fn complete(self, answer: T) {
        self.landing.send_replace(Some(answer));
    }

    fn close_doors(&self) {
        let mut state = self.flights.state();
        let ours =
            state.boarding.get(&self.key).is_some_and(|boarding| boarding.same_channel(&self.landing.subscribe()));
        if ours {
            state.boarding.remove(&self.key);
        }
    }
}

impl<T> Drop for Flight<'_, T> {
    fn drop(&mut self) {
        let mut state = self.flights.state.lock().unwrap_or_else(PoisonError::into_inner);
        let ours =
            state.boarding.get(&self.key).is_some_and(|boarding| boarding.same_channel(&self.landing.subscribe()));
        if ours {
            state.boarding.remove(&self.key);
        }
        drop(self.airborne.take());
        if state.turns.get(&self.key).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            state.turns.remove(&self.key);
        }
    }
}

/// Waits for the landing; `None`: the flight was lost, board again.
pub async fn completed<T: Clone>(mut follower: watch::Receiver<Option<T>>) -> Option<T> {
    follower.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_joins_once_the_primary_is_being_read() {
        let flights = SingleFlight::new();
        let Seat::Leader(mut first) = flights.join([1; 16]) else { panic!("the first opens a flight") };
        let Seat::Follower(early) = flights.join([1; 16]) else { panic!("joins before take-off") };
        first.seal().await;
        let Seat::Leader(mut second) = flights.join([1; 16]) else { panic!("too late for the first") };
        assert!(matches!(flights.join([1; 16]), Seat::Follower(_)), "boards the second");
        assert!(futures_util::poll!(Box::pin(second.seal())).is_pending(), "until the first has landed");
        first.complete("read before");
        assert_eq!(completed(early).await, Some("read before"));
        second.seal().await;
        second.complete("read after");
        assert!(flights.state().boarding.is_empty() && flights.state().turns.is_empty());
    }

    #[tokio::test]
    async fn a_lost_flight_strands_nobody() {
        let flights = SingleFlight::<u8>::new();
        let Seat::Leader(first) = flights.join([1; 16]) else { panic!("opens") };
        let Seat::Follower(stranded) = flights.join([1; 16]) else { panic!("joins") };
        drop(first);
        assert_eq!(completed(stranded).await, None);
        assert!(matches!(flights.join([1; 16]), Seat::Leader(_)));
    }
}
