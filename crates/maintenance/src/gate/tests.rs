#![expect(
    clippy::disallowed_methods,
    reason = "a closure ends at an instant of the real clock"
)]

use std::sync::atomic::AtomicBool;

use super::*;

fn far() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

fn gate() -> (Gate, Keeper) {
    Gate::new().expect("a thread for the watchdog")
}

#[test]
fn a_new_gate_lets_everybody_in_and_counts_them() {
    let (gate, _keeper) = gate();
    let first = gate.try_enter().expect("open");
    let second = gate.try_enter().expect("open");
    assert_eq!(gate.in_flight(), 2);
    drop(first);
    assert_eq!(gate.in_flight(), 1);
    drop(second);
    assert_eq!(gate.in_flight(), 0);
}

#[test]
fn a_closed_gate_refuses_without_leaving_a_share_behind() {
    let (gate, keeper) = gate();
    keeper.close(far());
    assert!(gate.try_enter().is_none());
    assert_eq!(gate.in_flight(), 0);
    keeper.open();
    assert!(gate.try_enter().is_some());
}

#[tokio::test]
async fn drained_waits_for_every_pass_that_was_out_when_the_gate_closed() {
    let (gate, keeper) = gate();
    let pass = gate.try_enter().expect("open");
    keeper.close(far());
    let mut drained = by_hand(keeper.drained());
    assert!(!drained.is_ready());
    assert!(
        gate.try_enter().is_none(),
        "a refused share does not end the drain"
    );
    assert!(!drained.is_ready());
    drop(pass);
    assert!(drained.is_ready());
}

#[tokio::test]
async fn enter_waits_for_the_gate_and_a_dropped_wait_holds_nothing() {
    let (gate, keeper) = gate();
    keeper.close(far());
    let mut given_up = by_hand(gate.enter());
    assert!(!given_up.is_ready());
    drop(given_up);
    let mut waiting = by_hand(gate.enter());
    assert!(!waiting.is_ready());
    keeper.open();
    assert!(waiting.is_ready());
    drop(waiting);
    assert_eq!(gate.in_flight(), 0);
}

#[test]
fn the_watchdog_opens_a_gate_that_nobody_opens() {
    let (gate, keeper) = gate();
    keeper.close(Instant::now() + Duration::from_millis(5));
    block_on(gate.opened());
    assert!(gate.try_enter().is_some());
    assert_eq!(gate.forced(), 1);
    assert!(
        keeper.open() >= Duration::from_millis(5),
        "the closure is told, whoever ended it"
    );
}

#[test]
fn a_deadline_that_was_moved_is_the_one_that_counts() {
    let (gate, keeper) = gate();
    keeper.close(far());
    keeper.close(Instant::now());
    block_on(gate.opened());
    assert_eq!(gate.forced(), 1);
}

#[test]
fn the_deadline_of_an_earlier_closure_does_not_open_a_later_one() {
    let (gate, keeper) = gate();
    for _ in 0..1_000 {
        keeper.close(Instant::now() + Duration::from_micros(50));
        keeper.open();
        let forced = gate.forced();
        keeper.close(far());
        assert!(!gate.is_open());
        assert!(gate.try_enter().is_none());
        keeper.open();
        assert_eq!(gate.forced(), forced);
    }
}

#[test]
fn a_keeper_that_is_gone_leaves_the_gate_open_even_by_panic() {
    let (gate, keeper) = gate();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        keeper.close(far());
        panic!("the driver breaks");
    }));
    assert!(outcome.is_err());
    assert!(gate.is_open());
    assert_eq!(gate.forced(), 0);
}

#[test]
fn answers_are_counted_by_door_and_by_what_was_asked() {
    let (gate, _keeper) = gate();
    let udp = gate.counters(Door::Udp);
    udp.answer(Request::Announce, Duration::from_millis(3), 64);
    udp.answer(Request::Scrape, Duration::from_micros(40), 2);
    udp.spend(Duration::from_millis(2));
    udp.spend(Duration::from_millis(1));
    let count = |door, request| gate.counters(door).answered(request).count;
    assert_eq!(count(Door::Udp, Request::Announce), 64);
    assert_eq!(count(Door::Udp, Request::Scrape), 2);
    assert_eq!(udp.spent(), Duration::from_millis(3));
    assert_eq!(count(Door::Http, Request::Announce), 0);
    assert_eq!(gate.counters(Door::Http).spent(), Duration::ZERO);
}

/// Else every announce that is counted would take the line from whoever enters the gate.
#[test]
fn the_word_that_is_entered_by_shares_no_cache_line_with_what_is_counted() {
    const LINE: usize = 128;
    let (gate, _keeper) = gate();
    let line_of = |address: usize| address / LINE;
    let word = line_of(std::ptr::from_ref(&gate.inner.guarded.turnstile).addr());
    for door in [Door::Udp, Door::Http] {
        let counters = gate.counters(door);
        let first = std::ptr::from_ref(counters).addr();
        assert_eq!(first % LINE, 0);
        let last = first + size_of_val(counters) - 1;
        assert!(!(line_of(first)..=line_of(last)).contains(&word));
    }
}

/// Many threads enter while one opens and closes: whenever the gate is drained nobody may
/// be inside, which is what the flush relies on.
#[test]
fn nobody_is_inside_a_drained_gate() {
    let (gate, keeper) = gate();
    let inside = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    if let Some(pass) = gate.try_enter() {
                        inside.fetch_add(1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(pass);
                    }
                }
            });
        }
        for _ in 0..2_000 {
            keeper.close(far());
            block_on(keeper.drained());
            assert_eq!(inside.load(Ordering::SeqCst), 0);
            keeper.open();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(gate.in_flight(), 0);
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime")
        .block_on(future)
}

/// A future polled by hand, so that "still waiting" is a fact and not a guess about time.
struct Polled<F>(std::pin::Pin<Box<F>>);

fn by_hand<F: Future>(future: F) -> Polled<F> {
    Polled(Box::pin(future))
}

impl<F: Future> Polled<F> {
    fn is_ready(&mut self) -> bool {
        let waker = std::task::Waker::noop();
        self.0
            .as_mut()
            .poll(&mut std::task::Context::from_waker(waker))
            .is_ready()
    }
}
