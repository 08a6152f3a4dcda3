//! Whole UDP trackers: real sockets, a real `Tracker`, a real database.
//!
//! A reply to a connect tells that everything the same client sent before has been
//! received, as one thread receives in order: that is what these tests wait for. The
//! read time-out of the client only bounds a failure.
//!
//! An expired connection id cannot be made here: upstream's clock is its own and runs.
//! That one is renewed is shown by putting one that never was valid behind the check.

#![expect(
    clippy::disallowed_methods,
    reason = "a gate is closed until an instant, and announces have arrived at one"
)]

use std::io::Cursor;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::Instant;

use aquatic_udp_protocol::{
    AnnounceActionPlaceholder, AnnounceEvent, AnnounceRequest, ConnectRequest, ConnectionId,
    InfoHash, Ipv4AddrBytes, NumberOfBytes, NumberOfPeers, PeerId, PeerKey, Port, Request,
    Response, ScrapeRequest, TransactionId,
};
use futures_util::future::BoxFuture;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::error::SendError;
use torrust_tracker::core::statistics::{Event, EventSender, Repo};
use torrust_tracker::servers::udp::connection_cookie::{into_connection_id, make};
use torrust_tracker_configuration::Core;
use torrust_tracker_maintenance::gate::{Door, Keeper, Request as Asked};

use torrust_tracker_maintenance::durability::Durability;

use super::queue::Announce;
use super::*;
use crate::writer::{Ledger, Writer};

const TORRENT: InfoHash = InfoHash([7; 20]);

/// Longer than any test should take; bounds a failure, never a success.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn an_announce_registers_its_peer() {
    for tracker in Tested::both() {
        let client = tracker.client();
        client.announce(1, AnnounceEvent::Started);
        assert_eq!(client.announced(), 1);
        assert_eq!(client.scraped(), 1);
    }
}

#[test]
fn a_closed_gate_holds_announces_and_nothing_else() {
    for tracker in Tested::both() {
        let client = tracker.client();
        tracker.close();
        client.announce(1, AnnounceEvent::Started);
        client.connect();
        assert_eq!(
            client.scraped(),
            0,
            "the held announce has not been executed"
        );
        assert_eq!(tracker.counters().held(), 1);
        tracker.keeper.open();
        assert_eq!(client.announced(), 1);
        assert_eq!(client.scraped(), 1);
        assert_eq!(
            (tracker.counters().held(), tracker.counters().released()),
            (0, 1)
        );
    }
}

#[test]
fn a_resend_is_answered_once_with_the_newest_transaction() {
    for tracker in Tested::both() {
        let client = tracker.client();
        tracker.close();
        client.announce(1, AnnounceEvent::Started);
        client.announce(2, AnnounceEvent::Started);
        client.connect();
        assert_eq!(
            (tracker.counters().held(), tracker.counters().merged()),
            (1, 1)
        );
        tracker.keeper.open();
        assert_eq!(client.announced(), 2);
        // Executed in order, so an answer to the first would come before this one.
        client.announce(3, AnnounceEvent::None);
        assert_eq!(client.announced(), 3);
    }
}

#[test]
fn announces_of_a_peer_are_answered_in_order() {
    for tracker in Tested::both() {
        let client = tracker.client();
        tracker.close();
        client.announce(1, AnnounceEvent::Started);
        client.announce(2, AnnounceEvent::Completed);
        client.announce(3, AnnounceEvent::Stopped);
        client.connect();
        tracker.keeper.open();
        assert_eq!([(); 3].map(|()| client.announced()), [1, 2, 3]);
        assert_eq!(client.scraped(), 0, "the last word was that it stopped");
    }
}

#[test]
fn beyond_the_bound_announces_are_dropped_and_counted() {
    let tracker = Tested::bounded(Bounds { held: 1, queued: 1 });
    let (first, second) = (tracker.client(), tracker.client());
    tracker.close();
    first.announce(1, AnnounceEvent::Started);
    first.connect();
    second.announce(2, AnnounceEvent::Started);
    second.connect();
    assert_eq!(
        (tracker.counters().held(), tracker.counters().turned_away()),
        (1, 1)
    );
    tracker.keeper.open();
    assert_eq!(first.announced(), 1);
    second.announce(3, AnnounceEvent::Started);
    assert_eq!(second.announced(), 3);
}

