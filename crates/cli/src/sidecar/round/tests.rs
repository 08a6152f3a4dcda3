//! Every state that can be reached within some steps, with every event in each of them; and
//! what an operator would want to read in the order it happens.

use std::collections::HashSet;

use chrono::TimeZone as _;
use torrust_tracker_maintenance::sqlite::Journal;
use torrust_tracker_maintenance::status::PinnedFile;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const FOREVER: Rules = Rules { once: false };
const ONCE: Rules = Rules { once: true };

fn run(letter: char) -> RunId {
    RunId::parse(&format!("20261122T030000Z-{letter}")).expect("a run's id")
}

fn ready(letter: char) -> Ready {
    let began = Utc.with_ymd_and_hms(2026, 11, 22, 3, 0, 0);
    let began = began.single().expect("a valid time");
    Ready {
        offer: Offer {
            run: run(letter),
            began,
            pinned: began,
            journal: Journal::Wal,
            pause: Duration::ZERO,
            file: PinnedFile {
                device: 1,
                inode: 7,
                page_size: 4096,
                page_count: 10,
                bytes: 40960,
                modified: 1_795_000_000_123_456_789,
            },
        },
        database: "/data/tracker.db".into(),
        copy: CopyOf::PinnedFile,
        for_sidecars: true,
        holder: None,
        claim_within: Some(60 * SECOND),
    }
}

fn grant(expires: Duration, deadline: Duration) -> Reply {
    Reply::Granted(Grant {
        ttl: 45 * SECOND,
        expires,
        deadline,
        deadline_utc: ready('a').offer.began,
    })
}

fn failure(error: &'static str) -> Failure {
    Failure::new(Exit::Failed, error, error)
}

fn found(ready: Ready) -> Reply {
    Reply::Ready(Box::new(ready))
}

/// Every kind of reply there is, to whatever was asked.
fn replies() -> Vec<Reply> {
    let mut replies = vec![
        found(ready('a')),
        found(ready('b')),
        found(Ready {
            for_sidecars: false,
            ..ready('a')
        }),
        found(Ready {
            holder: Some("`other`".to_owned()),
            ..ready('a')
        }),
        Reply::NotReady(None),
        Reply::NotReady(Some(run('a'))),
        Reply::Started(run('a')),
        grant(45 * SECOND, 300 * SECOND),
        grant(45 * SECOND, 20 * SECOND),
        grant(Duration::ZERO, 300 * SECOND),
        Reply::Nobody(failure("not_running")),
        Reply::Unclear(failure("no_answer")),
        Reply::Unfit(run('a'), failure("wrong_database")),
    ];
    replies.extend([true, false].map(|held| Reply::Verdict { held, why: None }));
    let refusals = [Refusal::Gone, Refusal::Taken, Refusal::Other];
    replies.extend(refusals.map(|refusal| Reply::Refused(refusal, failure("refused"))));
    replies
}

/// Every event a state can meet, and when.
fn events(state: &State, now: Instant) -> Vec<(Event, Instant)> {
    let mut events = vec![
        (Event::Stop("SIGTERM".to_owned()), now),
        (Event::Tick, now),
        (Event::Worked(Ok(())), now),
        (Event::Worked(Err(failure("not_copied"))), now),
    ];
    events.extend(state.wakes().map(|at| (Event::Tick, at.max(now))));
    if let Some((ask, _)) = state.request() {
        let asked = ask.at.max(now);
        for reply in replies() {
            // At once, and after longer than some limits are.
            for took in [Duration::ZERO, 25 * SECOND] {
                let reply = reply.clone();
                events.push((Event::Replied { asked, reply }, asked + took));
            }
        }
    }
    events
}

