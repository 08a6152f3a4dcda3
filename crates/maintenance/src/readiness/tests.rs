use std::error::Error as StdError;

use std::net::SocketAddr;
use std::time::Instant;

use http::Version;
use http::header::ALLOW;
use serde_json::Value;
use tokio::net::TcpStream;

use super::*;
use crate::config::Address;
use crate::disk::Disk;
use crate::gate::{Gate, Keeper};
use crate::lease::Terms;
use crate::status::{CopyOf, Offer, PinnedFile, Published};
use crate::switch::{NoSwitch, Order};

mod document;
mod slow;

type Result<T = (), E = Box<dyn StdError>> = std::result::Result<T, E>;

const JSON: (&str, &str) = ("content-type", "application/json");
const HERE: (&str, &str) = ("host", "127.0.0.1:1414");

/// A status at 2026-11-22 02:59:30 UTC, half a minute before the window.
fn serving() -> Status {
    let none = json!({ "udp": 0, "http": 0 });
    let status = json!({
        "version": "0.1.0",
        "service": "service 1.0",
        "alive": true,
        "state": "serving",
        "ready": false,
        "gate": {
            "open": true, "closed_for_ms": null, "held": none, "released": none,
            "merged": none, "turned_away": none, "forced_open": 0,
        },
        "next": { "begins": "2026-11-22T03:00:00Z", "ends": "2026-11-22T03:05:00Z" },
        "run": null,
        "runs": [],
        "database": { "path": "/var/lib/db", "journal_mode": "wal" },
    });
    serde_json::from_value(status).expect("a status")
}

fn running(state: Phase) -> Status {
    let run = json!({
        "id": "20261122T025900Z-abcd",
        "trigger": "operator",
        "began": "2026-11-22T02:59:00Z",
        "attempt": 1,
        "progress": null,
        "lease": null,
    });
    Status {
        state,
        ready: matches!(state, Phase::Copying | Phase::Offered | Phase::Leased),
        run: Some(serde_json::from_value(run).expect("a run")),
        ..serving()
    }
}

fn now() -> DateTime<Utc> {
    "2026-11-22T02:59:30Z".parse().expect("a time")
}

/// What is published while `state` lasts. Of what is ready a minute is left.
fn published(state: Phase) -> Published {
    let status = running(state);
    #[expect(clippy::disallowed_methods, reason = "a minute from now")]
    let until = Instant::now() + Duration::from_secs(60);
    let terms = Terms {
        ttl: Duration::from_secs(45),
        claim_within: Duration::from_secs(60),
        claim_within_held: Duration::from_secs(60),
    };
    let holder = Holder::try_from("nas".to_owned()).expect("a name");
    let offer = status.ready.then(|| Offer {
        copy: CopyOf::PinnedFile,
        terms: (state != Phase::Copying).then_some(terms),
        claim_until: (state == Phase::Offered).then_some(until),
        until,
        deadline: now() + Duration::from_secs(60),
        lease: (state == Phase::Leased).then_some((holder, until)),
        file: PinnedFile {
            device: 1,
            inode: 2,
            page_size: 4096,
            page_count: 3,
            bytes: 12_288,
            modified: 1_795_000_000_123_456_789,
        },
        pinned: now(),
        pause: Duration::from_millis(2),
    });
    Published {
        status,
        job: None,
        offer,
    }
}

/// What a reader of it reads.
fn reader(published: Published) -> Reader {
    let (gate, keeper) = Gate::new().expect("a thread");
    // The gate of a keeper that is gone is open.
    drop(keeper);
    Reader::new(watch::Sender::new(published).subscribe(), gate)
}

fn no_token() -> Access {
    Access::default()
}

fn request(method: &str, target: &str, headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(target);
    let request = headers.iter().fold(request, |request, (name, value)| {
        request.header(*name, *value)
    });
    request.body(Full::default()).expect("a request")
}

