//! Room for connections, and who gives way when there is none.
//!
//! A connection keeps the server waiting while its request has not arrived, or is served:
//! its request waits for the driver, or for a run to become ready. When every slot is taken
//! and another client comes, the connection that has been there longest of those that keep
//! the server waiting is closed for it; but each has [`AT_LEAST`] to bring its request. So
//! clients that dawdle, however many, cannot keep one out that does not: it waits while
//! those before it in the listen queue have their turn, [`super::CONNECTIONS`] of them every
//! [`AT_LEAST`].
//!
//! What is served could fill every slot, too. Requests that wait for the driver do not, as
//! it takes them up in milliseconds; those that wait for a run are counted
//! ([`super::POLLS`]).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// How long a connection may keep the server waiting while others wait for its slot.
pub(super) const AT_LEAST: Duration = Duration::from_millis(250);

/// All the room there is.
#[derive(Debug)]
pub(super) struct Slots {
    limit: usize,
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// By their numbers, which is in the order they came in.
    taken: BTreeMap<u64, Taken>,
    next: u64,
}

#[derive(Debug)]
struct Taken {
    since: Instant,
    served: bool,
    closed: Arc<Notify>,
}

/// Room for one connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    number: u64,
    closed: Arc<Notify>,
}

/// While this lives the connection's request is served.
pub(super) struct Served<'a>(&'a Slot);

impl Slots {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            state: Mutex::default(),
            freed: Notify::new(),
        })
    }

    /// Room for another connection, as soon as there is or can be made some.
    pub(super) async fn take(self: &Arc<Self>) -> Slot {
        loop {
            let patience = match self.try_take() {
                Ok(slot) => return slot,
                Err(patience) => patience,
            };
            tokio::select! {
                () = self.freed.notified() => {}
                () = sleep(patience) => {}
            }
        }
    }

    /// Room, or how long to wait before it is asked for again at the latest.
    fn try_take(self: &Arc<Self>) -> Result<Slot, Duration> {
        let now = now();
        let mut state = self.state();
        if state.taken.len() >= self.limit {
            let mut waited_for = state.taken.iter().filter(|(_, taken)| !taken.served);
            // All are served: one of them is through before long, and says so.
            let (number, oldest) = waited_for.next().ok_or(AT_LEAST)?;
            let (number, age) = (*number, now.duration_since(oldest.since));
            let patience = AT_LEAST.saturating_sub(age);
            if !patience.is_zero() {
                return Err(patience);
            }
            if let Some(taken) = state.taken.remove(&number) {
                taken.closed.notify_one();
            }
        }
        let number = state.next;
        state.next += 1;
        let closed = Arc::new(Notify::new());
        state.taken.insert(
            number,
            Taken {
                since: now,
                served: false,
                closed: Arc::clone(&closed),
            },
        );
        Ok(Slot {
            slots: Arc::clone(self),
            number,
            closed,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Completes when the slot has been given to another connection.
    pub(super) async fn given_away(&self) {
        self.closed.notified().await;
    }

    /// The connection's request has arrived and is served.
    pub(super) fn serve(&self) -> Served<'_> {
        self.set_served(true);
        Served(self)
    }

    fn set_served(&self, served: bool) {
        if let Some(taken) = self.slots.state().taken.get_mut(&self.number) {
            taken.served = served;
        }
    }
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        self.0.set_served(false);
        self.0.slots.freed.notify_one();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.state().taken.remove(&self.number);
        self.slots.freed.notify_one();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a client dawdles is measured where it does"
)]
fn now() -> Instant {
    Instant::now()
}
