//! The UDP side of the generator: one thread that owns many sockets, sends what is due,
//! reads what has come, and sleeps until the earlier of the two.
//!
//! ```text
//!            ┌──────────────────────────────────────────┐
//!            ▼                                          │
//!   send what is due, at most a burst ─▶ wait ─▶ read one answer of each ready socket
//! ```
//!
//! Nothing is shared with another thread but the flag that says stop, so nothing is locked,
//! and an answer is read as soon as the kernel has it. The wait is as precise as the
//! kernel's timers, so that requests leave one by one at the planned instants and not in
//! bursts of a millisecond's worth.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use aquatic_udp_protocol::{
    ConnectRequest, ConnectionId, InfoHash, Request, Response, ScrapeRequest, TransactionId,
};
use chrono::{DateTime, Utc};
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fd::OwnedFd;

use super::swarms::Swarms;
use super::tally::{Kind, Tally};
use super::{Clock, Share};
use crate::announce::{Announce, Event};
use crate::completions::{Completion, Completions};
use crate::pace::Pace;
use crate::udp::{REPLY, transaction_of};
use crate::usage::{Turns, dropped_datagrams};

/// BEP 15 lets a client use a connection id for a minute; a new one is asked for before.
const RENEW_AFTER: Duration = Duration::from_secs(55);

/// A connect that was not answered is sent again after this long.
const CONNECT_AGAIN: Duration = Duration::from_secs(2);

/// Most requests sent before answers are looked for.
const BURST: usize = 32;

/// The stop flag is looked at this often when there is nothing to do.
const LOOK: Duration = Duration::from_millis(20);

/// What the thread is to send.
pub(super) struct Orders {
    pub(super) to: SocketAddr,
    pub(super) per_second: u32,
    pub(super) ports: u16,
    pub(super) connects: Share,
    pub(super) scrapes: Share,
    pub(super) swarms: Swarms,
    pub(super) seed: u64,
}

/// What became of it.
pub(super) struct Sent {
    pub(super) tally: Tally,
    pub(super) completions: Completions,
    /// Answers the kernel dropped because this thread was too slow to read them.
    pub(super) dropped: u64,
    pub(super) turns: Turns,
}

/// One source port: a client of its own to the tracker.
struct Port {
    socket: UdpSocket,
    id: ConnectionId,
    /// When the id was granted, and when the last connect was sent, from the beginning.
    granted: Duration,
    asked: Duration,
    /// The tracker refused the id; until there is a new one it is used all the same.
    refused: bool,
}

struct Pending {
    port: usize,
    planned: Duration,
    what: What,
}

enum What {
    Connect,
    Scrape,
    /// And when a completion was sent.
    Announce(Announce, Option<DateTime<Utc>>),
}

impl What {
    fn kind(&self) -> Kind {
        match self {
            Self::Connect => Kind::UdpConnect,
            Self::Scrape => Kind::UdpScrape,
            Self::Announce(..) => Kind::UdpAnnounce,
        }
    }
}

pub(super) struct Sender {
    orders: Orders,
    ports: Vec<Port>,
    ready: OwnedFd,
    random: fastrand::Rng,
    /// Whose turn it is to announce or scrape, and whose to connect.
    turn: usize,
    connect_turn: usize,
    transaction: i32,
    pending: HashMap<i32, Pending>,
    tally: Tally,
    completions: Completions,
}

impl Sender {
    /// Opens the sockets, each with a connection id. These connects are not counted.
    ///
    /// # Errors
    /// When a socket cannot be opened, or the tracker does not answer.
    pub(super) fn open(orders: Orders) -> Result<Self> {
        let ready = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut ports = Vec::new();
        for index in 0..orders.ports.max(1) {
            let socket = UdpSocket::bind("127.0.0.1:0").context("binding a source port")?;
            socket.connect(orders.to)?;
            let id = first_connection(&socket)
                .with_context(|| format!("a connect to udp://{}", orders.to))?;
            socket.set_nonblocking(true)?;
            epoll::add(
                &ready,
                &socket,
                epoll::EventData::new_u64(index.into()),
                epoll::EventFlags::IN,
            )?;
            ports.push(Port {
                socket,
                id,
                granted: Duration::ZERO,
                asked: Duration::ZERO,
                refused: false,
            });
        }
        Ok(Self {
            random: fastrand::Rng::with_seed(orders.seed),
            orders,
            ports,
            ready,
            turn: 0,
            connect_turn: 0,
            transaction: 0,
            pending: HashMap::new(),
            tally: Tally::default(),
            completions: Completions::default(),
        })
    }

