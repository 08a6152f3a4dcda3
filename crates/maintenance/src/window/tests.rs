//! Every state reachable within bounds is visited and every event applied to it; what must
//! hold of a state, a transition or the time to come is checked at each. The same walk run
//! over mutants of `step` shows that the checks can fail.

#![expect(
    clippy::disallowed_methods,
    reason = "the walk's clocks begin at some instant"
)]

use std::collections::{HashSet, VecDeque};

use super::*;

mod model;

/// Time is counted in units of this many seconds.
const UNIT: u64 = 10;
const HORIZON: u32 = 26;
/// Runs begun; fewer where sidecars have so much more to say of each.
fn runs(rules: &Rules) -> usize {
    if rules.lease.is_some() { 2 } else { 3 }
}

type Step = fn(Window, &Rules, Now, Event) -> Window;

/// What the walk is done under: a sidecar copies, or the tracker.
fn both_rules() -> [Rules; 2] {
    let terms = Terms {
        ttl: units(2),
        claim_within: units(1),
        claim_within_held: units(1),
    };
    [Some(terms), None].map(|lease| Rules { lease, ..rules() })
}

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
        lease: None,
    }
}

/// Two sidecars, each with its own lease.
fn sidecars() -> [(Holder, Nonce); 2] {
    ["a", "b"].map(|name| {
        let holder = Holder::try_from(name.to_owned()).expect("a name");
        let nonce = Nonce::try_from(name.repeat(16)).expect("a nonce");
        (holder, nonce)
    })
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
    /// States in which a sidecar has the lease.
    leased: usize,
}

fn run_id(n: usize) -> RunId {
    RunId(format!("run-{n}"))
}

