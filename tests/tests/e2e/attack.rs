//! The endpoint is attacked while runs go on: clients that dawdle, bodies without an end,
//! guessed tokens, paths that want to be others. No announce is lost, no run, and no answer
//! is a failure of the endpoint's own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use end_to_end::endpoint::Endpoint;
use end_to_end::http1::{self, Connection};
use end_to_end::load::{Load, Plan};
use end_to_end::sidecar::Beside;
use end_to_end::tracker::Setup;
use end_to_end::{PATIENCE, database, until};
use http::{Request, StatusCode, header};
use http_body_util::Full;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::sidecar::CP;
use crate::support::{A_RUN, MIB, alone, kind, nothing_lost};

const TOKEN: &str = "a-token-of-the-test";
const DAWDLERS: usize = 200;
const GIANTS: usize = 8;
/// A body of a gigabyte, as far as it is taken.
const GIGABYTE: usize = 1_000_000_000;
const GUESSERS: usize = 4;
/// Runs under attack, of each tracker.
const RUNS: usize = 3;
/// What announces may have to wait for a run in WAL mode, on a machine that attacker, load and
/// tracker share.
const LONGEST_PAUSE_MS: f64 = 500.0;

/// Requests that are tried over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A byte a second.
    Dawdler,
    /// Announces 1 GB and sends what is taken, without a token.
    Giant,
    /// The same with the right token, and in chunks without an end.
    KnownGiant,
    /// A wrong token.
    Guess,
    /// The path of this place in [`tricks`].
    Trick(usize),
}

/// How often each was answered with what; `None`: its connection was closed without.
#[derive(Debug, Default)]
struct Seen(Mutex<BTreeMap<(Kind, Option<u16>), usize>>);

impl Seen {
    fn counts(&self) -> MutexGuard<'_, BTreeMap<(Kind, Option<u16>), usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, kind: Kind, status: Option<u16>) {
        *self.counts().entry((kind, status)).or_default() += 1;
    }

    /// How often this was answered, or given up.
    fn times(&self, kind: Kind) -> usize {
        let counts = self.counts();
        let of = counts.iter().filter(|((of, _), _)| *of == kind);
        of.map(|(_, times)| times).sum()
    }

    /// What this was answered with.
    fn answers(&self, kind: Kind) -> Vec<u16> {
        let counts = self.counts();
        let of = counts.keys().filter(|(of, _)| *of == kind);
        of.filter_map(|(_, status)| *status).collect()
    }
}

/// Attackers at work. They end when this is dropped.
struct Attack {
    seen: Arc<Seen>,
    _attackers: JoinSet<()>,
}

impl Attack {
    fn start(at: SocketAddr) -> Self {
        let seen = Arc::new(Seen::default());
        let mut attackers = JoinSet::new();
        for _ in 0..DAWDLERS {
            attackers.spawn(dawdle(at, Arc::clone(&seen)));
        }
        for nth in 0..GIANTS {
            attackers.spawn(send_giants(at, nth % 2 == 1, Arc::clone(&seen)));
        }
        for nth in 0..GUESSERS {
            attackers.spawn(guess(at, nth, Arc::clone(&seen)));
        }
        attackers.spawn(try_tricks(at, Arc::clone(&seen)));
        Self {
            seen,
            _attackers: attackers,
        }
    }

    /// Waits until every kind of attack has been made many times since now.
    async fn goes_on(&self) -> Result<()> {
        let tricks = (0..tricks().len()).map(Kind::Trick);
        let wanted: Vec<_> = [
            (Kind::Dawdler, DAWDLERS),
            (Kind::Giant, 2 * GIANTS),
            (Kind::KnownGiant, 2 * GIANTS),
            (Kind::Guess, 2_000),
        ]
        .into_iter()
        .chain(tricks.map(|trick| (trick, 2)))
        .map(|(kind, more)| (kind, self.seen.times(kind) + more))
        .collect();
        let lacking = || {
            let lacking = |(kind, times): &&(Kind, usize)| self.seen.times(*kind) < *times;
            wanted.iter().find(lacking)
        };
        let reached = until("the attack to go on", PATIENCE, async || {
            Ok(lacking().is_none().then_some(()))
        });
        let reached = reached.await;
        reached.with_context(|| format!("{:?} of {:?}", lacking(), self.seen))
    }
}

