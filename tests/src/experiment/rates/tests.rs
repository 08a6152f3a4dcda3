use chrono::TimeDelta;

use super::case::{Storage, Threshold};
use super::*;
use crate::announce::{Announce, Event, Torrent};

/// A round of a tracker that answers so many announces a second, whoever asks, and each at
/// the moderate rate within the milliseconds given.
pub(super) fn round(announces: f64, p99_ms: f64) -> Round {
    let latencies = |p50_ms: f64, p99_ms: f64| Latencies {
        sent: 1_000,
        answered: 1_000,
        p50_ms: Some(p50_ms),
        p99_ms: Some(p99_ms),
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "made up"
    )]
    let answered = (announces * 10.0) as u64;
    let counts = |sent: u64, answered: u64| Counts {
        sent,
        answered,
        errors: 0,
        unanswered: sent - answered,
    };
    Round {
        tester: Tested {
            announces,
            responses: announces * 2.0,
            processor_us: (announces > 0.0).then_some(7.5),
            connects: latencies(0.2, 2.0),
        },
        own: Own {
            offered: offer(announces * 2.0),
            seconds: 10.0,
            all: counts(answered * 4 + 1, answered),
            announces: counts(answered * 4 + 1, answered),
            dropped: 0,
            processor_us: (answered > 0).then_some(9.5),
            processors: 1.25,
            others: 0.01,
            flushes: Some(0.25),
        },
        moderate: [latencies(p99_ms / 2.0, p99_ms); 2],
    }
}

/// Everything as it must be: upstream's rates, and ours by a factor, twice.
pub(super) fn outcome() -> Outcome {
    let rate = |case: Case| match (case.program, case.storage) {
        (Program::Upstream, Storage::Memory) => 40_000.0,
        (Program::Ours, Storage::Memory) => 100_000.0,
        (Program::Upstream, Storage::Rollback) => 1_000.0,
        (Program::Upstream, Storage::Wal) => 5_000.0,
        (Program::Ours, Storage::Wal) => 16_000.0,
        (Program::Ours, Storage::Rollback) => 900.0,
    };
    let measured = |case: Case| Measured {
        case,
        rounds: [1.0, 1.01]
            .map(|drift| round(rate(case) * drift, 0.5 * drift))
            .to_vec(),
        failed: Vec::new(),
    };
    Outcome {
        command: "cargo run --bin announce_rates".to_owned(),
        date: DateTime::UNIX_EPOCH,
        seconds: 600.0,
        machine: Machine {
            processor: "a processor".to_owned(),
            processors: 2,
            memory: 1 << 30,
            kernel: "6.1".to_owned(),
            file_system: "ext4".to_owned(),
            flush_us: 45,
            build: "release profile".to_owned(),
        },
        sqlite: "3.53.0".to_owned(),
        tester: "0.9.0".to_owned(),
        upstream_given: false,
        entering: None,
        loads: Loads {
            rounds: 2,
            ..Loads::default()
        },
        plan: plan(0),
        cases: Case::ALL.map(measured).to_vec(),
        flaws: Vec::new(),
    }
}

/// The rounds of a case, to change them.
pub(super) fn rounds(outcome: &mut Outcome, case: Case) -> &mut Vec<Round> {
    let mut cases = outcome.cases.iter_mut();
    let found = cases.find(|measured| measured.case == case);
    &mut found.expect("every case was made up").rounds
}

pub(super) const OURS: Case = Case::new(Program::Ours, Storage::Memory, Threshold::Error);

pub(super) const UPSTREAM: Case = Case::new(Program::Upstream, Storage::Memory, Threshold::Error);

#[test]
fn the_defaults_leave_room_in_a_quarter_of_an_hour() {
    let takes = Loads::default().estimate(Case::ALL.len());
    assert!(takes < Duration::from_secs(14 * 60), "{takes:?}");
    assert!(takes > Duration::from_secs(5 * 60), "{takes:?}");
    // Each is two figures of the moderate load, and of six the spread alone tells the noise.
    assert!(Loads::default().rounds >= 3, "few figures show little");
}

