//! One UDP tracker (BEP 15), with a thread that receives and a thread that executes.
//!
//! ```text
//!             ┌───────────── udp-receive ─────────────┐          ┌──── udp-announce ────┐
//!   socket ══▶│ connect, scrape, bad packet: answered │          │ pass                 │
//!             │ announce, cookie invalid:    answered │          │ new cookie, execute, │
//!             │ announce, memory alone:      answered │          │   the next, ..       │
//!             │ announce, stored or held ─────────────│─ Queue ─▶│ one sync of the disk │══▶ socket
//!             └───────────────────────────────────────┘          └──────────────────────┘
//!   ══▶ a batch with one system call ([`wire`])
//! ```
//!
//! An announce can only write to the database where the tracker keeps a persistent statistic
//! ([`Storage`]). Then, and whenever the gate is closed, it is executed by the second thread.
//! Whatever the database does, a slow commit, a lock that is held for seconds or a closed
//! gate, the first thread goes on to answer connects and scrapes, which touch memory alone;
//! upstream's health check is a connect and stays green. Where nothing is stored the
//! first thread executes announces, too, a batch of them under one pass of the gate and after
//! everything else ([`receive`]): to hand them over would cost more than to execute them. Both
//! are plain threads with a
//! blocking socket: a commit blocks, and one that blocked a worker of the async runtime
//! would take the HTTP services with it (upstream was seen to delay connects by 5 s in that
//! way).
//!
//! What is stored is answered when a power failure cannot take it back, unless the operator
//! chose otherwise: [`execute`] has how.
//!
//! # What is upstream's, and what is kept of its behaviour
//!
//! Requests are parsed and answered by upstream's own public functions, statistics events
//! included; [`answer`] has the few lines that are private there. Differences:
//!
//! - Upstream runs 50 requests at once and aborts the oldest to make room, also between
//!   memory and database. Here announces wait in the order of their arrival, up to a
//!   bound, and none is aborted.
//! - Upstream ends its loop on a receive error; here it is logged and the loop goes on.
//! - An invalid connection id is answered alike, but logged at debug level: it costs an
//!   attacker one packet to make a line.
//!
//! # Connection ids
//!
//! They expire after two to three minutes, so one that was valid on arrival may not be
//! when a long pause ends. It is checked when it arrives, which is when the client can
//! have no better one, and replaced by a new one right before the announce is executed.
//!
//! # Failure paths
//!
//! - A handler panics, or anything else that one request makes a thread do: it gets no
//!   answer, its pass is given back, both threads go on.
//! - A thread ends all the same: its lifeline raises the alarm and the process shuts down.
//! - What was executed cannot be made durable: none of a turn's announces gets an answer;
//!   counted. The same for one whose completion upstream failed to store ([`crate::writer`]).
//! - More announces than may wait, or than the database takes in time (see [`queue`]):
//!   dropped without an answer, counted. Every client sends again; an error reply would
//!   make some stay away for half an hour.
//! - The process stops: the receiving thread ends, the executing one when the queue is
//!   empty, or is left behind when the time is up ([`Server::stop`]).

mod answer;
mod execute;
mod queue;
mod receive;
mod replies;
mod wire;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use torrust_tracker::core::Tracker;
use torrust_tracker::servers::udp::UDP_TRACKER_LOG_TARGET;
use torrust_tracker_maintenance::gate::Gate;
use torrust_tracker_maintenance::hold::Bounds;

use crate::alarm::{Alarm, Lifeline};
use crate::writer::Writer;
use queue::Queue;

/// How long the receiving thread may take to see that it is to stop.
const STOP_WITHIN: Duration = Duration::from_millis(100);

/// What the kernel is asked to buffer, in bytes. It gives at most `net.core.rmem_max`.
/// The usual default of 208 KiB holds some 280 packets, 16 ms at 17,000 a second: less
/// than a busy machine may keep the thread off the processor.
const RECEIVE_BUFFER: usize = 4 << 20;

/// A UDP tracker that answers.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// Told by the executing thread, which is the last to end, when all is done. Closed
    /// without a word: the thread died.
    done: oneshot::Receiver<()>,
}

/// Where announces end up.
#[derive(Debug, Clone)]
pub enum Storage {
    /// In memory alone.
    Memory,
    /// In the database too.
    Database(Writer),
}

