//! The thread that receives. What touches memory alone it answers itself, a batch of packets
//! with a batch of answers; announces that are stored, or that meet a closed gate, it queues.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aquatic_udp_protocol::{AnnounceRequest, Request, Response};
use torrust_tracker::servers::udp::connection_cookie::{check, from_connection_id};
use torrust_tracker::servers::udp::{UDP_TRACKER_LOG_TARGET, handlers};
use torrust_tracker::shared::bit_torrent::common::MAX_SCRAPE_TORRENTS;

use super::queue::Announce;
use super::wire::{Inbox, Outbox};
use super::{Shared, Storage, answer, survive};

/// The pause after a failed receive, should the failure be there to stay.
const RETRY_AFTER: Duration = Duration::from_millis(10);

/// Receives until the server is told to stop.
pub fn run(shared: &Shared) {
    let mut inbox = Inbox::new();
    let mut desk = Desk::default();
    let mut failures: u64 = 0;
    // However this ends, the other thread must not wait for more.
    let _finish = Finish(shared);
    while !shared.stopping.load(Ordering::Acquire) {
        match inbox.receive(&shared.socket) {
            Ok(()) => {
                failures = 0;
                shared.handle(&inbox, &mut desk);
            }
            Err(error) if is_no_failure(&error) => {}
            Err(error) => {
                failures += 1;
                // The first says what is wrong; after that they only need not be forgotten.
                if failures.is_power_of_two() {
                    tracing::error!(target: UDP_TRACKER_LOG_TARGET, %error, failures, "could not receive, trying again");
                }
                std::thread::park_timeout(RETRY_AFTER);
            }
        }
    }
}

/// What becomes of a batch of packets.
#[derive(Default)]
struct Desk {
    answers: Outbox,
    /// For the queue.
    announces: Vec<Announce>,
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
        // One for the whole batch. What is not stored has nothing to wait for but the gate.
        let pass = match self.storage {
            Storage::Memory => self.queue.pass_by(),
            Storage::Database(_) => None,
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "this is when they arrive; the queue is handed it"
        )]
        let arrived = Instant::now();
        for (packet, from) in inbox.packets() {
            survive("receiving a packet", || {
                let Some(announce) = self.receive(packet, from, arrived, &mut desk.answers) else {
                    return;
                };
                if pass.is_some() {
                    self.execute(announce, None, &mut desk.answers);
                } else {
                    desk.announces.push(announce);
                }
            });
        }
        drop(pass);
        if !desk.announces.is_empty() {
            self.queue.arrive(desk.announces.drain(..));
        }
        desk.answers.send(&self.socket);
    }

    /// Answers a packet, unless it is an announce that is to be executed.
    fn receive(
        &self,
        packet: &[u8],
        from: SocketAddr,
        arrived: Instant,
        answers: &mut Outbox,
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
            Ok(request) => self.read(request, from),
            Err(error) => answer::bad_packet(&error),
        };
        answers.push(&answer, from);
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
