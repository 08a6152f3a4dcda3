//! Random sequences of what two sidecars do, of time that passes and of restarts, against a
//! model of a lease that is written down here once more, in whole milliseconds.

use proptest::prelude::*;

use super::*;

const TTL: u64 = 450;
const CLAIM_WITHIN: u64 = 600;
const LASTS: u64 = 3000;
const HOLD_FOR: u64 = 1000;
const GRACE: u64 = 50;

/// Something happens.
#[derive(Debug, Clone)]
enum Step {
    /// A run begins and comes to where it is offered.
    Begin { held: bool },
    /// One of the two sidecars says something of a run.
    Say { who: usize, what: Said, of: Of },
    /// A file says that a sidecar has finished with a run.
    File { of: Of, how: Finished },
    /// Time passes; nobody says anything.
    Wait(u64),
    /// The tracker is killed and started.
    Restart,
}

#[derive(Debug, Clone, Copy)]
enum Said {
    Claim,
    Renew,
    FinishOk,
    FinishFailed,
}

/// Which run is meant: that many before the newest.
type Of = usize;

/// What is known of the one run there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Model {
    Idle,
    Offered {
        run: usize,
        until: u64,
        deadline: u64,
    },
    Leased {
        run: usize,
        by: usize,
        until: u64,
        deadline: u64,
    },
}

/// How the model says that a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Done,
    Failed,
    NoSidecar,
    Deadline,
}

/// What the model says a sidecar is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Granted { expires: u64, deadline: u64 },
    Taken { by: usize, expires: u64 },
    NotHolder,
    NotReady,
    Stale,
}

impl Model {
    fn run(self) -> Option<usize> {
        match self {
            Self::Idle => None,
            Self::Offered { run, .. } | Self::Leased { run, .. } => Some(run),
        }
    }

    fn at(self, t: u64) -> (Self, Option<End>) {
        match self {
            Self::Offered { until, .. } if t >= until => (Self::Idle, Some(End::NoSidecar)),
            Self::Leased { until, .. } if t >= until => (Self::Idle, Some(End::Deadline)),
            other => (other, None),
        }
    }

    fn say(self, who: usize, what: Said, of: Option<usize>, t: u64) -> (Self, Told, Option<End>) {
        if self.run().is_none() || self.run() != of {
            return (self, Told::Stale, None);
        }
        let lasting = |run, deadline: u64| {
            let until = deadline.min(t + TTL);
            let told = Told::Granted {
                expires: until - t,
                deadline: deadline - t,
            };
            let by = who;
            (
                Self::Leased {
                    run,
                    by,
                    until,
                    deadline,
                },
                told,
                None,
            )
        };
        match (self, what) {
            (Self::Offered { run, deadline, .. }, Said::Claim) => lasting(run, deadline),
            (
                Self::Leased {
                    run, by, deadline, ..
                },
                Said::Claim | Said::Renew,
            ) if by == who => lasting(run, deadline),
            (Self::Leased { by, until, .. }, Said::Claim) => {
                let expires = until - t;
                (self, Told::Taken { by, expires }, None)
            }
            (Self::Leased { by, .. }, Said::FinishOk) if by == who => {
                (Self::Idle, Told::Stale, Some(End::Done))
            }
            (Self::Leased { by, .. }, Said::FinishFailed) if by == who => {
                (Self::Idle, Told::Stale, Some(End::Failed))
            }
            _ => (self, Told::NotHolder, None),
        }
    }
}

/// The window, put through the same.
struct Real {
    window: Window,
    rules: Rules,
    zero: Now,
}

impl Real {
    fn now(&self, t: u64) -> Now {
        let passed = Duration::from_millis(t);
        Now {
            utc: self.zero.utc + passed,
            monotonic: self.zero.monotonic + passed,
        }
    }

    fn step(&mut self, t: u64, event: Event) {
        let window = std::mem::replace(&mut self.window, Window::new(None));
        self.window = window.step(&self.rules, self.now(t), event);
    }

    fn begin(&mut self, t: u64, run: usize, held: bool) {
        let pause = if held {
            Pause::UntilCopied(Duration::ZERO)
        } else {
            Pause::UntilPinned(None)
        };
        self.step(
            t,
            Event::Start {
                id: run_id(run),
                trigger: Trigger::Operator,
                serves: None,
                lasts: Duration::from_millis(LASTS),
            },
        );
        for how in [
            Completion::Prepared(pause),
            Completion::Drained,
            Completion::Pinned,
        ] {
            let (of, _) = self.window.job().expect("a run is on its way");
            self.step(t, Event::Ended { of, how });
        }
    }

    fn say(&mut self, t: u64, who: usize, what: Said, run: RunId) -> Told {
        let (holder, nonce) = sidecars()[who].clone();
        let now = self.now(t).monotonic;
        let event = match what {
            Said::Claim => Event::Claim {
                run: run.clone(),
                holder,
                nonce: nonce.clone(),
            },
            Said::Renew => Event::Renew {
                run: run.clone(),
                nonce: nonce.clone(),
            },
            Said::FinishOk | Said::FinishFailed => {
                // The driver asks before.
                let held = self.window.held(&self.rules, &run, &nonce, now);
                let how = match what {
                    Said::FinishOk => Finished::Ok,
                    _ => Finished::Failed("as told".into()),
                };
                self.step(t, Event::Finish { run, nonce, how });
                return match held {
                    Ok(_) => Told::Stale,
                    Err(refused) => told(Err(refused)),
                };
            }
        };
        self.step(t, event);
        told(match what {
            Said::Claim => self.window.claimed(&self.rules, &run, &nonce, now),
            _ => self.window.held(&self.rules, &run, &nonce, now),
        })
    }

