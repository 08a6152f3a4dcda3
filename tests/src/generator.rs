//! An open-loop load of announces as a public tracker sees it, at rates of tens of
//! thousands a second: UDP and HTTP, connects, announces and scrapes, popular torrents and
//! forgotten ones.
//!
//! ```text
//!   plan ─▶ udp (a thread) ──┐                        ┌─▶ tally: sent = answered + errors + unanswered,
//!      └──▶ http (two) ──────┼─▶ tracker ─▶ answers ──┤          by kind and second; latencies; lateness
//!                            │                        └─▶ completions: what a backup must show
//!   status, polled ──────────┴─▶ marks: gate closed, gate open
//! ```
//!
//! Requests leave at the planned instants whatever comes back, and a latency is counted
//! from the planned instant: a tracker, or a machine, that stalls for a second is seen by
//! every request planned for that second, not by the one that happened to be sent.
//!
//! What the generator itself could not do is said in its [`Health`]: how late requests
//! left, how busy its thread was, how long it waited for a processor, and which answers
//! the kernel dropped before it read them.
//!
//! [`crate::load`] is the other load of this package: slower, and exact about every single
//! announce. Tests that ask which announce was answered when, use that one.

mod health;
mod http;
mod marks;
mod report;
mod swarms;
mod tally;
mod udp;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

pub use self::health::Health;
pub use self::marks::{Before, Mark, Marks};
pub use self::report::{Report, Second};
pub use self::swarms::{Mix, Share, Swarms};
pub use self::tally::{Counts, Kind, LATE_MS, Summary, Tally};
use crate::completions::Completions;
use crate::usage::{Processors, Usage};

/// The kinds that pass the gate.
pub const ANNOUNCES: [Kind; 2] = [Kind::UdpAnnounce, Kind::HttpAnnounce];

/// UDP requests per second that this is meant for, on two processors beside the tracker. Who
/// asks what a tracker holds, or how late it answers, offers no more: past it the generator
/// would be what is measured. [`rates`](crate::experiment::rates) alone does, as it asks what is
/// answered at most, and tells where the load had no more to send.
pub const MOST: u32 = 20_000;

/// What to send.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// UDP requests per second: connects, announces and scrapes together.
    pub udp_per_second: u32,
    /// HTTP requests per second: announces and scrapes together.
    pub http_per_second: u32,
    /// UDP source ports.
    pub ports: u16,
    /// Of the UDP requests, connects: clients that come back after their connection id,
    /// which lives for a minute, has expired. Ids are renewed at that age in any case.
    pub connects: Share,
    /// Of the other requests, scrapes.
    pub scrapes: Share,
    /// Of the HTTP requests, those on a connection that is kept for the next.
    pub kept_alive: Share,
    /// Torrents of each door.
    pub torrents: u32,
    /// What peers tell.
    pub mix: Mix,
    /// The same seed makes the same load.
    pub seed: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            udp_per_second: 8_000,
            http_per_second: 200,
            ports: 128,
            connects: Share::percent(20),
            scrapes: Share::percent(5),
            kept_alive: Share::percent(50),
            torrents: 20_000,
            mix: Mix::default(),
            seed: 1,
        }
    }
}

/// The instant all planned instants are counted from, on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    monotonic: Instant,
    wall: DateTime<Utc>,
}

impl Clock {
    fn start() -> Self {
        Self {
            monotonic: Instant::now(),
            wall: Utc::now(),
        }
    }

    /// Time since the beginning.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.monotonic.elapsed()
    }

    /// Seconds from the beginning to an instant of the wall clock; negative before.
    #[must_use]
    pub fn seconds_at(&self, instant: DateTime<Utc>) -> f64 {
        let microseconds = (instant - self.wall).num_microseconds();
        #[expect(clippy::cast_precision_loss, reason = "a load lasts minutes")]
        microseconds.map_or(f64::MAX, |microseconds| microseconds as f64 / 1e6)
    }

    /// The beginning and so much, on the wall clock.
    #[must_use]
    pub fn at(&self, elapsed: Duration) -> DateTime<Utc> {
        TimeDelta::from_std(elapsed).map_or(self.wall, |elapsed| self.wall + elapsed)
    }
}

/// A running load. It ends when it is stopped or dropped.
pub struct Generator {
    /// The beginning.
    pub clock: Clock,
    stop: Arc<AtomicBool>,
    udp: Option<JoinHandle<Result<udp::Sent>>>,
    http: Option<JoinHandle<Result<http::Sent>>>,
    before: (Usage, Processors),
}

