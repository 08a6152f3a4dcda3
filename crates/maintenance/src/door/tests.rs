//! On a runtime with one thread, which is the executor too, [`settle`] lets every task go
//! as far as it can: what has not happened then is waiting.

use std::fs::File;
use std::io;
use std::sync::Barrier;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::yield_now;

use super::*;
use crate::gate::Keeper;

type Refusal = &'static str;

const SEATS: usize = 1_000;

/// Notes what begins and ends, and lets calls end only as `go` permits. Like a service
/// with a limit it takes a seat to be ready, may then be called once, and a clone is not
/// ready.
struct Inner {
    notes: Arc<Mutex<Vec<String>>>,
    go: Arc<Semaphore>,
    seats: Arc<Semaphore>,
    seat: Option<OwnedSemaphorePermit>,
}

impl Clone for Inner {
    fn clone(&self) -> Self {
        Self {
            notes: Arc::clone(&self.notes),
            go: Arc::clone(&self.go),
            seats: Arc::clone(&self.seats),
            seat: None,
        }
    }
}

impl Inner {
    fn new(go: usize) -> Self {
        Self {
            notes: Arc::default(),
            go: Arc::new(Semaphore::new(go)),
            seats: Arc::new(Semaphore::new(SEATS)),
            seat: None,
        }
    }

    fn notes(&self) -> Vec<String> {
        self.notes
            .lock()
            .expect("no panic with the lock held")
            .clone()
    }

    fn count(&self, beginning: &str) -> usize {
        self.notes()
            .iter()
            .filter(|note| note.starts_with(beginning))
            .count()
    }
}

impl Service<Request<String>> for Inner {
    type Response = Response<String>;
    type Error = Refusal;
    type Future = Pin<Box<dyn Future<Output = Result<Response<String>, Refusal>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        if self.seat.is_none() {
            let seat = Arc::clone(&self.seats).try_acquire_owned();
            self.seat = Some(seat.expect("more seats than any test needs"));
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<String>) -> Self::Future {
        let seat = self.seat.take().expect("called only when ready");
        let Self { notes, go, .. } = self.clone();
        Box::pin(async move {
            let _seat = seat;
            let path = request.uri().path().to_owned();
            notes
                .lock()
                .expect("no panic with the lock held")
                .push(format!("begin {path}"));
            match request.uri().query() {
                Some("panic") => panic!("the inner service breaks"),
                Some("refuse") => return Err("refused"),
                _ => {}
            }
            go.acquire().await.expect("never closed").forget();
            notes
                .lock()
                .expect("no panic with the lock held")
                .push(format!("end {path}"));
            Ok(Response::new(format!("answer to {path}")))
        })
    }
}

/// Paths that begin with `/read` go straight in, the rest is gated, in the order of the
/// first segment after `/in-order`.
fn way(parts: &Parts) -> Way {
    let mut segments = parts.uri.path().split('/').skip(1);
    match segments.next() {
        Some("read") => Way::Straight,
        Some("in-order") => Way::InOrder(segments.next().unwrap_or_default().into()),
        _ => Way::Gated,
    }
}

/// What goes straight is a scrape, what is in order an announce, and the rest is not counted.
fn counted(parts: &Parts) -> Option<gate::Request> {
    match way(parts) {
        Way::Straight => Some(gate::Request::Scrape),
        Way::InOrder(_) => Some(gate::Request::Announce),
        Way::Gated => None,
    }
}

struct Bench {
    keeper: Keeper,
    lobby: Lobby,
    inner: Inner,
}

type Answered = <GateService<Inner, fn(&Parts) -> Way> as Service<Request<String>>>::Future;

impl Bench {
    fn new(go: usize, hold_at_most: usize) -> Self {
        let (gate, keeper) = Gate::new().expect("a thread for the watchdog");
        Self {
            keeper,
            lobby: Lobby::new(gate, hold_at_most, Handle::current()),
            inner: Inner::new(go),
        }
    }

