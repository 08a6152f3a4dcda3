use serde_json::{Value, json};
use torrust_tracker_maintenance::evaluation::Decision;

use super::super::testing::{self, Played};
use super::*;

/// A tracker, a course and a clock that moves when it is told to.
struct Bench {
    tracker: Played,
    course: Option<Course>,
    began: Instant,
    seconds: u64,
    said: Vec<&'static str>,
    action: Action,
}

const PLAN: Plan = Plan {
    slice_seconds: 10,
    baseline_seconds: 30,
    comparison_seconds: 30,
};

fn started(at_once: bool) -> Bench {
    let tracker = Played::new("delete");
    let endpoint = "127.0.0.1:1414".to_owned();
    let kept = Kept::begin(&tracker.status(), endpoint, PLAN, testing::began());
    Bench::with(tracker, kept.expect("it can be evaluated"), at_once)
}

fn failure(exit: Exit, error: &'static str) -> Failure {
    Failure::new(exit, error, format!("{error}: as it happens"))
}

impl Bench {
    fn with(tracker: Played, kept: Kept, at_once: bool) -> Self {
        let began = crate::verify::instant();
        let mut bench = Self {
            tracker,
            course: Some(Course::new(kept, at_once)),
            began,
            seconds: 0,
            said: Vec::new(),
            action: Action::Look(began),
        };
        bench.look();
        bench
    }

    fn course(&self) -> &Course {
        self.course.as_ref().expect("it is given back at once")
    }

    fn kept(&self) -> &Kept {
        &self.course().kept
    }

    fn phase(&self) -> Phase {
        self.kept().phase
    }

    /// Slices that count, and those that do not.
    fn slices(&self) -> [u64; 2] {
        let side = match self.phase() {
            Phase::Baseline | Phase::Switching => &self.kept().before,
            Phase::Comparing | Phase::Decided => &self.kept().after,
        };
        [side.slices.len() as u64, side.left_out.values().sum()]
    }

    fn left_out(&self, why: LeftOut) -> bool {
        let sides = [&self.kept().before, &self.kept().after];
        sides.iter().any(|side| side.left_out.contains_key(&why))
    }

    fn event(&mut self, event: Event) {
        let moment = Moment {
            now: self.began + Duration::from_secs(self.seconds),
            utc: testing::began() + Duration::from_secs(self.seconds),
        };
        let course = self.course.take().expect("it is given back at once");
        let step = course.step(event, moment);
        self.said.extend(step.says.iter().map(|line| line.event));
        self.course = Some(step.course);
        self.action = step.action;
    }

    /// The tracker says what it says.
    fn look(&mut self) {
        self.event(Event::Seen(Box::new(self.tracker.status())));
    }

    /// So many seconds of load, and a look.
    fn load(&mut self, seconds: u64) {
        self.seconds += seconds;
        self.tracker.announce(1_000, 100);
        self.look();
    }

    fn set(&mut self, pointer: &str, value: Value) {
        self.tracker.change(|status| {
            let field = pointer.trim_start_matches('/');
            match field.split_once('/') {
                Some((object, field)) => status[object][field] = value,
                None => status[field] = value,
            }
        });
    }

    fn set_in_udp(&mut self, field: &str, value: Value) {
        let change = |status: &mut Value| status["traffic"]["udp"][field] = value;
        self.tracker.change(change);
    }

    /// As far as the order.
    fn baseline(&mut self) {
        while self.phase() == Phase::Baseline {
            self.load(10);
        }
        assert_eq!(self.action, Action::Order);
    }

    fn ordered(&mut self) {
        self.set(
            "database/switch",
            json!({ "ordered": "2026-11-22T00:00:00Z", "failed": null }),
        );
        self.event(Event::Ordered(Ok("it will be".to_owned())));
    }

    /// A run has put it into WAL.
    fn switched(&mut self, run: &str) {
        self.set("database/switch", Value::Null);
        self.set("database/journal_mode", json!("wal"));
        self.set("runs", json!([testing::ended(run)]));
        self.seconds += 5;
        self.look();
    }