/// What must be true of every step.
fn check(rules: Rules, before: &State, event: &Event, after: &State, now: Instant) {
    let told = format!("{before:#?}\n{event:?}\n{after:#?}");
    let is_over = |state: &State| matches!(state, State::Over { .. });

    // A copy is good only on the tracker's word, and once given up it never is.
    if let State::Over {
        verdict: Ok(()), ..
    } = after
        && before != after
    {
        let asked =
            matches!(before, State::Finishing { result: Ok(()), until, .. } if now < *until);
        let reply = match event {
            Event::Replied { reply, .. } => Some(reply),
            _ => None,
        };
        let held = matches!(reply, Some(Reply::Verdict { held: true, .. }));
        assert!(asked && held, "{told}");
    }
    // Nothing is copied past a limit.
    if let Some(lease) = after.works() {
        assert!(now < lease.expires && now < lease.deadline, "{told}");
    }
    assert!(
        after.works().is_none() || after.gives_up().is_none(),
        "{told}"
    );
    // It always goes on: something is asked, until it is over, and that is final.
    assert_eq!(after.request().is_none(), is_over(after), "{told}");
    if is_over(before) {
        assert_eq!(before, after, "{told}");
        return;
    }
    // What has a limit knows when to wake up for it, and not only in the past.
    if let Some(wakes) = after.wakes() {
        assert!(wakes > now, "{told}");
    }
    if let (Some((one, first)), Some((other, second))) = (before.request(), after.request()) {
        if one.number == other.number {
            // Under way, and to be left alone.
            assert_eq!((one, first), (other, second), "{told}");
            assert!(!matches!(event, Event::Replied { .. }), "{told}");
        } else {
            assert!(other.number > one.number, "{told}");
            let most = if after.works().is_some() {
                15 * SECOND
            } else {
                CEILING
            };
            assert!(other.at <= now + most, "{told}");
        }
    }
    match event {
        // Whatever it was doing, it ends in time for whoever told it to.
        Event::Stop(_) => assert!(
            matches!(
                after,
                State::Over {
                    verdict: Err(_),
                    ..
                }
            ) || matches!(after, State::Finishing { until, .. } if *until <= now + STOP_WITHIN),
            "{told}"
        ),
        // What may pass by itself ends nothing, unless there is to be one run alone.
        Event::Replied { reply, .. } if !rules.once => {
            let passing = matches!(reply, Reply::Nobody(_) | Reply::Unclear(_));
            assert!(
                !(passing && is_over(after)) || now >= limit(before),
                "{told}"
            );
        }
        _ => {}
    }
    // What cannot be copied is not claimed.
    if let Event::Replied {
        reply: Reply::Unfit(..),
        ..
    } = event
        && !matches!(before, State::Claiming { .. })
    {
        assert!(!matches!(after, State::Claiming { .. }), "{told}");
    }
    // A run that was let go by is not taken up again.
    if let (
        State::Watching(Watching {
            passed: Some(passed),
            ..
        }),
        State::Claiming { ready, .. },
    ) = (before, after)
    {
        assert_ne!(passed.run, ready.offer.run, "{told}");
    }
}

fn limit(state: &State) -> Instant {
    state.wakes().unwrap_or_else(far)
}

#[expect(clippy::disallowed_methods, reason = "an instant to reckon from")]
fn start() -> Instant {
    Instant::now()
}

fn far() -> Instant {
    start() + 1_000_000 * SECOND
}

/// Requests are numbered for ever, which no behaviour depends on.
fn key(state: &State, now: Instant) -> String {
    let mut state = state.clone();
    match &mut state {
        State::Starting { ask, .. }
        | State::Watching(Watching { ask, .. })
        | State::Claiming { ask, .. }
        | State::Leased { ask, .. }
        | State::Finishing { ask, .. } => ask.number = 0,
        State::Over { .. } => {}
    }
    format!("{state:?} {now:?}")
}

#[test]
fn every_step_keeps_the_rules() {
    let mut counts = (0, 0);
    for (rules, begun) in [
        (FOREVER, false),
        (ONCE, false),
        (FOREVER, true),
        (ONCE, true),
    ] {
        let now = start();
        let mut front = vec![(State::begin(now, begun), now)];
        let mut seen = HashSet::new();
        // From the beginning of a run to its end.
        for _ in 0..4 + u32::from(begun) {
            let mut next = Vec::new();
            for (before, now) in front {
                for (event, at) in events(&before, now) {
                    let moment = Moment {
                        now: at,
                        chance: 0.5,
                    };
                    let after = before.clone().step(rules, event.clone(), moment);
                    check(rules, &before, &event, &after, at);
                    counts.1 += 1;
                    if seen.insert(key(&after, at)) {
                        next.push((after, at));
                    }
                }
            }
            front = next;
        }
        counts.0 += seen.len();
    }
    println!("{} states, {} steps", counts.0, counts.1);
    assert!(counts.1 > 100_000, "the walk was cut short: {counts:?}");
}

/// A sidecar that is told things in turn.
struct Told {
    state: State,
    rules: Rules,
    now: Instant,
}

