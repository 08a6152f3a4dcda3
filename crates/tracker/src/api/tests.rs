use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Request, StatusCode};
use tokio::runtime::Handle;
use torrust_tracker::core::statistics::Repo;
use torrust_tracker_configuration::Core;
use torrust_tracker_maintenance::gate::{Door, Gate, Keeper};
use tower::ServiceExt as _;

use super::*;

const HASH: &str = "3b245504cf5f11bbdbe1201cea6a6bf45aee1bc0";

#[test]
fn writes_pass_the_gate_and_reads_do_not() {
    let cases = [
        (Method::POST, "/api/v1/key/3600", true),
        (Method::DELETE, "/api/v1/key/abc", true),
        (Method::POST, "/api/v1/keys", true),
        (Method::POST, "/api/v1/whitelist/abc", true),
        (Method::DELETE, "/api/v1/whitelist/abc", true),
        (Method::GET, "/api/v1/keys/reload", false),
        (Method::GET, "/api/v1/whitelist/reload", false),
        (Method::GET, "/api/v1/stats", false),
        (Method::GET, "/api/v1/torrents", false),
        (Method::POST, "/api/v1/stats", false),
        (Method::POST, "/api/v1/keystone", false),
        (Method::GET, "/api/health_check", false),
    ];
    for (method, uri, expected) in cases {
        let uri = format!("{uri}?token=secret");
        let (parts, ()) = request(method.clone(), &uri, ()).into_parts();
        assert_eq!(
            way(&parts, &tokens()) == Way::Gated,
            expected,
            "{method} {uri}"
        );
    }
}

#[test]
fn only_a_known_token_may_wait() {
    let cases = [
        ("?token=secret", true),
        ("?x=1&token=secret", true),
        ("?token=%73ecret", true),
        ("?token=other", false),
        ("?token=", false),
        ("?token=secret&token=secret", false),
        ("", false),
    ];
    for (query, expected) in cases {
        let uri = format!("/api/v1/keys{query}");
        let (parts, ()) = request(Method::POST, &uri, ()).into_parts();
        assert_eq!(way(&parts, &tokens()) == Way::Gated, expected, "{query}");
    }
}

#[tokio::test]
async fn a_closed_gate_holds_an_authorised_write_and_nothing_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut core = Core::default();
    core.database.path = directory.path().join("sqlite3.db").display().to_string();
    let tracker = Tracker::new(&core, None, Repo::new()).expect("a tracker");
    let (gate, keeper) = Gate::new().expect("a gate");
    let lobby = Lobby::new(gate.clone(), 8, Handle::current());
    let app = router(Arc::new(tracker), Arc::new(tokens()), &lobby, None);
    let ask = |method, uri: &str| {
        let response = app.clone().oneshot(request(method, uri, Body::empty()));
        async move { response.await.expect("infallible").status() }
    };
    close(&keeper);
    let write = tokio::spawn(ask(
        Method::POST,
        &format!("/api/v1/whitelist/{HASH}?token=secret"),
    ));
    let refused = ask(
        Method::POST,
        &format!("/api/v1/whitelist/{HASH}?token=other"),
    )
    .await;
    assert_eq!(
        refused,
        StatusCode::INTERNAL_SERVER_ERROR,
        "upstream's way to say so"
    );
    let read = ask(Method::GET, "/api/v1/stats?token=secret").await;
    assert_eq!(read, StatusCode::OK);
    assert!(!write.is_finished());
    keeper.open();
    assert_eq!(write.await.expect("no panic"), StatusCode::OK);
    assert_eq!(gate.counters(Door::Http).held(), 0);
}

/// A tracker whose API writes in turns.
struct InTurns {
    app: Router,
    writer: Writer,
    keeper: Keeper,
    _directory: tempfile::TempDir,
}

impl InTurns {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut core = Core::default();
        core.database.path = directory.path().join("sqlite3.db").display().to_string();
        let tracker = Tracker::new(&core, None, Repo::new()).expect("a tracker");
        let (gate, keeper) = Gate::new().expect("a gate");
        let lobby = Lobby::new(gate, 8, Handle::current());
        let writer = Writer::new(None, None);
        let (tracker, tokens) = (Arc::new(tracker), Arc::new(tokens()));
        Self {
            app: router(tracker, tokens, &lobby, Some(writer.clone())),
            writer,
            keeper,
            _directory: directory,
        }
    }

    fn post(&self, uri: &str, body: Body) -> impl Future<Output = StatusCode> + use<> {
        let response = self.app.clone().oneshot(request(Method::POST, uri, body));
        async move { response.await.expect("infallible").status() }
    }
}

#[tokio::test]
async fn a_write_waits_for_its_turn_and_a_stranger_for_nothing() {
    let tested = InTurns::new();
    let turn = tested.writer.turn().await;
    let uri = |token: &str| format!("/api/v1/whitelist/{HASH}?token={token}");
    let write = tokio::spawn(tested.post(&uri("secret"), Body::empty()));
    while tested.keeper.gate().in_flight() == 0 {
        tokio::task::yield_now().await;
    }
    let refused = tested.post(&uri("other"), Body::empty()).await;
    assert_eq!(refused, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!write.is_finished());
    assert_eq!(
        tested.keeper.gate().counters(Door::Http).spent(),
        Duration::ZERO
    );
    drop(turn);
    assert_eq!(write.await.expect("no panic"), StatusCode::OK);
    assert!(tested.keeper.gate().counters(Door::Http).spent() > Duration::ZERO);
}

/// Time stands still but for what waits for it.
#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_arrive_keeps_nobody_waiting() {
    let tested = InTurns::new();
    let nothing = futures_util::stream::pending::<Result<axum::body::Bytes, Infallible>>();
    let slow = tested.post("/api/v1/keys?token=secret", Body::from_stream(nothing));
    let slow = tokio::spawn(slow);
    tokio::task::yield_now().await;
    assert_eq!(tested.keeper.gate().in_flight(), 0);
    drop(tested.writer.turn().await);
    assert_eq!(
        slow.await.expect("no panic"),
        StatusCode::REQUEST_TIMEOUT,
        "as upstream says"
    );
    let long = Body::from(vec![b' '; BODY_LIMIT + 1]);
    let refused = tested.post("/api/v1/keys?token=secret", long).await;
    assert_eq!(refused, StatusCode::PAYLOAD_TOO_LARGE);
}

#[expect(
    clippy::disallowed_methods,
    reason = "a gate is closed until an instant"
)]
fn close(keeper: &Keeper) {
    keeper.close(Instant::now() + Duration::from_secs(600));
}

fn tokens() -> AccessTokens {
    AccessTokens::from([("admin".to_owned(), "secret".to_owned())])
}

fn request<B>(method: Method, uri: &str, body: B) -> Request<B> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri.parse().expect("a URI");
    request
}
