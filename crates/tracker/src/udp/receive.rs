//! The thread that receives: answers what touches memory alone, queues announces.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aquatic_udp_protocol::{AnnounceRequest, Request, Response};
use torrust_tracker::servers::udp::connection_cookie::{check, from_connection_id};
use torrust_tracker::servers::udp::{UDP_TRACKER_LOG_TARGET, handlers};
use torrust_tracker::shared::bit_torrent::common::MAX_SCRAPE_TORRENTS;
use torrust_tracker::shared::bit_torrent::tracker::udp::MAX_PACKET_SIZE;

use super::queue::Announce;
use super::{Shared, answer, survive};

/// The pause after a failed receive, should the failure be there to stay.
const RETRY_AFTER: Duration = Duration::from_millis(10);

/// Receives until the server is told to stop.
pub fn run(shared: &Shared) {
    let mut packet = [0; MAX_PACKET_SIZE];
    let mut failures: u64 = 0;
    // However this ends, the other thread must not wait for more.
    let _finish = Finish(shared);
    while !shared.stopping.load(Ordering::Acquire) {
        match shared.socket.recv_from(&mut packet) {
            Ok((length, from)) => {
                failures = 0;
                survive("receiving a packet", || {
                    shared.receive(&packet[..length], from);
                });
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
    fn receive(&self, packet: &[u8], from: SocketAddr) {
        let answer = match Request::parse_bytes(packet, MAX_SCRAPE_TORRENTS) {
            Ok(Request::Announce(request)) => self.announce(request, from),
            Ok(request) => Some(self.read(request, from)),
            Err(error) => Some(answer::bad_packet(&error)),
        };
        if let Some(answer) = answer {
            answer::send(&self.socket, &answer, from);
        }
    }

    /// Queues an announce, unless its connection id is not one we gave to this address.
    /// Upstream checks that before anything else, so its answer can be given at once.
    fn announce(&self, request: AnnounceRequest, from: SocketAddr) -> Option<Response> {
        match check(&from, &from_connection_id(&request.connection_id)) {
            Ok(_) => {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "this is when it arrives; the queue is handed it"
                )]
                let arrived = Instant::now();
                self.queue.arrive(Announce {
                    from,
                    request,
                    arrived,
                });
                None
            }
            Err(error) => {
                tracing::debug!(target: UDP_TRACKER_LOG_TARGET, %error, %from, "announce refused");
                Some(answer::refusal(&error, request.transaction_id))
            }
        }
    }

    /// Answers a connect or a scrape.
    fn read(&self, request: Request, from: SocketAddr) -> Response {
        let transaction_id = match &request {
            Request::Connect(connect) => connect.transaction_id,
            Request::Announce(announce) => announce.transaction_id,
            Request::Scrape(scrape) => scrape.transaction_id,
        };
        let handler = handlers::handle_request(request, from, &self.tracker);
        let result = self.runtime.block_on(handler);
        result.unwrap_or_else(|error| answer::refusal(&error, transaction_id))
    }
}