    /// Sends until told to stop, then waits at most `grace` for what is in flight.
    ///
    /// # Errors
    /// When the kernel refuses what it should not.
    pub(super) fn run(mut self, clock: Clock, stop: &AtomicBool, grace: Duration) -> Result<Sent> {
        let mut pace = Pace::new(self.orders.per_second);
        let mut stopped: Option<(Duration, Turns)> = None;
        let turns = loop {
            let now = clock.elapsed();
            if stopped.is_none() && stop.load(Ordering::Relaxed) {
                // What it reads after the end was no part of the load.
                stopped = Some((now, Turns::of_this_thread()?));
            }
            let wait = if let Some((since, turns)) = stopped {
                if self.pending.is_empty() || now.saturating_sub(since) >= grace {
                    break turns;
                }
                LOOK
            } else {
                for _ in 0..BURST {
                    let Some(planned) = pace.take(clock.elapsed()) else {
                        break;
                    };
                    self.send_next(planned, &clock)?;
                }
                let next = pace.next().unwrap_or(Duration::MAX);
                LOOK.min(next.saturating_sub(clock.elapsed()))
            };
            self.receive(wait, &clock)?;
        };
        for pending in std::mem::take(&mut self.pending).into_values() {
            self.tally.unanswered(pending.what.kind(), pending.planned);
            self.note(&pending, None);
        }
        Ok(Sent {
            dropped: self.dropped()?,
            tally: self.tally,
            completions: self.completions,
            turns,
        })
    }

    fn send_next(&mut self, planned: Duration, clock: &Clock) -> Result<()> {
        if self.orders.connects.draw(&mut self.random) {
            // Of the ports in turn, so that this renews the oldest id.
            self.connect_turn = (self.connect_turn + 1) % self.ports.len();
            return self.connect(self.connect_turn, planned, clock);
        }
        self.turn = (self.turn + 1) % self.ports.len();
        let (index, now) = (self.turn, clock.elapsed());
        let port = &self.ports[index];
        let old = port.refused || now.saturating_sub(port.granted) >= RENEW_AFTER;
        if old && now.saturating_sub(port.asked) >= CONNECT_AGAIN {
            self.connect(index, now, clock)?;
        }
        let id = self.ports[index].id;
        let transaction_id = self.next_transaction();
        let (request, what) = if self.orders.scrapes.draw(&mut self.random) {
            let request = ScrapeRequest {
                connection_id: id,
                transaction_id,
                info_hashes: vec![InfoHash(self.orders.swarms.scraped().info_hash())],
            };
            (request.into(), What::Scrape)
        } else {
            let announce = self.orders.swarms.next(now);
            let sent = (announce.event == Event::Completed).then(Utc::now);
            let request = announce.udp(id, transaction_id.0.get());
            (request.into(), What::Announce(announce, sent))
        };
        self.send(index, &request, transaction_id, what, planned, clock)
    }

    fn connect(&mut self, index: usize, planned: Duration, clock: &Clock) -> Result<()> {
        self.ports[index].asked = clock.elapsed();
        let transaction_id = self.next_transaction();
        let request = ConnectRequest { transaction_id }.into();
        self.send(
            index,
            &request,
            transaction_id,
            What::Connect,
            planned,
            clock,
        )
    }

    fn next_transaction(&mut self) -> TransactionId {
        self.transaction = self.transaction.wrapping_add(1);
        TransactionId::new(self.transaction)
    }