impl Told {
    fn begin(rules: Rules) -> Self {
        let now = start();
        let state = State::begin(now, false);
        Self { state, rules, now }
    }

    /// The tracker's reply, at once when it was asked.
    fn replied(self, reply: Reply) -> Self {
        let asked = self
            .state
            .request()
            .map_or(self.now, |(ask, _)| ask.at)
            .max(self.now);
        Self { now: asked, ..self }.met(Event::Replied { asked, reply })
    }

    fn met(self, event: Event) -> Self {
        let moment = Moment {
            now: self.now,
            chance: 1.0,
        };
        let state = self.state.step(self.rules, event, moment);
        Self { state, ..self }
    }

    fn later(self, time: Duration) -> Self {
        Self {
            now: self.now + time,
            ..self
        }
        .met(Event::Tick)
    }

    fn leased(rules: Rules) -> Self {
        Self::begin(rules)
            .replied(found(ready('a')))
            .replied(grant(45 * SECOND, 300 * SECOND))
    }

    fn request(&self) -> Option<Request> {
        self.state.request().map(|(_, request)| request)
    }

    fn error(&self) -> &str {
        match &self.state {
            State::Over {
                verdict: Err(failure),
                ..
            } => failure.error,
            state => panic!("it has not failed: {state:?}"),
        }
    }
}

#[test]
fn a_night_as_it_should_be() {
    let told = Told::begin(FOREVER)
        .replied(Reply::NotReady(None))
        .replied(found(ready('a')));
    assert_eq!(told.request(), Some(Request::Claim(run('a'))));
    let told = told.replied(grant(45 * SECOND, 300 * SECOND));
    let (ask, request) = told.state.request().expect("it is renewed");
    assert_eq!(request, Request::Renew(run('a'), 15 * SECOND));
    assert_eq!(ask.at, told.now + 15 * SECOND, "at a third of its time");
    assert!(told.state.works().is_some());
    let told = told
        .replied(grant(45 * SECOND, 285 * SECOND))
        .met(Event::Worked(Ok(())));
    assert_eq!(told.request(), Some(Request::Finish(run('a'), None)));
    assert!(told.state.works().is_none() && told.state.gives_up().is_none());
    let told = told.replied(Reply::Verdict {
        held: true,
        why: None,
    });
    let State::Over {
        run: of,
        verdict: Ok(()),
    } = told.state
    else {
        panic!("{:?}", told.state)
    };
    assert_eq!(of, Some(run('a')));

    // The same run is not taken twice, and the next one is.
    let next = Told {
        state: State::after(of, told.now),
        ..Told::begin(FOREVER)
    };
    let next = next.replied(found(ready('a')));
    assert_eq!(next.request(), Some(Request::Look));
    assert_eq!(
        next.replied(found(ready('b'))).request(),
        Some(Request::Claim(run('b')))
    );
}

/// Another's run is in progress when it is asked, and gone when it is looked at: 32 may wait,
/// and any more are answered at once.
#[test]
fn a_run_that_comes_and_goes_is_not_chased_without_a_pause() {
    let mut told = Told {
        state: State::begin(start(), true),
        ..Told::begin(FOREVER)
    };
    for _ in 0..3 {
        assert_eq!(told.request(), Some(Request::Start));
        told = told.replied(Reply::Refused(Refusal::Taken, failure("busy")));
        assert_eq!(told.request(), Some(Request::Look));
        told = told.replied(Reply::NotReady(None));
        let (ask, _) = told.state.request().expect("it is tried again");
        assert_eq!(ask.at, told.now + LOOK_EVERY);
    }
}

#[test]
fn what_is_lost_on_the_way_is_asked_again() {
    let lost = || Reply::Unclear(failure("no_answer"));
    let told = Told::begin(FOREVER)
        .replied(found(ready('a')))
        .replied(lost());
    assert_eq!(told.request(), Some(Request::Claim(run('a'))));
    let told = told
        .replied(grant(45 * SECOND, 300 * SECOND))
        .replied(lost());
    assert_eq!(told.request(), Some(Request::Renew(run('a'), 15 * SECOND)));
    assert!(
        told.state.works().is_some(),
        "one renewal is no reason to give up"
    );
    let mut told = told.met(Event::Worked(Ok(())));
    for _ in 0..10 {
        told = told.replied(lost());
        assert_eq!(told.request(), Some(Request::Finish(run('a'), None)));
    }
    let told = told.replied(Reply::Verdict {
        held: true,
        why: None,
    });
    assert!(matches!(
        told.state,
        State::Over {
            verdict: Ok(()),
            ..
        }
    ));
}

