//! Every state reachable within bounds is visited and every event applied to it; what must
//! hold of a state, a transition or the time to come is checked at each. The same walk run
//! over mutants of `step` shows that the checks can fail.

#![expect(
    clippy::disallowed_methods,
    reason = "the walk's clocks begin at some instant"
)]

use std::collections::{HashSet, VecDeque};

use super::*;

/// Time is counted in units of this many seconds.
const UNIT: u64 = 10;
const HORIZON: u32 = 26;
const RUNS: usize = 3;

type Step = fn(Window, &Rules, Now, Event) -> Window;

fn rules() -> Rules {
    Rules {
        schedule: Schedule::crontab("*/2 * * * *", units(6)).expect("a crontab line"),
        catch_up: false,
        hold_for: units(4),
        flush_within: units(2),
        attempts: 2,
        retry_after: units(1),
        grace: units(1),
        finish_within: units(3),
    }
}

fn units(n: u64) -> Duration {
    Duration::from_secs(n * UNIT)
}

/// The clocks, `t` units into the walk.
fn at(t: u32) -> Now {
    use std::sync::OnceLock;
    static ZERO: OnceLock<Instant> = OnceLock::new();
    let zero = *ZERO.get_or_init(|| Instant::now() + Duration::from_secs(3600));
    let midnight = "2026-11-22T00:00:00Z"
        .parse::<DateTime<Utc>>()
        .expect("a time");
    // The walk begins three units before a window does.
    let passed = units(u64::from(t));
    Now {
        utc: midnight - units(3) + passed,
        monotonic: zero + passed,
    }
}

/// What the walk remembers beside the window: what an onlooker would have seen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Node {
    window: Window,
    t: u32,
    begun: usize,
    closed_since: Option<u32>,
}

#[derive(Debug, Default)]
struct Walked {
    states: usize,
    transitions: usize,
}

fn run_id(n: usize) -> RunId {
    RunId(format!("run-{n}"))
}

/// Completions of every kind, those that fit the phase and those that do not.
fn completions() -> Vec<Completion> {
    vec![
        Completion::Prepared(Pause::UntilPinned),
        Completion::Prepared(Pause::UntilCopied(units(1))),
        Completion::Prepared(Pause::UntilCopied(units(3))),
        Completion::Prepared(Pause::UntilCopied(units(9))),
        Completion::Drained,
        Completion::Pinned,
        Completion::Busy("in the way".into()),
        Completion::Copied,
        Completion::Published,
        Completion::Failed(Failure {
            cause: Cause::Other,
            message: "broken".into(),
        }),
    ]
}

fn walk(step: Step) -> Result<Walked, String> {
    let rules = rules();
    let mut seen = HashSet::new();
    let mut queue = VecDeque::new();
    let start = Node {
        window: Window::new(None),
        t: 0,
        begun: 0,
        closed_since: None,
    };
    queue.push_back(start.clone());
    seen.insert(start);
    let mut walked = Walked::default();
    while let Some(node) = queue.pop_front() {
        walked.states += 1;
        check_state(&node, &rules)?;
        check_it_ends(&node, &rules, step)?;
        for (event, passes) in events(&node, &rules) {
            walked.transitions += 1;
            let t = node.t + passes;
            let mut window = step(node.window.clone(), &rules, at(t), event.clone());
            check_transition(&node, &event, t, &window, &rules)?;
            if passes > 0 {
                // The driver goes round until nothing is left to do at this instant.
                for _ in 0..4 {
                    window = step(window, &rules, at(t), Event::Tick);
                }
            }
            let closed = matches!(window.gate(&rules), GateWanted::Closed { .. });
            let begun = node.begun + usize::from(matches!(event, Event::Start { .. }));
            let closed_since = closed.then(|| node.closed_since.unwrap_or(t));
            let next = Node {
                window,
                t,
                begun,
                closed_since,
            };
            if next.t <= HORIZON && seen.insert(next.clone()) {
                queue.push_back(next);
            }
        }
    }
    Ok(walked)
}

