//! Replies on their way, and how long the requests waited that they answer.

use std::net::{SocketAddr, UdpSocket};
use std::time::Instant;

use aquatic_udp_protocol::Response;
use torrust_tracker_maintenance::gate::{Counters, Request};

use super::wire::Outbox;

/// Replies that are sent together. Dropping them drops them.
#[derive(Debug, Default)]
pub struct Replies {
    outbox: Outbox,
    waited: Vec<Waited>,
}

/// Requests that arrived together, one after the other in a batch.
#[derive(Debug, PartialEq, Eq)]
struct Waited {
    request: Request,
    since: Instant,
    how_many: u64,
}

impl Replies {
    /// Answers `to`, when they are sent.
    pub fn push(&mut self, answer: &Response, to: SocketAddr) {
        self.outbox.push(answer, to);
    }

    /// As [`Replies::push`], and when it is sent it is counted how long the request took.
    pub fn push_timed(
        &mut self,
        answer: &Response,
        to: SocketAddr,
        request: Request,
        arrived: Instant,
    ) {
        self.push(answer, to);
        match self.waited.last_mut() {
            Some(last) if (last.request, last.since) == (request, arrived) => last.how_many += 1,
            _ => self.waited.push(Waited {
                request,
                since: arrived,
                how_many: 1,
            }),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.outbox.len()
    }

    /// Sends them all. How long they took is counted once for requests that arrived together.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is when they are answered; the counters are handed it"
    )]
    pub fn send(&mut self, socket: &UdpSocket, counters: &Counters) {
        self.outbox.send(socket);
        if self.waited.is_empty() {
            return;
        }
        let now = Instant::now();
        for Waited {
            request,
            since,
            how_many,
        } in self.waited.drain(..)
        {
            counters.answer(request, now.saturating_duration_since(since), how_many);
        }
    }

    /// Drops them all.
    pub fn clear(&mut self) {
        self.outbox.clear();
        self.waited.clear();
    }
}
