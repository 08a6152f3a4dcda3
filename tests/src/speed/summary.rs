//! What the measurements come to: medians, ratios, and whether what must hold does.

use serde::Serialize;

use super::method::Method;
use super::writer::{Account, Commits, Home};
use super::{Report, Sample};

/// The rate of commits the promises are made for.
const PROMISED: u32 = 200;

/// Milliseconds no commit may take.
const WORST: f64 = 50.0;

/// How much slower than without a copy commits may come.
const SLOWER: f64 = 0.05;

/// Bytes a run may add to the memory of its process.
const MEMORY: u64 = 32 << 20;

/// How much longer the pause of the large database may be than that of the small one.
const PAUSE: f64 = 1.5;

/// Medians, ratios and verdicts of a report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// How fast each method was.
    pub speeds: Vec<Speed>,
    /// What writers met.
    pub writers: Vec<Writers>,
    /// Pause by size of the database, from the smallest.
    pub pauses: Vec<Pause>,
    /// Memory by size of the database, from the smallest.
    pub memory: Vec<Memory>,
    /// What must hold.
    pub verdicts: Vec<Verdict>,
}

/// How fast a method was beside one rate of commits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Speed {
    /// The method.
    pub method: Method,
    /// Commits a second beside it.
    pub rate: u32,
    /// How often it was measured.
    pub rounds: usize,
    /// How often it ended.
    pub ended: usize,
    /// Seconds until the copy was durable, median; `None`: it never ended.
    pub seconds: Option<f64>,
    /// 10^6 bytes a second, median.
    pub megabytes_per_second: Option<f64>,
    /// That in terms of `cp` in the same round, median; of a restore, in terms of
    /// `zstd -d`.
    pub against: Option<f64>,
    /// Seconds until the backup was published, median.
    pub published: Option<f64>,
}

/// What a writer met beside a method.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Writers {
    /// The method.
    pub method: Method,
    /// Commits a second asked for.
    pub rate: u32,
    /// Where the writer lived.
    pub home: Home,
    /// Before anything was done.
    pub before: Seen,
    /// While the log was flushed and the pin taken.
    pub pinning: Seen,
    /// While the copy was made.
    pub beside: Seen,
    /// For 10 s after the pin ended.
    pub after: Seen,
    /// 10^6 bytes of the log when the pin ended, the largest.
    pub log_megabytes: Option<f64>,
    /// Seconds until that was moved and cut, the longest.
    pub shrunk: Option<f64>,
}

/// The commits of one phase, all rounds together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Seen {
    /// How many.
    pub count: u64,
    /// How many were refused.
    pub refused: u64,
    /// How many a second, refused ones included.
    pub reached: f64,
    /// Median of the rounds' medians, in milliseconds.
    pub p50_ms: f64,
    /// Median of the rounds' 99th percentiles.
    pub p99_ms: f64,
    /// Median of the rounds' worst.
    pub usual_worst_ms: f64,
    /// The worst of all.
    pub worst_ms: f64,
}

/// How long announces waited for a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Pause {
    /// Size of the database.
    pub megabytes: u64,
    /// Of how many runs.
    pub runs: usize,
    /// Milliseconds, median.
    pub median_ms: f64,
    /// Milliseconds, the longest.
    pub worst_ms: f64,
}

/// Memory a run took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Memory {
    /// Size of the database.
    pub megabytes: u64,
    /// Of how many runs.
    pub runs: usize,
    /// Bytes, the most of any run that compressed.
    pub compressed: Option<u64>,
    /// Bytes, the most of any run that did not.
    pub uncompressed: Option<u64>,
}

/// Whether something holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// What must hold.
    pub what: String,
    /// What was seen.
    pub seen: String,
    /// Whether that is it. `None`: this machine cannot tell.
    pub holds: Option<bool>,
}