fn admitted(
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> std::result::Result<Route, (u16, &'static str)> {
    admitted_to(&no_token(), method, target, headers)
}

fn admitted_to(
    access: &Access,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> std::result::Result<Route, (u16, &'static str)> {
    admit(&request(method, target, headers).into_parts().0, access)
        .map_err(|refusal| (refusal.code.status().as_u16(), refusal.code.name()))
}

const READY: Route = Route::Ready {
    wait: Duration::ZERO,
};
const BEGIN: Route = Route::Command(CommandRoute::Start);

async fn body(answer: Answer) -> Value {
    let bytes = answer
        .into_body()
        .collect()
        .await
        .expect("in memory")
        .to_bytes();
    serde_json::from_slice(&bytes).expect("JSON")
}

#[test]
fn every_route_and_nothing_else() {
    let paths = [
        ("/health_check", Route::HealthCheck),
        ("/ready", READY),
        ("/api/v1/status", Route::Status),
        ("/openapi.json", Route::OpenApi),
    ];
    for (path, route) in paths {
        assert_eq!(admitted("GET", path, &[HERE]), Ok(route.clone()));
        assert_eq!(admitted("HEAD", path, &[HERE]), Ok(route));
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            assert_eq!(
                admitted(method, path, &[HERE, JSON]),
                Err((405, "wrong_method")),
                "{method} {path}"
            );
        }
    }
    assert_eq!(admitted("POST", "/api/v1/runs", &[HERE, JSON]), Ok(BEGIN));
    for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"] {
        assert_eq!(
            admitted(method, "/api/v1/runs", &[HERE]),
            Err((405, "wrong_method"))
        );
    }
    let id = "20261122T030000Z-kfqz";
    let run = || RunId::parse(id);
    for (what, route) in [
        ("claim", CommandRoute::Claim(run())),
        ("renew", CommandRoute::Renew(run())),
        ("finish", CommandRoute::Finish(run())),
    ] {
        let path = format!("/api/v1/runs/{id}/{what}");
        let route = Ok(Route::Command(route));
        assert_eq!(admitted("POST", &path, &[HERE, JSON]), route);
        assert_eq!(admitted("GET", &path, &[HERE]), Err((405, "wrong_method")));
    }
    let path = "/api/v1/journal-mode";
    for (method, route) in [
        ("PUT", CommandRoute::OrderWal),
        ("DELETE", CommandRoute::WithdrawWal),
    ] {
        let route = Ok(Route::Command(route));
        assert_eq!(admitted(method, path, &[HERE, JSON]), route);
    }
    for method in ["GET", "HEAD", "POST", "PATCH", "OPTIONS"] {
        assert_eq!(
            admitted(method, path, &[HERE, JSON]),
            Err((405, "wrong_method"))
        );
    }
    // A run of a name that none has is a run that is not the current one, not a path.
    for odd in ["..", "%2e%2e", "a%2fb", "a_b", "%00", &"a".repeat(65)] {
        let path = format!("/api/v1/runs/{odd}/claim");
        let route = Ok(Route::Command(CommandRoute::Claim(None)));
        assert_eq!(admitted("POST", &path, &[HERE, JSON]), route, "{path}");
    }
    for path in [
        "/api/v1/journal-mode/",
        "/api/v1/journal_mode",
        "/api/v1/runs/",
        "/api/v1/runs//claim",
        "/api/v1/runs/a",
        "/api/v1/runs/a/",
        "/api/v1/runs/a/claim/",
        "/api/v1/runs/a/Claim",
        "/api/v1/runs/a/b/claim",
        "/api/v1/runs/../status",
        "/api/v1/runsaway/a/claim",
        "/",
        "/ready/",
        "/Ready",
        "/api/v1/status/x",
        "/api/v2/status",
        "//ready",
    ] {
        assert_eq!(
            admitted("GET", path, &[HERE]),
            Err((404, "not_found")),
            "{path}"
        );
    }
    assert_eq!(admitted("GET", "/ready?verbose", &[HERE]), Ok(READY));
}

#[test]
fn a_refused_method_is_told_which_is_allowed() {
    let head = request("GET", "/api/v1/runs", &[HERE]).into_parts().0;
    let answer = admit(&head, &no_token())
        .expect_err("GET is not a way to start")
        .answer();
    assert_eq!(answer.headers()[ALLOW], "POST");
    let head = request("POST", "/api/v1/journal-mode", &[HERE]);
    let refused = admit(&head.into_parts().0, &no_token());
    let answer = refused.expect_err("POST does not set it").answer();
    assert_eq!(answer.headers()[ALLOW], "PUT, DELETE");
    let head = request("POST", "/ready", &[HERE]).into_parts().0;
    let refused = admit(&head, &no_token());
    let answer = refused.expect_err("POST does not read").answer();
    assert_eq!(answer.headers()[ALLOW], "GET, HEAD");
}

#[test]
fn only_an_address_is_a_host() {
    let good = [
        "127.0.0.1",
        "127.0.0.1:1414",
        "[::1]:1414",
        "[::1]",
        "localhost",
        "LocalHost:80",
        "10.0.0.7:1414",
    ];
    for host in good {
        assert_eq!(
            admitted("GET", "/ready", &[("host", host)]),
            Ok(READY),
            "{host}"
        );
    }
    let bad = [
        "evil.example",
        "evil.example:1414",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example@127.0.0.1",
        "127.0.0.1@evil.example",
        "::1",
        "",
        " ",
        "localhost:1414/x",
        "0x7f.1",
    ];
    for host in bad {
        for (method, path) in [
            ("GET", "/ready"),
            ("POST", "/api/v1/runs"),
            ("GET", "/nowhere"),
        ] {
            let refused = admitted(method, path, &[("host", host), JSON]);
            assert_eq!(refused, Err((421, "wrong_host")), "{host:?}");
        }
    }
}

#[test]
fn one_host_is_needed_and_the_target_cannot_name_another() {
    assert_eq!(admitted("GET", "/ready", &[]), Err((400, "bad_host")));
    assert_eq!(
        admitted("GET", "/ready", &[HERE, HERE]),
        Err((400, "bad_host"))
    );
    assert_eq!(
        admitted("GET", "http://127.0.0.1:1414/ready", &[HERE]),
        Ok(READY)
    );
    assert_eq!(
        admitted("GET", "http://evil.example/ready", &[HERE]),
        Err((421, "wrong_host"))
    );
}

#[test]
fn a_web_page_cannot_start_a_run() {
    for origin in ["http://evil.example", "null", "http://127.0.0.1:1414", ""] {
        let refused = admitted("POST", "/api/v1/runs", &[HERE, JSON, ("origin", origin)]);
        assert_eq!(refused, Err((403, "from_a_browser")), "{origin:?}");
    }
    for form in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/jsonx",
        "",
    ] {
        let refused = admitted("POST", "/api/v1/runs", &[HERE, ("content-type", form)]);
        assert_eq!(refused, Err((415, "not_json")), "{form:?}");
    }
    assert_eq!(
        admitted("POST", "/api/v1/runs", &[HERE]),
        Err((415, "not_json"))
    );
    for json in ["application/json; charset=utf-8", "Application/JSON"] {
        assert_eq!(
            admitted("POST", "/api/v1/runs", &[HERE, ("content-type", json)]),
            Ok(BEGIN)
        );
    }
}

#[test]
fn a_name_that_was_configured_is_a_host() {
    let access = Access {
        token: None,
        hosts: vec!["tracker".to_owned()],
    };
    for (host, known) in [
        ("tracker", true),
        ("Tracker:1414", true),
        ("127.0.0.1", true),
        ("tracker.evil.example", false),
        ("evil.example@tracker", false),
        ("nottracker", false),
    ] {
        let admitted = admitted_to(&access, "GET", "/ready", &[("host", host)]);
        let expected = if known {
            Ok(READY)
        } else {
            Err((421, "wrong_host"))
        };
        assert_eq!(admitted, expected, "{host}");
    }
}