/// Everything that can happen at a node, and how many units pass before it does.
fn events(node: &Node, rules: &Rules) -> Vec<(Event, u32)> {
    let now = at(node.t);
    let id = run_id(node.begun);
    if node.begun < RUNS
        && let Some((trigger, window)) = node.window.due(rules, now.utc)
    {
        // The driver begins what is due before it does anything else.
        let lasts = (window.ends - now.utc)
            .to_std()
            .expect("a window that is due has time left");
        return vec![(
            Event::Start {
                id,
                trigger,
                serves: Some(window.begins),
                lasts,
            },
            0,
        )];
    }
    let mut events = vec![
        (Event::Tick, 0),
        (Event::Tick, 1),
        (
            Event::Abort {
                reason: "called off".into(),
            },
            0,
        ),
    ];
    if node.begun < RUNS {
        let lasts = rules.schedule.duration();
        let trigger = Trigger::Operator;
        events.push((
            Event::Start {
                id,
                trigger,
                serves: None,
                lasts,
            },
            0,
        ));
    }
    let mut attempts: Vec<Attempt> = (0..node.begun)
        .flat_map(|n| {
            (1..=rules.attempts).map(move |number| Attempt {
                run: run_id(n),
                number,
            })
        })
        .collect();
    attempts.push(Attempt {
        run: RunId("never-begun".into()),
        number: 1,
    });
    for of in attempts {
        for how in completions() {
            events.push((
                Event::Ended {
                    of: of.clone(),
                    how,
                },
                0,
            ));
        }
    }
    events
}

fn check_state(node: &Node, rules: &Rules) -> Result<(), String> {
    let Node {
        window,
        t,
        closed_since,
        ..
    } = node;
    let now = at(*t).monotonic;
    let must = |held: bool, what: &str| {
        if held {
            Ok(())
        } else {
            Err(format!("{what}: {node:?}"))
        }
    };

    let job = window.job().map(|(_, job)| job);
    must(
        window.ready() == (job == Some(Job::Copy)),
        "ready and the copy go together",
    )?;
    must(
        window.run().is_some() == (window.phase() != Phase::Serving),
        "a run has a phase",
    )?;
    must(
        window.run().is_none_or(|run| run.attempt <= rules.attempts),
        "no more attempts than allowed",
    )?;
    must(
        (window.phase() == Phase::Serving) == window.wake_at().is_none(),
        "whoever does not serve wakes up by itself",
    )?;
    if window.ready() {
        let ends = window.run().expect("ready within a run").ends;
        must(now < ends, "a pin does not outlive its window")?;
    }
    match window.gate(rules) {
        GateWanted::Open => {
            must(
                !matches!(job, Some(Job::Drain | Job::Pin)),
                "draining and flushing need a closed gate",
            )?;
        }
        GateWanted::Closed { until } => {
            must(
                !matches!(job, None | Some(Job::Prepare | Job::Finish)),
                "the gate is closed for draining, flushing and copying only",
            )?;
            let since = at(closed_since.expect("the onlooker saw it close")).monotonic;
            must(
                until <= since + rules.hold_for,
                "the gate's own deadline keeps to hold_for",
            )?;
            must(now < until, "the driver acts before the watchdog has to")?;
        }
    }
    Ok(())
}

/// With nothing but time passing, every run ends and the gate opens.
fn check_it_ends(node: &Node, rules: &Rules, step: Step) -> Result<(), String> {
    let mut window = node.window.clone();
    let mut closed_for = 0;
    for t in node.t..node.t + 24 {
        let before = window.clone();
        window = step(window, rules, at(t), Event::Tick);
        let due = before.wake_at().is_some_and(|wake| wake <= at(t).monotonic);
        if due && window == before {
            return Err(format!("a tick that was due changes nothing: {before:?}"));
        }
        for _ in 0..3 {
            window = step(window, rules, at(t), Event::Tick);
        }
        closed_for = match window.gate(rules) {
            GateWanted::Closed { .. } => closed_for + 1,
            GateWanted::Open => 0,
        };
        if units(closed_for) > rules.hold_for {
            return Err(format!("the gate stays closed: {node:?}"));
        }
    }
    if window.phase() == Phase::Serving {
        Ok(())
    } else {
        Err(format!("never ends: {node:?}"))
    }
}