/// What a load has found.
#[derive(Debug, Clone)]
pub struct Found {
    /// What became of every request.
    pub tally: Tally,
    /// What a backup must show.
    pub completions: Completions,
    /// What the generator itself could not do.
    pub health: Health,
}

impl Generator {
    /// Begins to send. Every UDP source port has its connection id when this returns.
    ///
    /// After the end it waits at most `grace` for answers.
    ///
    /// # Errors
    /// When the tracker does not answer a connect, or sockets or threads cannot be made.
    pub async fn start(
        plan: Plan,
        udp: SocketAddr,
        http: SocketAddr,
        grace: Duration,
    ) -> Result<Self> {
        spawn_blocking(move || Self::begin(&plan, udp, http, grace)).await?
    }

    fn begin(plan: &Plan, udp: SocketAddr, http: SocketAddr, grace: Duration) -> Result<Self> {
        ensure!(plan.torrents > 0, "a load has torrents");
        let stop = Arc::new(AtomicBool::new(false));
        // Each door has torrents of its own, so that each knows what is in flight.
        let doors = [0..plan.torrents, plan.torrents..2 * plan.torrents];
        let [of_udp, of_http] = doors.map(|range| Swarms::new(range, plan.mix, plan.seed));
        let sender = (plan.udp_per_second > 0)
            .then(|| {
                udp::Sender::open(udp::Orders {
                    to: udp,
                    per_second: plan.udp_per_second,
                    ports: plan.ports,
                    connects: plan.connects,
                    scrapes: plan.scrapes,
                    swarms: of_udp,
                    seed: plan.seed,
                })
            })
            .transpose()?;
        let before = (Usage::of_this()?, Processors::now()?);
        let mut generator = Self {
            clock: Clock::start(),
            stop,
            udp: None,
            http: None,
            before,
        };
        if let Some(sender) = sender {
            let stop = Arc::clone(&generator.stop);
            generator.udp = Some(udp::spawn(sender, generator.clock, stop, grace)?);
        }
        if plan.http_per_second > 0 {
            let orders = http::Orders {
                to: http,
                per_second: plan.http_per_second,
                scrapes: plan.scrapes,
                kept_alive: plan.kept_alive,
                seed: plan.seed,
            };
            let stop = Arc::clone(&generator.stop);
            generator.http = Some(http::spawn(orders, of_http, generator.clock, stop, grace)?);
        }
        Ok(generator)
    }

    /// Waits until this long after the beginning.
    ///
    /// # Errors
    /// When the load has ended before: it only does when it failed.
    pub async fn until(&self, elapsed: Duration) -> Result<()> {
        // What is measured is a rate over a time; there is nothing else to wait for.
        tokio::time::sleep(elapsed.saturating_sub(self.clock.elapsed())).await;
        let ended = self.udp.as_ref().is_some_and(JoinHandle::is_finished)
            || self.http.as_ref().is_some_and(JoinHandle::is_finished);
        ensure!(!ended, "the load ended before it was stopped");
        Ok(())
    }

    /// Sends no more, waits for what is in flight, and accounts for all.
    ///
    /// # Errors
    /// When sending failed on this side.
    pub async fn stop(self) -> Result<Found> {
        spawn_blocking(move || self.end()).await?
    }

    fn end(mut self) -> Result<Found> {
        let planned_for = self.clock.elapsed();
        self.stop.store(true, Ordering::Relaxed);
        let (usage, processors) = self.before;
        let cpu = Usage::of_this()?.cpu.saturating_sub(usage.cpu);
        let machine = Processors::now()?;
        let mut tally = Tally::default();
        let mut completions = Completions::default();
        let (mut turns, mut dropped) = (None, 0);
        if let Some(udp) = self.udp.take() {
            let sent = joined(udp)?;
            tally.merge(sent.tally);
            completions.0.extend(sent.completions.0);
            turns = Some(sent.turns);
            dropped = sent.dropped;
        }
        if let Some(http) = self.http.take() {
            let sent = joined(http)?;
            tally.merge(sent.tally);
            completions.0.extend(sent.completions.0);
        }
        let health = Health::of(
            &tally,
            planned_for,
            cpu,
            turns,
            dropped,
            machine.since(processors),
        );
        Ok(Found {
            tally,
            completions,
            health,
        })
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread
        .join()
        .map_err(|_| anyhow!("a thread of the load panicked"))?
}
