//! The gate's turnstile, the very file the maintenance library is built of, on loom's
//! atomics. [Loom](https://docs.rs/loom) runs each model below once for every order in which
//! its threads can meet (within the bound of `model`), and for every value the memory model lets an atomic load return.
//! That `cfg(loom)` is not needed for it keeps tokio, which it would change as well, as it is.
//!
//! Asserted: nobody is inside after a closed gate has drained and until it opens; a drain
//! ends only when all have left, and sees what they did; it does end, whoever leaves last,
//! a refused one included (a wake-up that got lost is a deadlock to loom).

#![cfg(test)]

#[path = "../../maintenance/src/gate/turnstile.rs"]
mod turnstile;

/// What the turnstile is made of here.
mod sync {
    pub use loom::sync::atomic::{AtomicU64, Ordering};
}

use std::pin::Pin;
use std::task::{Context, Poll};

use loom::future::{AtomicWaker, block_on};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use loom::thread;
use turnstile::Turnstile;

/// As tokio's `Notify`: wakes who listens, and does not remember for those who come later.
#[derive(Debug)]
struct Bell {
    rung: AtomicU64,
    waker: AtomicWaker,
}

impl Default for Bell {
    fn default() -> Self {
        Self {
            rung: AtomicU64::new(0),
            waker: AtomicWaker::new(),
        }
    }
}

impl turnstile::Bell for Bell {
    fn ring(&self) {
        self.rung.fetch_add(1, Ordering::AcqRel);
        self.waker.wake();
    }

    fn listen(&self) -> impl Future<Output = ()> + Send {
        Listener {
            bell: self,
            heard: self.rung.load(Ordering::Acquire),
        }
    }
}

struct Listener<'b> {
    bell: &'b Bell,
    heard: u64,
}

impl Future for Listener<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.bell.waker.register_by_ref(context.waker());
        if self.bell.rung.load(Ordering::Acquire) == self.heard {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }
}

/// The gate and what it protects.
#[derive(Default)]
struct World {
    turnstile: Turnstile<Bell>,
    /// Set while the keeper has drained the gate and not opened it yet.
    alone: AtomicBool,
    /// Counted, and not atomically, by those inside.
    done: AtomicUsize,
}

impl World {
    /// One announce. Says whether it got in.
    fn announce(&self) -> bool {
        if !self.turnstile.enter() {
            return false;
        }
        self.work();
        self.turnstile.leave();
        true
    }

    /// What is done inside, in steps that must not meet the keeper's.
    fn work(&self) {
        assert!(!self.alone.load(Ordering::Relaxed), "inside a drained gate");
        self.done.fetch_add(1, Ordering::Relaxed);
        assert!(!self.alone.load(Ordering::Relaxed), "inside a drained gate");
    }

    /// One closure. Returns what had been done when it was alone.
    fn close_and_drain(&self) -> usize {
        self.turnstile.close();
        block_on(self.turnstile.drained());
        self.alone.store(true, Ordering::Relaxed);
        // Relaxed: that it sees everything must come from the turnstile.
        let done = self.done.load(Ordering::Relaxed);
        thread::yield_now();
        assert_eq!(
            self.done.load(Ordering::Relaxed),
            done,
            "somebody is inside"
        );
        done
    }

    fn open(&self) {
        self.alone.store(false, Ordering::Relaxed);
        self.turnstile.open();
    }
}

/// Runs a model for every order with at most three switches away from a thread that could go
/// on: more have never been needed to show a fault, and take hours.
fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(run);
}

#[test]
fn who_got_in_has_left_when_the_gate_is_drained() {
    model(|| {
        let world = Arc::new(World::default());
        let announces: Vec<_> = (0..2)
            .map(|_| {
                let world = Arc::clone(&world);
                thread::spawn(move || world.announce())
            })
            .collect();
        let seen = world.close_and_drain();
        let entered = announces
            .into_iter()
            .map(|announce| announce.join().expect("it does not panic"));
        let entered = entered.filter(|entered| *entered).count();
        // It stays closed, so all who got in did so before.
        assert_eq!(seen, entered, "what was done inside is seen by the keeper");
        assert!(!world.turnstile.enter());
        assert_eq!(world.turnstile.inside(), 0);
    });
}

#[test]
fn a_gate_that_opens_again_loses_and_invents_nobody() {
    model(|| {
        let world = Arc::new(World::default());
        let announce = thread::spawn({
            let world = Arc::clone(&world);
            move || usize::from(world.announce()) + usize::from(world.announce())
        });
        world.close_and_drain();
        world.open();
        let entered = announce.join().expect("it does not panic");
        assert!(world.turnstile.is_open());
        assert!(world.announce(), "it is open");
        assert_eq!(world.done.load(Ordering::Relaxed), entered + 1);
        assert_eq!(world.turnstile.inside(), 0);
    });
}

#[test]
fn a_second_closure_drains_as_the_first() {
    model(|| {
        let world = Arc::new(World::default());
        let announce = thread::spawn({
            let world = Arc::clone(&world);
            move || world.announce()
        });
        world.close_and_drain();
        world.open();
        world.close_and_drain();
        announce.join().expect("it does not panic");
    });
}