/// The status of an answer; `None` if the connection ends before it comes.
async fn status(stream: &mut (impl AsyncRead + Unpin)) -> Option<u16> {
    let mut line = *b"HTTP/1.1 000";
    timeout(PATIENCE, stream.read_exact(&mut line))
        .await
        .ok()?
        .ok()?;
    std::str::from_utf8(&line)
        .ok()?
        .strip_prefix("HTTP/1.1 ")?
        .parse()
        .ok()
}

/// A request's head without an end, a byte a second, on one connection after another.
async fn dawdle(at: SocketAddr, seen: Arc<Seen>) {
    let mut seconds = interval(Duration::from_secs(1));
    loop {
        seconds.tick().await;
        let Ok(mut stream) = TcpStream::connect(at).await else {
            continue;
        };
        let (mut reading, mut writing) = stream.split();
        let answer = status(&mut reading);
        tokio::pin!(answer);
        let mut head = b"GET /api/v1/status HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
            .iter()
            .copied()
            .chain(std::iter::repeat(b'x'));
        let answered = loop {
            tokio::select! {
                answered = &mut answer => break answered,
                _ = seconds.tick() => {
                    let byte = head.next().unwrap_or(b'x');
                    if writing.write_all(&[byte]).await.is_err() {
                        break None;
                    }
                }
            }
        };
        seen.note(Kind::Dawdler, answered);
    }
}

/// Bodies of a gigabyte, announced or not, on one connection after another.
async fn send_giants(at: SocketAddr, known: bool, seen: Arc<Seen>) {
    let mut turns = interval(Duration::from_millis(100));
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for announced in [true, false].into_iter().cycle() {
        turns.tick().await;
        let Ok(mut stream) = TcpStream::connect(at).await else {
            continue;
        };
        let token = if known {
            format!("Authorization: Bearer {TOKEN}\r\n")
        } else {
            String::new()
        };
        let length = if announced {
            format!("Content-Length: {GIGABYTE}")
        } else {
            "Transfer-Encoding: chunked".to_owned()
        };
        let head = format!(
            "POST /api/v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\n\
             Content-Type: application/json\r\n{token}{length}\r\n\r\n"
        );
        // As part of a body that is announced it is as good as any other.
        let part = format!("8000\r\n{}\r\n", " ".repeat(0x8000));
        let (mut reading, mut writing) = stream.split();
        let sending = async {
            writing.write_all(head.as_bytes()).await?;
            for _ in 0..GIGABYTE / part.len() {
                writing.write_all(part.as_bytes()).await?;
            }
            std::io::Result::Ok(())
        };
        let answered = {
            let answer = status(&mut reading);
            tokio::pin!(answer, sending);
            tokio::select! {
                biased;
                answered = &mut answer => answered,
                // It may have been answered before it was closed.
                _ = &mut sending => answer.await,
            }
        };
        let kind = if known { Kind::KnownGiant } else { Kind::Giant };
        seen.note(kind, answered);
    }
}