    /// How it ended.
    fn ended(&self) -> Result<(), &'static str> {
        match &self.action {
            Action::End(Ok(())) => Ok(()),
            Action::End(Err(failure)) => Err(failure.error),
            action => panic!("it goes on: {action:?}"),
        }
    }

    /// Killed and started again, with what it kept and nothing else.
    fn again(self, at_once: bool) -> Self {
        let kept = serde_json::to_vec(self.kept()).expect("it is plain");
        let kept = serde_json::from_slice(&kept).expect("as it was written");
        Self::with(self.tracker, kept, at_once)
    }

    fn next_look(&self) -> u64 {
        match self.action {
            Action::Look(at) => at.saturating_duration_since(self.began).as_secs(),
            ref action => panic!("it does not look again: {action:?}"),
        }
    }
}

#[test]
fn four_phases_one_after_the_other() {
    let mut bench = started(false);
    assert_eq!(bench.next_look(), 10);
    for slice in 1..=2 {
        bench.load(10);
        assert_eq!(
            (bench.phase(), bench.slices()),
            (Phase::Baseline, [slice, 0])
        );
        assert_eq!(bench.next_look(), 10 * (slice + 1));
    }
    bench.load(10);
    assert_eq!((bench.phase(), bench.slices()), (Phase::Switching, [3, 0]));
    assert_eq!(bench.action, Action::Order);
    bench.ordered();
    // The window is not yet.
    for _ in 0..3 {
        let now = bench.seconds;
        assert_eq!(bench.next_look(), now + 5);
        bench.load(5);
        assert_eq!(bench.phase(), Phase::Switching);
    }
    bench.switched("20261122T030000Z-abcd");
    assert_eq!((bench.phase(), bench.slices()), (Phase::Comparing, [0, 0]));
    for _ in 0..3 {
        bench.load(10);
    }
    assert_eq!((bench.phase(), bench.slices()), (Phase::Decided, [3, 0]));
    assert_eq!(bench.ended(), Ok(()));
    assert_eq!(bench.kept().before.slices.len(), 3);
    assert_eq!(bench.kept().evaluation().decision, Decision::Keep);
    let lines = [
        "slice",
        "slice",
        "slice",
        "baseline",
        "ordered",
        "switched",
        "slice",
        "slice",
        "slice",
        "comparison",
    ];
    assert_eq!(bench.said, lines);
}

#[test]
fn a_slice_that_was_disturbed_is_left_out_and_another_takes_its_place() {
    type Disturb = fn(&mut Bench);
    let disturbances: [(LeftOut, Disturb); 5] = [
        (LeftOut::Restart, |bench| {
            bench.tracker.restart("2026-11-22T04:00:00Z");
            bench.load(10);
        }),
        (LeftOut::Run, |bench| {
            bench.set("runs", json!([testing::ended("20261122T030000Z-abcd")]));
            bench.load(10);
        }),
        (LeftOut::JournalMode, |bench| {
            bench.set("database/journal_mode", json!("truncate"));
            bench.load(10);
        }),
        (LeftOut::TooQuiet, |bench| {
            bench.seconds += 10;
            bench.tracker.announce(99, 0);
            bench.look();
        }),
        (LeftOut::TooLong, |bench| bench.load(16)),
    ];
    for (why, disturb) in disturbances {
        let mut bench = started(false);
        bench.load(10);
        disturb(&mut bench);
        assert_eq!(bench.slices(), [1, 1], "{why:?}");
        assert!(bench.left_out(why), "{why:?}: {:?}", bench.kept());
        assert_eq!(bench.said, ["slice", "left_out"]);
        bench.baseline();
        assert_eq!(bench.slices(), [3, 1], "{why:?}");
    }
}

/// What begins within a run would be left out: the next slice begins after it.
#[test]
fn no_slice_begins_in_a_run() {
    let mut bench = started(false);
    bench.load(10);
    bench.set("run", testing::run());
    bench.load(10);
    assert_eq!(bench.slices(), [1, 1]);
    bench.load(5);
    assert_eq!(bench.slices(), [1, 1]);
    assert_eq!(bench.next_look(), bench.seconds + 5);
    bench.set("run", Value::Null);
    bench.set("runs", json!([testing::ended("20261122T030000Z-abcd")]));
    bench.load(5);
    assert_eq!(bench.next_look(), bench.seconds + 10);
    bench.load(10);
    assert_eq!(bench.slices(), [2, 1]);
}

