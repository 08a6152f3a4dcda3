//! The gate's turnstile and its watchdog, the very files the maintenance library is built of, on
//! loom's atomics, locks and conditions. [Loom](https://docs.rs/loom) runs each model below once
//! for every order in which its threads can meet (within the bound of `model`), and for every
//! value the memory model lets an atomic load return. That `cfg(loom)` is not needed for it keeps
//! tokio, which it would change as well, as it is.
//!
//! Asserted: nobody is inside after a closed gate has drained and until it opens; a drain
//! ends only when all have left, and sees what they did; it does end, whoever leaves last,
//! a refused one included; whoever waits for an open gate gets in; at its deadline a closed gate
//! opens, once, and not for the deadline of a closure that was over. (A wake-up that got lost is a
//! deadlock to loom.)

#![cfg(test)]

#[path = "../../maintenance/src/gate/turnstile.rs"]
mod turnstile;
#[path = "../../maintenance/src/gate/watchdog.rs"]
mod watchdog;

/// What turnstile and watchdog are made of here.
mod sync {
    use std::sync::PoisonError;
    use std::time::Duration;

    pub use loom::sync::atomic::{AtomicU64, Ordering};
    pub use loom::sync::{LockResult, Mutex, MutexGuard};

    /// Loom's waits know no time: here it is over for who waits with a limit when the model
    /// says so.
    #[derive(Debug, Default)]
    pub struct Condvar {
        for_ever: loom::sync::Condvar,
        with_limit: loom::sync::Condvar,
    }

    impl Condvar {
        pub fn wait<'m, T>(&self, guard: MutexGuard<'m, T>) -> LockResult<MutexGuard<'m, T>> {
            self.for_ever.wait(guard)
        }

        pub fn wait_timeout<'m, T>(
            &self,
            guard: MutexGuard<'m, T>,
            _limit: Duration,
        ) -> LockResult<(MutexGuard<'m, T>, ())> {
            let woken = self.with_limit.wait(guard);
            woken
                .map(|guard| (guard, ()))
                .map_err(|poisoned| PoisonError::new((poisoned.into_inner(), ())))
        }

        pub fn notify_all(&self) {
            self.for_ever.notify_all();
            self.with_limit.notify_all();
        }

        pub fn time_out(&self) {
            self.with_limit.notify_all();
        }
    }
}

use std::pin::Pin;
use std::sync::PoisonError;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use loom::future::block_on;
use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex, MutexGuard};
use loom::thread::{self, JoinHandle};
use turnstile::Turnstile;
use watchdog::Guarded;

/// As tokio's `Notify`: wakes who listens, and does not remember for those who come later.
#[derive(Debug, Default)]
struct Bell {
    listeners: Mutex<Listeners>,
}

#[derive(Debug, Default)]
struct Listeners {
    rung: u64,
    wakers: Vec<Waker>,
}

