//! The gate before an HTTP service: a `tower` layer that holds requests and then answers.
//!
//! ```text
//!                    Way::Straight
//!   request ──▶ way ───────────────────────────────────────────────────▶ inner service
//!                │                                                        ▲   on the
//!                │ Way::Gated, Way::InOrder                               │   caller's
//!                ▼                                                        │   runtime
//!          gate closed and Lobby full? ──yes──▶ 503, empty body           ╵
//!                │ no                                            ┌─▶ inner service
//!                ▼            a task of its own on the executor  │    with a pass
//!   ┌──────────────────────────────────────────────────────────┐ │
//!   │ turn: after those      lane: one of 32     gate: a pass   │─┘
//!   │ with the same key  ──▶ held, 32 fresh  ──▶               │
//!   └──────────────────────────────────────────────────────────┘
//! ```
//!
//! A gated request becomes a task of the executor's runtime, and the connection waits for
//! that task. Hence a client that hangs up changes nothing: its announce is registered,
//! wholly and once, whether it was waiting or between memory and database. And what
//! blocks in the inner service blocks no worker that connections are read with.
//!
//! Such a task waits for three things, always in this order, so that none waits for
//! another in a circle:
//!
//! 1. Its **turn**. Requests with one key (peer and torrent, say) run one after the other
//!    in the order in which they were called. Places in that order are given before the
//!    task is spawned, as tasks may start in any.
//! 2. A **lane**. What met a closed gate and what met an open one wait for separate
//!    permits, [`LANE`] each, first come first served. When the gate opens upon ten
//!    thousand held requests, 32 of them run, and not ten thousand at once; a new arrival
//!    competes with those 32 and never queues behind the rest. As a pass is only asked
//!    for with a permit in hand, a closing gate has at most twice [`LANE`] calls to wait
//!    for.
//! 3. A **pass** of the gate, kept until the inner service has answered. What the body of
//!    the answer does afterwards, if it streams, is not covered.
//!
//! With a [`Lobby::durable`] the answer then waits, pass in hand, until what was written is
//! durable; all that wait share a sync of the disk.
//!
//! How long answers took is counted where [`GateLayer::counting`] says what a request is; of
//! those that go straight, too. A request that was refused here, as below, is none of them.
//!
//! # What is refused, and how
//!
//! At most `hold_at_most` requests wait for a gate, over all layers of one [`Lobby`].
//! The next one is answered 503 with an empty body: BitTorrent clients try again after
//! some 20 seconds then, while a bencoded `failure reason` keeps some of them away for
//! half an hour. (`Retry-After` is read by none.) The bound is asked on arrival only.
//! A request that arrived at an open gate is accepted; should the gate close before it
//! ran, it is held above the bound. Those that wait for an open gate's lane are bounded
//! by what bounds the connections, as they would be without this layer.
//!
//! # What can go wrong
//!
//! - The inner service panics: its pass, permit and turn are given back, and the panic
//!   goes on in the task that reads the connection, where it would have been without
//!   this layer.
//! - The inner service never answers: it keeps its pass and permit. A time limit belongs
//!   in the inner service, which knows what it can give up; the gate has its own.
//! - The executor's runtime is shut down: 503 with an empty body.
//! - What was written is not known to be durable: 503 with an empty body, counted.
//! - The inner service is not ready: a gated request waits for it in its task, with its
//!   pass. It reserves nothing while it is held, or a limit on concurrency inside would
//!   be used up by those that wait and delay those that need not.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures_util::future::{self, Either, Join, Map, Ready};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tower::{Layer, Service, ServiceExt as _};
use tracing::Instrument as _;

use crate::durability::Durability;
use crate::gate::{self, Counters, Door, Gate};

/// How many held and, apart from these, how many fresh requests run at once. Enough to
/// keep a database busy whose calls wait; few enough that where calls run one by one, a
/// fresh request is not far behind. Seen on two cores, when the gate opened upon 10,000
/// held requests of 200 µs each: a fresh one was answered in 1 ms (median), 50 ms (worst);
/// with all 10,000 let loose the first fresh one took 2.9 s.
pub const LANE: usize = 32;