    fn end(&self) -> Option<(&RunId, End)> {
        let (id, outcome) = self.window.last()?;
        let end = match outcome {
            Outcome::Done => End::Done,
            Outcome::Failed { .. } => End::Failed,
            Outcome::NoSidecar { .. } => End::NoSidecar,
            Outcome::Deadline { .. } => End::Deadline,
            other => panic!("{other:?}"),
        };
        Some((id, end))
    }
}

fn told(answer: Result<Granted, Refused>) -> Told {
    let ms = |time: Duration| u64::try_from(time.as_millis()).expect("short");
    match answer {
        Ok(granted) => Told::Granted {
            expires: ms(granted.expires),
            deadline: ms(granted.deadline),
        },
        Err(Refused::Taken { holder, expires }) => Told::Taken {
            by: sidecars()
                .iter()
                .position(|(known, _)| *known == holder)
                .expect("one of the two"),
            expires: ms(expires),
        },
        Err(Refused::NotHolder) => Told::NotHolder,
        Err(Refused::NotReady { .. }) => Told::NotReady,
        Err(Refused::StaleRun) => Told::Stale,
        Err(Refused::TakenByTracker) => panic!("a sidecar copies"),
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let said = prop_oneof![
        4 => Just(Said::Claim),
        4 => Just(Said::Renew),
        1 => Just(Said::FinishOk),
        1 => Just(Said::FinishFailed),
    ];
    let by_file = prop_oneof![Just(Finished::Ok), Just(Finished::Failed("as told".into())),];
    let of = prop_oneof![6 => Just(0_usize), 1 => 1_usize..3];
    let step = prop_oneof![
        3 => any::<bool>().prop_map(|held| Step::Begin { held }),
        12 => (0_usize..2, said, of.clone())
            .prop_map(|(who, what, of)| Step::Say { who, what, of }),
        1 => (of, by_file).prop_map(|(of, how)| Step::File { of, how }),
        6 => (0_u64..700).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..60)
}

fn real() -> Real {
    Real {
        window: Window::new(None),
        rules: Rules {
            hold_for: Duration::from_millis(HOLD_FOR),
            grace: Duration::from_millis(GRACE),
            lease: Some(Terms {
                ttl: Duration::from_millis(TTL),
                claim_within: Duration::from_millis(CLAIM_WITHIN),
                claim_within_held: Duration::from_millis(CLAIM_WITHIN),
            }),
            ..rules()
        },
        zero: at(0),
    }
}

fn run_against_the_model(steps: &[Step]) -> Result<[usize; 4], TestCaseError> {
    let mut real = real();
    let (mut model, mut t, mut begun) = (Model::Idle, 0, 0_usize);
    let mut ends = [0; 4];
    for step in steps {
        if let Step::Wait(ms) = step {
            t += ms;
        }
        // Limits come first, as in the driver.
        let (limited, mut ended) = model.at(t);
        let before = model.run();
        model = limited;
        real.step(t, Event::Tick);
        match *step {
            Step::Begin { held } => {
                if model == Model::Idle {
                    real.begin(t, begun, held);
                    let deadline = t + if held { HOLD_FOR - GRACE } else { LASTS };
                    let until = deadline.min(t + CLAIM_WITHIN);
                    model = Model::Offered {
                        run: begun,
                        until,
                        deadline,
                    };
                    begun += 1;
                    ended = None;
                }
            }
            Step::Say { who, what, of } => {
                let named = begun.checked_sub(of + 1);
                let run = named.map_or_else(|| RunId("never".into()), run_id);
                let (next, expected, end) = model.say(who, what, named, t);
                prop_assert_eq!(real.say(t, who, what, run), expected);
                model = next;
                ended = ended.or(end);
            }
            Step::File { of, ref how } => {
                let named = begun.checked_sub(of + 1);
                let run = named.map_or_else(|| RunId("never".into()), run_id);
                let end = match how {
                    Finished::Ok => End::Done,
                    Finished::Failed(_) => End::Failed,
                };
                let how = how.clone();
                real.step(t, Event::FinishedByFile { run, how });
                if matches!(model, Model::Offered { run, .. } if Some(run) == named) {
                    model = Model::Idle;
                    ended = Some(end);
                }
            }
            Step::Wait(_) => {}
            Step::Restart => {
                real.window = Window::new(None);
                model = Model::Idle;
                ended = None;
            }
        }
        let id = real.window.run().map(|run| run.id.clone());
        prop_assert_eq!(id, model.run().map(run_id));
        if let Some(end) = ended {
            let run = before.map(run_id).expect("a run was on");
            prop_assert_eq!(real.end(), Some((&run, end)));
            ends[end as usize] += 1;
        }
    }
    // Whatever was left undone: a run ends by its limits.
    real.step(t + LASTS, Event::Tick);
    prop_assert_eq!(real.window.phase(), Phase::Serving);
    Ok(ends)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_sidecars_are_answered_as_the_model_says(steps in steps()) {
        run_against_the_model(&steps)?;
    }
}

/// Sequences that come to nothing would prove nothing.
#[test]
fn the_sequences_end_runs_in_every_way() {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut all = [0; 4];
    for _ in 0..200 {
        let steps = steps().new_tree(&mut runner).expect("steps").current();
        let ends = run_against_the_model(&steps).expect("as the model says");
        all.iter_mut().zip(ends).for_each(|(all, one)| *all += one);
    }
    assert!(all.iter().all(|ends| *ends > 20), "{all:?}");
}