#[test]
fn what_was_taken_in_at_an_open_gate_is_held_beyond_the_bound() {
    let tracker = Tested::bounded(Bounds { held: 1, queued: 8 });
    let clients = [(); 5].map(|()| tracker.client());
    tracker.close();
    let announces = clients.iter().map(|client| Announce {
        from: client.socket.local_addr().expect("an address"),
        request: client.request(1, AnnounceEvent::Started),
        arrived: Instant::now(),
    });
    tracker.server.shared.queue.take_over(announces);
    let counters = tracker.counters();
    assert_eq!((counters.held(), counters.turned_away()), (5, 0));
    tracker.keeper.open();
    for client in &clients {
        assert_eq!(client.announced(), 1);
    }
    assert_eq!((counters.held(), counters.released()), (0, 5));
}

#[test]
fn how_long_requests_took_is_counted_once_they_are_answered() {
    for tracker in Tested::both() {
        let client = tracker.client();
        let answered = |request| tracker.counters().answered(request).count;
        assert_eq!((answered(Asked::Announce), answered(Asked::Scrape)), (0, 0));
        client.announce(1, AnnounceEvent::Started);
        client.announced();
        client.scraped();
        // It is counted after the answer, by the thread that answers this one.
        client.connect();
        assert_eq!(answered(Asked::Scrape), 1);
        tracker.close();
        tracker.runtime.block_on(tracker.keeper.drained());
        assert_eq!(answered(Asked::Announce), 1);
        let stores = matches!(tracker.server.shared.storage, Storage::Database(_));
        assert_eq!(tracker.counters().spent() > Duration::ZERO, stores);
    }
}

/// All of it has arrived when the server starts, the connect last and behind more than two
/// batches.
#[test]
fn a_connect_is_answered_before_the_announces_that_came_earlier() {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let mut client = Client::of(socket.local_addr().expect("an address"));
    let from = client.socket.local_addr().expect("an address");
    client.connection_id = into_connection_id(&make(&from));
    for transaction in 0..130 {
        client.announce(transaction, AnnounceEvent::None);
    }
    client.send(&Request::Connect(ConnectRequest {
        transaction_id: TransactionId::new(200),
    }));
    let bounds = Bounds { held: 1, queued: 8 };
    let tracker = Tested::on(socket, bounds, false, None);
    let Response::Connect(answer) = client.receive() else {
        panic!("the connect was to be answered first");
    };
    assert_eq!(answer.transaction_id, TransactionId::new(200));
    let announced = [(); 8].map(|()| client.announced());
    assert_eq!(announced, [0, 1, 2, 3, 4, 5, 6, 7]);
    // Of the others there is no answer: this one comes next.
    client.connect();
    assert_eq!(tracker.counters().turned_away(), 130 - 8);
}

#[test]
fn a_connection_id_is_renewed_before_an_announce_is_executed() {
    let tracker = Tested::new();
    let client = tracker.client();
    let request = AnnounceRequest {
        connection_id: ConnectionId::new(0),
        ..client.request(1, AnnounceEvent::Started)
    };
    let from = client.socket.local_addr().expect("an address");
    tracker.server.shared.queue.arrive([Announce {
        from,
        request,
        arrived: Instant::now(),
    }]);
    assert_eq!(client.announced(), 1);
}

#[test]
fn what_waited_too_long_at_an_open_gate_is_turned_away() {
    let tracker = Tested::new();
    let client = tracker.client();
    tracker.arrive_long_ago(&client, 1);
    client.announce(2, AnnounceEvent::None);
    assert_eq!(client.announced(), 2, "the first one gets no answer");
    assert_eq!(tracker.counters().turned_away(), 1);
}

