//! Callers that verify the same key at the same time share one read of the primary.
//!
//! The first caller for a key becomes the *leader* of a flight, later ones its *followers*. A caller may join only
//! until the leader *seals* the flight, which it does before it reads: a caller that joined during the read could have
//! begun after a revocation and would get an answer from before it. Callers that come after the seal open the next
//! flight, whose leader seals it once the flight before has completed. A leader that is dropped leaves its followers
//! without an answer; they join again.
//!
//! This is our own code because `singleflight` crates and `moka::get_with` let callers join while the read is under way
//! (measured: a caller that began after an invalidation got the value from before it).

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{OwnedMutexGuard, watch};

use super::key::ShortHash;

type Turn = Arc<tokio::sync::Mutex<()>>;

/// The lookups in progress of a process.
pub struct SingleFlight<T> {
    state: Mutex<State<T>>,
}

struct State<T> {
    /// Lookups that may still be joined.
    open: HashMap<ShortHash, watch::Receiver<Option<T>>>,
    /// Held by the sealed lookup of a key; the next one waits for it.
    turns: HashMap<ShortHash, Turn>,
}

/// The caller's part in a flight.
pub enum Joined<'a, T> {
    /// The caller reads and completes the flight.
    Leader(Leader<'a, T>),
    /// The caller waits for the leader's answer.
    Follower(Follower<T>),
}

/// The leader's handle of a flight.
pub struct Leader<'a, T> {
    flights: &'a SingleFlight<T>,
    key: ShortHash,
    answer: watch::Sender<Option<T>>,
    turn: Option<OwnedMutexGuard<()>>,
}

/// A follower's handle of a flight.
#[derive(Clone)]
pub struct Follower<T>(watch::Receiver<Option<T>>);

impl<T: Clone> SingleFlight<T> {
    /// Makes a set without flights.
    pub fn new() -> Self {
        Self { state: Mutex::new(State { open: HashMap::new(), turns: HashMap::new() }) }
    }

    /// Joins the key's open flight, or opens one.
    pub fn join(&self, key: ShortHash) -> Joined<'_, T> {
        let mut state = self.state.lock();
        if let Some(answer) = state.open.get(&key) {
            return Joined::Follower(Follower(answer.clone()));
        }
        let (answer, follower) = watch::channel(None);
        state.open.insert(key, follower);
        Joined::Leader(Leader { flights: self, key, answer, turn: None })
    }
}

impl<T: Clone> Leader<'_, T> {
    /// Waits until the flight before has completed, then closes this one to new callers. The primary may be read after
    /// that.
    pub async fn seal(&mut self) {
        if self.turn.is_some() {
            return;
        }
        let turn = self.flights.state.lock().turns.entry(self.key).or_default().clone();
        self.turn = Some(turn.lock_owned().await);
        self.close(&mut self.flights.state.lock());
    }

    /// Gives the answer to all followers.
    pub fn complete(self, answer: T) {
        self.answer.send_replace(Some(answer));
    }
}

impl<T> Leader<'_, T> {
    fn close(&self, state: &mut State<T>) {
        let is_ours = state.open.get(&self.key).is_some_and(|open| open.same_channel(&self.answer.subscribe()));
        if is_ours {
            state.open.remove(&self.key);
        }
    }
}

impl<T> Drop for Leader<'_, T> {
    fn drop(&mut self) {
        let mut state = self.flights.state.lock();
        self.close(&mut state);
        drop(self.turn.take());
        if state.turns.get(&self.key).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            state.turns.remove(&self.key);
        }
    }
}

impl<T: Clone> Follower<T> {
    /// Waits for the leader's answer; `None` when the leader was dropped without one.
    pub async fn answer(mut self) -> Option<T> {
        self.0.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sealed_flight_takes_no_more_followers() {
        let flights = SingleFlight::new();
        let Joined::Leader(mut first) = flights.join([1; 16]) else { panic!("the first caller leads") };
        let Joined::Follower(early) = flights.join([1; 16]) else { panic!("joins before the seal") };

        first.seal().await;
        let Joined::Leader(mut second) = flights.join([1; 16]) else { panic!("too late for the first flight") };

        assert!(matches!(flights.join([1; 16]), Joined::Follower(_)), "joins the second flight");
        assert!(futures_util::poll!(Box::pin(second.seal())).is_pending(), "until the first has completed");
        first.complete("read before");
        assert_eq!(early.answer().await, Some("read before"));
        second.seal().await;
        second.complete("read after");
        assert!(flights.state.lock().open.is_empty() && flights.state.lock().turns.is_empty());
    }

    #[tokio::test]
    async fn followers_of_a_dropped_leader_get_no_answer() {
        let flights = SingleFlight::<u8>::new();
        let Joined::Leader(leader) = flights.join([1; 16]) else { panic!("leads") };
        let Joined::Follower(follower) = flights.join([1; 16]) else { panic!("joins") };

        drop(leader);

        assert_eq!(follower.answer().await, None);
        assert!(matches!(flights.join([1; 16]), Joined::Leader(_)));
    }
}
