//! The thread that receives. What touches memory alone it answers itself, a batch of packets
//! with a batch of answers; announces that are stored, or that meet a closed gate, it queues.
//!
//! # More than it can answer
//!
//! Announces that touch memory alone are executed here as well, but after whatever has arrived
//! since: the socket is emptied first, connects and scrapes are answered on the way, and then
//! some of the announces that wait are executed. So a connect is answered within some two
//! milliseconds, however many announces there are. With less than the thread can do
//! there is nothing to empty, and an announce is executed as soon as it is read.
//!
//! The kernel's buffer, which holds a few hundred packets unless the operator allows more, would
//! drop connects and announces alike. Here only announces are, beyond the same bounds as in the
//! queue in number and in time, and counted.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aquatic_udp_protocol::{AnnounceRequest, Request, Response};
use torrust_tracker::servers::udp::connection_cookie::{check, from_connection_id};
use torrust_tracker::servers::udp::{UDP_TRACKER_LOG_TARGET, handlers};
use torrust_tracker::shared::bit_torrent::common::MAX_SCRAPE_TORRENTS;
use torrust_tracker_maintenance::gate::{self, Pass};

use super::queue::{self, Announce};
use super::replies::Replies;
use super::wire::{BATCH, Inbox};
use super::{Shared, Storage, answer, survive};

/// The pause after a failed receive, should the failure be there to stay.
const RETRY_AFTER: Duration = Duration::from_millis(10);

/// Batches that are received one after the other while announces wait: as many packets as a
/// socket holds by default, and half as many again.
const AHEAD: usize = 8;

/// Announces that are executed before the socket is emptied again: about as many as arrive
/// meanwhile when several times as many arrive as can be executed.
const AT_ONCE: usize = 2 * BATCH;

/// Receives until the server is told to stop.
pub fn run(shared: &Shared) {
    let mut inbox = Inbox::new();
    let mut desk = Desk::default();
    let mut failures: u64 = 0;
    // However this ends, the other thread must not wait for more.
    let _finish = Finish(shared);
    while !shared.stopping.load(Ordering::Acquire) {
        for _ in 0..AHEAD {
            let received = if desk.announces.is_empty() {
                inbox.receive(&shared.socket)
            } else {
                inbox.receive_more(&shared.socket)
            };
            match received {
                Ok(()) => {
                    failures = 0;
                    shared.handle(&inbox, &mut desk);
                }
                Err(error) if is_no_failure(&error) => break,
                Err(error) => {
                    failures += 1;
                    // The first says what is wrong; after that they only need not be forgotten.
                    if failures.is_power_of_two() {
                        tracing::error!(target: UDP_TRACKER_LOG_TARGET, %error, failures, "could not receive, trying again");
                    }
                    std::thread::park_timeout(RETRY_AFTER);
                    break;
                }
            }
            if !inbox.is_full() {
                break;
            }
        }
        shared.execute_some(&mut desk);
    }
    shared.queue.take_over(desk.announces.drain(..));
}

/// What becomes of the packets.
#[derive(Default)]
struct Desk {
    replies: Replies,
    /// In the order of their arrival: for this thread, or for the queue.
    announces: VecDeque<Announce>,
}

/// Tells the executing thread that nothing arrives any more.
struct Finish<'s>(&'s Shared);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.queue.finish();
    }
}

/// A read time-out, which is there to look at the stop flag, or a signal.
fn is_no_failure(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

impl Shared {
    /// Queues first and answers then: who has an answer knows that all it sent before has
    /// been taken in.
    fn handle(&self, inbox: &Inbox, desk: &mut Desk) {
        #[expect(
            clippy::disallowed_methods,
            reason = "this is when they arrive; the queue is handed it"
        )]
        let arrived = Instant::now();
        let waited = desk.announces.len();
        for (packet, from) in inbox.packets() {
            survive("receiving a packet", || {
                let announce = self.receive(packet, from, arrived, &mut desk.replies);
                desk.announces.extend(announce);
            });
        }
        if !desk.announces.is_empty() && self.pass_by().is_none() {
            if waited > 0 {
                self.queue.take_over(desk.announces.drain(..waited));
            }
            self.queue.arrive(desk.announces.drain(..));
        }
        for _ in self.waiting_at_most..desk.announces.len() {
            desk.announces.pop_back();
            self.queue.counters().turn_away();
        }
        desk.replies.send(&self.socket, self.queue.counters());
    }

    /// A pass for announces that are executed here. What is not stored has nothing to wait for
    /// but the gate, and those that waited for it.
    fn pass_by(&self) -> Option<Pass<'_>> {
        match self.storage {
            Storage::Memory => self.queue.pass_by(),
            Storage::Database(_) => None,
        }
    }

    /// Executes some of the announces that wait, under one pass; or queues them all.
    fn execute_some(&self, desk: &mut Desk) {
        if desk.announces.is_empty() {
            return;
        }
        let Some(pass) = self.pass_by() else {
            self.queue.take_over(desk.announces.drain(..));
            return;
        };
        let counters = self.queue.counters();
        let now = queue::now();
        while desk.announces.front().is_some_and(|one| one.is_stale(now)) {
            desk.announces.pop_front();
            counters.turn_away();
        }
        let some = desk.announces.len().min(AT_ONCE);
        for announce in desk.announces.drain(..some) {
            survive("executing an announce", || {
                self.execute(announce, None, &mut desk.replies);
            });
        }
        drop(pass);
        desk.replies.send(&self.socket, counters);
    }

    /// Answers a packet, unless it is an announce that is to be executed.
    fn receive(
        &self,
        packet: &[u8],
        from: SocketAddr,
        arrived: Instant,
        replies: &mut Replies,
    ) -> Option<Announce> {
        let answer = match Request::parse_bytes(packet, MAX_SCRAPE_TORRENTS) {
            Ok(Request::Announce(request)) => match refuse(&request, from) {
                None => {
                    return Some(Announce {
                        from,
                        request,
                        arrived,
                    });
                }
                Some(refusal) => refusal,
            },
            Ok(request @ Request::Scrape(_)) => {
                let answer = self.read(request, from);
                replies.push_timed(&answer, from, gate::Request::Scrape, arrived);
                return None;
            }
            Ok(request) => self.read(request, from),
            Err(error) => answer::bad_packet(&error),
        };
        replies.push(&answer, from);
        None
    }

    /// Answers a connect or a scrape.
    fn read(&self, request: Request, from: SocketAddr) -> Response {
        let transaction_id = match &request {
            Request::Connect(connect) => connect.transaction_id,
            Request::Announce(announce) => announce.transaction_id,
            Request::Scrape(scrape) => scrape.transaction_id,
        };
        self.drive(handlers::handle_request(request, from, &self.tracker))
            .unwrap_or_else(|error| answer::refusal(&error, transaction_id))
    }
}

/// The answer to an announce whose connection id is not one we gave to this address.
/// Upstream checks that before anything else, so it can be given at once.
fn refuse(request: &AnnounceRequest, from: SocketAddr) -> Option<Response> {
    let error = check(&from, &from_connection_id(&request.connection_id)).err()?;
    tracing::debug!(target: UDP_TRACKER_LOG_TARGET, %error, %from, "announce refused");
    Some(answer::refusal(&error, request.transaction_id))
}