#[test]
fn what_was_held_is_answered_however_old() {
    let tracker = Tested::new();
    let client = tracker.client();
    tracker.close();
    tracker.arrive_long_ago(&client, 1);
    tracker.keeper.open();
    assert_eq!(client.announced(), 1);
    assert_eq!(tracker.counters().turned_away(), 0);
}

#[test]
fn a_thread_that_ends_raises_the_alarm() {
    let mut tracker = Tested::new();
    // The receiving thread returns, as it would die of a panic, and ends the other.
    tracker
        .server
        .shared
        .stopping
        .store(true, Ordering::Release);
    let address = tracker.server.address();
    let mut ended = [(); 2].map(|()| tracker.runtime.block_on(tracker.alarm.raised()));
    ended.sort();
    let thread = |doing| format!("the thread that {doing} on {address}");
    assert_eq!(ended, [thread("executes announces"), thread("receives")]);
}

#[test]
fn a_panic_is_survived() {
    survive("a test", || panic!("this panic is part of the test"));
}

#[test]
fn why_announces_are_left_is_told_apart() {
    let tracker = Tested::new();
    let queue = &tracker.server.shared.queue;
    let moment = Duration::from_millis(1);
    let wait = |done| tracker.runtime.block_on(drained(done, moment, queue));
    let (all_done, done) = oneshot::channel();
    all_done.send(()).expect("somebody listens");
    assert_eq!(wait(done), Ok(()));
    let (died, done) = oneshot::channel();
    drop(died);
    assert_eq!(wait(done), Err(Left::ThreadDied));
    let (_slow, done) = oneshot::channel();
    assert_eq!(wait(done), Err(Left::TooSlow));
    let client = tracker.client();
    tracker.close();
    client.announce(1, AnnounceEvent::Started);
    client.connect();
    let (_slow, done) = oneshot::channel();
    assert_eq!(wait(done), Err(Left::GateClosed));
}

#[test]
fn an_invalid_connection_id_is_refused_at_once() {
    let tracker = Tested::new();
    let client = tracker.client();
    tracker.close();
    client.send(&Request::Announce(AnnounceRequest {
        connection_id: ConnectionId::new(0),
        ..client.request(1, AnnounceEvent::Started)
    }));
    let Response::Error(error) = client.receive() else {
        panic!("an error was expected");
    };
    assert_eq!(error.transaction_id, TransactionId::new(1));
    assert_eq!(error.message, "connection id could not be verified");
    assert_eq!(tracker.counters().held(), 0);
}

/// Upstream's own server beside ours, with the same tracker, asked the same by the same
/// client, so that even connection ids are equal.
#[test]
fn every_reply_is_upstreams() {
    use torrust_tracker::servers::registar::Registar;
    use torrust_tracker::servers::udp::server::{Server, spawner::Spawner};

    let tracker = Tested::new();
    let upstream = tracker.runtime.block_on(async {
        let server = Server::new(Spawner::new(SocketAddr::from(([127, 0, 0, 1], 0))));
        let form = Registar::default().give_form();
        let shared = Arc::clone(&tracker.server.shared.tracker);
        server.start(shared, form).await.expect("upstream's server")
    });
    let client = tracker.client();
    let announce = client.request(1, AnnounceEvent::Started);
    let bytes = |request: Request| {
        let mut packet = Cursor::new(Vec::new());
        request.write_bytes(&mut packet).expect("memory takes it");
        packet.into_inner()
    };
    let announced = bytes(Request::Announce(announce));
    let port_zero = [&announced[..96], &[0, 0]].concat();
    let packets = [
        vec![1; 5],
        vec![255; 16],
        [&[0; 8][..], &[0; 8]].concat(),
        announced[..97].to_vec(),
        port_zero,
        bytes(Request::Scrape(client.scrape_request()))[..16].to_vec(),
        bytes(Request::Scrape(client.scrape_request())),
        bytes(Request::Connect(ConnectRequest {
            transaction_id: TransactionId::new(9),
        })),
        bytes(Request::Announce(AnnounceRequest {
            connection_id: ConnectionId::new(3),
            ..announce
        })),
        announced,
    ];
    for packet in packets {
        let replies = [upstream.state.local_addr, tracker.server.address()].map(|to| {
            client.socket.send_to(&packet, to).expect("sent");
            match client.receive() {
                // Ends with two places in the source, which are not the same.
                Response::Error(error) if error.message.starts_with("bad request") => {
                    let message = error.message.rsplitn(3, ", ").last().map(str::to_owned);
                    format!("{:?} {message:?}", error.transaction_id)
                }
                reply => format!("{reply:?}"),
            }
        });
        assert_eq!(replies[0], replies[1], "{packet:?}");
    }
}