/// Wrong tokens, 250 a second, on connections that are kept as long as they are.
async fn guess(at: SocketAddr, guesser: usize, seen: Arc<Seen>) {
    let mut turns = interval(Duration::from_millis(4));
    turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let run = "/api/v1/runs/20261122T030000Z-abcd";
    let paths = ["claim", "renew", "finish"].map(|what| format!("{run}/{what}"));
    let paths = paths.iter().map(String::as_str).chain(["/api/v1/runs"]);
    let mut connection = None;
    for (nth, path) in paths.cycle().enumerate() {
        turns.tick().await;
        // Of the right length, of another, and almost right.
        let token = match nth % 3 {
            0 => format!("{nth:0width$}", width = TOKEN.len()),
            1 => format!("guess-{guesser}-{nth}"),
            _ => format!("{}{}", &TOKEN[1..], nth % 10),
        };
        let request = Request::post(path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .body(Full::from("{\"lease\":\"x\"}"))
            .expect("a request that is well-formed");
        let mut open: Connection = match connection.take() {
            Some(open) => open,
            None => match Connection::open(at).await {
                Ok(open) => open,
                Err(_) => continue,
            },
        };
        let answer = open.send(request).await.ok();
        seen.note(
            Kind::Guess,
            answer.as_ref().map(|answer| answer.status.as_u16()),
        );
        connection = answer.map(|_| open);
    }
}

/// Requests for what is not there, with the right token, and how they may be answered.
fn tricks() -> Vec<(&'static str, String, &'static [u16])> {
    const ABSENT: &[u16] = &[404];
    const BROKEN: &[u16] = &[400];
    let long = format!("/{}", "a".repeat(60_000));
    vec![
        ("POST", "/api/v1/../v1/runs".to_owned(), ABSENT),
        ("POST", "/api/v1/./runs".to_owned(), ABSENT),
        ("POST", "/api/v1/%2e%2e/v1/runs".to_owned(), ABSENT),
        ("POST", "/api/v1/runs%2f".to_owned(), ABSENT),
        ("POST", "/api/v1/runs/".to_owned(), ABSENT),
        ("POST", "/api/v1//runs".to_owned(), ABSENT),
        ("POST", "//api/v1/runs".to_owned(), ABSENT),
        ("POST", "/api/v1/runs/../../claim".to_owned(), ABSENT),
        // Names of runs that are none.
        ("POST", "/api/v1/runs/../claim".to_owned(), &[410]),
        ("POST", "/api/v1/runs/%2e%2e%2fx/claim".to_owned(), &[410]),
        ("POST", "/api/v1/runs/%00/claim".to_owned(), &[410]),
        ("GET", "/../../../../etc/passwd".to_owned(), ABSENT),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd".to_owned(), ABSENT),
        ("GET", "/ready/..".to_owned(), ABSENT),
        ("GET", "/ready%00".to_owned(), ABSENT),
        ("GET", "/READY".to_owned(), ABSENT),
        ("GET", long, &[431]),
        ("GET", "/ready\0".to_owned(), BROKEN),
        ("GET", "\0".to_owned(), BROKEN),
        // Without a slash it is a host's name (RFC 9112, 3.2.3), and not one of ours.
        ("GET", "ready".to_owned(), &[421]),
        (
            "GET",
            "http://evil.example/api/v1/status".to_owned(),
            &[421],
        ),
        ("POST", "http://evil.example/api/v1/runs".to_owned(), &[421]),
        (
            "GET",
            "http://127.0.0.1/../api/v1/status".to_owned(),
            ABSENT,
        ),
        // That one is proper (RFC 9112, 3.2.2).
        ("GET", "http://127.0.0.1/api/v1/status".to_owned(), &[200]),
        ("DELETE", "/api/v1/runs".to_owned(), &[405]),
        ("CONNECT", "127.0.0.1:22".to_owned(), ABSENT),
        ("OPTIONS", "*".to_owned(), ABSENT),
    ]
}

/// Each of them in turn, over and over.
async fn try_tricks(at: SocketAddr, seen: Arc<Seen>) {
    let mut turns = interval(Duration::from_millis(5));
    turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
    for (nth, (method, target, _)) in tricks().iter().enumerate().cycle() {
        turns.tick().await;
        let Ok(mut stream) = TcpStream::connect(at).await else {
            continue;
        };
        let body = "{\"holder\":\"x\",\"lease\":\"5f0c9a7be1d24c33\"}";
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\
             Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        // What is too long may be answered before it is sent.
        let _ = stream.write_all(request.as_bytes()).await;
        seen.note(Kind::Trick(nth), status(&mut stream).await);
    }
}

/// Starts a run as somebody who may; its id.
async fn begin(endpoint: Endpoint) -> Result<String> {
    let request = Request::post("/api/v1/runs")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::AUTHORIZATION, format!("Bearer {TOKEN}"))
        .body(Full::from("{}"))?;
    let answer = Connection::open(endpoint.0).await?.send(request).await?;
    let body = answer.json()?;
    ensure!(answer.status == StatusCode::ACCEPTED, "refused: {body:#}");
    Ok(body["run"].as_str().context("a run's id")?.to_owned())
}