impl Summary {
    /// Of a report.
    #[must_use]
    pub fn of(report: &Report) -> Self {
        let mut rates: Vec<_> = report.samples.iter().map(|sample| sample.rate).collect();
        rates.sort_unstable();
        rates.dedup();
        let pairs = || {
            rates
                .iter()
                .flat_map(|&rate| Method::ALL.map(|method| (method, rate)))
        };
        let speeds = pairs()
            .filter(|(method, _)| !matches!(method, Method::Alone | Method::FileHeld))
            .filter_map(|(method, rate)| Speed::of(report, method, rate))
            .collect();
        let writers = pairs()
            .flat_map(|(method, rate)| {
                [Home::Process, Home::Thread].map(|home| (method, rate, home))
            })
            .filter_map(|(method, rate, home)| Writers::of(report, method, rate, home))
            .collect();
        let mut sizes: Vec<_> = report.costs.iter().map(|cost| cost.megabytes).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let mut summary = Self {
            speeds,
            writers,
            pauses: sizes
                .iter()
                .filter_map(|&size| Pause::of(report, size))
                .collect(),
            memory: sizes.iter().map(|&size| Memory::of(report, size)).collect(),
            verdicts: Vec::new(),
        };
        summary.verdicts = summary.judge(report);
        summary
    }

    /// How fast a method was.
    #[must_use]
    pub fn speed(&self, method: Method, rate: u32) -> Option<&Speed> {
        self.speeds
            .iter()
            .find(|speed| speed.method == method && speed.rate == rate)
    }

    fn judge(&self, report: &Report) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        if let Some(against) = self
            .speed(Method::File, PROMISED)
            .and_then(|speed| speed.against)
        {
            verdicts.push(Verdict {
                what: format!(
                    "beside {PROMISED} commits/s `file` is at least as fast as `cp` and `sync`"
                ),
                seen: format!("{against:.2} times as fast"),
                holds: Some(against >= 1.0),
            });
        }
        if let Some(speed) = self.speed(Method::CommandLine, PROMISED) {
            verdicts.push(Verdict {
                what: format!(
                    "beside {PROMISED} commits/s `.backup` does not end within {} s",
                    report.give_up
                ),
                seen: format!("it ended {} of {} times", speed.ended, speed.rounds),
                holds: Some(speed.ended == 0),
            });
        }
        let pinned = |writers: &&Writers| {
            matches!(
                writers.method,
                Method::File | Method::FileZstd | Method::FileHeld
            )
        };
        for writers in self.writers.iter().filter(pinned) {
            verdicts.extend(self.judge_writers(writers));
        }
        verdicts.extend(self.judge_memory());
        verdicts.extend(self.judge_pause());
        verdicts
    }

    fn judge_writers(&self, writers: &Writers) -> Vec<Verdict> {
        let Writers {
            method, rate, home, ..
        } = *writers;
        let whose = format!("{}, {rate} commits/s {}", method.name(), home.name());
        let alone = self
            .writers
            .iter()
            .find(|alone| (alone.method, alone.rate, alone.home) == (Method::Alone, rate, home));
        let noise = self.worst_alone(rate);
        let worst = |when: &str, of: fn(&Writers) -> Seen| {
            let seen = of(writers).worst_ms;
            let is_noisy = noise.is_some_and(|noise| noise >= WORST);
            let noise = noise.map_or(String::new(), |noise| format!("; {noise:.1} ms without"));
            Verdict {
                what: format!("{whose}: no commit takes {WORST} ms {when}"),
                seen: format!("{seen:.1} ms{noise}"),
                holds: (seen < WORST || !is_noisy).then_some(seen < WORST),
            }
        };
        let throughput = |writers: &Writers| writers.beside.done() / writers.before.done() - 1.0;
        let (slower, noise) = (throughput(writers), alone.map(throughput));
        let is_noisy = noise.is_some_and(|noise| noise.abs() > SLOWER);
        let without = noise.map_or(String::new(), |noise| {
            format!("; {:+.1} % without", noise * 100.0)
        });
        let refused = writers.beside.refused;
        let none_refused = refused == 0;
        let refusals = if none_refused {
            String::new()
        } else {
            format!("; {refused} refused")
        };
        vec![
            worst("while the copy is made", |writers| writers.beside),
            worst("in the 10 s after the pin", |writers| writers.after),
            Verdict {
                what: format!("{whose}: within 5 % as many commits as before, and none refused"),
                seen: format!("{:+.1} %{refusals}{without}", slower * 100.0),
                // No noise refuses a commit.
                holds: (slower >= -SLOWER || !is_noisy || !none_refused)
                    .then_some(slower >= -SLOWER && none_refused),
            },
        ]
    }

    /// Milliseconds of the slowest commit at this rate, of whatever writer, with nothing beside
    /// it: before every copy, and all the time where there was none.
    fn worst_alone(&self, rate: u32) -> Option<f64> {
        let of_rate = self.writers.iter().filter(|writers| writers.rate == rate);
        let alone = of_rate.flat_map(|writers| {
            let phases = [writers.before, writers.beside, writers.after];
            let alone = if writers.method == Method::Alone {
                3
            } else {
                1
            };
            phases.into_iter().take(alone)
        });
        alone.map(|seen| seen.worst_ms).reduce(f64::max)
    }

    fn judge_memory(&self) -> Option<Verdict> {
        let most = self
            .memory
            .iter()
            .flat_map(|memory| [memory.compressed, memory.uncompressed])
            .flatten()
            .max()?;
        Some(Verdict {
            what: "a run adds less than 32 MiB to its process, whatever the size of the database"
                .to_owned(),
            seen: format!("{} at most", mebibytes(most)),
            holds: Some(most < MEMORY),
        })
    }

    fn judge_pause(&self) -> Option<Verdict> {
        let [small, .., large] = self.pauses.as_slice() else {
            return None;
        };
        let ratio = large.median_ms / small.median_ms;
        Some(Verdict {
            what: format!(
                "the pause at {} MB is at most {PAUSE} times that at {} MB",
                large.megabytes, small.megabytes
            ),
            seen: format!("{ratio:.2} times"),
            holds: Some(ratio <= PAUSE),
        })
    }
}

