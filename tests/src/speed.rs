//! How fast a backup is, what it costs whoever writes meanwhile, and what it is compared
//! with.
//!
//! Everything is measured in one session, in rounds: the first has every method once, at
//! every rate of commits, the others those that are held against a limit, so that what
//! changes on the machine meanwhile changes for all of them. What is compared is compared within its round; the median of
//! the rounds is what is told.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{DateTime, SubsecRound, Utc};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

pub mod cost;
pub mod document;
pub mod machine;
pub mod method;
pub mod summary;
pub mod writer;

use self::cost::Cost;
use self::machine::Machine;
use self::method::{Bench, Method, Timing};
use self::writer::Home;
use crate::database;

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Size of the database, in 10^6 bytes.
    pub megabytes: u64,
    /// How often everything is measured.
    pub rounds: u32,
    /// Rates of commits, a second.
    pub writers: Vec<u32>,
    /// The methods to measure.
    pub methods: Vec<Method>,
    /// Where databases and copies are put for the while.
    pub directory: PathBuf,
    /// When a program that does not end is ended.
    pub give_up: Duration,
    /// Runs for each of the three databases whose cost is measured.
    pub cost_runs: u32,
    /// Sizes of those, in 10^6 bytes.
    pub cost_megabytes: Vec<u64>,
    /// The command, as it can be repeated.
    pub command: String,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// When.
    pub date: DateTime<Utc>,
    /// The command, as it can be repeated.
    pub command: String,
    /// On what.
    pub machine: Machine,
    /// Size of the database asked for, in 10^6 bytes.
    pub megabytes: u64,
    /// How often everything was measured.
    pub rounds: u32,
    /// Seconds after which a program was given up.
    pub give_up: f64,
    /// Every measurement.
    pub samples: Vec<Sample>,
    /// What runs cost.
    pub costs: Vec<Cost>,
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// In which round, from 1.
    pub round: u32,
    /// What.
    pub method: Method,
    /// Commits a second asked of the writer beside it.
    pub rate: u32,
    /// Where that writer lived.
    pub home: Home,
    /// What it showed.
    pub timing: Timing,
}

/// Measures it all; says on standard error how far it is.
///
/// # Errors
/// When anything measured fails, other than not ending in time.
pub fn measure(plan: &Plan) -> Result<Report> {
    let machine = Machine::of(&plan.directory)?;
    Ok(Report {
        date: Utc::now().trunc_subsecs(0),
        command: plan.command.clone(),
        machine,
        megabytes: plan.megabytes,
        rounds: plan.rounds,
        give_up: plan.give_up.as_secs_f64(),
        samples: measure_speed(plan)?,
        costs: measure_costs(plan)?,
    })
}

fn measure_speed(plan: &Plan) -> Result<Vec<Sample>> {
    if plan.rounds == 0 {
        return Ok(Vec::new());
    }
    let home = TempDir::with_prefix_in("backup-speed-", &plan.directory)?;
    let (database, directory, kept) = (
        home.path().join("tracker.db"),
        home.path().join("copies"),
        home.path().join("kept"),
    );
    eprintln!("making a database of {} MB", plan.megabytes);
    database::make_random(&database, plan.megabytes * 1_000_000, "wal")?;
    fs::create_dir(&directory)?;
    let bench = Bench {
        database: &database,
        directory: &directory,
        give_up: plan.give_up,
    };
    let mut samples = Vec::new();
    for round in 1..=plan.rounds {
        for &rate in &plan.writers {
            for &method in plan
                .methods
                .iter()
                .filter(|method| method.applies(rate, round))
            {
                for &writer in method.homes(rate) {
                    let timing = bench
                        .measure(method, rate, writer, &kept)
                        .with_context(|| format!("{method:?} beside {rate} commits/s"))?;
                    let sample = Sample {
                        round,
                        method,
                        rate,
                        home: writer,
                        timing,
                    };
                    eprintln!("{}", document::line(&sample));
                    samples.push(sample);
                }
            }
        }
    }
    Ok(samples)
}

fn measure_costs(plan: &Plan) -> Result<Vec<Cost>> {
    if plan.cost_runs == 0 {
        return Ok(Vec::new());
    }
    let home = TempDir::with_prefix_in("run-cost-", &plan.directory)?;
    let path = |megabytes: u64| home.path().join(format!("{megabytes}.db"));
    for &megabytes in &plan.cost_megabytes {
        eprintln!("making a database of {megabytes} MB");
        database::make(&path(megabytes), megabytes * 1_000_000, "wal")?;
    }
    let mut costs = Vec::new();
    // The first is compressed, which takes most memory and most time; the pause does not
    // depend on it.
    for nth in 0..plan.cost_runs {
        for &megabytes in &plan.cost_megabytes {
            let catalogue = home.path().join("backups");
            let cost = cost::measure(&path(megabytes), megabytes, &catalogue, nth == 0)?;
            remove(&catalogue)?;
            eprintln!("{cost:?}");
            costs.push(cost);
        }
    }
    Ok(costs)
}

fn remove(directory: &Path) -> Result<()> {
    fs::remove_dir_all(directory).with_context(|| format!("removing {}", directory.display()))
}

impl Report {
    /// The measurements of one method beside one writer, in the order of the rounds.
    pub fn of(&self, method: Method, rate: u32, home: Home) -> impl Iterator<Item = &Sample> {
        let is_it = move |sample: &&Sample| {
            sample.method == method && sample.rate == rate && sample.home == home
        };
        self.samples.iter().filter(is_it)
    }
}