/// The load's records are in no order.
#[test]
fn a_load_is_halved_by_when_its_announces_were_sent() {
    let record = |second: i64, answered: bool| Record {
        announce: Announce {
            torrent: Torrent(0),
            peer: 1,
            event: Event::Started,
        },
        door: load::Door::Udp,
        sent: DateTime::UNIX_EPOCH + TimeDelta::seconds(second),
        ended: DateTime::UNIX_EPOCH + TimeDelta::seconds(second + 1),
        latency: Duration::from_secs(second.unsigned_abs()),
        outcome: if answered {
            load::Outcome::Answered
        } else {
            load::Outcome::Unanswered
        },
    };
    let records = vec![
        record(4, true),
        record(1, true),
        record(3, false),
        record(2, true),
    ];
    let found = halves(records).map(|half| (half.sent, half.answered, half.p99_ms));
    let wanted = [(2, 2, Some(2_000.0)), (2, 1, Some(4_000.0))];
    assert_eq!(found, wanted);
    assert_eq!(halves(Vec::new()).map(|half| half.p99_ms), [None; 2]);
}

/// And the others are measured all the same.
#[test]
fn a_round_that_fails_is_a_flaw_and_keeps_its_number() {
    let mut outcome = outcome();
    outcome.cases.truncate(2);
    for measured in &mut outcome.cases {
        measured.rounds.clear();
    }
    for number in 0..3 {
        outcome.enter(0, number, Ok(round(1.0, 1.0)));
        let fails = number == 1;
        let found = if fails {
            Err(anyhow::anyhow!("no answer"))
        } else {
            Ok(round(2.0, 1.0))
        };
        outcome.enter(1, number, found);
    }
    let [upstream, ours] = [UPSTREAM, OURS].map(|case| {
        let numbered = outcome.numbered(case);
        numbered.map(|(number, _)| number).collect::<Vec<_>>()
    });
    assert_eq!((upstream, ours), (vec![0, 1, 2], vec![0, 2]));
    assert_eq!(outcome.pairs(OURS, UPSTREAM).len(), 2);
    let wanted = "ours, memory, error, round 2: not measured: no answer";
    assert_eq!(outcome.flaws, [wanted]);
}

#[test]
fn what_is_not_answered_counts_as_long_as_it_was_waited_for() {
    let mut all = vec![Duration::from_millis(1); 98];
    all.extend([Duration::from_secs(2); 2]);
    let found = Latencies::of(all, 98);
    assert_eq!((found.sent, found.answered), (100, 98));
    assert!(found.p50_ms.is_some_and(|p50| p50 < 1.1), "{found:?}");
    assert!(found.p99_ms.is_some_and(|p99| p99 > 1_999.0), "{found:?}");
    let none = Latencies::of(Vec::new(), 0);
    assert_eq!((none.p50_ms, none.p99_ms), (None, None));
}

#[test]
fn more_is_offered_than_was_answered_and_something_to_a_tracker_that_is_silent() {
    assert_eq!(offer(20_000.0), 60_000);
    assert_eq!(offer(0.0), 1_000);
    assert_eq!(offer(f64::MAX), u32::MAX);
}

#[test]
fn a_load_that_could_send_no_more_or_read_no_more_is_told_from_a_slow_tracker() {
    let own = round(1_000.0, 0.5).own;
    assert!(!own.is_bound_by_the_load(), "{own:?}");

    let mut answered_all = own.clone();
    answered_all.all.sent = answered_all.all.answered;
    answered_all.all.unanswered = 0;
    assert!(answered_all.is_bound_by_the_load(), "{answered_all:?}");

    let mut unread = own.clone();
    unread.dropped = unread.all.answered / 10;
    assert!(unread.is_bound_by_the_load(), "{unread:?}");

    let mut silent = own;
    silent.all.answered = 0;
    silent.announces.answered = 0;
    assert!(!silent.is_bound_by_the_load(), "{silent:?}");
}