impl Speed {
    fn of(report: &Report, method: Method, rate: u32) -> Option<Self> {
        let samples: Vec<_> = report.of(method, rate, Home::Process).collect();
        let timed = samples.iter().map(|sample| &sample.timing);
        let against = match method {
            Method::Restore => Method::ZstdD,
            _ => Method::Cp,
        };
        let ratios = samples.iter().filter_map(|sample| {
            let mut others = report.of(against, rate, Home::Process);
            let other = others.find(|other| other.round == sample.round)?;
            Some(speed(sample)? / speed(other)?)
        });
        (!samples.is_empty()).then(|| Self {
            method,
            rate,
            rounds: samples.len(),
            ended: timed.clone().filter_map(|timing| timing.seconds).count(),
            seconds: median(timed.clone().filter_map(|timing| timing.seconds)),
            megabytes_per_second: median(
                samples
                    .iter()
                    .filter_map(|sample| Some(speed(sample)? / 1e6)),
            ),
            // What is compressed is of another size.
            against: median(ratios).filter(|_| method != Method::ZstdD),
            published: median(timed.filter_map(|timing| timing.published)),
        })
    }
}

impl Writers {
    #[expect(clippy::cast_precision_loss, reason = "a size to tell a human")]
    fn of(report: &Report, method: Method, rate: u32, home: Home) -> Option<Self> {
        let samples: Vec<_> = report.of(method, rate, home).collect();
        let accounts: Vec<_> = samples
            .iter()
            .filter_map(|sample| sample.timing.commits)
            .collect();
        let of = |phase: fn(&Account) -> Commits| {
            Seen::of(&accounts.iter().map(phase).collect::<Vec<_>>())
        };
        let timings = || samples.iter().map(|sample| &sample.timing);
        (!accounts.is_empty()).then(|| Self {
            method,
            rate,
            home,
            before: of(|account| account.before),
            pinning: of(|account| account.pinning),
            beside: of(|account| account.beside),
            after: of(|account| account.after),
            log_megabytes: timings()
                .filter_map(|timing| timing.log)
                .max()
                .map(|bytes| bytes as f64 / 1e6),
            shrunk: timings()
                .filter_map(|timing| timing.shrunk)
                .reduce(f64::max),
        })
    }
}

impl Seen {
    /// Commits a second that were not refused.
    #[expect(clippy::cast_precision_loss, reason = "a rate to tell a human")]
    fn done(&self) -> f64 {
        let refused = self.refused as f64 / (self.count.max(1) as f64);
        self.reached * (1.0 - refused)
    }