/// How a request goes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// Past the gate, without delay: it writes nothing.
    Straight,
    /// Through the gate.
    Gated,
    /// Through the gate, after every earlier request with the same key.
    InOrder(Vec<u8>),
}

/// Where requests wait: what all layers before one gate share, cheap to clone.
#[derive(Debug, Clone)]
pub struct Lobby {
    shared: Arc<Shared>,
    /// What answers to gated requests wait for.
    durability: Option<Durability>,
}

/// Puts a [`GateService`] around a service.
pub struct GateLayer<F> {
    lobby: Lobby,
    way: Arc<F>,
    counted: Counted,
}

/// A service whose gated requests wait for the gate and run on the executor.
pub struct GateService<S, F> {
    inner: S,
    lobby: Lobby,
    way: Arc<F>,
    counted: Counted,
}

/// As what a request is counted; `None`: not at all.
type Counted = fn(&Parts) -> Option<gate::Request>;

/// Takes the time of one request, from its arrival on.
#[derive(Debug)]
pub struct Stopwatch {
    shared: Arc<Shared>,
    request: gate::Request,
    since: Instant,
}

/// The answer to a request that goes straight, whose time may be taken.
type Straight<A, T> = Map<Join<A, Ready<Option<Stopwatch>>>, Arrived<T>>;

/// Counts an answer that is there, and hands it on.
type Arrived<T> = fn((T, Option<Stopwatch>)) -> T;

/// The answer to a gated request. Dropping it does not stop the request.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled, although the request itself runs"]
pub struct Answer<B, E>(State<B, E>);

#[derive(Debug)]
enum State<B, E> {
    Running(JoinHandle<Result<Response<B>, E>>),
    TurnedAway,
}

#[derive(Debug)]
struct Shared {
    gate: Gate,
    executor: Handle,
    hold_at_most: usize,
    held: AtomicUsize,
    held_lane: Semaphore,
    fresh_lane: Semaphore,
    order: Arc<Order>,
}

impl Lobby {
    /// A lobby before `gate` in which at most `hold_at_most` requests wait while it is
    /// closed. They run on `executor`, whose runtime needs the drivers (time, I/O) that
    /// the services inside use.
    #[must_use]
    pub fn new(gate: Gate, hold_at_most: usize, executor: Handle) -> Self {
        Self {
            shared: Arc::new(Shared {
                gate,
                executor,
                hold_at_most,
                held: AtomicUsize::new(0),
                held_lane: Semaphore::new(LANE),
                fresh_lane: Semaphore::new(LANE),
                order: Arc::default(),
            }),
            durability: None,
        }
    }

    /// The gate it is before.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.shared.gate
    }

    /// The same lobby for layers whose gated requests write: they are answered when what
    /// they wrote is durable. What that takes is counted; what executing takes the service
    /// inside counts itself ([`Counters::spend`]), which knows when it begins.
    #[must_use]
    pub fn durable(&self, durability: Durability) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            durability: Some(durability),
        }
    }

    /// A layer that sends each request the way that `way` says. It is asked once for each
    /// request, on arrival, and should cost little.
    pub fn layer<F: Fn(&Parts) -> Way>(&self, way: F) -> GateLayer<F> {
        GateLayer {
            lobby: self.clone(),
            way: Arc::new(way),
            counted: nothing,
        }
    }
}

impl<F> GateLayer<F> {
    /// Counts how long answers take, by what each request is. It is asked once for each, on
    /// arrival, and should cost little.
    #[must_use]
    pub fn counting(self, counted: fn(&Parts) -> Option<gate::Request>) -> Self {
        Self { counted, ..self }
    }
}

fn nothing(_: &Parts) -> Option<gate::Request> {
    None
}

impl<S, F> Layer<S> for GateLayer<F> {
    type Service = GateService<S, F>;

    fn layer(&self, inner: S) -> Self::Service {
        GateService {
            inner,
            lobby: self.lobby.clone(),
            way: Arc::clone(&self.way),
            counted: self.counted,
        }
    }
}

