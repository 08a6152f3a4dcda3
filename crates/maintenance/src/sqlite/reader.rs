//! The pinning transaction, in a place where more than one thread can end it.
//!
//! ```text
//!   Idle ── lend ──▶ Lent ── given back ──▶ Idle
//!     │               │ end: interrupted, and told to
//!     │ end           ▼
//!     └──▶ Ended ◀── given back, or rolled back by the borrower
//! ```
//!
//! Whoever uses the connection borrows it, so an idle one can be rolled back by anybody at
//! once, though the owner of the pin be stuck in a read of the disk. A borrowed one cannot:
//! `SQLite` lets one thread at a time into a connection. Its borrower is interrupted, and
//! the transaction ends when he gives it back, however late that is.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, InterruptHandle};

use super::Held;

/// The owner's end: dropped, it ends the transaction.
pub(super) struct Reader(Arc<Shared>);

/// Ends a pin that lies with somebody else, in a thread that may be stuck.
#[derive(Clone)]
pub struct PinHandle(Arc<Shared>);

/// The pin's connection, borrowed. Whoever ends its transaction ends the pin.
pub struct Lent<'a> {
    shared: &'a Shared,
    held: Option<Held>,
}

struct Shared {
    state: Mutex<State>,
    ended: Condvar,
}

#[expect(
    clippy::large_enum_variant,
    reason = "there is one per pin, and it is behind a pointer already"
)]
enum State {
    Idle(Held),
    Lent {
        interrupt: InterruptHandle,
        ending: bool,
    },
    Ended,
}

impl Reader {
    pub(super) fn new(held: Held) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State::Idle(held)),
            ended: Condvar::new(),
        }))
    }

    pub(super) fn handle(&self) -> PinHandle {
        PinHandle(Arc::clone(&self.0))
    }

    /// `None` when it ended, is to end, or is lent already.
    pub(super) fn lend(&self) -> Option<Lent<'_>> {
        let mut state = self.0.state();
        match std::mem::replace(&mut *state, State::Ended) {
            State::Idle(held) => {
                *state = State::Lent {
                    interrupt: held.get_interrupt_handle(),
                    ending: false,
                };
                Some(Lent {
                    shared: &self.0,
                    held: Some(held),
                })
            }
            other => {
                *state = other;
                None
            }
        }
    }

    /// Whether the transaction is there and nobody wants it ended.
    pub(super) fn stands(&self) -> bool {
        self.0.stands()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // What is lent borrows from here, so it was given back.
        self.0.end();
    }
}

impl PinHandle {
    /// Ends the pin and says whether its lock on the file is gone. Waits at most `within`
    /// for a thread that is using the pin's connection, which is interrupted; if that takes
    /// longer, the pin ends as soon as the thread gives the connection back.
    ///
    /// A copy that is not finished by then fails. Where the pin has ended already there is
    /// nothing to do, and that is `true`.
    #[must_use = "while the lock is there, nobody can write to a rollback journal"]
    pub fn end(&self, within: Duration) -> bool {
        self.0.end();
        let waited = self
            .0
            .ended
            .wait_timeout_while(self.0.state(), within, |state| !state.is_ended());
        waited.unwrap_or_else(PoisonError::into_inner).0.is_ended()
    }
}

impl PinHandle {
    /// As [`super::Pin::stands`].
    #[must_use]
    pub fn stands(&self) -> bool {
        self.0.stands()
    }
}

impl fmt::Debug for PinHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinHandle")
            .field("ended", &self.0.state().is_ended())
            .finish_non_exhaustive()
    }
}

impl Lent<'_> {
    /// Ends the transaction and keeps the connection; `None` if it could not be rolled
    /// back, and the connection had to be closed for it.
    pub(super) fn into_ended(mut self) -> Option<Held> {
        let held = self.held.take()?;
        let held = held.end().is_ok().then_some(held);
        self.shared.set(State::Ended);
        held
    }
}

impl Deref for Lent<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.held.as_ref().expect("taken by `into_ended` alone")
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else { return };
        let mut state = self.shared.state();
        if matches!(*state, State::Lent { ending: false, .. }) {
            *state = State::Idle(held);
        } else {
            drop(held);
            *state = State::Ended;
            self.shared.ended.notify_all();
        }
    }
}

impl Shared {
    fn end(&self) {
        let mut state = self.state();
        match &mut *state {
            State::Idle(_) => {
                // Rolled back under the lock: who sees `Ended` finds no transaction.
                *state = State::Ended;
                self.ended.notify_all();
            }
            State::Lent { interrupt, ending } => {
                *ending = true;
                interrupt.interrupt();
            }
            State::Ended => {}
        }
    }

    fn stands(&self) -> bool {
        match &*self.state() {
            // After some errors, of the disk for one, SQLite rolls back by itself.
            State::Idle(held) => !held.is_autocommit(),
            State::Lent { ending, .. } => !ending,
            State::Ended => false,
        }
    }

    fn set(&self, state: State) {
        *self.state() = state;
        self.ended.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_ended(&self) -> bool {
        matches!(self, Self::Ended)
    }
}