#[test]
fn with_a_token_whoever_changes_something_needs_it() {
    let access = Access {
        token: token(),
        hosts: Vec::new(),
    };
    let commands = ["", "/a-b/claim", "/a-b/renew", "/a-b/finish", "/../claim"];
    for command in commands {
        let path = format!("/api/v1/runs{command}");
        let ask = |authorization: &[(&str, &str)]| {
            let headers = [&[HERE, JSON], authorization].concat();
            admitted_to(&access, "POST", &path, &headers).map(drop)
        };
        for good in ["Bearer 0123456789abcdef", "bearer  0123456789abcdef"] {
            assert_eq!(ask(&[("authorization", good)]), Ok(()), "{path} {good}");
        }
        let right = ("authorization", "Bearer 0123456789abcdef");
        let unauthorized = Err((401, "unauthorized"));
        assert_eq!(ask(&[]), unauthorized, "{path}");
        assert_eq!(
            ask(&[right, right]),
            unauthorized,
            "{path}: which of the two?"
        );
        for bad in [
            "Bearer 0123456789abcdeF",
            "Bearer 0123456789abcde",
            "Bearer",
            "Bearer ",
            "0123456789abcdef",
            "Basic 0123456789abcdef",
            "Bearer0123456789abcdef",
        ] {
            assert_eq!(ask(&[("authorization", bad)]), unauthorized, "{path} {bad}");
        }
    }
    for path in ["/ready", "/api/v1/status", "/health_check", "/openapi.json"] {
        assert!(admitted_to(&access, "GET", path, &[HERE]).is_ok(), "{path}");
    }
}

#[test]
fn the_journal_mode_is_guarded_as_runs_are() {
    let access = Access {
        token: token(),
        hosts: Vec::new(),
    };
    let right = ("authorization", "Bearer 0123456789abcdef");
    for method in ["PUT", "DELETE"] {
        let ask = |headers: &[(&str, &str)]| {
            let headers = [&[HERE], headers].concat();
            admitted_to(&access, method, "/api/v1/journal-mode", &headers).map(drop)
        };
        assert_eq!(ask(&[right, JSON]), Ok(()), "{method}");
        assert_eq!(ask(&[JSON]), Err((401, "unauthorized")), "{method}");
        assert_eq!(ask(&[right]), Err((415, "not_json")), "{method}");
        let page = ("origin", "http://127.0.0.1:1414");
        let refused = ask(&[right, JSON, page]);
        assert_eq!(refused, Err((403, "from_a_browser")), "{method}");
    }
}

#[test]
fn only_wal_can_be_ordered() {
    let order = |body: Value| {
        let read = parse::<JournalMode>(body.to_string().as_bytes());
        read.and_then(|mode| mode.check())
    };
    assert_eq!(order(json!({ "journal_mode": "wal" })), Ok(()));
    for mode in ["delete", "WAL", "keep", "off", ""] {
        let refused = order(json!({ "journal_mode": mode })).expect_err(mode);
        assert_eq!(refused.code, Code::BadBody);
        let way_back = "journal_mode = \"delete\" and restart";
        assert!(refused.message.contains(way_back), "{}", refused.message);
    }
    for bad in [
        json!({}),
        json!({ "journal_mode": null }),
        json!({ "journal_mode": "wal", "now": true }),
        json!("wal"),
    ] {
        let refused = order(bad.clone()).map_err(|refusal| refusal.code);
        assert_eq!(refused, Err(Code::BadBody), "{bad}");
    }
}

#[test]
fn a_wait_is_a_whole_number_said_once() {
    let wait = |query: &str| wait_of(query).map(|wait| wait.as_secs()).ok();
    for (query, seconds) in [
        ("", 0),
        ("wait=0", 0),
        ("wait=7", 7),
        ("wait=007", 7),
        ("verbose&wait=60&x=y", 60),
        ("wait=61", 60),
        ("wait=99999999999999999999999999", 60),
        ("waiting=soon", 0),
    ] {
        assert_eq!(wait(query), Some(seconds), "{query}");
    }
    for bad in [
        "wait",
        "wait=",
        "wait=-1",
        "wait=+1",
        "wait=1.5",
        "wait=1s",
        "wait=0x1",
        "wait=1&wait=1",
        "wait=%31",
        "wait=1&wait",
        "wait= 1",
    ] {
        assert_eq!(wait(bad), None, "{bad}");
    }
}