#[test]
fn a_locked_database_delays_no_connect() {
    let tracker = Tested::new();
    let client = tracker.client();
    let lock = rusqlite::Connection::open(&tracker.database).expect("the database");
    lock.execute_batch("BEGIN EXCLUSIVE")
        .expect("nobody else has it");
    client.announce(1, AnnounceEvent::Started);
    // Would come second if the announce were executed by the thread that receives.
    client.connect();
    lock.execute_batch("ROLLBACK").expect("a transaction");
    assert_eq!(client.announced(), 1);
}

#[test]
fn a_completion_that_upstream_fails_to_store_is_not_acknowledged() {
    let tracker = Tested::new();
    let client = tracker.client();
    let database = rusqlite::Connection::open(&tracker.database).expect("the database");
    let away = "ALTER TABLE torrents RENAME TO elsewhere";
    database.execute_batch(away).expect("nobody else writes");
    client.announce(1, AnnounceEvent::Started);
    assert_eq!(client.announced(), 1, "there is nothing to lose");
    client.announce(2, AnnounceEvent::Completed);
    client.announce(3, AnnounceEvent::None);
    assert_eq!(client.announced(), 3, "the second gets no answer");
    assert_eq!(tracker.counters().unconfirmed(), 1);

    let back = "ALTER TABLE elsewhere RENAME TO torrents";
    database.execute_batch(back).expect("nobody else writes");
    // The third announce was of a peer that downloads, so upstream counts a second completion.
    client.announce(4, AnnounceEvent::Completed);
    assert_eq!(client.announced(), 4);
    let completed: i64 = database
        .query_row("SELECT completed FROM torrents", [], |row| row.get(0))
        .expect("a row");
    assert_eq!(completed, 2, "the first is not lost with its announce");
    assert_eq!(tracker.counters().unconfirmed(), 1);
}

/// The log of the database is away for a moment: what is written to it then is not known to
/// last.
#[test]
fn what_cannot_be_made_durable_is_not_answered_and_counted() {
    let tracker = Tested::new();
    let client = tracker.client();
    let database = rusqlite::Connection::open(&tracker.database).expect("the database");
    database
        .execute_batch("PRAGMA journal_mode = WAL")
        .expect("all other connections are idle");
    // Whoever reads or writes later on has read once, and so has the log open.
    let events = [
        AnnounceEvent::Started,
        AnnounceEvent::Completed,
        AnnounceEvent::None,
    ];
    for (transaction, event) in (1..).zip(events) {
        client.announce(transaction, event);
        assert_eq!(client.announced(), transaction);
    }
    let log = tracker.database.with_extension("db-wal");
    let away = tracker.database.with_extension("away");
    std::fs::rename(&log, &away).expect("there is a log");
    client.announce(4, AnnounceEvent::Completed);
    let deadline = Instant::now() + PATIENCE;
    while tracker.counters().unconfirmed() == 0 {
        assert!(Instant::now() < deadline, "the failure is not counted");
        std::thread::yield_now();
    }
    assert!(!log.exists(), "nobody has made another log");
    std::fs::rename(&away, &log).expect("it is there");

    client.announce(5, AnnounceEvent::None);
    assert_eq!(client.announced(), 5, "the fourth gets no answer");
    assert_eq!(tracker.counters().unconfirmed(), 1);
    let completed: i64 = database
        .query_row("SELECT completed FROM torrents", [], |row| row.get(0))
        .expect("a row");
    assert_eq!(completed, 2, "it was executed, and stored");
}

