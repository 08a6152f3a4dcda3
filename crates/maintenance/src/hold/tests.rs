use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::gate::{Gate, Keeper};

const ROOMY: Bounds = Bounds {
    held: 1_000_000,
    queued: 1_000_000,
};

fn gate() -> (Gate, Keeper) {
    Gate::new().expect("a thread for the watchdog")
}

fn held<T>(requests: Vec<T>) -> Batch<T> {
    Batch {
        fresh: vec![],
        held: requests,
    }
}

#[test]
fn a_resend_takes_the_place_of_the_held_one_and_keeps_its_turn() {
    let (gate, _keeper) = gate();
    let pass = gate.try_enter().expect("open");
    let mut hold = Hold::new(ROOMY);
    assert_eq!(hold.arrive("a", "started", 1, false), Arrival::Held);
    assert_eq!(hold.arrive("b", "started", 2, false), Arrival::Held);
    assert_eq!(hold.arrive("a", "started", 3, false), Arrival::Merged(1));
    assert_eq!(hold.take(&pass, 64), held(vec![3, 2]));
}

#[test]
fn another_event_waits_its_own_turn_and_only_the_newest_is_merged_with() {
    let (gate, _keeper) = gate();
    let pass = gate.try_enter().expect("open");
    let mut hold = Hold::new(ROOMY);
    for (event, request, arrival) in [
        ("started", 1, Arrival::Held),
        ("completed", 2, Arrival::Held),
        ("started", 3, Arrival::Held),
        ("started", 4, Arrival::Merged(3)),
    ] {
        assert_eq!(hold.arrive("a", event, request, false), arrival);
    }
    assert_eq!(hold.take(&pass, 64), held(vec![1, 2, 4]));
}

#[test]
fn every_announce_at_an_open_gate_is_kept() {
    let (gate, _keeper) = gate();
    let pass = gate.try_enter().expect("open");
    let mut hold = Hold::new(ROOMY);
    assert_eq!(hold.arrive("a", "none", 1, true), Arrival::Queued);
    assert_eq!(hold.arrive("a", "none", 2, true), Arrival::Queued);
    assert_eq!(
        hold.take(&pass, 64),
        Batch {
            fresh: vec![1, 2],
            held: vec![]
        }
    );
}

#[test]
fn a_new_announce_waits_behind_a_held_one_of_its_peer_and_no_other() {
    let (gate, _keeper) = gate();
    let pass = gate.try_enter().expect("open");
    let mut hold = Hold::new(ROOMY);
    hold.arrive("x", "none", 1, false);
    hold.arrive("a", "started", 2, false);
    assert_eq!(hold.arrive("a", "stopped", 3, true), Arrival::Held);
    assert_eq!(hold.arrive("b", "started", 4, true), Arrival::Queued);
    assert_eq!(
        hold.take(&pass, 2),
        Batch {
            fresh: vec![4],
            held: vec![1, 2]
        }
    );
    assert_eq!(hold.take(&pass, 2), held(vec![3]));
    assert_eq!(
        hold.arrive("a", "started", 5, true),
        Arrival::Queued,
        "nothing held any more"
    );
}

#[test]
fn a_closure_holds_what_waited_for_the_executor_behind_the_backlog_and_over_the_bound() {
    let (gate, _keeper) = gate();
    let pass = gate.try_enter().expect("open");
    let mut hold = Hold::new(Bounds { held: 1, queued: 2 });
    assert_eq!(hold.arrive("a", "none", 1, false), Arrival::Held);
    assert_eq!(hold.arrive("b", "none", 2, true), Arrival::Queued);
    assert_eq!(hold.arrive("c", "none", 3, true), Arrival::Queued);
    assert_eq!(hold.arrive("d", "none", 4, true), Arrival::TurnedAway(4));
    assert_eq!(hold.close(), 2);
    assert_eq!(hold.close(), 0);
    assert_eq!(hold.arrive("e", "none", 5, false), Arrival::TurnedAway(5));
    assert_eq!(
        hold.arrive("b", "none", 6, false),
        Arrival::Merged(2),
        "needs no room"
    );
    assert_eq!(hold.take(&pass, 64), held(vec![1, 6, 3]));
}