#[expect(clippy::too_many_lines, reason = "a list of independent checks")]
fn check_transition(
    node: &Node,
    event: &Event,
    t: u32,
    after: &Window,
    rules: &Rules,
) -> Result<(), String> {
    let before = &node.window;
    let must = |held: bool, what: &str| {
        if held {
            Ok(())
        } else {
            Err(format!(
                "{what}: {before:?} -- {event:?} at {t} -> {after:?}"
            ))
        }
    };
    let serves = after.phase() == Phase::Serving;
    let current = before.job().map(|(of, _)| of);
    let reached = |phase| before.phase() != phase && after.phase() == phase;

    if let Event::Ended { of, how } = event {
        if current.as_ref() != Some(of) {
            must(after == before, "a stale completion changes nothing")?;
        } else if matches!(how, Completion::Failed(_)) {
            must(serves, "a failure ends the run")?;
        } else if matches!(how, Completion::Busy(_)) && before.phase() == Phase::Flushing {
            must(
                after.gate(rules) == GateWanted::Open,
                "between two attempts the gate is open",
            )?;
        }
    }
    match event {
        Event::Abort { .. } => must(serves, "an abort ends the run")?,
        Event::Start {
            serves: Some(begins),
            ..
        } if before.phase() == Phase::Serving => {
            must(after.run().is_some(), "what is due begins")?;
            let ended = after.clone().step(
                rules,
                at(t),
                Event::Abort {
                    reason: String::new(),
                },
            );
            let again = ended.due(rules, at(t).utc);
            must(
                again.is_none_or(|(_, window)| window.begins != *begins),
                "a window has one run",
            )?;
        }
        Event::Start { .. } if before.phase() != Phase::Serving => {
            must(after == before, "one run at a time")?;
        }
        _ => {}
    }

    let after_completion = |wanted: &dyn Fn(&Completion) -> bool| matches!(event, Event::Ended { how, .. } if wanted(how));
    if reached(Phase::Flushing) {
        must(
            before.phase() == Phase::Draining
                && after_completion(&|how| *how == Completion::Drained),
            "flushed only when drained",
        )?;
    }
    if reached(Phase::Copying) {
        must(
            before.phase() == Phase::Flushing
                && after_completion(&|how| *how == Completion::Pinned),
            "ready only when pinned",
        )?;
        let held = matches!(after.gate(rules), GateWanted::Closed { .. });
        let State::Flushing { closed, .. } = &before.state else {
            unreachable!("checked above")
        };
        must(
            held == matches!(closed.pause, Pause::UntilCopied(_)),
            "announces flow during the copy exactly if they may",
        )?;
    }
    if reached(Phase::Finishing) {
        must(
            before.phase() == Phase::Copying && after_completion(&|how| *how == Completion::Copied),
            "finished only when copied",
        )?;
    }
    if reached(Phase::Draining)
        && let Event::Ended {
            how: Completion::Prepared(Pause::UntilCopied(estimate)),
            ..
        } = event
    {
        let run = after.run().expect("a run is draining");
        let left = run.ends.saturating_duration_since(at(t).monotonic);
        must(
            *estimate <= rules.held_at_most().min(left),
            "the gate does not close for a copy that would not fit",
        )?;
    }
    if serves && let Some(run) = before.run() {
        let (id, outcome) = after.last().ok_or("a run ended without an outcome")?;
        must(*id == run.id, "an outcome is of the run that ended")?;
        must(
            (*outcome == Outcome::Done)
                == (before.phase() == Phase::Finishing
                    && after_completion(&|how| *how == Completion::Published)),
            "done is what was published, nothing else",
        )?;
    }
    Ok(())
}

