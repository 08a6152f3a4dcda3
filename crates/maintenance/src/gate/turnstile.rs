//! What of the gate is lock-free: open or closed and how many are inside, in one word.
//!
//! Compiled twice: here with std's atomics and tokio's wake-ups, and in the crate
//! `gate-model` with those of loom, which tries every order in which threads can meet. Hence
//! what it uses of either comes from the module above (`sync`) and through [`Bell`].

use super::sync::{AtomicU64, Ordering};

/// The bit that says closed; the count of those inside starts above it.
const CLOSED: u64 = 1;
const ONE: u64 = 2;

/// A way to wake those who wait for something.
pub trait Bell {
    /// Wakes all who listen at this moment, and nobody who begins to later.
    fn ring(&self);

    /// Listens from the call on, whenever the future is polled first.
    fn listen(&self) -> impl Future<Output = ()> + Send;
}

/// Counts those inside, and lets nobody in while it is closed.
#[derive(Debug, Default)]
pub struct Turnstile<B> {
    word: AtomicU64,
    /// Rung when the last one leaves a closed turnstile.
    idle: B,
    /// Rung when it is opened, and when it is closed.
    turned: B,
}

impl<B: Bell> Turnstile<B> {
    /// Whether one more is inside now; if so it has to [`Turnstile::leave`].
    ///
    /// One atomic add says both that it is open and who is inside, so that nobody slips in
    /// between a look and a count.
    pub fn enter(&self) -> bool {
        let open = self.word.fetch_add(ONE, Ordering::AcqRel) & CLOSED == 0;
        if !open {
            // Which also wakes whoever saw this share that was refused, and no other.
            self.leave();
        }
        open
    }

    /// As [`Turnstile::enter`], waiting until it is open.
    pub async fn admitted(&self) {
        while !self.enter() {
            self.opened().await;
        }
    }

    /// One less is inside.
    pub fn leave(&self) {
        if self.word.fetch_sub(ONE, Ordering::AcqRel) == ONE | CLOSED {
            self.idle.ring();
        }
    }

    /// Lets nobody in from now on.
    pub fn close(&self) {
        self.word.fetch_or(CLOSED, Ordering::AcqRel);
        self.turned.ring();
    }

    /// Lets everybody in from now on.
    pub fn open(&self) {
        self.word.fetch_and(!CLOSED, Ordering::AcqRel);
        self.turned.ring();
    }

    /// Whether it lets anybody in at this moment.
    pub fn is_open(&self) -> bool {
        self.word.load(Ordering::Acquire) & CLOSED == 0
    }

    /// Waits until it is open; it may be closed again by then.
    pub async fn opened(&self) {
        self.turned_to(true).await;
    }

    /// Waits until it is closed; it may be open again by then.
    pub async fn closed(&self) {
        self.turned_to(false).await;
    }

    async fn turned_to(&self, open: bool) {
        loop {
            // Before the look, or it could turn in between.
            let turned = self.turned.listen();
            if self.is_open() == open {
                return;
            }
            turned.await;
        }
    }

    /// How many are inside at this moment.
    pub fn inside(&self) -> u64 {
        self.word.load(Ordering::Acquire) / ONE
    }

    /// Waits until nobody is inside. Only while it is closed does that stay so, and only then
    /// is it heard of.
    pub async fn drained(&self) {
        loop {
            // Before the look, or the last one could leave in between.
            let idle = self.idle.listen();
            if self.inside() == 0 {
                return;
            }
            idle.await;
        }
    }
}
