//! The HTTP side of the generator: a thread that hands out what is due at the planned
//! instants, and one that runs the requests, each a task of its own.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use chrono::Utc;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::swarms::Swarms;
use super::tally::{Kind, Tally};
use super::{Clock, Share};
use crate::announce::{self, Announce, Event, Torrent};
use crate::completions::{Completion, Completions};
use crate::http1::{self, Answer, Pool};
use crate::pace::Pace;

/// The stop flag is looked at this often.
const LOOK: Duration = Duration::from_millis(20);

/// What the threads are to send.
pub(super) struct Orders {
    pub(super) to: SocketAddr,
    pub(super) per_second: u32,
    pub(super) scrapes: Share,
    /// Of the requests, those on a connection that is kept; each of the others opens one.
    pub(super) kept_alive: Share,
    pub(super) seed: u64,
}

/// What became of it.
pub(super) struct Sent {
    pub(super) tally: Tally,
    pub(super) completions: Completions,
}

/// Begins to send.
///
/// # Errors
/// When a thread or a runtime cannot be made.
pub(super) fn spawn(
    orders: Orders,
    swarms: Swarms,
    clock: Clock,
    stop: Arc<AtomicBool>,
    grace: Duration,
) -> Result<JoinHandle<Result<Sent>>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let (due, planned) = mpsc::unbounded_channel();
    let pace = Pace::new(orders.per_second);
    let pacer = std::thread::Builder::new()
        .name("pace-http".to_owned())
        .spawn(move || hand_out(pace, &clock, &stop, &due))?;
    std::thread::Builder::new()
        .name("generate-http".to_owned())
        .spawn(move || {
            let sent = send(&runtime, orders, swarms, clock, planned, grace);
            pacer
                .join()
                .map_err(|_| anyhow!("the pacing thread panicked"))?;
            sent
        })
        .context("starting a thread")
}

/// Says each planned instant when it has come. A thread can wait precisely; the timers of
/// the runtime know whole milliseconds only.
fn hand_out(mut pace: Pace, clock: &Clock, stop: &AtomicBool, due: &UnboundedSender<Duration>) {
    while !stop.load(Ordering::Relaxed) {
        while let Some(planned) = pace.take(clock.elapsed()) {
            if due.send(planned).is_err() {
                return;
            }
        }
        let next = pace.next().unwrap_or(Duration::MAX);
        // Nobody unparks: a wait with a limit.
        std::thread::park_timeout(LOOK.min(next.saturating_sub(clock.elapsed())));
    }
}

/// What the requests share.
struct Desk {
    orders: Orders,
    pool: Pool,
    clock: Clock,
    /// True once answers are waited for no more.
    over: watch::Sender<bool>,
    book: Mutex<Book>,
}

struct Book {
    swarms: Swarms,
    random: fastrand::Rng,
    tally: Tally,
    completions: Completions,
}

fn send(
    runtime: &Runtime,
    orders: Orders,
    swarms: Swarms,
    clock: Clock,
    mut planned: UnboundedReceiver<Duration>,
    grace: Duration,
) -> Result<Sent> {
    let book = Book {
        swarms,
        random: fastrand::Rng::with_seed(orders.seed),
        tally: Tally::default(),
        completions: Completions::default(),
    };
    let desk = Arc::new(Desk {
        pool: Pool::new(orders.to),
        orders,
        clock,
        over: watch::Sender::new(false),
        book: Mutex::new(book),
    });
    runtime.block_on(async {
        let mut open = JoinSet::new();
        while let Some(planned) = planned.recv().await {
            open.spawn(Arc::clone(&desk).request(planned));
            while let Some(ended) = open.try_join_next() {
                ended?;
            }
        }
        let mut over = std::pin::pin!(tokio::time::sleep(grace));
        loop {
            tokio::select! {
                ended = open.join_next() => match ended {
                    Some(ended) => ended?,
                    None => break anyhow::Ok(()),
                },
                () = &mut over, if !*desk.over.borrow() => {
                    desk.over.send_replace(true);
                }
            }
        }
    })?;
    let mut book = desk.book();
    Ok(Sent {
        tally: std::mem::take(&mut book.tally),
        completions: std::mem::take(&mut book.completions),
    })
}

impl Desk {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request from its planned instant to its end, whatever that is.
    async fn request(self: Arc<Self>, planned: Duration) {
        let began = self.clock.elapsed();
        let (asked, kept_alive) = self.draw(began);
        let kind = asked.kind();
        let sent = Utc::now();
        self.book()
            .tally
            .sent(kind, planned, began.saturating_sub(planned));
        let mut over = self.over.subscribe();
        let path = asked.path();
        let ended = tokio::select! {
            answer = self.ask(&path, kept_alive) => Some(match answer {
                Ok(answer) => asked.judge(&answer),
                Err(error) => Err(format!("{error:#}")),
            }),
            // An error: the sender is gone, and with it this task.
            _ = over.wait_for(|over| *over) => None,
        };
        let now = self.clock.elapsed();
        let mut book = self.book();
        match &ended {
            Some(Ok(())) => book
                .tally
                .answered(kind, planned, now.saturating_sub(planned)),
            Some(Err(why)) => book.tally.error(kind, planned, why),
            None => book.tally.unanswered(kind, planned),
        }
        if let Asked::Announce(announce) = asked {
            let answered = matches!(ended, Some(Ok(())));
            book.swarms.ended(announce, answered, now);
            if announce.event == Event::Completed {
                book.completions.0.push(Completion {
                    torrent: announce.torrent,
                    sent,
                    acknowledged: answered.then(Utc::now),
                });
            }
        }
    }

    /// What to ask for, and whether on a connection that is kept.
    fn draw(&self, now: Duration) -> (Asked, bool) {
        let mut book = self.book();
        let book = &mut *book;
        let kept_alive = self.orders.kept_alive.draw(&mut book.random);
        let asked = if self.orders.scrapes.draw(&mut book.random) {
            Asked::Scrape(book.swarms.scraped())
        } else {
            Asked::Announce(book.swarms.next(now))
        };
        (asked, kept_alive)
    }

    async fn ask(&self, path: &str, kept_alive: bool) -> Result<Answer> {
        if kept_alive {
            self.pool.get(path).await
        } else {
            http1::get(self.orders.to, path).await
        }
    }
}

enum Asked {
    Scrape(Torrent),
    Announce(Announce),
}

impl Asked {
    fn kind(&self) -> Kind {
        match self {
            Self::Scrape(_) => Kind::HttpScrape,
            Self::Announce(_) => Kind::HttpAnnounce,
        }
    }

    fn path(&self) -> String {
        match self {
            Self::Scrape(torrent) => torrent.http_scrape(),
            Self::Announce(announce) => announce.http(),
        }
    }

    fn judge(&self, answer: &Answer) -> Result<(), String> {
        match self {
            Self::Scrape(_) => announce::scraped(answer),
            Self::Announce(_) => announce::accepted(answer),
        }
    }
}