#[test]
fn waits_double_up_to_a_ceiling_and_are_not_alike() {
    let mut told = Told::begin(FOREVER);
    let mut waits = Vec::new();
    for _ in 0..9 {
        told = told.replied(Reply::Nobody(failure("not_running")));
        let (ask, _) = told.state.request().expect("it goes on");
        waits.push((ask.at - told.now).as_secs_f64());
    }
    assert_eq!(waits, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]);
    let ask = Ask::first(told.now);
    let wait = |chance| {
        let moment = Moment {
            now: told.now,
            chance,
        };
        ask.again(moment, CEILING).at - told.now
    };
    assert_eq!(wait(0.0), FIRST_WAIT / 2);
    assert_eq!(wait(1.0), FIRST_WAIT);
    // It is there again: forgotten.
    let told = told
        .replied(Reply::NotReady(None))
        .replied(Reply::Nobody(failure("not_running")));
    let (ask, _) = told.state.request().expect("it goes on");
    assert_eq!(ask.at - told.now, FIRST_WAIT);
}

#[test]
fn limits_end_a_copy_whatever_else_comes() {
    let told = Told::leased(FOREVER).later(45 * SECOND);
    assert_eq!(told.state.gives_up().map(|why| why.error), Some("lost"));
    // A copy that is complete a moment too late is not believed.
    let told = told.met(Event::Worked(Ok(()))).replied(Reply::Verdict {
        held: true,
        why: None,
    });
    assert_eq!(told.error(), "lost");

    let told = Told::begin(FOREVER).replied(found(ready('a')));
    let told = told
        .replied(grant(45 * SECOND, 20 * SECOND))
        .later(20 * SECOND);
    assert_eq!(
        told.state.gives_up().map(|why| why.exit),
        Some(Exit::Deadline)
    );
    let why = Some("its time was over".to_owned());
    assert_eq!(
        told.replied(Reply::Verdict { held: false, why }).error(),
        "deadline"
    );
}

#[test]
fn a_run_that_is_gone_is_asked_why() {
    let gone = Reply::Refused(Refusal::Gone, failure("stale_run"));
    let told = Told::leased(FOREVER).replied(gone.clone());
    assert!(
        matches!(told.request(), Some(Request::Finish(_, Some(_)))),
        "{:?}",
        told.state
    );
    let why = Some("the lease ran out".to_owned());
    let known = Told {
        state: told.state.clone(),
        ..told
    }
    .replied(Reply::Verdict { held: false, why });
    let State::Over {
        verdict: Err(failure),
        ..
    } = &known.state
    else {
        panic!("{:?}", known.state)
    };
    assert!(failure.message.contains("the lease ran out"), "{failure:?}");
    // The tracker was restarted, and knows nothing.
    let told = Told::leased(FOREVER)
        .replied(gone.clone())
        .replied(gone.clone());
    assert_eq!(told.error(), "lost");
    let told = Told::leased(FOREVER)
        .met(Event::Worked(Ok(())))
        .replied(gone);
    assert_eq!(told.error(), "lost");
}

#[test]
fn without_a_verdict_there_is_no_backup() {
    let told = Told::leased(ONCE)
        .met(Event::Worked(Ok(())))
        .later(VERDICT_WITHIN);
    assert_eq!(told.error(), "no_verdict");
    let told = Told::leased(ONCE).met(Event::Worked(Ok(())));
    let told = told.replied(Reply::Verdict {
        held: false,
        why: None,
    });
    assert_eq!(told.error(), "not_held");
}