#[test]
fn a_panicking_handler_costs_one_answer() {
    let tracker = Tested::with(
        Bounds { held: 8, queued: 8 },
        true,
        Some(Box::new(PanicsOnce::default())),
    );
    let client = tracker.client();
    client.announce(1, AnnounceEvent::Started);
    client.announce(2, AnnounceEvent::None);
    assert_eq!(client.announced(), 2);
    tracker.close();
    tracker.runtime.block_on(async {
        tokio::time::timeout(PATIENCE, tracker.keeper.drained())
            .await
            .expect("no pass is lost");
    });
}

#[test]
fn a_stop_executes_what_waits() {
    let tracker = Tested::new();
    let client = tracker.client();
    tracker.close();
    client.announce(1, AnnounceEvent::Started);
    client.announce(2, AnnounceEvent::Completed);
    client.connect();
    let Tested {
        server,
        keeper,
        runtime,
        ..
    } = tracker;
    drop(keeper);
    runtime.block_on(server.stop(PATIENCE));
    assert_eq!([client.announced(), client.announced()], [1, 2]);
}

#[test]
fn a_stop_is_bounded() {
    let tracker = Tested::new();
    let client = tracker.client();
    tracker.close();
    client.announce(1, AnnounceEvent::Started);
    client.connect();
    let Tested {
        server,
        keeper,
        runtime,
        ..
    } = tracker;
    let shared = Arc::clone(&server.shared);
    runtime.block_on(server.stop(Duration::from_millis(1)));
    assert_eq!(
        shared.queue.len(),
        1,
        "the gate is closed: it could not be executed"
    );
    drop(keeper);
}

/// A tracker with its gate and database.
struct Tested {
    server: Server,
    keeper: Keeper,
    alarm: Alarm,
    database: std::path::PathBuf,
    runtime: Runtime,
    _ends: Ends,
    _directory: tempfile::TempDir,
}

impl Tested {
    fn new() -> Self {
        Self::bounded(Bounds { held: 8, queued: 8 })
    }

    /// Of a tracker that stores announces, and of one that does not.
    fn both() -> [Self; 2] {
        let bounds = Bounds { held: 8, queued: 8 };
        [true, false].map(|stores| Self::with(bounds, stores, None))
    }

    fn bounded(bounds: Bounds) -> Self {
        Self::with(bounds, true, None)
    }

    fn with(bounds: Bounds, stores: bool, statistics: Option<Box<dyn EventSender>>) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        Self::on(socket, bounds, stores, statistics)
    }

    fn on(
        socket: UdpSocket,
        bounds: Bounds,
        stores: bool,
        statistics: Option<Box<dyn EventSender>>,
    ) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let database = directory.path().join("sqlite3.db");
        let mut core = Core::default();
        core.database.path = database.display().to_string();
        core.tracker_policy.persistent_torrent_completed_stat = stores;
        let tracker = Tracker::new(&core, statistics, Repo::new()).expect("a tracker");
        let storage = if stores {
            let durability = Durability::open(&database).expect("it has just been created");
            let ledger = Ledger::open(&database).expect("it has just been created");
            Storage::Database(Writer::new(Some(ledger), Some(durability)))
        } else {
            Storage::Memory
        };
        let runtime = Runtime::new().expect("a runtime");
        let (gate, keeper) = Gate::new().expect("a gate");
        let alarm = Alarm::new();
        let entered = runtime.enter();
        let server = Server::start(socket, Arc::new(tracker), storage, gate, bounds, &alarm);
        drop(entered);
        let server = server.expect("a server");
        Self {
            _ends: Ends(Arc::clone(&server.shared)),
            server,
            keeper,
            alarm,
            database,
            runtime,
            _directory: directory,
        }
    }

    fn close(&self) {
        self.keeper.close(Instant::now() + 10 * PATIENCE);
    }

    /// An announce that has waited for ten seconds.
    fn arrive_long_ago(&self, client: &Client, transaction: i32) {
        let now = Instant::now();
        let long_ago = now.checked_sub(Duration::from_secs(10));
        self.server.shared.queue.arrive([Announce {
            from: client.socket.local_addr().expect("an address"),
            request: client.request(transaction, AnnounceEvent::Started),
            arrived: long_ago.expect("the machine has been up for longer"),
        }]);
    }

    fn counters(&self) -> &torrust_tracker_maintenance::gate::Counters {
        self.keeper.gate().counters(Door::Udp)
    }

    fn client(&self) -> Client {
        let mut client = Client::of(self.server.address());
        client.connection_id = client.connect();
        client
    }
}