#[test]
fn an_arrival_that_sees_the_closure_first_does_not_overtake() {
    let (gate, _keeper) = gate();
    let pass = gate.try_enter().expect("open");
    let mut hold = Hold::new(ROOMY);
    hold.arrive("a", "started", 1, true);
    assert_eq!(hold.arrive("a", "stopped", 2, false), Arrival::Held);
    assert_eq!(hold.close(), 0);
    assert_eq!(hold.take(&pass, 64), held(vec![1, 2]));
}

#[test]
fn the_memory_of_a_large_backlog_is_given_back() {
    let (gate, _keeper) = gate();
    let pass = gate.try_enter().expect("open");
    let mut hold = Hold::new(ROOMY);
    for round in 0..3 {
        for peer in 0..100_000 {
            hold.arrive(peer, (), (), false);
        }
        for peer in 0..100_000 {
            hold.arrive(-1 - peer, (), (), true);
        }
        assert!(hold.backlog.capacity() >= 100_000, "round {round}");
        while !hold.take(&pass, 64).is_empty() {}
        assert!(hold.is_empty());
        assert!(hold.fresh.capacity() <= 2 * SPARE);
        assert!(hold.backlog.capacity() <= 2 * SPARE);
        assert!(hold.newest.capacity() <= 2 * SPARE);
        assert!(hold.newest.is_empty());
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Arrive {
        peer: u8,
        event: u8,
    },
    /// The gate closes, and the executor is the first to know.
    Close,
    /// The gate closes, and the next arrival is the first to know.
    CloseUnnoticed,
    Open,
    Take(usize),
}

/// The hold beside a model of it, which is two lists that are searched from end to end.
struct Bench<'a> {
    gate: &'a Gate,
    keeper: &'a Keeper,
    hold: Hold<u8, u8, usize>,
    bounds: Bounds,
    fresh: Vec<Announce>,
    backlog: Vec<Announce>,
    sent: Vec<Announce>,
    taken: Vec<usize>,
    superseded: Vec<usize>,
    turned_away: Vec<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Announce {
    peer: u8,
    event: u8,
    id: usize,
}

impl<'a> Bench<'a> {
    fn new((gate, keeper): &'a (Gate, Keeper), bounds: Bounds) -> Self {
        keeper.open();
        Self {
            gate,
            keeper,
            hold: Hold::new(bounds),
            bounds,
            fresh: vec![],
            backlog: vec![],
            sent: vec![],
            taken: vec![],
            superseded: vec![],
            turned_away: vec![],
        }
    }

    fn play(mut self, steps: &[Step]) {
        for &step in steps {
            match step {
                Step::Arrive { peer, event } => self.arrive(peer, event),
                Step::Close => {
                    self.close_gate();
                    assert_eq!(self.hold.close(), self.fresh.len());
                    self.backlog.append(&mut self.fresh);
                }
                Step::CloseUnnoticed => self.close_gate(),
                Step::Open => drop(self.keeper.open()),
                Step::Take(n) => self.take(n),
            }
            assert_eq!(self.hold.held(), self.backlog.len());
            assert_eq!(self.hold.queued(), self.fresh.len());
            assert!(self.hold.queued() <= self.bounds.queued);
        }
        self.keeper.open();
        while !self.hold.is_empty() {
            self.take(64);
        }
        self.each_exactly_once();
        self.in_the_order_of_each_peer();
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a real gate wants a real deadline"
    )]
    fn close_gate(&self) {
        self.keeper
            .close(Instant::now() + Duration::from_secs(3_600));
    }

    fn arrive(&mut self, peer: u8, event: u8) {
        let open = self.gate.is_open();
        let id = self.sent.len();
        let new = Announce { peer, event, id };
        self.sent.push(new);
        let expected = self.model_of_arrive(new, open);
        match expected {
            Arrival::Merged(id) => self.superseded.push(id),
            Arrival::TurnedAway(id) => self.turned_away.push(id),
            Arrival::Queued | Arrival::Held => {}
        }
        assert_eq!(self.hold.arrive(peer, event, id, open), expected);
    }

    fn model_of_arrive(&mut self, new: Announce, open: bool) -> Arrival<usize> {
        if !open {
            self.backlog.append(&mut self.fresh);
        }
        let full = self.backlog.len() >= self.bounds.held;
        let newest = self.backlog.iter_mut().rfind(|held| held.peer == new.peer);
        if open && newest.is_none() {
            if self.fresh.len() == self.bounds.queued {
                return Arrival::TurnedAway(new.id);
            }
            self.fresh.push(new);
            return Arrival::Queued;
        }
        match newest {
            Some(newest) if newest.event == new.event => {
                Arrival::Merged(std::mem::replace(newest, new).id)
            }
            _ if full => Arrival::TurnedAway(new.id),
            _ => {
                self.backlog.push(new);
                Arrival::Held
            }
        }
    }

    fn take(&mut self, n: usize) {
        let Some(pass) = self.gate.try_enter() else {
            return;
        };
        let ids = |queue: &mut Vec<Announce>| -> Vec<usize> {
            queue
                .drain(..n.min(queue.len()))
                .map(|announce| announce.id)
                .collect()
        };
        let expected = Batch {
            fresh: ids(&mut self.fresh),
            held: ids(&mut self.backlog),
        };
        self.taken
            .extend(expected.fresh.iter().chain(&expected.held));
        assert_eq!(self.hold.take(&pass, n), expected);
    }

    fn each_exactly_once(&self) {
        let mut seen = [&self.taken[..], &self.superseded, &self.turned_away].concat();
        seen.sort_unstable();
        assert!(seen.iter().copied().eq(0..self.sent.len()), "{seen:?}");
    }

    fn in_the_order_of_each_peer(&self) {
        let mut last = HashMap::new();
        for id in &self.taken {
            let overtaken = last
                .insert(self.sent[*id].peer, *id)
                .filter(|before| before > id);
            assert_eq!(overtaken, None, "{:?}", self.taken);
        }
    }
}