#[test]
fn once_ends_with_what_only_an_operator_can_mend() {
    let begun = || Told::begin(ONCE);
    let nobody = || Reply::Nobody(failure("not_running"));
    assert_eq!(begun().replied(nobody()).error(), "not_running");
    let held = || Ready {
        holder: Some("`other`".to_owned()),
        ..ready('a')
    };
    assert_eq!(begun().replied(found(held())).error(), "taken");
    let trackers = || Ready {
        for_sidecars: false,
        ..ready('a')
    };
    assert_eq!(
        begun().replied(found(trackers())).error(),
        "taken_by_tracker"
    );
    for claimed in [Refusal::Taken, Refusal::Other] {
        let refused = Reply::Refused(claimed, failure("refused"));
        assert_eq!(
            begun().replied(found(ready('a'))).replied(refused).error(),
            "refused"
        );
    }
    // Too late for this run is in time for the next.
    let gone = Reply::Refused(Refusal::Gone, failure("stale_run"));
    let told = begun().replied(found(ready('a'))).replied(gone);
    assert_eq!(told.request(), Some(Request::Look));
    // A tracker that was there before may be restarting.
    let mut told = begun().replied(Reply::NotReady(None)).replied(nobody());
    assert_eq!(told.request(), Some(Request::Look));
    for _ in 0..8 {
        told = told.replied(nobody());
    }
    assert_eq!(told.error(), "not_running", "a minute is enough");

    let unfit = || Reply::Unfit(run('a'), failure("wrong_database"));
    assert_eq!(begun().replied(unfit()).error(), "wrong_database");

    // Without --once all of that passes.
    for reply in [nobody(), found(held()), found(trackers()), unfit()] {
        assert_eq!(
            Told::begin(FOREVER).replied(reply).request(),
            Some(Request::Look)
        );
    }
}

#[test]
fn what_cannot_be_copied_from_here_is_for_others_and_the_next_is_looked_at() {
    let told = Told::begin(FOREVER);
    assert!(told.state.considers(&ready('a')));
    let held = Ready {
        holder: Some("`other`".to_owned()),
        ..ready('a')
    };
    assert!(!told.state.considers(&held), "it is not to be had anyway");
    let unfit = |run| Reply::Unfit(run, failure("wrong_database"));
    let told = told.replied(unfit(run('a')));
    assert!(
        !told.state.considers(&ready('a')),
        "it is known by now, and the disk left alone"
    );
    let told = told.replied(found(ready('a')));
    assert_eq!(told.request(), Some(Request::Look));
    assert!(told.state.considers(&ready('b')));
    let told = told.replied(found(ready('b')));
    assert_eq!(told.request(), Some(Request::Claim(run('b'))));

    // What it has started itself nobody else would end.
    let told = Told {
        state: State::begin(start(), true),
        ..Told::begin(FOREVER)
    };
    let told = told.replied(Reply::Started(run('a')));
    assert!(!told.state.considers(&ready('a')));
    assert!(told.state.considers(&ready('b')));
}

#[test]
fn a_run_that_was_started_and_failed_is_not_waited_for() {
    let now = start();
    let told = Told {
        state: State::begin(now, true),
        rules: ONCE,
        now,
    };
    assert_eq!(told.request(), Some(Request::Start));
    let told = told
        .replied(Reply::Started(run('a')))
        .replied(Reply::NotReady(Some(run('a'))));
    let told = told
        .replied(Reply::NotReady(None))
        .replied(Reply::NotReady(None));
    assert_eq!(
        told.request(),
        Some(Request::Look),
        "it may yet be published"
    );
    let told = told.later(SEEN_WITHIN).replied(Reply::NotReady(None));
    assert_eq!(told.error(), "not_ready");
}

#[test]
fn a_run_is_started_when_the_one_in_progress_is_over() {
    let now = start();
    let state = State::begin(now, true);
    let told = Told {
        state,
        rules: ONCE,
        now,
    };
    let told = told.replied(Reply::Refused(Refusal::Taken, failure("busy")));
    let told = told.replied(Reply::NotReady(Some(run('a'))));
    assert_eq!(told.request(), Some(Request::Look));
    // It may be the one that was started, and the answer lost.
    let ready_now = Told {
        state: told.state.clone(),
        ..told
    };
    let claimed = ready_now.replied(found(ready('a')));
    assert_eq!(claimed.request(), Some(Request::Claim(run('a'))));
    let told = told.replied(Reply::NotReady(None));
    assert_eq!(told.request(), Some(Request::Start));
}

#[test]
fn told_to_stop_it_lets_go_of_what_it_may_hold() {
    let stop = || Event::Stop("SIGTERM".to_owned());
    assert_eq!(Told::begin(FOREVER).met(stop()).error(), "interrupted");
    // The claim may have arrived.
    let claiming = Told::begin(FOREVER).replied(found(ready('a')));
    for told in [claiming, Told::leased(FOREVER)] {
        let told = told.met(stop());
        assert!(
            matches!(told.request(), Some(Request::Finish(_, Some(_)))),
            "{:?}",
            told.state
        );
        assert_eq!(told.later(STOP_WITHIN).error(), "interrupted");
    }
}