    fn of(rounds: &[Commits]) -> Self {
        let all = rounds.iter().fold(Commits::default(), |all, one| Commits {
            count: all.count + one.count,
            refused: all.refused + one.refused,
            seconds: all.seconds + one.seconds,
            max_ms: all.max_ms.max(one.max_ms),
            ..all
        });
        let middle = |of: fn(&Commits) -> f64| median(rounds.iter().map(of)).unwrap_or(0.0);
        Self {
            count: all.count,
            refused: all.refused,
            reached: all.rate(),
            p50_ms: middle(|one| one.p50_ms),
            p99_ms: middle(|one| one.p99_ms),
            usual_worst_ms: middle(|one| one.max_ms),
            worst_ms: all.max_ms,
        }
    }
}

impl Pause {
    fn of(report: &Report, megabytes: u64) -> Option<Self> {
        let pauses = report
            .costs
            .iter()
            .filter(|cost| cost.megabytes == megabytes)
            .map(|cost| cost.pause_ms);
        Some(Self {
            megabytes,
            runs: pauses.clone().count(),
            worst_ms: pauses.clone().reduce(f64::max)?,
            median_ms: median(pauses)?,
        })
    }
}

impl Memory {
    fn of(report: &Report, megabytes: u64) -> Self {
        let costs = report
            .costs
            .iter()
            .filter(|cost| cost.megabytes == megabytes);
        let most = |compressed| {
            let of_kind = costs.clone().filter(|cost| cost.compressed == compressed);
            of_kind.map(|cost| cost.memory).max()
        };
        Self {
            megabytes,
            runs: costs.clone().count(),
            compressed: most(true),
            uncompressed: most(false),
        }
    }
}

/// Bytes a second.
#[expect(clippy::cast_precision_loss, reason = "a rate to tell a human")]
fn speed(sample: &Sample) -> Option<f64> {
    Some(sample.timing.bytes as f64 / sample.timing.seconds?)
}

