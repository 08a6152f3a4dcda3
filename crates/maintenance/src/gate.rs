//! The switch every announce passes.
//!
//! ```text
//!            try_enter / enter                     close(until)
//!   door ───────────────────────▶ [ open ] ───────────────────────▶ [ closed, until ]
//!     ▲                              ▲                                    │
//!     └── Pass dropped: one less     └── open() · until reached · Keeper dropped
//!         in flight
//! ```
//!
//! Open or closed and the number in flight live in one word (the `turnstile`), so entering is
//! one atomic add whose result also says whether the gate was closed: no announce can slip
//! in between a check and a count. Whoever adds to a closed gate takes its share back and
//! waits; whoever takes the last share of a closed gate back wakes [`Keeper::drained`]. Who waits
//! listens first and looks then: a gate that opened in between is seen.
//!
//! The crate `gate-model` has loom try every order of these steps, and of those in which closing,
//! opening and the deadline can meet (the `watchdog`).
//!
//! # What must never happen: a gate that stays closed
//!
//! - There is no way to close it without an instant at which it opens by itself.
//! - That instant is kept by a thread of its own, the watchdog, which needs neither the
//!   driver nor the async runtime to be alive. When it had to act, [`Gate::forced`] says
//!   so, because then something else is broken.
//! - The only value that can close it is the [`Keeper`], of which there is one, and
//!   dropping it (a driver that returned, or panicked) opens the gate for good.
//! - Nothing about it is stored: a process that starts is open.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::latency::{Distribution, Latencies};

mod turnstile;
mod watchdog;

use turnstile::Bell;
use watchdog::Guarded;

/// What turnstile and watchdog are made of here.
mod sync {
    pub use std::sync::atomic::{AtomicU64, Ordering};
    pub use std::sync::{Condvar, Mutex, MutexGuard};
}

/// The doors' end: cheap to clone, enters and waits, can neither open nor close.
#[derive(Debug, Clone)]
pub struct Gate {
    inner: Arc<Inner>,
}

/// The driver's end, of which there is one. Dropping it opens the gate for good.
#[derive(Debug)]
pub struct Keeper {
    gate: Gate,
}

/// One request in flight. While a pass lives a closed gate is not drained.
#[derive(Debug)]
#[must_use = "a pass that is dropped at once lets the gate drain while its request runs"]
pub struct Pass<'a> {
    inner: &'a Inner,
}

/// Which kind of request a [`Counters`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// UDP announces.
    Udp,
    /// HTTP announces and REST writes.
    Http,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// That a peer be registered, and others named.
    Announce,
    /// How many there are.
    Scrape,
}

/// What a door did with its requests, above all while the gate was closed; and how long it took.
/// On cache lines of its own (two at a time, as processors fetch them): whoever counts here must
/// not slow down those who enter the gate.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    held: AtomicU64,
    released: AtomicU64,
    merged: AtomicU64,
    turned_away: AtomicU64,
    unconfirmed: AtomicU64,
    /// Spent on what is stored.
    nanoseconds: AtomicU64,
    announces: Latencies,
    scrapes: Latencies,
}

#[derive(Debug)]
struct Inner {
    guarded: Guarded<Notify>,
    udp: Counters,
    http: Counters,
}

impl Gate {
    /// An open gate and its one keeper. Starts the watchdog thread, which ends with the
    /// keeper.
    ///
    /// # Errors
    ///
    /// When the operating system gives no thread.
    pub fn new() -> std::io::Result<(Self, Keeper)> {
        let gate = Self {
            inner: Arc::new(Inner {
                guarded: Guarded::default(),
                udp: Counters::default(),
                http: Counters::default(),
            }),
        };
        let inner = Arc::clone(&gate.inner);
        std::thread::Builder::new()
            .name("gate-watchdog".into())
            .spawn(move || inner.guarded.watch(monotonic_now))?;
        let keeper = Keeper { gate: gate.clone() };
        Ok((gate, keeper))
    }