/// Completions of every kind, those that fit the phase and those that do not.
fn completions() -> Vec<Completion> {
    vec![
        Completion::Prepared(Pause::UntilPinned(None)),
        Completion::Prepared(Pause::UntilPinned(Some(units(1)))),
        Completion::Prepared(Pause::UntilPinned(Some(units(99)))),
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

fn walk(rules: &Rules, step: Step) -> Result<Walked, String> {
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
        walked.leased += usize::from(node.window.leased().is_some());
        check_state(&node, rules)?;
        check_it_ends(&node, rules, step)?;
        for (event, passes) in events(&node, rules) {
            walked.transitions += 1;
            let t = node.t + passes;
            let mut window = step(node.window.clone(), rules, at(t), event.clone());
            check_transition(&node, &event, t, &window, rules)?;
            if passes > 0 {
                // The driver goes round until nothing is left to do at this instant.
                for _ in 0..4 {
                    window = step(window, rules, at(t), Event::Tick);
                }
            }
            let closed = matches!(window.gate(rules), GateWanted::Closed { .. });
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
    if node.begun < runs(rules)
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
    if node.begun < runs(rules) {
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
    events.push((Event::Spoiled(spoiled()), 0));
    if rules.lease.is_some() {
        // Sidecars speak of the current run, of the one before, and of none.
        let newest = node.begun.saturating_sub(2)..node.begun;
        let runs = newest.map(run_id).chain([RunId("never-begun".into())]);
        events.extend(
            runs.flat_map(|run| said_by_sidecars(&run))
                .map(|event| (event, 0)),
        );
    }
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

fn spoiled() -> Failure {
    Failure {
        cause: Cause::BrokenPin,
        message: "it moved".into(),
    }
}

/// Everything that sidecars can say of a run.
fn said_by_sidecars(run: &RunId) -> Vec<Event> {
    let by_file = |how| Event::FinishedByFile {
        run: run.clone(),
        how,
    };
    let mut said = vec![
        by_file(Finished::Ok),
        by_file(Finished::Failed("no room".into())),
    ];
    for (holder, nonce) in sidecars() {
        said.extend([
            Event::Claim {
                run: run.clone(),
                holder,
                nonce: nonce.clone(),
            },
            Event::Renew {
                run: run.clone(),
                nonce: nonce.clone(),
            },
            Event::Finish {
                run: run.clone(),
                nonce: nonce.clone(),
                how: Finished::Ok,
            },
            Event::Finish {
                run: run.clone(),
                nonce,
                how: Finished::Failed("no room".into()),
            },
        ]);
    }
    said
}

/// The run and the lease that an event speaks of, if it is a sidecar's.
fn speaks_of(event: &Event) -> Option<(&RunId, Option<&Nonce>)> {
    match event {
        Event::Claim { run, nonce, .. }
        | Event::Renew { run, nonce }
        | Event::Finish { run, nonce, .. } => Some((run, Some(nonce))),
        Event::FinishedByFile { run, .. } => Some((run, None)),
        _ => None,
    }
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
    let phase = window.phase();
    must(
        window.ready() == matches!(phase, Phase::Copying | Phase::Offered | Phase::Leased),
        "ready is what may be copied",
    )?;
    must(
        (job == Some(Job::Copy)) == (phase == Phase::Copying),
        "the copy is this process's unless it is offered",
    )?;
    let offered = matches!(phase, Phase::Offered | Phase::Leased);
    must(
        !window.ready() || offered == rules.lease.is_some(),
        "who copies is as configured",
    )?;
    must(
        window.shown() == (window.ready() && phase != Phase::Leased),
        "what is taken is not shown to others",
    )?;
    must(
        window.deadline().is_some() == window.ready(),
        "what is ready has a deadline",
    )?;
    check_lease(node, rules)?;
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
                offered || !matches!(job, None | Some(Job::Prepare | Job::Finish)),
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

/// A lease is what its holder is told, and never outlives the hard deadline.
fn check_lease(Node { window, t, .. }: &Node, rules: &Rules) -> Result<(), String> {
    let now = at(*t).monotonic;
    let must = |held: bool, what: &str| {
        if held {
            Ok(())
        } else {
            Err(format!("{what} at {t}: {window:?}"))
        }
    };
    if let Some(deadline) = window.deadline() {
        let ends = window.run().expect("ready within a run").ends;
        must(deadline <= ends, "a deadline is within the window")?;
        if let GateWanted::Closed { until } = window.gate(rules) {
            must(
                deadline + rules.grace <= until,
                "a deadline is within the closure",
            )?;
        }
        let limit = window.wake_at().expect("ready is not for ever");
        must(now < limit && limit <= deadline, "limits are kept in order")?;
        let lasts = limit.saturating_duration_since(now);
        let terms = rules.lease;
        must(
            window.claim_until().is_none() || terms.is_some_and(|t| lasts <= t.claim_within),
            "an offer is not longer than configured",
        )?;
        must(
            window.leased().is_none() || terms.is_some_and(|t| lasts <= t.ttl),
            "a lease is not longer than its time to live",
        )?;
    }
    let holders = sidecars().into_iter().filter(|(holder, nonce)| {
        let answered = |run: &RunId| window.claimed(rules, run, nonce, now);
        let granted = window.run().and_then(|run| answered(&run.id).ok());
        granted.is_some_and(|granted| granted.holder == *holder)
    });
    must(
        holders.count() == usize::from(window.leased().is_some()),
        "one sidecar has the lease that there is, and the other none",
    )?;
    let (_, nonce) = &sidecars()[0];
    must(
        window.claimed(rules, &RunId("never-begun".into()), nonce, now) == Err(Refused::StaleRun),
        "what is not the current run is stale",
    )
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
    if let Some((run, nonce)) = speaks_of(event) {
        let of_current = before.run().is_some_and(|current| current.id == *run);
        must(
            of_current || after == before,
            "what is said of another run changes nothing",
        )?;
        let holds = before.leased().is_some_and(|it| Some(&it.nonce) == nonce);
        let may = holds || before.phase() == Phase::Offered;
        must(
            may || after == before,
            "who has no lease changes nothing that is not offered",
        )?;
        let gate_moves = before.gate(rules) != after.gate(rules);
        must(
            !gate_moves || serves,
            "a sidecar moves the gate by ending the run, in no other way",
        )?;
    }
    match event {
        Event::Abort { .. } => must(serves, "an abort ends the run")?,
        Event::Spoiled(_) => must(
            if before.ready() {
                serves
            } else {
                after == before
            },
            "what is spoiled ends a run that is ready, and no other",
        )?,
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
    if reached(Phase::Leased) {
        must(
            before.phase() == Phase::Offered && matches!(event, Event::Claim { .. }),
            "a lease is claimed",
        )?;
    }
    if let (Some(lease), Some(now_leased)) = (before.leased(), after.leased()) {
        must(
            (&lease.holder, &lease.nonce) == (&now_leased.holder, &now_leased.nonce),
            "a lease does not change hands",
        )?;
        must(
            now_leased.until == lease.until
                || matches!(event, Event::Claim { .. } | Event::Renew { .. }),
            "a lease lasts longer only if it is renewed",
        )?;
    }
    if let (Some(deadline), Some(later)) = (before.deadline(), after.deadline()) {
        must(deadline == later, "a deadline does not move")?;
    }
    if reached(Phase::Copying) || reached(Phase::Offered) {
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
        let published = before.phase() == Phase::Finishing
            && after_completion(&|how| *how == Completion::Published);
        let finished = before.phase() == Phase::Leased
            && matches!(
                event,
                Event::Finish {
                    how: Finished::Ok,
                    ..
                }
            );
        let by_file = before.phase() == Phase::Offered
            && matches!(
                event,
                Event::FinishedByFile {
                    how: Finished::Ok,
                    ..
                }
            );
        must(
            (*outcome == Outcome::Done) == (published || finished || by_file),
            "done is what was published or finished, nothing else",
        )?;
        must(
            matches!(outcome, Outcome::NoSidecar { .. })
                == (before.phase() == Phase::Offered && *event == Event::Tick),
            "no sidecar came if the time to claim has passed, and not otherwise",
        )?;
    }
    Ok(())
}

#[test]
fn every_reachable_state_is_safe_and_leads_back_to_serving() {
    for rules in both_rules() {
        let walked = walk(&rules, Window::step).unwrap_or_else(|broken| panic!("{broken}"));
        println!("{walked:?}");
        // Were the bounds or the events cut down by mistake, the walk would prove little.
        assert!(walked.states > 5_000, "{walked:?}");
        assert_eq!(walked.leased > 500, rules.lease.is_some(), "{walked:?}");
    }
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
        "an offer has no limit": |w, r, n, e| {
            if is_tick(&e) && w.phase() == Phase::Offered { w } else { w.step(r, n, e) }
        };
        "a lease has no limit": |w, r, n, e| {
            if is_tick(&e) && w.phase() == Phase::Leased { w } else { w.step(r, n, e) }
        };
        "a lease outlives its window": |w, r, n, e| {
            let mut w = w.step(r, n, e);
            if let State::Leased { run, lease, .. } = &mut w.state && lease.until == run.ends {
                lease.until += r.grace;
            }
            w
        };
        "a lease outlives the closure of the gate": |w, r, n, e| {
            let mut w = w.step(r, n, e);
            if let State::Leased { lease, .. } = &mut w.state {
                lease.until = n.monotonic + r.lease.expect("terms").ttl;
            }
            w
        };
        "an announce is let through while a sidecar copies a paused database": |w, r, n, e| {
            let mut w = w.step(r, n, e);
            if let State::Leased { held_until, .. } = &mut w.state { *held_until = None }
            w
        };
        "a renewal moves the closure's limit": |w, r, n, e| {
            let renewal = matches!(e, Event::Renew { .. });
            let mut w = w.step(r, n, e);
            if let State::Leased { held_until: Some(held), .. } = &mut w.state && renewal {
                *held += r.grace;
            }
            w
        };
        "whoever claims last has the lease": |w, r, n, e| {
            match (w, e) {
                (Window { served, state: State::Leased { run, held_until, .. } }, e @ Event::Claim { .. }) => {
                    let claim_until = n.monotonic;
                    let state = State::Offered { run, held_until, claim_until };
                    Window { served, state }.step(r, n, e)
                }
                (w, e) => w.step(r, n, e),
            }
        };
        "anybody may renew": |w, r, n, e| {
            let e = match (e, w.leased()) {
                (Event::Renew { run, .. }, Some(lease)) => Event::Renew { run, nonce: lease.nonce.clone() },
                (e, _) => e,
            };
            w.step(r, n, e)
        };
        "anybody may finish": |w, r, n, e| {
            let e = match (e, w.leased()) {
                (Event::Finish { run, how, .. }, Some(lease)) => {
                    Event::Finish { run, nonce: lease.nonce.clone(), how }
                }
                (e, _) => e,
            };
            w.step(r, n, e)
        };
        "a lease of an earlier run counts": |w, r, n, e| {
            let e = match (e, w.run()) {
                (Event::Claim { holder, nonce, .. }, Some(run)) => {
                    Event::Claim { run: run.id.clone(), holder, nonce }
                }
                (e, _) => e,
            };
            w.step(r, n, e)
        };
        "a file ends a run that is leased": |w, r, n, e| {
            match (w, e) {
                (Window { served, state: State::Leased { run, held_until, .. } }, e @ Event::FinishedByFile { .. }) => {
                    let claim_until = n.monotonic;
                    let state = State::Offered { run, held_until, claim_until };
                    Window { served, state }.step(r, n, e)
                }
                (w, e) => w.step(r, n, e),
            }
        };
        "a failed sidecar is called done": |w, r, n, e| {
            let e = match e {
                Event::Finish { run, nonce, .. } => Event::Finish { run, nonce, how: Finished::Ok },
                e => e,
            };
            w.step(r, n, e)
        };
        "a sidecar that failed by file is called done": |w, r, n, e| {
            let e = match e {
                Event::FinishedByFile { run, .. } => Event::FinishedByFile { run, how: Finished::Ok },
                e => e,
            };
            w.step(r, n, e)
        };
        "a run whose lease ran out is offered again": |w, r, n, e| {
            let before = w.clone();
            let w = w.step(r, n, e.clone());
            match before {
                Window { served, state: State::Leased { run, held_until, lease } }
                    if is_tick(&e) && w.phase() == Phase::Serving && lease.until < run.ends =>
                {
                    let claim_until = deadline_of(&run, held_until);
                    Window { served, state: State::Offered { run, held_until, claim_until } }
                }
                _ => w,
            }
        };
        "a broken pin is ignored while a sidecar copies": |w, r, n, e| {
            let ignored = matches!(e, Event::Spoiled(_)) && w.leased().is_some();
            if ignored { w } else { w.step(r, n, e) }
        };
        "the tracker copies what it should offer": |w, r, n, e| {
            match w.step(r, n, e) {
                Window { served, state: State::Offered { run, held_until, .. } } => {
                    Window { served, state: State::Copying { run, held_until } }
                }
                w => w,
            }
        };
        "an outcome is forgotten": |w, r, n, e| {
            let mut w = w.step(r, n, e);
            if let State::Serving { last } = &mut w.state { *last = None }
            w
        };
    };
    let rules = both_rules();
    let escaped: Vec<_> = mutants
        .iter()
        .filter(|(_, mutant)| rules.iter().all(|rules| walk(rules, *mutant).is_ok()))
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

#[test]
fn a_window_is_missed_once_it_has_passed_without_a_run() {
    let rules = rules();
    let first = at(3).utc;
    let before = first - units(12);
    let begins = |window: &Window, rules: &Rules, t| {
        let missed = window.missed(rules, at(t).utc);
        missed.map(|interval| interval.begins)
    };
    let idle = Window::new(Some(before));
    // It lasts six units, and may yet have its run.
    assert_eq!(begins(&idle, &rules, 8), None);
    assert_eq!(begins(&idle, &rules, 9), Some(first));
    assert_eq!(begins(&Window::new(Some(first)), &rules, 9), None);
    assert_eq!(begins(&Window::new(None), &rules, 9), Some(first));
    let making_up = Rules {
        catch_up: true,
        ..rules.clone()
    };
    assert_eq!(begins(&idle, &making_up, 9), None, "it is due instead");
    let start = Event::Start {
        id: run_id(0),
        trigger: Trigger::Operator,
        serves: None,
        lasts: units(20),
    };
    let busy = idle.step(&rules, at(4), start);
    assert_eq!(
        begins(&busy, &rules, 9),
        None,
        "told of when that run has ended"
    );
}

#[test]
fn names_are_those_of_the_json() {
    let json = |value: serde_json::Value| value.as_str().map(str::to_owned);
    for phase in Phase::ALL {
        let name = json(serde_json::json!(phase));
        assert_eq!(name.as_deref(), Some(phase.name()));
    }
    for cause in Cause::ALL {
        let name = json(serde_json::json!(cause));
        assert_eq!(name.as_deref(), Some(cause.name()));
    }
    let message = String::new();
    let phase = Phase::Serving;
    let outcomes = [
        Outcome::Done,
        Outcome::WouldNotFit {
            message: message.clone(),
        },
        Outcome::NoSidecar {
            message: message.clone(),
        },
        Outcome::Deadline {
            phase,
            message: message.clone(),
        },
        Outcome::Aborted { phase, message },
    ];
    for (outcome, kind) in outcomes.iter().zip(Outcome::KINDS) {
        assert_eq!(serde_json::json!(outcome)["kind"], kind);
        assert_eq!(outcome.kind(), kind);
    }
}