/// As with slices of a day and a window every night.
#[test]
fn a_run_cuts_a_slice_and_what_is_long_enough_counts() {
    let mut bench = started(false);
    for (had, counts) in [(6, true), (4, false), (5, true)] {
        let [slices, left_out] = bench.slices();
        let run = format!("20261122T0{had}0000Z-abcd");
        bench.load(had);
        assert_eq!(bench.slices(), [slices, left_out], "it is not over");
        bench.set("run", testing::run());
        bench.load(3);
        let wanted = [slices + u64::from(counts), left_out + u64::from(!counts)];
        assert_eq!(bench.slices(), wanted, "{had}");
        if counts {
            let slice = bench.kept().before.slices.last().expect("it counts");
            assert_eq!(
                Duration::from_secs_f64(slice.seconds),
                Duration::from_secs(had)
            );
            assert_eq!(slice.announces, 1_000, "of what came before the run");
        }
        bench.set("run", Value::Null);
        bench.set("runs", json!([testing::ended(&run)]));
        bench.load(5);
    }
    assert_eq!(bench.slices(), [2, 1]);
}

/// One that was not seen, between two looks, ends it as well.
#[test]
fn it_looks_just_before_a_window_and_every_minute() {
    let plan = Plan {
        slice_seconds: 86_400,
        baseline_seconds: 2 * 86_400,
        comparison_seconds: 2 * 86_400,
    };
    let tracker = Played::new("delete");
    let kept = Kept::begin(&tracker.status(), "here".to_owned(), plan, testing::began());
    let mut bench = Bench::with(tracker, kept.expect("it can be evaluated"), false);
    assert_eq!(bench.next_look(), 60);
    bench.load(60);
    assert_eq!(bench.next_look(), 120);
    bench.set(
        "next",
        json!({ "begins": "2026-11-22T13:00:30Z", "ends": "2026-11-22T13:05:00Z" }),
    );
    bench.load(13 * 3_600 - 60);
    assert_eq!(bench.next_look(), 13 * 3_600 + 28);
    bench.load(28);
    bench.set("runs", json!([testing::ended("20261122T130030Z-abcd")]));
    bench.load(300);
    assert_eq!(bench.slices(), [1, 0]);
    let seconds = bench.kept().before.slices[0].seconds;
    assert_eq!(
        Duration::from_secs_f64(seconds),
        Duration::from_secs(13 * 3_600 + 28)
    );
}

/// Its runs are gone from the status, which is not another run.
#[test]
fn a_restart_within_a_slice_is_no_run() {
    let mut bench = started(false);
    bench.set("runs", json!([testing::ended("20261122T030000Z-abcd")]));
    bench.load(10);
    bench.load(2);
    bench.tracker.restart("2026-11-22T04:00:00Z");
    bench.load(2);
    bench.load(6);
    assert!(bench.left_out(LeftOut::Restart), "{:?}", bench.kept());
}

#[test]
fn what_is_left_out_again_and_again_is_explained_once() {
    let mut bench = started(false);
    for round in 0..5 {
        bench.set(
            "runs",
            json!([testing::ended(&format!("2026112{round}T030000Z-abcd"))]),
        );
        bench.load(10);
    }
    assert_eq!(bench.slices(), [0, 5]);
    let warnings = bench.said.iter().filter(|event| **event == "warning");
    assert_eq!(warnings.count(), 1);
    assert_eq!(bench.said[2..4], ["left_out", "warning"]);
}

#[test]
fn a_look_before_its_time_ends_no_slice() {
    let mut bench = started(false);
    bench.load(4);
    assert_eq!((bench.slices(), bench.next_look()), ([0, 0], 10));
    bench.load(6);
    assert_eq!(bench.slices(), [1, 0]);
}