    /// Calls a service of a layer of its own, so whatever is shared is so by the lobby.
    fn call(&self, path: &str) -> Answered {
        let layer = self.lobby.layer(way).counting(counted);
        let mut service = layer.layer(self.inner.clone());
        let ready = service.poll_ready(&mut Context::from_waker(std::task::Waker::noop()));
        assert!(ready.is_ready());
        service.call(
            Request::get(path)
                .body(String::new())
                .expect("a valid path"),
        )
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a real gate wants a real deadline"
    )]
    fn close(&self) {
        self.keeper
            .close(Instant::now() + Duration::from_secs(3_600));
    }

    fn counters(&self) -> &Counters {
        self.keeper.gate().counters(Door::Http)
    }

    /// Announces and scrapes that were answered.
    fn answered(&self) -> [u64; 2] {
        let count = |request| self.counters().answered(request).count;
        [gate::Request::Announce, gate::Request::Scrape].map(count)
    }

    /// The same before a service that writes to this database.
    fn durable(mut self, database: &Database) -> Self {
        self.lobby = self.lobby.durable(database.durability.clone());
        self
    }

    fn nothing_is_left_behind(&self) {
        assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
        assert_eq!(self.keeper.gate().in_flight(), 0);
        assert_eq!(self.counters().held(), 0);
        assert_eq!(self.lobby.shared.held.load(Ordering::Relaxed), 0);
        assert_eq!(self.lobby.shared.held_lane.available_permits(), LANE);
        assert_eq!(self.lobby.shared.fresh_lane.available_permits(), LANE);
        assert!(self.lobby.shared.order.lock().last.is_empty());
    }
}

/// What the inner service would write to, in WAL mode.
struct Database {
    connection: Connection,
    durability: Durability,
    _directory: TempDir,
}

impl Database {
    /// One whose log is synced by `sync`, on whatever thread. A test has one of its own.
    fn synced_by(sync: fn(&File) -> io::Result<()>) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let path = directory.path().join("service.db");
        let connection = Connection::open(&path).expect("it can be made");
        connection
            .execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE facts (fact INTEGER)")
            .expect("an empty database");
        let durability = Durability::with(&path, sync).expect("it exists");
        Self {
            connection,
            durability,
            _directory: directory,
        }
    }

    /// There is something that only a sync makes durable.
    fn commit(&self) {
        self.connection
            .execute("INSERT INTO facts VALUES (1)", [])
            .expect("nobody else writes");
    }
}

async fn settle() {
    for _ in 0..64 {
        yield_now().await;
    }
}

async fn text(answer: Answered) -> String {
    answer
        .await
        .expect("the inner service refuses nothing")
        .into_body()
}

#[tokio::test]
async fn an_open_gate_changes_nothing() {
    let bench = Bench::new(9, 9);
    assert_eq!(text(bench.call("/a")).await, "answer to /a");
    assert_eq!(
        text(bench.call("/in-order/b")).await,
        "answer to /in-order/b"
    );
    assert_eq!(text(bench.call("/read")).await, "answer to /read");
    assert_eq!(
        bench.call("/a?refuse").await.expect_err("its own error"),
        "refused"
    );
    assert_eq!(bench.counters().released(), 0);
    bench.nothing_is_left_behind();
}

#[tokio::test]
async fn answers_are_counted_as_what_they_are_and_refusals_are_none() {
    let bench = Bench::new(9, 1);
    text(bench.call("/read")).await;
    text(bench.call("/in-order/a")).await;
    text(bench.call("/neither")).await;
    assert_eq!(bench.answered(), [1, 1]);
    let refused = bench.call("/in-order/a?refuse").await;
    assert_eq!(refused.expect_err("its own error"), "refused");

    bench.close();
    let held = bench.call("/in-order/a");
    let turned_away = bench.call("/in-order/b").await.expect("an answer");
    assert_eq!(turned_away.status(), StatusCode::SERVICE_UNAVAILABLE);
    settle().await;
    assert_eq!(bench.answered(), [1, 1]);
    bench.keeper.open();
    text(held).await;
    assert_eq!(bench.answered(), [2, 1]);
    let announces = bench.counters().answered(gate::Request::Announce);
    assert!(announces.seconds > 0.0, "{announces:?}");
    bench.nothing_is_left_behind();
}

/// One whose client has hung up is executed all the same, and so counted.
#[tokio::test]
async fn what_a_client_does_not_wait_for_is_counted_if_it_is_executed() {
    let bench = Bench::new(9, 9);
    drop(bench.call("/in-order/a"));
    drop(bench.call("/read"));
    settle().await;
    assert_eq!(bench.answered(), [1, 0]);
}