/// A tracker that asks for a token, with a database of a few megabytes.
fn guarded(taken_by: &str) -> Result<Setup> {
    let setup = Setup::new()?
        .set("maintenance", "journal_mode", "\"wal\"")
        .set("maintenance.backup", "taken_by", &format!("{taken_by:?}"))
        .set("maintenance.readiness", "token_file", "\"./token\"");
    std::fs::write(setup.home().join("token"), format!("{TOKEN}\n"))?;
    database::make(&setup.database(), 20 * MIB, "wal")?;
    Ok(setup)
}

/// Every answer was one that is documented, and everything was answered now and then.
fn answered_properly(seen: &Seen) {
    let counts = format!("{:?}", seen.counts());
    let only = |kind, allowed: &[u16]| {
        let answers = seen.answers(kind);
        let proper = answers.iter().all(|status| allowed.contains(status));
        assert!(proper, "{kind:?}: {answers:?}: {counts}");
        answers
    };
    // Cut off without a word, or told that it is too slow.
    only(Kind::Dawdler, &[408]);
    only(Kind::Giant, &[401]);
    only(Kind::KnownGiant, &[413]);
    assert_eq!(only(Kind::Guess, &[401]), [401]);
    for (nth, (method, target, allowed)) in tricks().into_iter().enumerate() {
        let answers = only(Kind::Trick(nth), allowed);
        let shown: String = target.chars().take(60).collect();
        assert!(!answers.is_empty(), "{method} {shown:?}: {counts}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_attack_announces_are_answered_and_runs_are_done() -> Result<()> {
    let _alone = alone().await;
    for taken_by in ["sidecar", "tracker"] {
        let setup = guarded(taken_by)?;
        let tracker = setup.start().await?;
        let endpoint = tracker.endpoint()?;
        let beside = Beside::new(&setup)?
            .at(endpoint.0)
            .with(["--token-file", "token"])
            .running(CP);
        let sidecar = (taken_by == "sidecar")
            .then(|| beside.start())
            .transpose()?;
        let plan = Plan {
            udp_per_second: 600,
            http_per_second: 50,
            sockets: 16,
            torrents: 500,
        };
        let load = Load::start(plan, tracker.addresses.udp, tracker.addresses.http).await?;
        load.answered_more(1_000, PATIENCE).await?;

        let attack = Attack::start(endpoint.0);
        attack.goes_on().await?;
        let mut runs = Vec::new();
        for _ in 0..RUNS {
            let run = begin(endpoint).await?;
            let ended = endpoint.ended(&run, A_RUN).await?;
            ensure!(kind(&ended) == "done", "{ended:#}");
            if let Some(sidecar) = &sidecar {
                assert_eq!(ended["sidecar"]["held_throughout"], true, "{ended:#}");
                let published = format!("{run} was published");
                sidecar.log.wait_for(&published).await?;
            }
            let longest = ended["longest_pause_ms"].as_f64().context("a pause")?;
            assert!(longest < LONGEST_PAUSE_MS, "{longest} ms: {ended:#}");
            runs.push((run, longest));
            attack.goes_on().await?;
        }
        let health = http1::get(endpoint.0, "/health_check").await?;
        assert_eq!(health.status, StatusCode::OK);
        let status = endpoint.status().await?;
        let account = load.stop(PATIENCE).await?;

        nothing_lost(&account);
        answered_properly(&attack.seen);
        assert_eq!(status["gate"]["forced_open"], 0, "{status:#}");
        assert_eq!(status["gate"]["open"], true, "{status:#}");
        // Nobody else has begun one.
        let ended: Vec<_> = status["runs"]
            .as_array()
            .context("runs")?
            .iter()
            .map(|run| &run["id"])
            .collect();
        let begun: Vec<_> = runs.iter().rev().map(|(run, _)| run.as_str()).collect();
        assert_eq!(ended, begun);
        assert_eq!(status["run"], Value::Null);
        // What was announced was not taken in.
        let memory = tracker.peak_memory()?;
        assert!(memory < 512 * MIB, "{memory} bytes");
        println!(
            "{taken_by}: {} announces, none lost; {} MiB; pauses {:?}; {:?}",
            account.sent(),
            memory / MIB,
            runs.iter().map(|(_, longest)| longest).collect::<Vec<_>>(),
            attack.seen.counts()
        );
    }
    Ok(())
}