/// What both threads use.
struct Shared {
    socket: UdpSocket,
    tracker: Arc<Tracker>,
    storage: Storage,
    queue: Queue,
    /// Announces that may wait for the receiving thread itself.
    waiting_at_most: usize,
    /// Where handlers that wait for memory of others (a lock, a channel) are driven.
    runtime: Handle,
    stopping: AtomicBool,
}

/// Why announces were not executed before the process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// Nothing could be.
    GateClosed,
    /// The time was up.
    TooSlow,
    /// There was nobody to do it.
    ThreadDied,
}

impl Server {
    /// Starts both threads on a socket that is bound. Needs an async runtime, where the
    /// handlers are driven that wait for memory of others.
    ///
    /// # Errors
    ///
    /// When the operating system refuses an option of the socket or a thread.
    pub fn start(
        socket: UdpSocket,
        tracker: Arc<Tracker>,
        storage: Storage,
        gate: Gate,
        bounds: Bounds,
        alarm: &Alarm,
    ) -> io::Result<Self> {
        socket.set_read_timeout(Some(STOP_WITHIN))?;
        socket2::SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER)?;
        let address = socket.local_addr()?;
        let shared = Arc::new(Shared {
            socket,
            tracker,
            storage,
            queue: Queue::new(gate, bounds),
            waiting_at_most: bounds.queued,
            runtime: Handle::current(),
            stopping: AtomicBool::new(false),
        });
        let (all_done, done) = oneshot::channel();
        let lifeline = |doing| alarm.lifeline(format!("the thread that {doing} on {address}"));
        let receiving = lifeline("receives");
        spawn("udp-receive", Arc::clone(&shared), receiving, receive::run)?;
        let executing = lifeline("executes announces");
        spawn(
            "udp-announce",
            Arc::clone(&shared),
            executing,
            move |shared| {
                execute::run(shared);
                // Whoever stopped the server may have stopped waiting.
                let _ = all_done.send(());
            },
        )?;
        Ok(Self {
            address,
            shared,
            done,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Receives no more and executes what waits, for at most `drain`. The gate must be
    /// open, or nothing can be executed.
    pub async fn stop(self, drain: Duration) {
        tracing::info!(target: UDP_TRACKER_LOG_TARGET, "Halting UDP Service Bound to Socket: {}", self.address);
        self.shared.stopping.store(true, Ordering::Release);
        if let Err(why) = drained(self.done, drain, &self.shared.queue).await {
            let left = self.shared.queue.len();
            tracing::warn!(target: UDP_TRACKER_LOG_TARGET, "{}", why.to_text(self.address, left, drain));
        }
    }
}

/// Waits until the executing thread says that it has done everything.
async fn drained(done: oneshot::Receiver<()>, limit: Duration, queue: &Queue) -> Result<(), Left> {
    match tokio::time::timeout(limit, done).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Left::ThreadDied),
        Err(_) if queue.is_blocked() => Err(Left::GateClosed),
        Err(_) => Err(Left::TooSlow),
    }
}

impl Left {
    fn to_text(self, address: SocketAddr, waiting: usize, limit: Duration) -> String {
        let why = match self {
            Self::GateClosed => "the gate is closed".to_owned(),
            Self::TooSlow => format!("the database took longer than {limit:?}"),
            Self::ThreadDied => "the thread that executes them has died".to_owned(),
        };
        // One more may be with the database, which may still take it.
        format!("{waiting} announces that waited on {address} are left unanswered: {why}")
    }
}

impl Shared {
    /// The result of one of upstream's handlers. They wait for memory of others, and hardly
    /// ever have to.
    fn drive<T>(&self, handler: impl Future<Output = T>) -> T {
        let mut handler = pin!(handler);
        match handler.as_mut().now_or_never() {
            Some(result) => result,
            None => self.runtime.block_on(handler),
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("socket", &self.socket)
            .field("stopping", &self.stopping)
            .finish_non_exhaustive()
    }
}

/// A thread that holds its lifeline for as long as it runs.
fn spawn(
    name: &str,
    shared: Arc<Shared>,
    lifeline: Lifeline,
    run: impl FnOnce(&Shared) + Send + 'static,
) -> io::Result<()> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            let _lifeline = lifeline;
            run(&shared);
        })?;
    Ok(())
}

/// Does what one request needs. A panic costs that request its answer, and not everybody
/// else the tracker.
fn survive(what: &str, one_request: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(one_request)).is_err() {
        tracing::error!(target: UDP_TRACKER_LOG_TARGET, "{what} panicked; a request gets no answer");
    }
}

#[cfg(test)]
mod tests;