#[test]
fn every_reachable_state_is_safe_and_leads_back_to_serving() {
    let walked = walk(Window::step).unwrap_or_else(|broken| panic!("{broken}"));
    println!("{walked:?}");
    // Were the bounds or the events cut down by mistake, the walk would prove little.
    assert!(walked.states > 5_000, "{walked:?}");
}

/// `step`, except for one thing.
macro_rules! mutants {
    ($($name:literal: |$window:ident, $rules:ident, $now:ident, $event:ident| $body:expr;)+) => {
        [$(($name, (|$window: Window, $rules: &Rules, $now: Now, $event: Event| $body) as Step)),+]
    };
}

#[test]
#[expect(clippy::too_many_lines, reason = "a list of mutants")]
fn the_walk_catches_every_mutant() {
    fn state(window: &Window) -> &State {
        &window.state
    }
    fn is_tick(event: &Event) -> bool {
        *event == Event::Tick
    }
    let mutants = mutants! {
        "a held copy has no limit": |w, r, n, e| {
            let hold_over = matches!(state(&w), State::Copying { run, held_until: Some(_) } if n.monotonic < run.ends);
            if is_tick(&e) && hold_over { w } else { w.step(r, n, e) }
        };
        "a pin may outlive its window": |w, r, n, e| {
            let pinned = matches!(state(&w), State::Copying { held_until: None, .. });
            if is_tick(&e) && pinned { w } else { w.step(r, n, e) }
        };
        "draining has no limit": |w, r, n, e| {
            if is_tick(&e) && w.phase() == Phase::Draining { w } else { w.step(r, n, e) }
        };
        "flushing has no limit": |w, r, n, e| {
            if is_tick(&e) && w.phase() == Phase::Flushing { w } else { w.step(r, n, e) }
        };
        "preparing has no limit": |w, r, n, e| {
            if is_tick(&e) && w.phase() == Phase::Preparing { w } else { w.step(r, n, e) }
        };
        "finishing has no limit": |w, r, n, e| {
            if is_tick(&e) && w.phase() == Phase::Finishing { w } else { w.step(r, n, e) }
        };
        "an attempt that came to nothing is the last thing that happens": |w, r, n, e| {
            if is_tick(&e) && w.phase() == Phase::Retrying { w } else { w.step(r, n, e) }
        };
        "completions of an earlier attempt count": |w, r, n, e| {
            let e = match (e, w.job()) {
                (Event::Ended { of, how }, Some((current, _))) if of.run == current.run => {
                    Event::Ended { of: current, how }
                }
                (e, _) => e,
            };
            w.step(r, n, e)
        };
        "completions of another run count": |w, r, n, e| {
            let e = match (e, w.job()) {
                (Event::Ended { of, how }, Some((current, _))) if of.number == current.number => {
                    Event::Ended { of: current, how }
                }
                (e, _) => e,
            };
            w.step(r, n, e)
        };
        "an abort is ignored while copying": |w, r, n, e| {
            if matches!(e, Event::Abort { .. }) && w.ready() { w } else { w.step(r, n, e) }
        };
        "a failure is ignored while flushing": |w, r, n, e| {
            let failed = matches!(&e, Event::Ended { how: Completion::Failed(_), .. });
            if failed && w.phase() == Phase::Flushing { w } else { w.step(r, n, e) }
        };
        "a busy database keeps the gate closed": |w, r, n, e| {
            let busy = matches!(&e, Event::Ended { how: Completion::Busy(_), .. });
            if busy && w.phase() == Phase::Flushing { w } else { w.step(r, n, e) }
        };
        "attempts are not counted": |w, r, n, e| {
            let mut w = w.step(r, n, e);
            if let State::Draining { run, .. } = &mut w.state { run.attempt += 1 }
            w
        };
        "a window is run again and again": |w, r, n, e| {
            let mut w = w.step(r, n, e);
            w.served = None;
            w
        };
        "ready without a flush": |w, r, n, e| {
            match w.step(r, n, e) {
                Window { served, state: State::Flushing { run, .. } } => {
                    Window { served, state: State::Copying { run, held_until: None } }
                }
                w => w,
            }
        };
        "a copy that would not fit is begun": |w, r, n, e| {
            let r = Rules { hold_for: r.hold_for * 4, ..r.clone() };
            w.step(&r, n, e)
        };
        "a copy is begun that the rest of the window is too short for": |w, r, n, e| {
            let e = match e {
                Event::Ended { of, how: Completion::Prepared(Pause::UntilCopied(estimate)) }
                    if estimate <= r.held_at_most() =>
                {
                    let pause = Pause::UntilCopied(Duration::ZERO);
                    Event::Ended { of, how: Completion::Prepared(pause) }
                }
                e => e,
            };
            w.step(r, n, e)
        };
        "the gate opens on a rollback journal before the copy ends": |w, r, n, e| {
            let mut w = w.step(r, n, e);
            if let State::Copying { held_until, .. } = &mut w.state { *held_until = None }
            w
        };
        "announces are held during a copy in WAL": |w, r, n, e| {
            let mut w = w.step(r, n, e);
            if let State::Copying { held_until: held @ None, .. } = &mut w.state {
                *held = Some(n.monotonic + r.grace);
            }
            w
        };
        "the closure's limit starts anew with the flush": |w, r, n, e| {
            let mut w = w.step(r, n, e);
            if let State::Flushing { closed, .. } = &mut w.state {
                closed.until = n.monotonic + r.hold_for;
            }
            w
        };
        "a run that ran out of time is called done": |w, r, n, e| {
            let mut w = w.step(r, n, e);
            if let State::Serving { last: Some((_, outcome @ Outcome::Deadline { .. })) } = &mut w.state {
                *outcome = Outcome::Done;
            }
            w
        };
        "an outcome is forgotten": |w, r, n, e| {
            let mut w = w.step(r, n, e);
            if let State::Serving { last } = &mut w.state { *last = None }
            w
        };
    };
    let escaped: Vec<_> = mutants
        .iter()
        .filter(|(_, mutant)| walk(*mutant).is_ok())
        .map(|(name, _)| name)
        .collect();
    assert!(escaped.is_empty(), "not caught: {escaped:?}");
}