impl<S, F, B, R> Service<Request<B>> for GateService<S, F>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    F: Fn(&Parts) -> Way,
    B: Send + 'static,
    R: Default + Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Either<Straight<S::Future, Result<Response<R>, S::Error>>, Answer<R, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let way = (self.way)(&parts);
        let watch = (self.counted)(&parts).map(|request| self.lobby.shared.watch(request));
        let request = Request::from_parts(parts, body);
        let key = match way {
            Way::Straight => {
                let answer = future::join(self.inner.call(request), future::ready(watch));
                let arrived: Arrived<Result<Response<R>, S::Error>> = arrived;
                return Either::Left(future::FutureExt::map(answer, arrived));
            }
            Way::Gated => None,
            Way::InOrder(key) => Some(key),
        };
        // What readiness has reserved belongs to this instance and goes with it; the
        // clone asks for itself when its time has come.
        let inner = self.inner.clone();
        drop(std::mem::replace(&mut self.inner, inner.clone()));
        Either::Right(Answer(self.lobby.admit(inner, request, key, watch)))
    }
}

impl Stopwatch {
    /// The request has its answer.
    fn stop(&self) {
        let took = now().saturating_duration_since(self.since);
        self.shared.counters().answer(self.request, took, 1);
    }
}

fn arrived<T, E>((answer, watch): (Result<T, E>, Option<Stopwatch>)) -> Result<T, E> {
    if let (Ok(_), Some(watch)) = (&answer, watch) {
        watch.stop();
    }
    answer
}

#[expect(
    clippy::disallowed_methods,
    reason = "measures how long something took; nothing hangs on it"
)]
fn now() -> Instant {
    Instant::now()
}

impl Lobby {
    fn admit<S, B, R>(
        &self,
        inner: S,
        request: Request<B>,
        key: Option<Vec<u8>>,
        watch: Option<Stopwatch>,
    ) -> State<R, S::Error>
    where
        S: Service<Request<B>, Response = Response<R>> + Send + 'static,
        S::Future: Send,
        S::Error: Send + 'static,
        B: Send + 'static,
        R: Default + Send + 'static,
    {
        let shared = &self.shared;
        let held = if shared.gate.is_open() {
            None
        } else if let Some(held) = shared.hold_if_room() {
            Some(held)
        } else {
            shared.counters().turn_away();
            return State::TurnedAway;
        };
        let place = key.map(|key| shared.order.join(key));
        let durability = self.durability.clone();
        let call = Arc::clone(shared).run(inner, request, place, held, durability, watch);
        State::Running(shared.executor.spawn(call.in_current_span()))
    }
}

impl Shared {
    /// The task of one request: its turn, a lane, a pass, the call, the disk.
    async fn run<S, B, R>(
        self: Arc<Self>,
        inner: S,
        request: Request<B>,
        mut place: Option<Place>,
        mut held: Option<Held>,
        durability: Option<Durability>,
        watch: Option<Stopwatch>,
    ) -> Result<Response<R>, S::Error>
    where
        S: Service<Request<B>, Response = Response<R>>,
        R: Default,
    {
        if let Some(place) = &mut place {
            place.turn().await;
        }
        let lane = if held.is_some() {
            &self.held_lane
        } else {
            &self.fresh_lane
        };
        let _permit = lane.acquire().await.expect("nobody closes a lane");
        let _pass = if let Some(pass) = self.gate.try_enter() {
            pass
        } else {
            held.get_or_insert_with(|| self.hold());
            self.gate.enter().await
        };
        drop(held);
        let response = inner.oneshot(request).await?;
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            // The service has refused it, and counted that.
            return Ok(response);
        }
        if let Some(durability) = durability {
            let began = now();
            let synced = durability.synced().await;
            self.counters().spend(began.elapsed());
            if synced.is_err() {
                self.counters().leave_unconfirmed(1);
                return Ok(unavailable());
            }
        }
        if let Some(watch) = watch {
            watch.stop();
        }
        Ok(response)
    }

    fn watch(self: &Arc<Self>, request: gate::Request) -> Stopwatch {
        Stopwatch {
            shared: Arc::clone(self),
            request,
            since: now(),
        }
    }

    fn hold_if_room(self: &Arc<Self>) -> Option<Held> {
        self.held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                (held < self.hold_at_most).then_some(held + 1)
            })
            .ok()?;
        Some(self.held())
    }

    fn hold(self: &Arc<Self>) -> Held {
        self.held.fetch_add(1, Ordering::Relaxed);
        self.held()
    }

    fn held(self: &Arc<Self>) -> Held {
        self.counters().hold();
        Held {
            shared: Arc::clone(self),
        }
    }

    fn counters(&self) -> &Counters {
        self.gate.counters(Door::Http)
    }
}