#[test]
fn bodies_are_taken_as_documented_and_no_other_way() {
    let lease = "0123456789abcdef";
    let claim = |body: Value| parse::<Claim>(body.to_string().as_bytes()).is_ok();
    assert!(claim(json!({ "holder": "nas", "lease": lease })));
    for bad in [
        json!({}),
        json!({ "holder": "nas" }),
        json!({ "lease": lease }),
        json!({ "holder": "", "lease": lease }),
        json!({ "holder": "a\nb", "lease": lease }),
        json!({ "holder": 1, "lease": lease }),
        json!({ "holder": "nas", "lease": "short" }),
        json!({ "holder": "nas", "lease": lease, "ttl": 1 }),
        json!(["nas", lease]),
        json!(null),
    ] {
        assert!(!claim(bad.clone()), "{bad}");
    }
    let repeated = format!(r#"{{"lease": "{lease}", "lease": "{lease}"}}"#);
    parse::<Renew>(repeated.as_bytes()).expect_err("which of the two?");
    let finish = |body: Value| {
        let read = parse::<FinishAs>(body.to_string().as_bytes());
        read.and_then(FinishAs::check).map(|finish| finish.how)
    };
    let long = "x".repeat(REASON_LIMIT + 1);
    for (body, how) in [
        (
            json!({ "lease": lease, "result": "ok" }),
            Some(Finished::Ok),
        ),
        (
            json!({ "lease": lease, "result": "ok", "reason": null }),
            Some(Finished::Ok),
        ),
        (
            json!({ "lease": lease, "result": "failed", "reason": "no\nroom" }),
            Some(Finished::Failed("no room".to_owned())),
        ),
        (json!({ "lease": lease, "result": "failed" }), None),
        (
            json!({ "lease": lease, "result": "failed", "reason": "" }),
            None,
        ),
        (
            json!({ "lease": lease, "result": "failed", "reason": long }),
            None,
        ),
        (json!({ "lease": lease, "result": "maybe" }), None),
        (json!({ "lease": lease }), None),
        (json!({ "result": "ok" }), None),
    ] {
        assert_eq!(finish(body.clone()).ok(), how, "{body}");
    }
}

#[test]
fn a_long_body_is_refused_unread() {
    let length = |bytes: usize| {
        admitted(
            "POST",
            "/api/v1/runs",
            &[HERE, JSON, ("content-length", &bytes.to_string())],
        )
    };
    assert_eq!(length(BODY_LIMIT), Ok(BEGIN));
    assert_eq!(length(BODY_LIMIT + 1), Err((413, "too_large")));
}

#[tokio::test]
async fn a_body_is_measured_whatever_it_claims() {
    let full = |bytes| Full::new(Bytes::from(vec![b' '; bytes]));
    assert_eq!(
        read(full(BODY_LIMIT)).await.map(|body| body.len()),
        Ok(BODY_LIMIT)
    );
    assert_eq!(read(full(BODY_LIMIT + 1)).await, Err(too_large()));
}

#[test]
fn an_empty_object_or_nothing_starts_a_run() {
    let parse = |body: &str| {
        parse_or_default::<StartRun>(body.as_bytes())
            .map(|StartRun {}| ())
            .map_err(|refusal| refusal.code.name())
    };
    for good in ["", " \n", "{}", " { } "] {
        assert_eq!(parse(good), Ok(()), "{good:?}");
    }
    for bad in ["{", "1", "[]", "null", "{\"force\": true}", "{}{}"] {
        assert_eq!(parse(bad), Err("bad_body"), "{bad:?}");
    }
}

#[tokio::test]
async fn ready_exactly_while_the_status_says_so() {
    for phase in [Phase::Copying, Phase::Offered, Phase::Leased] {
        let published = published(phase);
        let status = published.status.clone();
        let answer = ready(reader(published).ready().as_ref(), &status, now());
        assert_eq!(answer.status(), 200);
        assert!(!answer.headers().contains_key(RETRY_AFTER));
        let mut body = body(answer).await;
        // What is left of a minute, a moment later.
        let minute = |left: &Value| {
            left.as_f64()
                .is_some_and(|left| left > 30.0 && left <= 60.0)
        };
        assert!(minute(&body["deadline_seconds"].take()), "{body}");
        let (mut claim_within, mut lease) = (Value::Null, Value::Null);
        match phase {
            Phase::Offered => {
                assert!(minute(&body["claim_within_seconds"].take()), "{body}");
            }
            Phase::Leased => {
                assert!(minute(&body["lease"]["expires_seconds"].take()), "{body}");
                lease = json!({ "holder": "nas", "expires_seconds": null });
            }
            _ => drop(claim_within.take()),
        }
        let sidecar = phase != Phase::Copying;
        let expected = json!({
            "ready": true, "run": "20261122T025900Z-abcd", "database": "/var/lib/db",
            "driver": "sqlite3", "taken_by": if sidecar { "sidecar" } else { "tracker" },
            "copy": "pinned_file", "announces": "flowing",
            "ttl_seconds": if sidecar { json!(45.0) } else { Value::Null },
            "claim_within_seconds": claim_within, "deadline": "2026-11-22T03:00:30Z",
            "deadline_seconds": null, "lease": lease,
            "file": {
                "device": 1, "inode": 2, "page_size": 4096, "page_count": 3, "bytes": 12_288,
                "modified": "1795000000123456789",
            },
            "pinned": "2026-11-22T02:59:30Z", "began": "2026-11-22T02:59:00Z",
            "journal_mode": "wal", "pause_ms": 2.0,
        });
        assert_eq!(body, expected);
    }

    let not_ready = [
        Phase::Serving,
        Phase::Preparing,
        Phase::Draining,
        Phase::Flushing,
        Phase::Retrying,
        Phase::Finishing,
    ];
    for phase in not_ready {
        let answer = ready(None, &running(phase), now());
        assert_eq!(answer.status(), 503, "{phase}");
        let body = body(answer).await;
        assert_eq!(body["ready"], false);
        assert_eq!(body["state"], json!(phase));
        assert_eq!(body["next"]["begins"], "2026-11-22T03:00:00Z");
    }
}

#[test]
fn retry_after_is_the_time_to_the_next_beginning() {
    let at = |status: &Status, now: &str| retry_after(status, now.parse().expect("a time"));
    let serving = serving();
    assert_eq!(at(&serving, "2026-11-22T02:59:30Z"), Some(30));
    assert_eq!(
        at(&serving, "2026-11-22T02:59:29.999Z"),
        Some(31),
        "rounded up: never too early"
    );
    assert_eq!(at(&serving, "2026-11-22T03:00:00Z"), Some(1));
    assert_eq!(
        at(&serving, "2026-11-22T04:00:00Z"),
        Some(1),
        "the driver is late"
    );
    assert_eq!(
        at(&running(Phase::Finishing), "2026-11-22T02:59:30Z"),
        Some(30)
    );
    for soon in [
        Phase::Preparing,
        Phase::Draining,
        Phase::Flushing,
        Phase::Retrying,
    ] {
        assert_eq!(
            at(&running(soon), "2026-11-22T02:59:30Z"),
            Some(1),
            "{soon}"
        );
    }
    let never = Status {
        next: None,
        ..serving
    };
    assert_eq!(at(&never, "2026-11-22T02:59:30Z"), None);
    let answer = ready(None, &never, now());
    assert!(!answer.headers().contains_key(RETRY_AFTER));
}

/// One of every kind the code can make: what a client is told when it happens.
fn every_refusal() -> Vec<Refusal> {
    let run = RunId::new(now());
    let holder = Holder::try_from("nas".to_owned()).expect("a name");
    let phase = Phase::Copying;
    let driver = [
        Refused::Busy {
            run: run.clone(),
            phase,
        },
        Refused::Stuck { run },
        Refused::TooSoon {
            held: Duration::from_secs(90),
            left: Duration::from_millis(1500),
        },
        Refused::NoSwitch(NoSwitch::Configured),
        Refused::NoSwitch(NoSwitch::Server),
        Refused::ShuttingDown,
    ];
    let expires = Duration::from_millis(1500);
    let lease = [
        lease::Refused::StaleRun,
        lease::Refused::TakenByTracker,
        lease::Refused::NotReady { phase },
        lease::Refused::NotHolder,
        lease::Refused::Taken { holder, expires },
    ];
    let refused = |method: &str, target: &str, headers: &[(&str, &str)]| {
        let access = Access {
            token: token(),
            hosts: Vec::new(),
        };
        let head = request(method, target, headers).into_parts().0;
        admit(&head, &access).expect_err("it is refused")
    };
    let known = ("authorization", "Bearer 0123456789abcdef");
    let begin = "/api/v1/runs";
    let failed = br#"{"lease": "0123456789abcdef", "result": "failed"}"#;
    let mut all: Vec<Refusal> = driver.into_iter().map(Refusal::from).collect();
    all.extend(lease.into_iter().map(Refusal::from));
    all.extend([
        refused("GET", "/ready", &[]),
        refused("GET", "/ready", &[("host", "evil.example")]),
        refused("GET", "/ready?wait=soon", &[HERE]),
        refused("GET", "/nowhere", &[HERE]),
        refused("PUT", "/ready", &[HERE]),
        refused("POST", begin, &[HERE, ("origin", "null")]),
        refused("POST", begin, &[HERE]),
        refused("POST", begin, &[HERE, known]),
        refused(
            "POST",
            begin,
            &[HERE, known, JSON, ("content-length", "1000000000")],
        ),
        parse::<Renew>(b"{").expect_err("no JSON"),
        parse::<JournalMode>(br#"{"journal_mode": "delete"}"#)
            .expect("JSON")
            .check()
            .expect_err("there is no such way"),
        parse::<FinishAs>(failed)
            .expect("JSON")
            .check()
            .expect_err("without a reason"),
        too_large(),
        too_slow(),
        cut_short(&"connection reset"),
    ]);
    all
}

fn token() -> Option<Token> {
    let text = std::ffi::OsStr::new("0123456789abcdef");
    Token::find(Some(text), None, &Disk::default()).expect("a token")
}

#[tokio::test]
async fn every_refusal_says_what_why_and_what_to_do() {
    for refusal in every_refusal() {
        let (code, message) = (refusal.code, refusal.message.clone());
        assert!(message.len() >= 30, "{code:?}: {message}");
        let answer = refusal.answer();
        assert_eq!(answer.status(), code.status());
        assert_eq!(answer.headers()[CONTENT_TYPE], "application/json");
        assert_eq!(answer.headers()[CACHE_CONTROL], "no-store");
        let retry_after = answer.headers().get(RETRY_AFTER).cloned();
        let challenge = answer.headers().get("www-authenticate").cloned();
        let mut body = body(answer).await;
        if code == Code::Taken {
            assert_eq!(retry_after.expect("it will expire"), "2", "rounded up");
            assert_eq!(body["holder"].take(), "nas");
            assert_eq!(body["expires_seconds"].take(), 1.5);
            body.as_object_mut()
                .expect("an object")
                .retain(|_, value| !value.is_null());
        }
        assert_eq!(challenge.is_some(), code == Code::Unauthorized);
        assert_eq!(body, json!({ "error": code.name(), "message": message }));
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_path_that_is_not_utf8_is_an_answer_too() {
    use std::os::unix::ffi::OsStringExt;
    let mut odd = serving();
    odd.database.path = std::ffi::OsString::from_vec(vec![0xff]).into();
    let answer = status(&odd);
    assert_eq!(answer.status(), 500);
    assert_eq!(body(answer).await["error"], "not_utf8");
}

/// The endpoint and all that it needs, over a socket.
struct Server {
    address: SocketAddr,
    published: watch::Sender<Published>,
    commands: mpsc::Receiver<Command>,
    stop: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<io::Result<()>>,
    _keeper: Keeper,
}

fn any_port() -> Address {
    Address::Tcp(([127, 0, 0, 1], 0).into())
}

impl Server {
    fn start() -> Result<Self> {
        Self::with(no_token())
    }

    fn with(access: Access) -> Result<Self> {
        let (gate, keeper) = Gate::new()?;
        let published = watch::Sender::new(Published {
            status: serving(),
            job: None,
            offer: None,
        });
        let reader = Reader::new(published.subscribe(), gate);
        let (sender, commands) = mpsc::channel(1);
        let (stop, stopped) = oneshot::channel::<()>();
        let listener = Listener::bind(&any_port(), &Disk::default())?;
        let Address::Tcp(address) = listener.address()? else {
            return Err("a port was asked for".into());
        };
        let ended = tokio::spawn(serve(listener, access, reader, sender, async move {
            let _ = stopped.await;
        }));
        Ok(Self {
            address,
            published,
            commands,
            stop,
            ended,
            _keeper: keeper,
        })
    }

    async fn connect(&self) -> Result<TcpStream> {
        Ok(TcpStream::connect(self.address).await?)
    }

    /// Status line and headers, and the body, of the answer to a request that closes its
    /// connection.
    async fn ask(&self, request: &str) -> Result<(String, Value)> {
        let stream = self.connect().await?;
        send(&stream, request).await?;
        answer(&stream).await
    }
}

async fn send(stream: &TcpStream, text: &str) -> Result {
    let mut left = text.as_bytes();
    while !left.is_empty() {
        stream.writable().await?;
        match stream.try_write(left) {
            Ok(written) => left = &left[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What comes until `enough`, or the end.
async fn receive(stream: &TcpStream, enough: impl Fn(&str) -> bool) -> Result<String> {
    let mut received = Vec::new();
    loop {
        let text = String::from_utf8(received.clone())?;
        if enough(&text) {
            return Ok(text);
        }
        stream.readable().await?;
        let mut chunk = [0; 4096];
        match stream.try_read(&mut chunk) {
            Ok(0) => return Ok(text),
            Ok(read) => received.extend_from_slice(&chunk[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}

async fn answer(stream: &TcpStream) -> Result<(String, Value)> {
    let answer = receive(stream, |_| false).await?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or("no end of the header")?;
    let body = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(body)?
    };
    Ok((head.to_owned(), body))
}

const STATUS: &str = "GET /api/v1/status HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
const START: &str = "POST /api/v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\n\
                     Content-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";

#[tokio::test]
async fn the_status_follows_the_driver() -> Result {
    let server = Server::start()?;
    let (head, body) = server.ask(STATUS).await?;
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    let mut status = serde_json::from_value::<Status>(body)?;
    // Of the moment of the answer.
    let process = std::mem::take(&mut status.process);
    assert!(process.cpu_seconds.is_some() && process.resident_bytes > Some(0));
    let traffic = std::mem::take(&mut status.traffic);
    assert!(traffic.udp.announces.count == 0 && !traffic.udp.announces.buckets.is_empty());
    assert_eq!(status, serving());

    server.published.send_replace(published(Phase::Copying));
    let (head, body) = server
        .ask("GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert_eq!(body["run"], "20261122T025900Z-abcd");

    server
        .published
        .send_modify(|published| *published = self::published(Phase::Finishing));
    let (head, _) = server
        .ask("GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    assert!(
        head.starts_with("HTTP/1.1 503 Service Unavailable"),
        "{head}"
    );
    Ok(())
}

#[tokio::test]
async fn head_has_the_header_of_get_and_no_body() -> Result {
    let server = Server::start()?;
    let length = |head: &str| {
        head.lines()
            .find(|line| line.starts_with("content-length"))
            .map(str::to_owned)
    };
    let (get, _) = server.ask(STATUS).await?;
    let (head, body) = server.ask(&STATUS.replace("GET", "HEAD")).await?;
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert_eq!(length(&get), length(&head));
    assert_eq!(body, Value::Null);
    Ok(())
}

#[tokio::test]
async fn a_run_is_begun_or_refused_by_the_driver() -> Result {
    let mut server = Server::start()?;
    let run = RunId::new(now());
    let refused = Refused::Busy {
        run: run.clone(),
        phase: Phase::Flushing,
    };
    for (reply, code, field, value) in [
        (Ok(run.clone()), "202 Accepted", "run", run.to_string()),
        (
            Err(refused.clone()),
            "409 Conflict",
            "message",
            refused.to_string(),
        ),
        (
            Err(Refused::TooSoon {
                held: Duration::from_secs(2),
                left: Duration::from_millis(1001),
            }),
            "409 Conflict",
            "error",
            "too_soon".to_owned(),
        ),
        (
            Err(Refused::ShuttingDown),
            "503 Service",
            "error",
            "shutting_down".to_owned(),
        ),
    ] {
        let stream = server.connect().await?;
        send(&stream, START).await?;
        let Some(Command::Start { reply: driver }) = server.commands.recv().await else {
            return Err("no command came".into());
        };
        driver
            .send(reply)
            .map_err(|_| "nobody waits for the reply")?;
        let (head, body) = answer(&stream).await?;
        assert!(head.contains(code), "{head}");
        assert_eq!(body[field], value);
        // Rounded up, or it would be refused again.
        let told = head.to_ascii_lowercase().contains("\r\nretry-after: 2");
        assert_eq!(told, value == "too_soon", "{head}");
    }
    Ok(())
}

/// What a sidecar asks of the driver and what it is told, over the wire.
#[tokio::test]
async fn leases_are_granted_refused_and_ended_by_the_driver() -> Result {
    let mut server = Server::start()?;
    let ask = |what: &str, body: &str| {
        format!(
            "POST /api/v1/runs/20261122T025900Z-abcd/{what} HTTP/1.1\r\nHost: 127.0.0.1\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    };
    let granted = || Granted {
        holder: Holder::try_from("nas".to_owned()).expect("a name"),
        ttl: Duration::from_secs(45),
        expires: Duration::from_millis(1500),
        deadline: Duration::from_secs(60),
    };
    let lease = r#"{"lease": "0123456789abcdef"}"#;
    let claim = r#"{"holder": "nas", "lease": "0123456789abcdef"}"#;
    for (request, refuse) in [
        (ask("claim", claim), false),
        (ask("claim", claim), true),
        (ask("renew", lease), false),
        (ask("renew", lease), true),
    ] {
        let stream = server.connect().await?;
        send(&stream, &request).await?;
        let stale = lease::Refused::StaleRun;
        let answered = if refuse { Err(stale) } else { Ok(granted()) };
        let command = server.commands.recv().await.ok_or("no command came")?;
        let (run, nonce) = match command {
            Command::Claim {
                run,
                holder,
                nonce,
                reply,
            } => {
                assert_eq!(holder, granted().holder);
                reply.send(answered).map_err(|_| "nobody waits")?;
                (run, nonce)
            }
            Command::Renew { run, nonce, reply } => {
                reply.send(answered).map_err(|_| "nobody waits")?;
                (run, nonce)
            }
            other => return Err(format!("{other:?}").into()),
        };
        assert_eq!(run.as_str(), "20261122T025900Z-abcd");
        assert_eq!(nonce.as_str(), "0123456789abcdef");
        let (head, mut body) = answer(&stream).await?;
        if refuse {
            assert!(head.starts_with("HTTP/1.1 410 Gone"), "{head}");
            assert_eq!(body["error"], "stale_run");
            continue;
        }
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        let deadline: DateTime<Utc> = serde_json::from_value(body["deadline"].take())?;
        let left = deadline - wall_clock();
        assert!((0..=60).contains(&left.num_seconds()), "{left}");
        let expected = json!({
            "run": "20261122T025900Z-abcd", "lease": "0123456789abcdef", "holder": "nas",
            "ttl_seconds": 45.0, "expires_seconds": 1.5, "deadline": null, "deadline_seconds": 60.0,
        });
        assert_eq!(body, expected);
    }
    for verdict in [Verdict::held(), Verdict::broken("it moved")] {
        let stream = server.connect().await?;
        let body = r#"{"lease": "0123456789abcdef", "result": "failed", "reason": "no room"}"#;
        send(&stream, &ask("finish", body)).await?;
        let Some(Command::Finish { how, reply, .. }) = server.commands.recv().await else {
            return Err("no command came".into());
        };
        assert_eq!(how, Finished::Failed("no room".to_owned()));
        reply
            .send(Ok(verdict.clone()))
            .map_err(|_| "nobody waits")?;
        let (head, body) = answer(&stream).await?;
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        let expected = json!({
            "run": "20261122T025900Z-abcd", "held_throughout": verdict.held_throughout,
            "why": verdict.why,
        });
        assert_eq!(body, expected);
    }
    // What cannot be a run's id is answered without the driver.
    let odd = ask("renew", lease).replace("20261122T025900Z-abcd", "..");
    let (head, _) = server.ask(&odd).await?;
    assert!(head.starts_with("HTTP/1.1 410 Gone"), "{head}");
    assert!(server.commands.try_recv().is_err());
    Ok(())
}

/// What is ordered of the driver and what it answers, over the wire.
#[tokio::test]
async fn the_switch_is_ordered_and_withdrawn_by_the_driver() -> Result {
    let mut server = Server::start()?;
    let ask = |method: &str, body: &str| {
        format!(
            "{method} /api/v1/journal-mode HTTP/1.1\r\nHost: 127.0.0.1\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    };
    let wal = r#"{"journal_mode": "wal"}"#;
    let ordered = || Ordered::will_be("delete".to_owned(), Order::new(now()), None);
    for (reply, code) in [
        (Ok(ordered()), "202 Accepted"),
        (Ok(Ordered::already()), "200 OK"),
        (Err(Refused::NoSwitch(NoSwitch::Server)), "409 Conflict"),
    ] {
        let stream = server.connect().await?;
        send(&stream, &ask("PUT", wal)).await?;
        let Some(Command::OrderWal { reply: driver }) = server.commands.recv().await else {
            return Err("no command came".into());
        };
        let expected = match &reply {
            Ok(ordered) => serde_json::to_value(ordered)?,
            Err(refused) => json!({ "error": "no_switch", "message": refused.to_string() }),
        };
        driver.send(reply).map_err(|_| "nobody waits")?;
        let (head, body) = answer(&stream).await?;
        assert!(head.contains(code), "{head}");
        assert_eq!(body, expected);
    }
    for body in ["", "{}"] {
        let stream = server.connect().await?;
        send(&stream, &ask("DELETE", body)).await?;
        let Some(Command::WithdrawWal { reply: driver }) = server.commands.recv().await else {
            return Err("no command came".into());
        };
        let withdrawn = Ordered::withdrawn("delete".to_owned(), true);
        driver.send(Ok(withdrawn)).map_err(|_| "nobody waits")?;
        let (head, body) = answer(&stream).await?;
        assert!(head.contains("200 OK"), "{head}");
        assert_eq!(body["journal_mode"], "delete");
        assert_eq!(body["switch"], Value::Null);
    }
    // What cannot be is answered without the driver.
    let delete = r#"{"journal_mode": "delete"}"#;
    for (method, body) in [("PUT", delete), ("PUT", ""), ("DELETE", wal)] {
        let (head, body) = server.ask(&ask(method, body)).await?;
        assert!(head.starts_with("HTTP/1.1 400"), "{head}");
        assert_eq!(body["error"], "bad_body");
    }
    assert!(server.commands.try_recv().is_err());
    Ok(())
}

#[tokio::test]
async fn the_document_is_served() -> Result {
    let server = Server::start()?;
    let (head, body) = server
        .ask("GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert_eq!(body["openapi"], "3.1.0");
    Ok(())
}

/// The same, through a file.
#[tokio::test]
async fn a_unix_domain_socket_is_served() -> Result {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("maintenance.sock");
    let listener = Listener::bind(&Address::Unix(path.clone()), &Disk::default())?;
    let (sender, _commands) = mpsc::channel(1);
    let (stop, stopped) = oneshot::channel::<()>();
    let reader = reader(published(Phase::Offered));
    let serving = serve(listener, no_token(), reader, sender, async move {
        let _ = stopped.await;
    });
    let serving = tokio::spawn(serving);
    let mut stream = tokio::net::UnixStream::connect(&path).await?;
    let request = "GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await?;
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await?;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    drop(stop);
    serving.await??;
    assert!(!path.exists(), "nobody listens any more");
    Ok(())
}

#[tokio::test]
async fn refusals_do_not_reach_the_driver() -> Result {
    let mut server = Server::start()?;
    for (from, to, code) in [
        ("application/json", "text/plain", "415"),
        ("Host: 127.0.0.1", "Host: evil.example", "421"),
        ("Host:", "Origin: http://evil.example\r\nHost:", "403"),
        ("POST", "GET", "405"),
        ("{}", "{x", "400"),
        ("Length: 2", "Length: 70000", "413"),
    ] {
        let (head, body) = server.ask(&START.replace(from, to)).await?;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {code}")),
            "{from} -> {to}: {head}"
        );
        assert!(
            body["message"]
                .as_str()
                .is_some_and(|message| message.len() > 20),
            "{body}"
        );
    }
    assert!(server.commands.try_recv().is_err());
    Ok(())
}

#[tokio::test]
async fn without_a_driver_a_run_is_refused_and_the_status_still_answers() -> Result {
    let mut server = Server::start()?;
    server.commands.close();
    let (head, body) = server.ask(START).await?;
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    assert_eq!(body["error"], "shutting_down");
    assert!(server.ask(STATUS).await?.0.starts_with("HTTP/1.1 200"));
    Ok(())
}

#[tokio::test]
async fn a_connection_is_kept_for_the_next_request() -> Result {
    let server = Server::start()?;
    let stream = server.connect().await?;
    for _ in 0..3 {
        send(&stream, "GET /health_check HTTP/1.1\r\nHost: [::1]\r\n\r\n").await?;
        let answer = receive(&stream, |text| text.ends_with("{\"status\":\"Ok\"}")).await?;
        assert!(!answer.is_empty(), "closed");
    }
    Ok(())
}

#[tokio::test]
async fn clients_that_dawdle_leave_room_for_others() -> Result {
    let server = Server::start()?;
    let mut dawdlers = Vec::new();
    for _ in 0..CONNECTIONS - 1 {
        let stream = server.connect().await?;
        send(&stream, "GET /rea").await?;
        dawdlers.push(stream);
    }
    for _ in 0..100 {
        assert!(server.ask(STATUS).await?.0.starts_with("HTTP/1.1 200"));
    }
    Ok(())
}

/// With the clock paused tokio moves it to the next timer as soon as nothing else is left
/// to do, so these tests wait for limits without waiting.
#[tokio::test(start_paused = true)]
async fn a_header_that_never_ends_costs_its_connection() -> Result {
    let server = Server::start()?;
    let stream = server.connect().await?;
    send(&stream, "GET /ready HTTP/1.1\r\nHost: ").await?;
    assert_eq!(receive(&stream, |_| false).await?, "");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_comes_is_not_waited_for() -> Result {
    let server = Server::start()?;
    let stream = server.connect().await?;
    send(&stream, START.trim_end_matches("{}")).await?;
    let (head, _) = answer(&stream).await?;
    assert!(head.starts_with("HTTP/1.1 408 Request Timeout"), "{head}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_hangs_is_said_to() -> Result {
    let server = Server::start()?;
    let (head, body) = server.ask(START).await?;
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    assert_eq!(body["error"], "no_reply");
    assert_eq!(server.commands.len(), 1, "it was asked");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn when_every_slot_is_taken_the_next_client_waits_for_one() -> Result {
    let server = Server::start()?;
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS {
        idle.push(server.connect().await?);
    }
    assert!(server.ask(STATUS).await?.0.starts_with("HTTP/1.1 200"));
    Ok(())
}

#[tokio::test]
async fn shutting_down_closes_the_port_and_idle_connections() -> Result {
    let server = Server::start()?;
    let idle = server.connect().await?;
    server.ask(STATUS).await?;
    let _ = server.stop.send(());
    server.ended.await??;
    assert_eq!(receive(&idle, |_| false).await?, "");
    assert!(TcpStream::connect(server.address).await.is_err());
    Ok(())
}

#[test]
fn a_port_that_is_taken_is_an_error_that_names_it() -> Result {
    let disk = Disk::default();
    let taken = Listener::bind(&any_port(), &disk)?;
    let address = taken.address()?;
    let error = Listener::bind(&address, &disk).expect_err("it is taken");
    let error = error.to_string();
    assert!(error.contains(&address.to_string()), "{error}");
    assert!(
        error.contains("maintenance.readiness.bind_address"),
        "{error}"
    );
    Ok(())
}

#[test]
fn the_touch_file_says_what_ready_says() -> Result {
    let published = published(Phase::Copying);
    let status = published.status.clone();
    let offer = published.offer.clone().ok_or("an offer")?;
    let file = serde_json::to_value(crate::touch_file::Ready {
        run: status.run.as_ref().ok_or("a run")?.id.clone(),
        database: status.database.path.clone(),
        driver: DRIVER.to_owned(),
        copy: offer.copy,
        until: now(),
        began: status.run.as_ref().ok_or("a run")?.began,
        pinned: offer.pinned,
        journal_mode: status.database.journal_mode.clone(),
        pause_ms: crate::status::milliseconds(offer.pause),
        file: offer.file,
    })?;
    let answer = ready(reader(published).ready().as_ref(), &status, now());
    assert_eq!(answer.version(), Version::HTTP_11);
    let body = futures_util::FutureExt::now_or_never(body(answer)).ok_or("in memory")?;
    for key in [
        "run",
        "database",
        "driver",
        "copy",
        "began",
        "pinned",
        "journal_mode",
        "pause_ms",
        "file",
    ] {
        assert_eq!(file[key], body[key], "{key}");
    }
    Ok(())
}