/// Every sequence of six of these steps: two peers, two events, one place for the
/// executor, one or two in the backlog.
#[test]
fn every_short_sequence_agrees_with_the_model() {
    const STEPS: [Step; 7] = [
        Step::Arrive { peer: 0, event: 0 },
        Step::Arrive { peer: 0, event: 1 },
        Step::Arrive { peer: 1, event: 0 },
        Step::Close,
        Step::CloseUnnoticed,
        Step::Open,
        Step::Take(1),
    ];
    const LENGTH: u32 = 6;
    let gate = gate();
    for held in 1..=2 {
        for mut number in 0..STEPS.len().pow(LENGTH) {
            let steps = [(); LENGTH as usize].map(|()| {
                let step = STEPS[number % STEPS.len()];
                number /= STEPS.len();
                step
            });
            Bench::new(&gate, Bounds { held, queued: 1 }).play(&steps);
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..6_u8, 0..3_u8).prop_map(|(peer, event)| Step::Arrive { peer, event }),
        1 => Just(Step::Close),
        1 => Just(Step::CloseUnnoticed),
        2 => Just(Step::Open),
        4 => (0..5_usize).prop_map(Step::Take),
    ]
}

proptest! {
    #[test]
    fn every_long_sequence_agrees_with_the_model(
        steps in prop::collection::vec(step(), 0..400),
        held in 0..30_usize,
        queued in 0..20_usize,
    ) {
        let gate = gate();
        Bench::new(&gate, Bounds { held, queued }).play(&steps);
    }
}
