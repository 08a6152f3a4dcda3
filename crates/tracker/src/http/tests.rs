use std::future::Future;
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use tokio::runtime::Handle;
use torrust_tracker::core::statistics::Repo;
use torrust_tracker_configuration::Core;
use torrust_tracker_maintenance::gate::{self, Door, Gate, Keeper};
use tower::ServiceExt as _;

use super::*;
use crate::writer::Ledger;

const HASH: &str = "%3B%24U%04%CF%5F%11%BB%DB%E1%20%1C%EAjk%F4Z%EE%1B%C0";
const SAME_HASH: &str = "%3b$%55%04%cf_%11%bb%db%e1%20%1c%ea%6a%6b%f4%5a%ee%1b%c0";
const PEER: &str = "-qB00000000000000001";

#[test]
fn announces_pass_the_gate_and_nothing_else_does() {
    let cases = [
        (Method::GET, "/announce", true),
        (Method::GET, "/announce?info_hash=x", true),
        (
            Method::GET,
            "/announce/YZSl4lMZupRuOpSRC3krIKR5BPB14nrJ",
            true,
        ),
        (Method::HEAD, "/announce", true),
        (Method::POST, "/announce", false),
        (Method::GET, "/announcement", false),
        (Method::GET, "/scrape", false),
        (Method::GET, "/scrape/announce", false),
        (Method::GET, "/health_check", false),
        (Method::GET, "/", false),
    ];
    for (method, uri, expected) in cases {
        let way = way(&parts(method.clone(), uri, &[]), false);
        assert_eq!(way != Way::Straight, expected, "{method} {uri}");
    }
}

#[test]
fn announces_and_scrapes_are_counted_and_nothing_else_is() {
    use torrust_tracker_maintenance::gate::Request::{Announce, Scrape};
    let key = "/YZSl4lMZupRuOpSRC3krIKR5BPB14nrJ";
    for (method, uri, expected) in [
        (
            Method::GET,
            "/announce?info_hash=x".to_owned(),
            Some(Announce),
        ),
        (Method::HEAD, format!("/announce{key}"), Some(Announce)),
        (Method::GET, "/scrape?info_hash=x".to_owned(), Some(Scrape)),
        (Method::GET, format!("/scrape{key}"), Some(Scrape)),
        (Method::POST, "/scrape".to_owned(), None),
        (Method::GET, "/scraper".to_owned(), None),
        (Method::GET, "/health_check".to_owned(), None),
        (Method::GET, "/".to_owned(), None),
    ] {
        let found = request(&parts(method.clone(), &uri, &[]));
        assert_eq!(found, expected, "{method} {uri}");
    }
}

#[test]
fn a_peer_is_its_address_torrent_and_id() {
    let key = |hash: &str, id: &str, proxy: bool, headers: &[(&'static str, &'static str)]| {
        let uri = format!("/announce?port=1&info_hash={hash}&peer_id={id}");
        peer(&parts(Method::GET, &uri, headers), proxy)
    };
    let known = key(HASH, PEER, false, &[]);
    assert!(known.is_some());
    assert_eq!(
        key(SAME_HASH, PEER, false, &[]),
        known,
        "escaped in another way"
    );
    assert_ne!(key(HASH, "-qB00000000000000002", false, &[]), known);
    assert_ne!(key(&HASH.replace("%C0", "%C1"), PEER, false, &[]), known);
    assert_eq!(key("short", PEER, false, &[]), None);
    assert_eq!(key(HASH, "short", false, &[]), None);

    let forwarded = |value| key(HASH, PEER, true, &[("x-forwarded-for", value)]);
    assert_eq!(forwarded("1.1.1.1, 2.2.2.2"), forwarded("3.3.3.3,2.2.2.2 "));
    assert_ne!(forwarded("2.2.2.2"), forwarded("2.2.2.3"));
    assert_eq!(key(HASH, PEER, true, &[]), None, "upstream refuses it");
    let last = key(
        HASH,
        PEER,
        true,
        &[
            ("x-forwarded-for", "9.9.9.9"),
            ("x-forwarded-for", "2.2.2.2"),
        ],
    );
    assert_eq!(last, forwarded("2.2.2.2"));
}

#[tokio::test]
async fn a_closed_gate_holds_an_announce_and_nothing_else() {
    let (app, keeper, _directory) = app();
    let counted = |request| {
        let counters = keeper.gate().counters(Door::Http);
        counters.answered(request).count
    };
    close(&keeper);
    let announce = tokio::spawn(get(
        &app,
        &format!("/announce?info_hash={HASH}&peer_id={PEER}&port=6881&left=0"),
    ));
    let (status, _) = get(&app, "/health_check").await;
    assert_eq!(status, StatusCode::OK);
    let (status, body) = get(&app, &format!("/scrape?info_hash={HASH}")).await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains("8:completei0e"), "{body}");
    assert!(!announce.is_finished());
    assert_eq!(counted(gate::Request::Announce), 0);
    keeper.open();
    let (status, body) = announce.await.expect("no panic");
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains("8:completei1e"), "{body}");
    assert_eq!(counted(gate::Request::Announce), 1);
    assert_eq!(counted(gate::Request::Scrape), 1);
}