impl Bell {
    fn lock(&self) -> MutexGuard<'_, Listeners> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl turnstile::Bell for Bell {
    fn ring(&self) {
        let mut listeners = self.lock();
        listeners.rung += 1;
        let wakers = std::mem::take(&mut listeners.wakers);
        drop(listeners);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn listen(&self) -> impl Future<Output = ()> + Send {
        Listener {
            bell: self,
            heard: self.lock().rung,
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
        let mut listeners = self.bell.lock();
        if listeners.rung == self.heard {
            listeners.wakers.push(context.waker().clone());
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }
}

/// A thread of the model, in the same world.
fn beside<T: 'static>(
    world: &Arc<World>,
    act: impl FnOnce(&World) -> T + 'static,
) -> JoinHandle<T> {
    let world = Arc::clone(world);
    thread::spawn(move || act(&world))
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

    /// One announce that waits for the gate to open.
    fn announce_in_time(&self) {
        block_on(self.turnstile.admitted());
        self.work();
        self.turnstile.leave();
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
        let announces: Vec<_> = (0..2).map(|_| beside(&world, World::announce)).collect();
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
        let announce = beside(&world, |world| {
            usize::from(world.announce()) + usize::from(world.announce())
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
        let announce = beside(&world, World::announce);
        world.close_and_drain();
        world.open();
        world.close_and_drain();
        announce.join().expect("it does not panic");
    });
}

#[test]
fn all_who_wait_get_in_when_the_gate_opens() {
    model(|| {
        let world = Arc::new(World::default());
        world.turnstile.close();
        let announces: Vec<_> = (0..2)
            .map(|_| beside(&world, World::announce_in_time))
            .collect();
        world.open();
        for announce in announces {
            announce.join().expect("it does not panic");
        }
        assert_eq!(world.done.load(Ordering::Relaxed), 2);
        assert_eq!(world.turnstile.inside(), 0);
    });
}

#[test]
fn who_waits_gets_in_though_the_gate_closes_again_at_once() {
    model(|| {
        let world = Arc::new(World::default());
        world.turnstile.close();
        let announce = beside(&world, World::announce_in_time);
        world.open();
        world.close_and_drain();
        world.open();
        announce.join().expect("it does not panic");
        assert_eq!(world.done.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn who_waits_for_a_closed_gate_hears_of_it() {
    model(|| {
        let world = Arc::new(World::default());
        let waits = beside(&world, |world| block_on(world.turnstile.closed()));
        world.turnstile.close();
        waits.join().expect("it does not panic");
    });
}

/// A gate with its watchdog, and the time.
struct Watched {
    guarded: Guarded<Bell>,
    start: Instant,
    /// Seconds that have passed.
    passed: AtomicU64,
}

impl Watched {
    #[expect(
        clippy::disallowed_methods,
        reason = "any instant is as good: time is counted from it"
    )]
    fn new() -> Self {
        Self {
            guarded: Guarded::default(),
            start: Instant::now(),
            passed: AtomicU64::new(0),
        }
    }

    fn at(&self, second: u64) -> Instant {
        self.start + Duration::from_secs(second)
    }

    /// It is this late now, and whoever waits no longer than until then wakes up. With the lock
    /// in hand, as a wait that has begun in time does not miss its end.
    fn pass(&self, second: u64) {
        let orders = self.guarded.lock();
        self.passed.store(second, Ordering::Relaxed);
        self.guarded.changed.time_out();
        drop(orders);
    }
}

fn watchdog_of(watched: &Arc<Watched>) -> JoinHandle<()> {
    let watched = Arc::clone(watched);
    let watch = move || {
        let now = || watched.at(watched.passed.load(Ordering::Relaxed));
        watched.guarded.watch(now);
    };
    thread::spawn(watch)
}

/// The first deadline of a model comes at any moment.
fn clock_of(watched: &Arc<Watched>) -> JoinHandle<()> {
    let watched = Arc::clone(watched);
    thread::spawn(move || watched.pass(1))
}

#[test]
fn a_gate_that_nobody_opens_is_opened_at_its_deadline() {
    model(|| {
        let watched = Arc::new(Watched::new());
        let watchdog = watchdog_of(&watched);
        let guarded = &watched.guarded;
        guarded.close(watched.at(0), watched.at(1));
        watched.pass(1);
        block_on(guarded.turnstile.admitted());
        guarded.turnstile.leave();
        assert_eq!(guarded.forced(), 1);
        assert_eq!(guarded.open(watched.at(1)), Duration::from_secs(1));
        guarded.retire(watched.at(1));
        watchdog.join().expect("it does not panic");
    });
}

#[test]
fn a_gate_is_opened_once_by_whoever_comes_first() {
    model(|| {
        let watched = Arc::new(Watched::new());
        let watchdog = watchdog_of(&watched);
        let guarded = &watched.guarded;
        guarded.close(watched.at(0), watched.at(1));
        let clock = clock_of(&watched);
        let lasted = guarded.open(watched.at(0));
        assert!(guarded.turnstile.is_open());
        assert_eq!(guarded.closed_for(watched.at(1)), None);
        let forced = guarded.forced();
        assert_eq!(lasted, Duration::from_secs(forced), "whoever ended it");
        clock.join().expect("it does not panic");
        guarded.retire(watched.at(1));
        watchdog.join().expect("it does not panic");
        assert_eq!(guarded.forced(), forced, "there was nothing left to open");
    });
}

#[test]
fn the_deadline_of_a_closure_that_is_over_opens_no_later_one() {
    model(|| {
        let watched = Arc::new(Watched::new());
        let watchdog = watchdog_of(&watched);
        let guarded = &watched.guarded;
        guarded.close(watched.at(0), watched.at(1));
        let clock = clock_of(&watched);
        guarded.open(watched.at(0));
        guarded.close(watched.at(0), watched.at(9));
        assert!(!guarded.turnstile.enter());
        clock.join().expect("it does not panic");
        assert!(!guarded.turnstile.is_open());
        guarded.retire(watched.at(1));
        watchdog.join().expect("it does not panic");
        assert!(guarded.turnstile.is_open(), "nobody could open it any more");
    });
}