/// One request that waits for the gate; dropped when it goes on.
struct Held {
    shared: Arc<Shared>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.held.fetch_sub(1, Ordering::Relaxed);
        self.shared.counters().release();
    }
}

/// Who is last in the queue of each key. The queues themselves are chains: each request
/// knows the one before it.
#[derive(Debug, Default)]
struct Order {
    queues: Mutex<Queues>,
}

#[derive(Debug, Default)]
struct Queues {
    joined: u64,
    last: HashMap<Vec<u8>, Last>,
}

#[derive(Debug)]
struct Last {
    number: u64,
    /// Resolves, to an error, when the place is left: nothing is ever sent.
    left: oneshot::Receiver<Infallible>,
}

/// A place in the queue of a key, left on drop.
struct Place {
    order: Arc<Order>,
    key: Vec<u8>,
    number: u64,
    before: Option<oneshot::Receiver<Infallible>>,
    _left: oneshot::Sender<Infallible>,
}

impl Order {
    fn join(self: &Arc<Self>, key: Vec<u8>) -> Place {
        let (sender, left) = oneshot::channel();
        let mut queues = self.lock();
        queues.joined += 1;
        let number = queues.joined;
        let before = queues.last.insert(key.clone(), Last { number, left });
        drop(queues);
        Place {
            order: Arc::clone(self),
            key,
            number,
            before: before.map(|last| last.left),
            _left: sender,
        }
    }

    /// Each change is a single call on the map: a panic leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Waits until all places before this one are left.
    async fn turn(&mut self) {
        if let Some(before) = self.before.take() {
            // Only an error can come: that its sender is gone.
            let _left = before.await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut queues = self.order.lock();
        if queues
            .last
            .get(&self.key)
            .is_some_and(|last| last.number == self.number)
        {
            queues.last.remove(&self.key);
        }
    }
}

impl<B: Default, E> Future for Answer<B, E> {
    type Output = Result<Response<B>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match &mut self.0 {
            State::Running(task) => match ready!(Pin::new(task).poll(cx)) {
                Ok(outcome) => outcome,
                Err(stopped) => match stopped.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_shut_down) => Ok(unavailable()),
                },
            },
            State::TurnedAway => Ok(unavailable()),
        })
    }
}

fn unavailable<B: Default>() -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
}

// By hand, as a derive would ask the closure behind the `Arc` to be cloned and shown too.

impl<F> Clone for GateLayer<F> {
    fn clone(&self) -> Self {
        Self {
            lobby: self.lobby.clone(),
            way: Arc::clone(&self.way),
            counted: self.counted,
        }
    }
}

impl<S: Clone, F> Clone for GateService<S, F> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            lobby: self.lobby.clone(),
            way: Arc::clone(&self.way),
            counted: self.counted,
        }
    }
}

impl<F> fmt::Debug for GateLayer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GateLayer")
            .field("lobby", &self.lobby)
            .finish_non_exhaustive()
    }
}

impl<S: fmt::Debug, F> fmt::Debug for GateService<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GateService")
            .field("inner", &self.inner)
            .field("lobby", &self.lobby)
            .finish_non_exhaustive()
    }
}

/// The examples of the guide are tests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/linking.md")]
struct Linking;

#[cfg(test)]
mod tests;