#[test]
fn a_tracker_that_is_away_is_waited_for_and_said_so_once() {
    let mut bench = started(false);
    bench.load(10);
    for _ in 0..100 {
        bench.seconds += 5;
        bench.event(Event::Away(failure(Exit::NotApplicable, "not_running")));
        assert_eq!(bench.next_look(), bench.seconds + 5);
    }
    assert_eq!(bench.said, ["slice", "no_answer"]);
    // The slice in progress has become too long.
    bench.load(0);
    assert_eq!(bench.said[2..], ["answers", "left_out"]);
    bench.load(10);
    assert_eq!(bench.slices(), [2, 1]);
    // For a moment, within a slice.
    bench.event(Event::Away(failure(Exit::Failed, "no_answer")));
    bench.load(10);
    assert_eq!(bench.slices(), [3, 1]);
}

#[test]
fn a_switch_that_is_refused_ends_it_with_the_reason() {
    for (given, wanted) in [
        (failure(Exit::Busy, "busy"), "switch_refused"),
        (failure(Exit::Usage, "unauthorized"), "unauthorized"),
        (failure(Exit::Failed, "refused"), "refused"),
    ] {
        let mut bench = started(false);
        bench.baseline();
        let message = given.message.clone();
        bench.event(Event::Ordered(Err(given)));
        assert_eq!(bench.ended(), Err(wanted));
        assert!(matches!(&bench.action, Action::End(Err(failure)) if failure.message == message));
        // The baseline is not lost.
        let bench = bench.again(false);
        assert_eq!((bench.slices(), bench.action), ([3, 0], Action::Order));
    }
}

#[test]
fn a_switch_that_fails_in_its_window_stays_ordered() {
    let mut bench = started(false);
    bench.baseline();
    bench.ordered();
    let failed = |run: &str| {
        let failed = json!({ "run": run, "reason": "a reader is in the way" });
        json!({ "ordered": "2026-11-22T00:00:00Z", "failed": failed })
    };
    for run in ["20261122T030000Z-abcd", "20261123T030000Z-efgh"] {
        let said = bench.said.len();
        bench.set("database/switch", failed(run));
        for _ in 0..3 {
            bench.load(5);
            assert_eq!(bench.phase(), Phase::Switching);
            bench.next_look();
        }
        assert_eq!(bench.said[said..], ["not_switched"], "of each run once");
    }
    bench.switched("20261124T030000Z-ijkl");
    assert_eq!(bench.phase(), Phase::Comparing);
}

#[test]
fn a_restart_forgets_the_order_and_it_is_given_again() {
    let mut bench = started(false);
    bench.baseline();
    bench.ordered();
    bench.load(5);
    bench.tracker.restart("2026-11-22T05:00:00Z");
    bench.load(5);
    assert_eq!(bench.action, Action::Order);
    assert_eq!(bench.said.last(), Some(&"restarted"));
    bench.ordered();
    bench.load(5);
    assert_eq!(bench.phase(), Phase::Switching);
    bench.next_look();
}

#[test]
fn an_order_that_was_withdrawn_is_not_given_again() {
    let mut bench = started(false);
    bench.baseline();
    bench.event(Event::Ordered(Ok("it will be".to_owned())));
    // It is published a moment later, perhaps.
    bench.load(5);
    bench.next_look();
    bench.set(
        "database/switch",
        json!({ "ordered": "2026-11-22T00:00:00Z", "failed": null }),
    );
    bench.load(5);
    bench.set("database/switch", Value::Null);
    for _ in 1..MISSING_AT_MOST {
        bench.load(5);
        bench.next_look();
    }
    bench.load(5);
    assert_eq!(bench.ended(), Err("withdrawn"));
}

#[test]
fn a_run_by_hand_is_begun_once_and_as_soon_as_it_can_be() {
    let mut bench = started(true);
    bench.baseline();
    bench.ordered();
    assert_eq!(bench.action, Action::Begin);
    for _ in 0..3 {
        bench.event(Event::Begun(Err(failure(Exit::Busy, "busy"))));
        bench.set("run", testing::run());
        bench.load(5);
        bench.next_look();
        bench.set("run", Value::Null);
        bench.load(5);
        assert_eq!(bench.action, Action::Begin);
    }
    let run = RunId::parse("20261122T030000Z-abcd").expect("an id");
    bench.event(Event::Begun(Ok(run)));
    // It fails; the next one is the window's.
    for _ in 0..3 {
        bench.load(5);
        bench.next_look();
    }
    assert_eq!(bench.said[3..], ["baseline", "ordered", "held_up", "run"]);
    let mut bench = started(true);
    bench.baseline();
    bench.ordered();
    bench.event(Event::Begun(Err(failure(Exit::Usage, "unauthorized"))));
    assert_eq!(bench.ended(), Err("unauthorized"));
}

