//! An open-loop load of announces that accounts for every one of them.
//!
//! Requests leave at the planned rate whatever comes back: a tracker that is slow, or
//! holds announces, meets the same load as one that is not. Each announce is exactly one
//! of answered, refused (an error came back) or unanswered.
//!
//! ```text
//!             ┌───────────── idle torrents ◀──────────────┐
//!             ▼                                           │ answered
//!   pace ─▶ next step of a torrent ─▶ socket, connection ─┤
//!             ▲                                           │ refused, unanswered
//!             └──── a new torrent if none is idle         └─▶ not used again
//! ```
//!
//! A torrent's script is: peer 1 starts, peer 1 completes, peer 2 starts, and so on, for ever or
//! from peer 1 again, with one announce in flight per torrent. So the number of completions a tracker has
//! acknowledged for a torrent before an instant is a number its database must show, and
//! the number sent before is one it cannot exceed. A held gate leaves no torrent idle;
//! then new ones are made, and the rate is kept.

mod account;
mod book;
mod http;
mod udp;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

pub use self::account::{Account, Counts, Door, Outcome, Record};
use self::book::Book;
use crate::pace::Pace;

/// How often the pace is looked at: what is due since the last look leaves at once.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// What to send.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// UDP announces per second.
    pub udp_per_second: u32,
    /// HTTP announces per second.
    pub http_per_second: u32,
    /// UDP source ports.
    pub sockets: usize,
    /// Torrents made before one is used again.
    pub torrents: u32,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            udp_per_second: 2_000,
            http_per_second: 200,
            sockets: 64,
            torrents: 1_000,
        }
    }
}

/// A running load.
pub struct Load {
    book: Arc<Book>,
    stop: Vec<oneshot::Sender<()>>,
    pacers: JoinSet<Result<()>>,
    /// Aborted when the load goes.
    receivers: JoinSet<()>,
}

impl Load {
    /// Begins to send. Every socket has its connection id when this returns.
    ///
    /// # Errors
    /// When the tracker does not answer a connect.
    pub async fn start(plan: Plan, udp: SocketAddr, http: SocketAddr) -> Result<Self> {
        Self::start_with(Book::new(plan.torrents, u32::MAX), plan, udp, http).await
    }

    /// As [`Load::start`], with so many peers of each torrent that come back again and again: a
    /// tracker soon knows all there are.
    ///
    /// # Errors
    /// As [`Load::start`].
    pub async fn start_with_peers(
        peers: u32,
        plan: Plan,
        udp: SocketAddr,
        http: SocketAddr,
    ) -> Result<Self> {
        Self::start_with(Book::new(plan.torrents, peers), plan, udp, http).await
    }

    async fn start_with(book: Book, plan: Plan, udp: SocketAddr, http: SocketAddr) -> Result<Self> {
        let book = Arc::new(book);
        let mut load = Self {
            book: Arc::clone(&book),
            stop: Vec::new(),
            pacers: JoinSet::new(),
            receivers: JoinSet::new(),
        };
        if plan.udp_per_second > 0 {
            let mut sockets = Vec::new();
            for _ in 0..plan.sockets.max(1) {
                let socket = Arc::new(udp::Source::open(udp, Arc::clone(&book)).await?);
                load.receivers.spawn(Arc::clone(&socket).receive());
                sockets.push(socket);
            }
            for socket in &sockets {
                socket.connected().await?;
            }
            let stop = load.stopped();
            load.pacers
                .spawn(udp::send(Pacer::new(plan.udp_per_second, stop), sockets));
        }
        if plan.http_per_second > 0 {
            let stop = load.stopped();
            let pacer = Pacer::new(plan.http_per_second, stop);
            load.pacers.spawn(async move {
                http::send(pacer, http, book).await;
                Ok(())
            });
        }
        Ok(load)
    }

    fn stopped(&mut self) -> oneshot::Receiver<()> {
        let (stop, stopped) = oneshot::channel();
        self.stop.push(stop);
        stopped
    }

    /// What has been counted so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        *self.book.counts.borrow()
    }

    /// Waits until the counts satisfy `wanted`.
    ///
    /// # Errors
    /// When they do not `within` this time.
    pub async fn until(
        &self,
        within: Duration,
        wanted: impl FnMut(&Counts) -> bool,
    ) -> Result<Counts> {
        until(&self.book, within, wanted).await
    }

    /// Waits until this many more announces have been answered.
    ///
    /// # Errors
    /// When they are not `within` this time.
    pub async fn answered_more(&self, more: usize, within: Duration) -> Result<Counts> {
        let before = self.counts().answered;
        self.until(within, |counts| counts.answered >= before + more)
            .await
    }

    /// Sends no more, waits at most `grace` for what is in flight, and accounts for all.
    ///
    /// # Errors
    /// When sending failed on this side.
    pub async fn stop(mut self, grace: Duration) -> Result<Account> {
        self.stop.clear();
        while let Some(pacer) = self.pacers.join_next().await {
            pacer??;
        }
        // What is still missing then is recorded as unanswered.
        let _ = until(&self.book, grace, |counts| counts.in_flight() == 0).await;
        self.receivers.shutdown().await;
        Ok(self.book.close())
    }
}

async fn until(
    book: &Book,
    within: Duration,
    wanted: impl FnMut(&Counts) -> bool,
) -> Result<Counts> {
    let mut counts = book.counts.subscribe();
    let reached = timeout(within, counts.wait_for(wanted)).await;
    match reached {
        Ok(counts) => Ok(*counts?),
        Err(_) => bail!("not reached within {within:?}: {:?}", *book.counts.borrow()),
    }
}

/// Says how many requests are due.
struct Pacer {
    pace: Pace,
    began: Instant,
    looks: Interval,
    stop: oneshot::Receiver<()>,
}

impl Pacer {
    fn new(per_second: u32, stop: oneshot::Receiver<()>) -> Self {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Self {
            pace: Pace::new(per_second),
            began: Instant::now(),
            looks,
            stop,
        }
    }

    /// Waits for the next look; how many are due since the last. `None` once stopped.
    async fn due(&mut self) -> Option<u64> {
        tokio::select! {
            _ = &mut self.stop => None,
            _ = self.looks.tick() => Some(self.pace.take_all(self.began.elapsed())),
        }
    }
}
