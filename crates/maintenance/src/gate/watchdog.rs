//! Closing with a deadline, opening, and who opens at the deadline when nobody else has.
//!
//! Compiled twice, as the turnstile is and for the same reason. In the crate `gate-model` the
//! clock, which comes in, is loom's to move.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::sync::{AtomicU64, Condvar, Mutex, MutexGuard, Ordering};
use super::turnstile::{Bell, Turnstile};

/// A turnstile that is never closed without an instant at which it opens by itself.
#[derive(Debug, Default)]
pub struct Guarded<B> {
    /// What all pass.
    pub turnstile: Turnstile<B>,
    orders: Mutex<Orders>,
    /// Wakes the watchdog when its orders change.
    pub(super) changed: Condvar,
    forced: AtomicU64,
}

/// What the watchdog is to do.
#[derive(Debug, Default)]
pub(super) struct Orders {
    closed: Option<Closure>,
    last_closure: Duration,
    finished: bool,
}

#[derive(Debug, Clone, Copy)]
struct Closure {
    since: Instant,
    until: Instant,
}

impl<B: Bell> Guarded<B> {
    /// Closes it, to open by itself at `until` at the latest. If it is closed this moves the
    /// deadline only, in either direction.
    pub fn close(&self, now: Instant, until: Instant) {
        let mut orders = self.lock();
        let since = orders.closed.map_or(now, |closure| closure.since);
        orders.closed = Some(Closure { since, until });
        self.turnstile.close();
        self.changed.notify_all();
    }

    /// Opens it, if nobody has, and returns how long the last closure lasted, whoever ended it.
    pub fn open(&self, now: Instant) -> Duration {
        let mut orders = self.lock();
        self.end(&mut orders, now);
        orders.last_closure
    }

    /// Opens it and lets the watchdog go.
    pub fn retire(&self, now: Instant) {
        let mut orders = self.lock();
        self.end(&mut orders, now);
        orders.finished = true;
        self.changed.notify_all();
    }

    /// How often the watchdog had to open it because nobody else did.
    pub fn forced(&self) -> u64 {
        self.forced.load(Ordering::Relaxed)
    }

    /// How long it has been closed; `None` while it is open.
    pub fn closed_for(&self, now: Instant) -> Option<Duration> {
        let closure = self.lock().closed?;
        Some(now.saturating_duration_since(closure.since))
    }

    /// The watchdog, until it is let go. Blocks.
    pub fn watch(&self, now: impl Fn() -> Instant) {
        let mut orders = self.lock();
        while !orders.finished {
            let left = orders
                .closed
                .map(|closure| closure.until.saturating_duration_since(now()));
            orders = match left {
                None => self
                    .changed
                    .wait(orders)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => {
                    // First, so that who finds it open finds out why.
                    self.forced.fetch_add(1, Ordering::Relaxed);
                    self.end(&mut orders, now());
                    orders
                }
                Some(left) => {
                    self.changed
                        .wait_timeout(orders, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    /// Takes the orders so that opening and the watchdog's decision to open exclude each other:
    /// one that was closed anew is never opened for the deadline of its last closure.
    fn end(&self, orders: &mut Orders, now: Instant) {
        let Some(closure) = orders.closed.take() else {
            return;
        };
        orders.last_closure = now.saturating_duration_since(closure.since);
        self.turnstile.open();
    }

    /// A panic elsewhere must not take the way to open it with it.
    pub(super) fn lock(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