#[test]
fn it_goes_on_in_each_phase_where_it_was() {
    let mut bench = started(false);
    bench.load(10);
    // The slice in progress is lost, and no more.
    bench.load(4);
    let mut bench = bench.again(false);
    assert_eq!((bench.slices(), bench.next_look()), ([1, 0], 10));
    bench.baseline();
    assert_eq!(bench.slices(), [3, 0]);

    // Before it was ordered, and after, when the tracker still knows.
    let mut bench = bench.again(false);
    assert_eq!(bench.action, Action::Order);
    bench.ordered();
    let bench = bench.again(false);
    assert_eq!(bench.next_look(), 5);
    // With a run by hand, now.
    let mut bench = bench.again(true);
    assert_eq!(bench.action, Action::Begin);
    // It was switched meanwhile.
    bench.set("database/journal_mode", json!("wal"));
    bench.set("database/switch", Value::Null);
    let mut bench = bench.again(true);
    assert_eq!(bench.phase(), Phase::Comparing);
    bench.load(10);
    let mut bench = bench.again(false);
    assert_eq!((bench.phase(), bench.slices()), (Phase::Comparing, [1, 0]));
    bench.load(10);
    bench.load(10);
    assert_eq!(bench.ended(), Ok(()));
    let bench = bench.again(false);
    assert_eq!(bench.ended(), Ok(()));
    assert_eq!(bench.slices(), [3, 0]);
}

#[test]
fn what_is_in_wal_already_has_nothing_to_be_compared_with() {
    type Change = fn(&mut Played);
    let cases: [(&str, Change); 4] = [
        ("already_wal", |tracker| {
            tracker.change(|status| status["database"]["journal_mode"] = json!("wal"));
        }),
        ("not_sqlite", |tracker| {
            tracker.change(|status| status["database"]["journal_mode"] = json!("none"));
        }),
        ("switch_refused", |tracker| {
            tracker.change(|status| {
                status["database"]["not_switchable"] = json!("it is configured to go back");
            });
        }),
        ("no_figures", |tracker| {
            tracker.change(|status| {
                status.as_object_mut().expect("an object").remove("traffic");
            });
        }),
    ];
    for (error, change) in cases {
        let mut tracker = Played::new("delete");
        change(&mut tracker);
        let endpoint = "127.0.0.1:1414".to_owned();
        let refused = Kept::begin(&tracker.status(), endpoint, PLAN, testing::began());
        assert_eq!(refused.expect_err(error).error, error);
        // The same in the middle of a baseline.
        let mut bench = started(false);
        bench.load(10);
        change(&mut bench.tracker);
        bench.look();
        assert_eq!(bench.ended(), Err(error));
    }
}

#[test]
fn what_leaves_wal_before_it_was_compared_ends_it_and_can_go_on() {
    let mut bench = started(false);
    bench.baseline();
    bench.ordered();
    bench.switched("20261122T030000Z-abcd");
    bench.load(10);
    bench.set("database/journal_mode", json!("delete"));
    bench.load(10);
    assert_eq!(bench.ended(), Err("not_wal"));
    bench.set("database/journal_mode", json!("wal"));
    let mut bench = bench.again(false);
    assert_eq!((bench.phase(), bench.slices()), (Phase::Comparing, [1, 0]));
    bench.load(10);
    assert_eq!(bench.slices(), [2, 0]);
}