    /// A pass, or `None` while the gate is closed. Never waits.
    #[must_use]
    pub fn try_enter(&self) -> Option<Pass<'_>> {
        let inside = self.inner.guarded.turnstile.enter();
        inside.then(|| Pass { inner: &self.inner })
    }

    /// A pass, waiting for the gate to open. Cancel safe: a dropped future holds nothing.
    ///
    /// While the gate is open this does not wait, so a task that does nothing else in a loop
    /// never yields.
    pub async fn enter(&self) -> Pass<'_> {
        self.inner.guarded.turnstile.admitted().await;
        Pass { inner: &self.inner }
    }

    /// Whether the gate is open at this moment.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.inner.guarded.turnstile.is_open()
    }

    /// Requests that hold a pass at this moment.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.inner.guarded.turnstile.inside()
    }

    /// Waits until the gate is open; it may have closed again when this returns.
    pub async fn opened(&self) {
        self.inner.guarded.turnstile.opened().await;
    }

    /// Waits until the gate is closed; it may have opened again when this returns.
    pub async fn closed(&self) {
        self.inner.guarded.turnstile.closed().await;
    }

    /// The counters of a door.
    #[must_use]
    pub fn counters(&self, door: Door) -> &Counters {
        match door {
            Door::Udp => &self.inner.udp,
            Door::Http => &self.inner.http,
        }
    }

    /// How often the watchdog had to open the gate because nobody else did.
    #[must_use]
    pub fn forced(&self) -> u64 {
        self.inner.guarded.forced()
    }

    /// How long the gate has been closed; `None` while it is open.
    #[must_use]
    pub fn closed_for(&self) -> Option<Duration> {
        self.inner.guarded.closed_for(monotonic_now())
    }
}

impl Keeper {
    /// Closes the gate, to open by itself at `until` at the latest. On a closed gate this
    /// moves the deadline only, in either direction.
    pub fn close(&self, until: Instant) {
        self.gate.inner.guarded.close(monotonic_now(), until);
    }

    /// Opens the gate, if it is not open, and returns how long the last closure lasted,
    /// whoever ended it.
    #[expect(
        clippy::must_use_candidate,
        reason = "opening is the point; the length is by the way"
    )]
    pub fn open(&self) -> Duration {
        self.gate.inner.guarded.open(monotonic_now())
    }

    /// Waits until no pass is out. Only on a closed gate does that stay so.
    pub async fn drained(&self) {
        self.gate.inner.guarded.turnstile.drained().await;
    }

    /// The doors' end.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.gate.inner.guarded.retire(monotonic_now());
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.inner.guarded.turnstile.leave();
    }
}

impl Bell for Notify {
    fn ring(&self) {
        self.notify_waiters();
    }

    fn listen(&self) -> impl Future<Output = ()> + Send {
        let mut notified = Box::pin(self.notified());
        notified.as_mut().enable();
        notified
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the watchdog exists because the driver, which reads the clock for everybody else, may be the one that hangs"
)]
fn monotonic_now() -> Instant {
    Instant::now()
}

impl Counters {
    /// A request began to wait.
    pub fn hold(&self) {
        self.held.fetch_add(1, Ordering::Relaxed);
    }

    /// A request that waited went on.
    pub fn release(&self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
        self.released.fetch_add(1, Ordering::Relaxed);
    }

    /// A request took the place of a waiting one of the same peer.
    pub fn merge(&self) {
        self.merged.fetch_add(1, Ordering::Relaxed);
    }

    /// A request was refused because too many were waiting.
    pub fn turn_away(&self) {
        self.turned_away.fetch_add(1, Ordering::Relaxed);
    }

    /// So many requests were executed and not answered as done, because it is not certain
    /// that what they wrote is stored.
    pub fn leave_unconfirmed(&self, requests: u64) {
        self.unconfirmed.fetch_add(requests, Ordering::Relaxed);
    }

    /// So many requests were answered, each this long after it had arrived. One that was
    /// turned away is none of them.
    pub fn answer(&self, request: Request, took: Duration, how_many: u64) {
        self.latencies(request).record(took, how_many);
    }

    /// So long it took to execute what is stored and to make it durable, for however many
    /// requests. What is done at the same time counts each for itself.
    pub fn spend(&self, database: Duration) {
        let nanoseconds = u64::try_from(database.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// How long requests took that were answered since the start, from arrival to answer.
    #[must_use]
    pub fn answered(&self, request: Request) -> Distribution {
        self.latencies(request).read()
    }

    /// What was spent on executing what is stored, and on making it durable, since the start.
    #[must_use]
    pub fn spent(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed))
    }

    fn latencies(&self, request: Request) -> &Latencies {
        match request {
            Request::Announce => &self.announces,
            Request::Scrape => &self.scrapes,
        }
    }

    /// Requests waiting at this moment.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Requests that waited and went on, since the start.
    #[must_use]
    pub fn released(&self) -> u64 {
        self.released.load(Ordering::Relaxed)
    }

    /// Resends that were merged with a waiting request, since the start.
    #[must_use]
    pub fn merged(&self) -> u64 {
        self.merged.load(Ordering::Relaxed)
    }

    /// Requests refused because too many were waiting, since the start.
    #[must_use]
    pub fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }

    /// Requests executed and not answered as done, since the start.
    #[must_use]
    pub fn unconfirmed(&self) -> u64 {
        self.unconfirmed.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