/// As those over UDP, see `udp/tests.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn a_completion_that_upstream_fails_to_store_is_not_acknowledged() {
    let tested = Stores::new();
    let announce = |event| {
        let uri =
            format!("/announce?info_hash={HASH}&peer_id={PEER}&port=6881&left=0&event={event}");
        get(&tested.app, &uri)
    };
    let database = rusqlite::Connection::open(tested.database()).expect("the database");
    let away = "ALTER TABLE torrents RENAME TO elsewhere";
    database.execute_batch(away).expect("nobody else writes");
    let (status, _) = announce("started").await;
    assert_eq!(status, StatusCode::OK, "there is nothing to lose");
    let (status, body) = announce("completed").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body, "");
    let unconfirmed = || tested.keeper.gate().counters(Door::Http).unconfirmed();
    assert_eq!(unconfirmed(), 1);

    let back = "ALTER TABLE elsewhere RENAME TO torrents";
    database.execute_batch(back).expect("nobody else writes");
    // Sent again it is no second completion, and nothing upstream would write.
    let (status, _) = announce("completed").await;
    assert_eq!(status, StatusCode::OK);
    let stored = "SELECT completed FROM torrents";
    let completed: i64 = database
        .query_row(stored, [], |row| row.get(0))
        .expect("a row");
    assert_eq!((completed, unconfirmed()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announce_waits_for_its_turn_to_write_and_a_scrape_does_not() {
    let tested = Stores::new();
    let turn = tested.writer.turn().await;
    let announce = tokio::spawn(get(
        &tested.app,
        &format!("/announce?info_hash={HASH}&peer_id={PEER}&port=6881&left=0"),
    ));
    while tested.keeper.gate().in_flight() == 0 {
        tokio::task::yield_now().await;
    }
    let (status, body) = get(&tested.app, &format!("/scrape?info_hash={HASH}")).await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains("8:completei0e"), "{body}");
    assert!(!announce.is_finished());
    drop(turn);
    let (status, body) = announce.await.expect("no panic");
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains("8:completei1e"), "{body}");
}

/// An HTTP tracker that stores announces.
struct Stores {
    app: Router,
    writer: Writer,
    keeper: Keeper,
    directory: tempfile::TempDir,
}

impl Stores {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let database = directory.path().join("sqlite3.db");
        let mut core = Core::default();
        core.database.path = database.display().to_string();
        core.tracker_policy.persistent_torrent_completed_stat = true;
        let tracker = Tracker::new(&core, None, Repo::new()).expect("a tracker");
        let ledger = Ledger::open(&database).expect("it has just been created");
        let writer = Writer::new(Some(ledger), None);
        let (gate, keeper) = Gate::new().expect("a gate");
        let lobby = Lobby::new(gate, 8, Handle::current());
        let address = SocketAddr::from(([127, 0, 0, 1], 7070));
        Self {
            app: router(
                Arc::new(tracker),
                address,
                &lobby,
                Announces::Stored(Some(writer.clone())),
            ),
            writer,
            keeper,
            directory,
        }
    }

    fn database(&self) -> std::path::PathBuf {
        self.directory.path().join("sqlite3.db")
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a gate is closed until an instant"
)]
fn close(keeper: &Keeper) {
    keeper.close(Instant::now() + Duration::from_secs(600));
}

fn app() -> (Router, Keeper, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut core = Core::default();
    core.database.path = directory.path().join("sqlite3.db").display().to_string();
    let tracker = Tracker::new(&core, None, Repo::new()).expect("a tracker");
    let (gate, keeper) = Gate::new().expect("a gate");
    let lobby = Lobby::new(gate, 8, Handle::current());
    let address = SocketAddr::from(([127, 0, 0, 1], 7070));
    (
        router(Arc::new(tracker), address, &lobby, Announces::InMemory),
        keeper,
        directory,
    )
}

fn get(app: &Router, uri: &str) -> impl Future<Output = (StatusCode, String)> + use<> {
    let (parts, body) = (parts(Method::GET, uri, &[]), Body::empty());
    let response = app.clone().oneshot(Request::from_parts(parts, body));
    async move {
        let response = response.await.expect("infallible");
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 16)
            .await
            .expect("a body");
        (status, String::from_utf8_lossy(&body).into_owned())
    }
}

fn parts(method: Method, uri: &str, headers: &[(&'static str, &'static str)]) -> Parts {
    let mut request = Request::new(Body::empty());
    *request.method_mut() = method;
    *request.uri_mut() = uri.parse().expect("a URI");
    for (name, value) in headers {
        request
            .headers_mut()
            .append(*name, value.parse().expect("a value"));
    }
    let client = SocketAddr::from(([192, 0, 2, 1], 40_000));
    request.extensions_mut().insert(ConnectInfo(client));
    request.into_parts().0
}