#[test]
fn another_tracker_is_not_mixed_with_it() {
    for (pointer, value) in [
        ("service", json!("torrust-tracker 3.0.1")),
        // Of which the service's name says nothing.
        ("version", json!("0.2.0")),
        ("database/path", json!("./other.db")),
    ] {
        let mut bench = started(false);
        bench.load(10);
        bench.set(pointer, value);
        bench.load(10);
        assert_eq!(bench.ended(), Err("another_tracker"), "{pointer}");
    }
}

#[test]
fn where_nothing_is_stored_there_is_nothing_to_find_out() {
    for (stored, wanted) in [(0.0, Some("nothing_stored")), (0.5, None)] {
        let mut bench = started(false);
        for _ in 0..2 {
            bench.tracker.announce(5_000, 0);
            bench.load(10);
            bench.next_look();
        }
        bench.set_in_udp("database_seconds", json!(stored));
        bench.load(10);
        if let Some(error) = wanted {
            assert_eq!(bench.ended(), Err(error));
        } else {
            assert_eq!(bench.action, Action::Order);
        }
        assert_eq!(bench.slices(), [3, 0], "what was measured is kept");
    }
}

#[test]
fn spans_are_changed_where_that_can_still_be() {
    let longer = |baseline_seconds, comparison_seconds| Plan {
        baseline_seconds,
        comparison_seconds,
        ..PLAN
    };
    let mut bench = started(false);
    bench.load(10);
    let mut kept = bench.kept().clone();
    assert_eq!(kept.change(longer(60, 30), true), Ok(()));
    assert_eq!(kept.plan.slices(), [6, 3]);

    bench.baseline();
    bench.ordered();
    bench.switched("20261122T030000Z-abcd");
    for _ in 0..3 {
        bench.load(10);
    }
    assert_eq!(bench.ended(), Ok(()));
    // It is over; what is said once more is no change.
    let mut kept = bench.kept().clone();
    let refused = kept.change(longer(60, 30), true).expect_err("it is over");
    assert_eq!(refused.exit, Exit::Usage);
    assert!(refused.message.contains("--baseline"), "{refused:?}");
    assert_eq!(kept.change(PLAN, true), Ok(()));
    assert_eq!((&kept, kept.phase), (bench.kept(), Phase::Decided));
    assert_eq!(kept.change(longer(30, 20), false), Ok(()));
    assert_eq!(kept.phase, Phase::Decided, "it has enough");
    // A longer comparison than was had goes on.
    assert_eq!(kept.change(longer(30, 50), false), Ok(()));
    assert_eq!(kept.phase, Phase::Comparing);
    let mut bench = Bench::with(bench.tracker, kept, false);
    bench.load(10);
    assert_eq!(bench.slices(), [4, 0]);
    bench.load(10);
    assert_eq!(bench.ended(), Ok(()));
    assert_eq!(bench.phase(), Phase::Decided);
}

#[test]
fn what_is_asked_for_must_be_enough_to_tell_noise_and_fit_what_there_is() {
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    let usual = plan(None, None, None, None).expect("the defaults");
    assert_eq!(usual.slices(), [168, 168]);
    assert_eq!(usual.slice(), Duration::from_secs(3_600));
    let short = plan(None, seconds(1), seconds(5), seconds(5)).expect("a second is the least");
    assert_eq!(short.slices(), [5, 5]);
    let uneven = plan(None, seconds(2), seconds(5), seconds(4)).expect("what is begun is had");
    assert_eq!(uneven.slices(), [3, 2]);
    for (slice, baseline, comparison) in [
        (seconds(0), None, None),
        (Some(Duration::from_millis(900)), None, None),
        (seconds(10), seconds(10), seconds(20)),
        (seconds(10), seconds(20), seconds(10)),
        // 604,800 of them.
        (seconds(1), None, None),
    ] {
        let refused = plan(None, slice, baseline, comparison);
        let refused = refused.expect_err("it is not enough, or too much");
        assert_eq!((refused.exit, refused.error), (Exit::Usage, "usage"));
    }
    // Of what is under way the spans may change, the slices not.
    let longer = plan(Some(short), None, seconds(9), None).expect("what was said counts");
    assert_eq!(longer.slices(), [9, 5]);
    assert!(plan(Some(short), seconds(1), None, None).is_ok());
    assert!(plan(Some(short), seconds(2), None, None).is_err());
}