    fn send(
        &mut self,
        index: usize,
        request: &Request,
        transaction: TransactionId,
        what: What,
        planned: Duration,
        clock: &Clock,
    ) -> Result<()> {
        let mut bytes = [0; 128];
        let mut rest = bytes.as_mut_slice();
        request.write_bytes(&mut rest)?;
        let length = 128 - rest.len();
        let late = clock.elapsed().saturating_sub(planned);
        let kind = what.kind();
        self.tally.sent(kind, planned, late);
        let pending = Pending {
            port: index,
            planned,
            what,
        };
        // Refused is what a closed port says of the packet before, and takes the place of
        // this one's sending: once said, it can be sent.
        let socket = &self.ports[index].socket;
        let sent = match socket.send(&bytes[..length]) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                socket.send(&bytes[..length])
            }
            sent => sent,
        };
        match sent {
            Ok(_) => {
                self.pending.insert(transaction.0.get(), pending);
            }
            // A socket without room, or two refusals in a row: it did not leave.
            Err(error)
                if [ErrorKind::WouldBlock, ErrorKind::ConnectionRefused]
                    .contains(&error.kind()) =>
            {
                self.tally.error(kind, planned, "not sent");
                self.note(&pending, None);
            }
            Err(error) => return Err(error).context("sending"),
        }
        Ok(())
    }

    /// Waits for answers, then reads one of each socket that has some.
    fn receive(&mut self, wait: Duration, clock: &Clock) -> Result<()> {
        // `epoll::wait` knows milliseconds only; the poll of its descriptor is precise.
        let timeout = Timespec {
            tv_sec: wait.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        };
        let mut readable = [PollFd::new(&self.ready, PollFlags::IN)];
        match poll(&mut readable, Some(&timeout)) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for answers"),
        }
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 64];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let ready = epoll::wait(&self.ready, &mut events[..], Some(&at_once))?;
        let mut bytes = [0; REPLY];
        for event in &events[..ready] {
            let index = usize::try_from(event.data.u64())?;
            // An error is a closed port, which is no answer.
            if let Ok(length) = self.ports[index].socket.recv(&mut bytes) {
                self.take(index, &bytes[..length], clock);
            }
        }
        Ok(())
    }

    /// Enters an answer. What is no answer to anything asked, or the second to the same,
    /// changes nothing.
    fn take(&mut self, index: usize, bytes: &[u8], clock: &Clock) {
        let Ok(response) = Response::parse_bytes(bytes, true) else {
            return;
        };
        let transaction = transaction_of(&response).0.get();
        let asked_here = |pending: &Pending| pending.port == index;
        if !self.pending.get(&transaction).is_some_and(asked_here) {
            return;
        }
        let Some(pending) = self.pending.remove(&transaction) else {
            return;
        };
        let now = clock.elapsed();
        let (kind, planned) = (pending.what.kind(), pending.planned);
        let answered = match (&response, &pending.what) {
            (Response::Connect(reply), What::Connect) => {
                let port = &mut self.ports[index];
                (port.id, port.granted, port.refused) = (reply.connection_id, now, false);
                true
            }
            (Response::AnnounceIpv4(_), What::Announce(..))
            | (Response::Scrape(_), What::Scrape) => true,
            (Response::Error(reply), _) => {
                // What a tracker that was restarted says of every id it did not grant.
                self.ports[index].refused |= reply.message.contains("connection id");
                self.tally.error(kind, planned, &reply.message);
                false
            }
            (_, _) => {
                self.tally
                    .error(kind, planned, "an answer to something else");
                false
            }
        };
        if answered {
            self.tally
                .answered(kind, planned, now.saturating_sub(planned));
        }
        self.note(&pending, answered.then_some(now));
    }

    /// Tells the swarms how an announce ended, and enters a completion in the book.
    fn note(&mut self, pending: &Pending, answered: Option<Duration>) {
        let What::Announce(announce, sent) = &pending.what else {
            return;
        };
        self.orders.swarms.ended(
            *announce,
            answered.is_some(),
            answered.unwrap_or(pending.planned),
        );
        if let Some(sent) = sent {
            self.completions.0.push(Completion {
                torrent: announce.torrent,
                sent: *sent,
                acknowledged: answered.map(|_| Utc::now()),
            });
        }
    }

    fn dropped(&self) -> Result<u64> {
        let mut ports = Vec::new();
        for port in &self.ports {
            ports.push(port.socket.local_addr()?.port());
        }
        dropped_datagrams(&ports)
    }
}

/// Connects a socket, again each time no answer comes, within [`crate::PATIENCE`].
fn first_connection(socket: &UdpSocket) -> Result<ConnectionId> {
    let transaction_id = TransactionId::new(0);
    let mut request = Vec::new();
    Request::from(ConnectRequest { transaction_id }).write_bytes(&mut request)?;
    socket.set_read_timeout(Some(CONNECT_AGAIN))?;
    let until = Instant::now() + crate::PATIENCE;
    let mut bytes = [0; REPLY];
    while Instant::now() < until {
        // Not sent, or no answer: a port that is closed still. The timeout paces.
        let received = socket.send(&request).and_then(|_| socket.recv(&mut bytes));
        let Ok(length) = received else { continue };
        match Response::parse_bytes(&bytes[..length], true) {
            Ok(Response::Connect(reply)) => return Ok(reply.connection_id),
            other => bail!("answered with {other:?}"),
        }
    }
    bail!("not answered within {:?}", crate::PATIENCE)
}

/// Runs a sender on a thread of its own.
pub(super) fn spawn(
    sender: Sender,
    clock: Clock,
    stop: Arc<AtomicBool>,
    grace: Duration,
) -> Result<std::thread::JoinHandle<Result<Sent>>> {
    std::thread::Builder::new()
        .name("generate-udp".to_owned())
        .spawn(move || sender.run(clock, &stop, grace))
        .context("starting a thread")
}
