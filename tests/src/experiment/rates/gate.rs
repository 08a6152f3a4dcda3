//! What an announce pays for the gate while it is open: a pass taken and given back.

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use torrust_tracker_maintenance::gate::Gate;

/// Threads that enter at once.
pub(super) const THREADS: u32 = 8;

/// Passes of each thread in a round.
const PASSES: u32 = 2_000_000;

/// How often one thread and many are measured, in turn.
const ROUNDS: usize = 5;

/// Nanoseconds for a pass, of each round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entering {
    /// One thread.
    pub alone: Vec<f64>,
    /// Many at once: the time of all of them, by all their passes.
    pub together: Vec<f64>,
}

impl Entering {
    /// Measures it, in this process. Blocks for some seconds.
    ///
    /// # Errors
    /// When there is no thread for the gate's watchdog.
    pub(super) fn measure() -> Result<Self> {
        let (gate, _keeper) = Gate::new().context("a thread for the gate's watchdog")?;
        let mut found = Self {
            alone: Vec::new(),
            together: Vec::new(),
        };
        for _ in 0..ROUNDS {
            for (threads, nanoseconds) in [(1, &mut found.alone), (THREADS, &mut found.together)] {
                let took = enter(&gate, threads);
                nanoseconds.push(took.as_secs_f64() * 1e9 / f64::from(threads * PASSES));
            }
        }
        Ok(found)
    }
}

/// How long so many threads take for their passes.
fn enter(gate: &Gate, threads: u32) -> Duration {
    let begin = Barrier::new(threads as usize + 1);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                begin.wait();
                for _ in 0..PASSES {
                    drop(black_box(gate.try_enter()));
                }
            });
        }
        begin.wait();
        Instant::now()
    })
    .elapsed()
}