#[test]
fn a_window_missed_while_down_is_made_up_only_if_asked() {
    let mut rules = rules();
    // Ten units into the walk the window that began at three has ended.
    let now = at(10).utc;
    let never = Window::new(None);
    assert_eq!(never.due(&rules, now), None);
    rules.catch_up = true;
    let (trigger, window) = never.due(&rules, now).expect("it was missed");
    assert_eq!(trigger, Trigger::CatchUp);
    assert_eq!(window.begins, at(3).utc);
    assert_eq!(
        window.ends - now,
        chrono::Duration::from_std(rules.schedule.duration()).expect("short")
    );
    let had_its_run = Window::new(Some(at(3).utc));
    assert_eq!(had_its_run.due(&rules, now), None);
}

#[test]
fn a_restart_within_a_window_that_had_its_run_does_not_repeat_it() {
    let rules = rules();
    assert!(Window::new(None).due(&rules, at(4).utc).is_some());
    assert!(
        Window::new(Some(at(3).utc))
            .due(&rules, at(4).utc)
            .is_none()
    );
}

#[test]
fn a_clock_that_jumps_back_or_forth_needs_no_special_case() {
    let rules = rules();
    let window = Window::new(Some(at(3).utc));
    assert!(
        window.due(&rules, at(15).utc).is_some(),
        "forth, into the next window"
    );
    assert_eq!(
        window.due(&rules, at(11).utc),
        None,
        "forth, to between two windows"
    );
    let back = at(3).utc - chrono::Duration::minutes(2);
    assert!(
        window.due(&rules, back).is_some(),
        "back, into an earlier window"
    );
}