/// Ends the threads of a test that does not.
struct Ends(Arc<Shared>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.stopping.store(true, Ordering::Release);
    }
}

/// A BitTorrent client with one torrent, of which it has everything.
struct Client {
    socket: UdpSocket,
    server: SocketAddr,
    connection_id: ConnectionId,
}

impl Client {
    /// One that has not connected.
    fn of(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        Self {
            socket,
            server,
            connection_id: ConnectionId::new(0),
        }
    }

    fn connect(&self) -> ConnectionId {
        self.send(&Request::Connect(ConnectRequest {
            transaction_id: TransactionId::new(0),
        }));
        match self.receive() {
            Response::Connect(reply) => reply.connection_id,
            reply => panic!("a connect was expected, not {reply:?}"),
        }
    }

    fn announce(&self, transaction: i32, event: AnnounceEvent) {
        self.send(&Request::Announce(self.request(transaction, event)));
    }

    fn request(&self, transaction: i32, event: AnnounceEvent) -> AnnounceRequest {
        AnnounceRequest {
            connection_id: self.connection_id,
            action_placeholder: AnnounceActionPlaceholder::default(),
            transaction_id: TransactionId::new(transaction),
            info_hash: TORRENT,
            peer_id: PeerId([b'p'; 20]),
            bytes_downloaded: NumberOfBytes::new(0),
            bytes_left: NumberOfBytes::new(0),
            bytes_uploaded: NumberOfBytes::new(0),
            event: event.into(),
            ip_address: Ipv4AddrBytes([0; 4]),
            key: PeerKey::new(0),
            peers_wanted: NumberOfPeers::new(10),
            port: Port::new(NonZeroU16::MIN),
        }
    }

    /// The transaction of the announce that is answered next.
    fn announced(&self) -> i32 {
        match self.receive() {
            Response::AnnounceIpv4(reply) => reply.fixed.transaction_id.0.get(),
            reply => panic!("an announce was expected, not {reply:?}"),
        }
    }

    fn scrape_request(&self) -> ScrapeRequest {
        ScrapeRequest {
            connection_id: self.connection_id,
            transaction_id: TransactionId::new(0),
            info_hashes: vec![TORRENT],
        }
    }

    /// Seeders of the torrent.
    fn scraped(&self) -> i32 {
        self.send(&Request::Scrape(self.scrape_request()));
        match self.receive() {
            Response::Scrape(reply) => reply.torrent_stats[0].seeders.0.get(),
            reply => panic!("a scrape was expected, not {reply:?}"),
        }
    }

    fn send(&self, request: &Request) {
        let mut packet = Cursor::new(Vec::new());
        request.write_bytes(&mut packet).expect("memory takes it");
        self.socket
            .send_to(packet.get_ref(), self.server)
            .expect("loopback takes it");
    }

    fn receive(&self) -> Response {
        let mut packet = [0; 2_048];
        let length = self.socket.recv(&mut packet).expect("a reply in time");
        Response::parse_bytes(&packet[..length], true).expect("a reply that can be parsed")
    }
}

/// Where upstream counts, of which the first announce panics.
#[derive(Default)]
struct PanicsOnce(AtomicBool);

impl EventSender for PanicsOnce {
    fn send_event(&self, event: Event) -> BoxFuture<'_, Option<Result<(), SendError<Event>>>> {
        Box::pin(async move {
            let first = event == Event::Udp4Announce && !self.0.swap(true, Ordering::Relaxed);
            assert!(!first, "this panic is part of the test");
            Some(Ok(()))
        })
    }
}