#[tokio::test]
async fn a_request_at_a_closed_gate_is_held_and_then_answered() {
    let bench = Bench::new(9, 9);
    bench.close();
    let answer = bench.call("/a");
    settle().await;
    assert_eq!(bench.inner.notes(), [""; 0]);
    assert_eq!(bench.counters().held(), 1);
    bench.keeper.open();
    assert_eq!(text(answer).await, "answer to /a");
    assert_eq!(bench.counters().released(), 1);
    bench.nothing_is_left_behind();
}

#[tokio::test]
async fn what_need_not_pass_the_gate_is_answered_at_once() {
    let bench = Bench::new(9, 0);
    bench.close();
    let answer = bench
        .call("/read")
        .now_or_never()
        .expect("without waiting even for a task");
    assert_eq!(answer.expect("not refused").into_body(), "answer to /read");
    assert_eq!(bench.counters().turned_away(), 0);
}

#[tokio::test]
async fn over_the_bound_it_is_503_without_a_body() {
    let bench = Bench::new(9, 2);
    bench.close();
    let held = [bench.call("/a"), bench.call("/b")];
    let turned_away = bench.call("/c").now_or_never().expect("without waiting");
    let turned_away = turned_away.expect("an answer");
    assert_eq!(turned_away.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(turned_away.headers().len(), 0);
    assert_eq!(turned_away.body(), "");
    assert_eq!(bench.counters().held(), 2);
    assert_eq!(bench.counters().turned_away(), 1);

    bench.keeper.open();
    for answer in held {
        text(answer).await;
    }
    bench.close();
    let room_again = bench.call("/d");
    assert_eq!(bench.counters().held(), 1);
    bench.keeper.open();
    text(room_again).await;
    assert_eq!(bench.inner.count("begin /c"), 0);
    bench.nothing_is_left_behind();
}

#[tokio::test]
async fn a_client_that_hangs_up_is_served_once_all_the_same() {
    let bench = Bench::new(0, 9);
    bench.close();
    drop(bench.call("/held"));
    settle().await;
    bench.keeper.open();
    let running = bench.call("/running");
    settle().await;
    assert_eq!(bench.inner.count("begin"), 2);
    drop(running);
    bench.inner.go.add_permits(9);
    settle().await;
    assert_eq!(bench.inner.count("end /held"), 1);
    assert_eq!(bench.inner.count("end /running"), 1);
    bench.nothing_is_left_behind();
}

#[tokio::test]
async fn the_drain_waits_for_the_call_that_runs_and_not_for_those_that_wait() {
    let bench = Bench::new(0, 9);
    let running = bench.call("/running");
    settle().await;
    bench.close();
    let waiting = bench.call("/waiting");
    settle().await;
    assert!(bench.keeper.drained().now_or_never().is_none());
    bench.inner.go.add_permits(1);
    text(running).await;
    assert!(bench.keeper.drained().now_or_never().is_some());
    assert_eq!(bench.inner.count("begin /waiting"), 0);
    bench.inner.go.add_permits(1);
    bench.keeper.open();
    text(waiting).await;
    bench.nothing_is_left_behind();
}

#[tokio::test]
async fn requests_with_one_key_run_one_after_the_other_whatever_the_gate_does() {
    let bench = Bench::new(0, 9);
    let mut answers = vec![bench.call("/in-order/a/0")];
    settle().await;
    bench.close();
    answers.push(bench.call("/in-order/a/1"));
    answers.push(bench.call("/in-order/b/0"));
    answers.push(bench.call("/in-order/a/2"));
    bench.keeper.open();
    answers.push(bench.call("/in-order/a/3"));
    settle().await;
    assert_eq!(
        bench.inner.notes(),
        ["begin /in-order/a/0", "begin /in-order/b/0"]
    );

    bench.inner.go.add_permits(9);
    for answer in answers {
        text(answer).await;
    }
    let notes = bench.inner.notes();
    let of_a: Vec<_> = notes.iter().filter(|note| note.contains("/a/")).collect();
    let one_by_one: Vec<_> = (0..4)
        .flat_map(|n| {
            [
                format!("begin /in-order/a/{n}"),
                format!("end /in-order/a/{n}"),
            ]
        })
        .collect();
    assert_eq!(of_a, one_by_one.iter().collect::<Vec<_>>());
    bench.nothing_is_left_behind();
}

#[tokio::test]
async fn who_leaves_the_order_leaves_the_places_behind_it_alone() {
    let bench = Bench::new(0, 9);
    let first = bench.call("/in-order/a/0");
    let second = bench.call("/in-order/a/1");
    bench.inner.go.add_permits(1);
    text(first).await;
    settle().await;
    let third = bench.call("/in-order/a/2");
    settle().await;
    assert_eq!(bench.inner.count("begin"), 2);
    bench.inner.go.add_permits(2);
    text(second).await;
    text(third).await;
    bench.nothing_is_left_behind();
}

#[tokio::test]
async fn a_client_that_hangs_up_keeps_its_place_in_the_order() {
    let bench = Bench::new(0, 9);
    bench.close();
    drop(bench.call("/in-order/a/0"));
    let answer = bench.call("/in-order/a/1");
    bench.keeper.open();
    settle().await;
    assert_eq!(bench.inner.notes(), ["begin /in-order/a/0"]);
    bench.inner.go.add_permits(2);
    text(answer).await;
    bench.nothing_is_left_behind();
}

#[tokio::test]
async fn a_backlog_is_released_in_order_a_lane_at_a_time_and_new_arrivals_beside_it() {
    let bench = Bench::new(0, 10_000);
    bench.close();
    let backlog: Vec<_> = (0..10 * LANE)
        .map(|n| bench.call(&format!("/held/{n}")))
        .collect();
    settle().await;
    assert_eq!(bench.counters().held(), 10 * LANE as u64);
    bench.keeper.open();
    settle().await;
    assert_eq!(bench.inner.count("begin"), LANE);
    assert_eq!(bench.counters().held(), 9 * LANE as u64);

    let fresh = bench.call("/fresh");
    settle().await;
    assert_eq!(bench.inner.count("begin /fresh"), 1);

    bench.inner.go.add_permits(1 + 10 * LANE);
    text(fresh).await;
    for answer in backlog {
        text(answer).await;
    }
    let notes = bench.inner.notes();
    let mut begun: Vec<usize> = notes
        .iter()
        .filter_map(|note| note.strip_prefix("begin /held/"))
        .map(|n| n.parse().expect("a number"))
        .collect();
    // The gate wakes the first lane in no order.
    begun[..LANE].sort_unstable();
    assert!(begun.iter().copied().eq(0..10 * LANE), "{begun:?}");
    bench.nothing_is_left_behind();
}

#[tokio::test]
async fn what_arrived_in_time_but_did_not_run_is_held_even_over_the_bound() {
    let bench = Bench::new(0, 0);
    let answer = bench.call("/in-time");
    bench.close();
    settle().await;
    assert_eq!(bench.inner.notes(), [""; 0]);
    assert_eq!(bench.counters().held(), 1);
    bench.inner.go.add_permits(1);
    bench.keeper.open();
    text(answer).await;
    assert_eq!(bench.counters().released(), 1);
    bench.nothing_is_left_behind();
}

#[tokio::test]
async fn what_is_held_reserves_nothing_inside() {
    let bench = Bench::new(9, 9);
    bench.close();
    let mut service = bench.lobby.layer(way).layer(bench.inner.clone());
    let request = Request::get("/a").body(String::new());
    let service = service.ready().await.expect("never refuses to be ready");
    let answer = service.call(request.expect("a valid path"));
    settle().await;
    assert_eq!(bench.inner.seats.available_permits(), SEATS);
    bench.keeper.open();
    text(answer).await;
    assert_eq!(bench.inner.seats.available_permits(), SEATS);
}

#[tokio::test]
async fn a_panic_inside_gives_everything_back_and_reaches_the_caller() {
    let bench = Bench::new(9, 9);
    bench.close();
    let breaks = tokio::spawn(bench.call("/in-order/a?panic"));
    let next = bench.call("/in-order/a");
    bench.keeper.open();
    assert!(breaks.await.expect_err("the panic goes on").is_panic());
    assert_eq!(text(next).await, "answer to /in-order/a");
    bench.nothing_is_left_behind();
}

/// The first sync is held up; what is answered by the inner service meanwhile may have been
/// written too late for it, and waits for the next.
#[tokio::test]
async fn an_answer_waits_for_the_disk_and_many_share_a_sync() {
    static SYNCS: AtomicUsize = AtomicUsize::new(0);
    static BEGAN: Semaphore = Semaphore::const_new(0);
    static END: Barrier = Barrier::new(2);
    fn held_up(file: &File) -> io::Result<()> {
        if SYNCS.fetch_add(1, Ordering::Relaxed) == 0 {
            BEGAN.add_permits(1);
            END.wait();
        }
        file.sync_data()
    }

    let database = Database::synced_by(held_up);
    let bench = Bench::new(9, 9).durable(&database);
    database.commit();
    let first = tokio::spawn(bench.call("/first"));
    BEGAN.acquire().await.expect("never closed").forget();
    assert_eq!(bench.inner.count("end /first"), 1, "it was executed before");
    database.commit();
    let others: Vec<_> = (0..5)
        .map(|n| tokio::spawn(bench.call(&format!("/other/{n}"))))
        .collect();
    settle().await;
    assert_eq!(bench.inner.count("end /other"), 5);
    let waits = !first.is_finished() && others.iter().all(|other| !other.is_finished());
    assert!(waits, "no answer before the sync has ended");
    let read = bench.call("/read").now_or_never();
    assert!(read.is_some(), "what writes nothing waits for no disk");
    bench.close();
    let drained = bench.keeper.drained().now_or_never();
    assert!(drained.is_none(), "a window waits for what is written");

    END.wait();
    let first = first.await.expect("no panic").expect("not refused");
    assert_eq!(first.into_body(), "answer to /first");
    for other in others {
        let other = other.await.expect("no panic").expect("not refused");
        assert_eq!(other.status(), StatusCode::OK);
    }
    assert_eq!(SYNCS.load(Ordering::Relaxed), 2, "one for the five");
    assert_eq!(bench.counters().unconfirmed(), 0);
    bench.keeper.drained().await;
    bench.nothing_is_left_behind();
}

#[tokio::test]
async fn what_may_not_last_is_answered_503_and_counted() {
    static DISK_FAILS: AtomicBool = AtomicBool::new(true);
    fn fails(file: &File) -> io::Result<()> {
        if DISK_FAILS.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(5));
        }
        file.sync_data()
    }

    let database = Database::synced_by(fails);
    let bench = Bench::new(9, 9).durable(&database);
    database.commit();
    for unconfirmed in 1..=2 {
        let answer = bench.call("/write").await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.headers().len(), 0);
        assert_eq!(answer.body(), "");
        assert_eq!(bench.counters().unconfirmed(), unconfirmed);
    }
    assert_eq!(bench.inner.count("end /write"), 2, "both were executed");
    assert_eq!(bench.counters().turned_away(), 0);
    assert_eq!(text(bench.call("/read")).await, "answer to /read");

    DISK_FAILS.store(false, Ordering::Relaxed);
    database.commit();
    assert_eq!(text(bench.call("/write")).await, "answer to /write");
    assert_eq!(bench.counters().unconfirmed(), 2);
    bench.nothing_is_left_behind();
}

#[test]
fn gated_calls_run_on_the_executor_and_others_where_they_are_made() {
    let executor = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("executor")
        .build()
        .expect("a runtime");
    let (gate, _keeper) = Gate::new().expect("a thread for the watchdog");
    let lobby = Lobby::new(gate, 9, executor.handle().clone());
    let service = lobby
        .layer(way)
        .layer(tower::service_fn(|_: Request<()>| async {
            let name = std::thread::current().name().map(String::from);
            Ok::<_, Infallible>(Response::new(name.unwrap_or_default()))
        }));
    let here = std::thread::current().name().map(String::from);
    let caller = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let ran_on = |path: &str| {
        let request = Request::get(path).body(()).expect("a valid path");
        let Ok(answer) = caller.block_on(service.clone().oneshot(request));
        answer
    };
    assert_eq!(ran_on("/write").body(), "executor");
    assert_eq!(Some(ran_on("/read").into_body()), here);

    executor.shutdown_background();
    assert_eq!(ran_on("/write").status(), StatusCode::SERVICE_UNAVAILABLE);
}