/// For a human.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "for a human")]
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// The middle one; of an even number, the mean of the two in the middle.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.as_slice() {
        [] => None,
        odd if odd.len() % 2 == 1 => Some(odd[middle]),
        even => Some(f64::midpoint(even[middle - 1], even[middle])),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::speed::cost::Cost;
    use crate::speed::machine::Machine;
    use crate::speed::method::Timing;

    /// Two rounds in which the second has a machine half as fast.
    pub(in crate::speed) fn report() -> Report {
        let commits = |max_ms| Commits {
            count: 1_000,
            refused: 0,
            seconds: 5.0,
            p50_ms: 0.1,
            p99_ms: 1.0,
            max_ms,
        };
        let sample = |round: u32, method, seconds: Option<f64>, worst| Sample {
            round,
            method,
            rate: 200,
            home: Home::Process,
            timing: Timing {
                bytes: 1_500_000_000,
                seconds: seconds.map(|seconds| seconds * f64::from(round)),
                published: seconds.map(|_| 30.0),
                log: Some(40_000_000),
                shrunk: Some(0.5),
                commits: Some(Account {
                    before: commits(2.0),
                    beside: commits(worst),
                    after: commits(worst),
                    ..Account::default()
                }),
            },
        };
        let round = |nth| {
            [
                sample(nth, Method::Alone, None, 20.0),
                sample(nth, Method::Cp, Some(2.0), 60.0),
                sample(nth, Method::File, Some(1.6), 40.0),
                sample(nth, Method::CommandLine, None, 9.0),
            ]
        };
        let cost = |megabytes, pause_ms, memory| Cost {
            megabytes,
            compressed: memory > 10 << 20,
            pause_ms,
            memory,
        };
        Report {
            date: DateTime::UNIX_EPOCH,
            command: "backup_speed".to_owned(),
            machine: Machine {
                processor: "any".to_owned(),
                processors: 2,
                sha_instructions: true,
                memory: 24 << 30,
                kernel: "6".to_owned(),
                file_system: "ext4 (rw)".to_owned(),
                sqlite: "3".to_owned(),
                programs: vec!["cp".to_owned()],
                build: "release".to_owned(),
            },
            megabytes: 1_500,
            rounds: 2,
            give_up: 60.0,
            samples: [round(1), round(2)].concat(),
            costs: vec![
                cost(30, 1.0, 11 << 20),
                cost(3_000, 1.2, 12 << 20),
                cost(30, 2.0, 3 << 20),
                cost(3_000, 2.0, 4 << 20),
            ],
        }
    }

    #[test]
    fn the_middle_of_none_is_none() {
        assert_eq!(median([].into_iter()), None);
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let summary = Summary::of(&report());
        let file = summary.speed(Method::File, 200).expect("it was measured");
        assert_eq!(file.against, Some(1.25));
        assert_eq!((file.rounds, file.ended), (2, 2));
        assert!((file.seconds.expect("it ended") - 2.4).abs() < 1e-9);
        let command_line = summary.speed(Method::CommandLine, 200).expect("measured");
        assert_eq!((command_line.ended, command_line.against), (0, None));
    }

    #[test]
    fn what_must_hold_is_judged() {
        let holds = |report: &Report| {
            let verdicts = Summary::of(report).verdicts;
            verdicts.iter().map(|v| v.holds).collect::<Vec<_>>()
        };
        let good = report();
        assert_eq!(holds(&good), [Some(true); 7]);

        let mut bad = report();
        for sample in &mut bad.samples {
            let timing = &mut sample.timing;
            let commits = timing.commits.as_mut().expect("it has some");
            match sample.method {
                Method::File => {
                    timing.seconds = Some(100.0);
                    commits.beside.count = 900;
                    commits.beside.max_ms = 51.0;
                    commits.after.max_ms = 51.0;
                }
                Method::CommandLine => timing.seconds = Some(1.0),
                _ => {}
            }
        }
        bad.costs[1].pause_ms = 9.0;
        bad.costs[2].memory = 33 << 20;
        let no = Some(false);
        assert_eq!(holds(&bad), [no; 7]);
        // One stall with nothing beside the writer, and of no other it can be told.
        for (method, stall) in [
            (
                Method::Alone,
                (|account| &mut account.after) as fn(&mut Account) -> &mut Commits,
            ),
            (Method::Alone, |account| &mut account.beside),
            (Method::Cp, |account| &mut account.before),
        ] {
            let mut noisy = bad.clone();
            let of_method = |sample: &&mut Sample| sample.method == method;
            let sample = noisy.samples.iter_mut().find(of_method).expect("measured");
            let account = sample.timing.commits.as_mut().expect("it has some");
            stall(account).max_ms = 52.0;
            assert_eq!(
                holds(&noisy),
                [no, no, None, None, no, no, no],
                "{method:?}"
            );
        }
    }

    #[test]
    fn a_refused_commit_is_none() {
        let throughput = |report: &Report| {
            let verdicts = Summary::of(report).verdicts.into_iter();
            let mut of_throughput = verdicts.filter(|verdict| verdict.what.contains("within 5 %"));
            let verdict = of_throughput.next().expect("`file` had a writer");
            assert_eq!(of_throughput.next(), None);
            (verdict.holds, verdict.seen)
        };
        let mut report = report();
        assert_eq!(
            throughput(&report),
            (Some(true), "+0.0 %; +0.0 % without".to_owned())
        );

        // As many, and every tenth of them refused.
        for sample in &mut report.samples {
            let commits = sample.timing.commits.as_mut().expect("it has some");
            if sample.method == Method::File {
                commits.beside.refused = 100;
            }
        }
        let refused = (
            Some(false),
            "-10.0 %; 200 refused; +0.0 % without".to_owned(),
        );
        assert_eq!(throughput(&report), refused);

        // One is too many, also where the machine is too noisy to tell the rest.
        for sample in &mut report.samples {
            let commits = sample.timing.commits.as_mut().expect("it has some");
            match sample.method {
                Method::File => commits.beside.refused = u64::from(sample.round == 1),
                Method::Alone => commits.beside.count = 900,
                _ => {}
            }
        }
        let (holds, seen) = throughput(&report);
        assert_eq!(holds, Some(false), "{seen}");
        assert!(seen.contains("; 1 refused; -10.0 % without"), "{seen}");
    }
}
