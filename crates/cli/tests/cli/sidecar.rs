//! `sidecar` as a process, against a tracker that fails in every way one can: replies that
//! are lost, garbage, refusals, restarts. What the real tracker does is tried end to end.

use std::collections::VecDeque;
use std::io::BufRead as _;
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::*;

const RUN: &str = "20261122T030000Z-abcd";
/// Below this is what is asked of no run.
const NO_RUN: &str = "/api/v1/runs/none/";
const TOKEN: &str = "0123456789abcdef";
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a sidecar asked.
#[derive(Debug, Clone, PartialEq)]
struct Asked {
    /// Method and path.
    line: String,
    header: String,
    body: Value,
}

/// What is done to a request instead of answering it.
#[derive(Debug, Clone)]
enum Fault {
    /// It is taken up, but the answer is lost.
    Lost,
    /// It is not taken up.
    Dropped,
    Garbage,
    /// Another answer than the usual one.
    Answer(u16, Value),
}

/// A tracker that plays its part of the protocol, but for the faults it is given: each is of
/// the next request whose path ends so.
struct Peer {
    state: Arc<Mutex<Played>>,
    closing: Arc<AtomicBool>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Played {
    asked: Vec<Asked>,
    faults: VecDeque<(&'static str, Fault)>,
    ready: Value,
    ttl: f64,
    deadline: f64,
    held: bool,
    token: Option<&'static str>,
    finished: bool,
    /// What takes the database's place as soon as the run is claimed.
    swapped: Option<[PathBuf; 2]>,
}

impl Played {
    fn new(home: &Home) -> Result<Self> {
        let found = fs::metadata(home.path("tracker.db"))?;
        Ok(Self {
            asked: Vec::new(),
            faults: VecDeque::new(),
            ready: json!({
                "ready": true, "run": RUN, "database": home.path("tracker.db"), "driver": "sqlite3",
                "taken_by": "sidecar", "copy": "pinned_file", "announces": "flowing",
                "ttl_seconds": 45.0, "claim_within_seconds": 60.0,
                "deadline": "2026-11-22T03:05:00Z", "deadline_seconds": 300.0, "lease": null,
                "file": {
                    "device": 0, "inode": found.ino(), "page_size": 4096,
                    "page_count": found.len() / 4096, "bytes": found.len(),
                    "modified": PinnedFile::modified_of(&found).to_string(),
                },
                "pinned": "2026-11-22T03:00:00.5Z", "began": "2026-11-22T03:00:00.25Z",
                "journal_mode": "wal", "pause_ms": 1.5, "said_by_a_newer_version": 1,
            }),
            ttl: 45.0,
            deadline: 300.0,
            held: true,
            token: None,
            finished: false,
            swapped: None,
        })
    }

    fn answer(&mut self, asked: &Asked) -> (u16, Value) {
        let refusal = |status, error| {
            (
                status,
                json!({ "error": error, "message": format!("{error}: told so") }),
            )
        };
        let authorized = self.token.is_none_or(|token| {
            asked
                .header
                .contains(&format!("authorization: Bearer {token}\r\n"))
        });
        if asked.line.starts_with("POST") && !authorized {
            return refusal(401, "unauthorized");
        }
        let path = asked.line.split(['?', ' ']).nth(1).unwrap_or_default();
        match path.rsplit('/').next() {
            _ if path.starts_with(NO_RUN) => refusal(410, "stale_run"),
            Some("ready") if self.finished => (
                503,
                json!({ "ready": false, "state": "serving", "run": null, "next": null }),
            ),
            Some("ready") => (200, self.ready.clone()),
            Some("runs") => (202, json!({ "run": RUN })),
            Some("claim" | "renew") if self.finished => refusal(410, "stale_run"),
            Some(what @ ("claim" | "renew")) => {
                if let Some([from, to]) = self.swapped.take_if(|_| what == "claim") {
                    fs::rename(from, to).expect("both are in one directory");
                }
                (
                    200,
                    json!({
                        "run": RUN, "lease": asked.body["lease"], "holder": "x", "ttl_seconds": self.ttl,
                        "expires_seconds": self.ttl, "deadline": "2026-11-22T03:05:00Z",
                        "deadline_seconds": self.deadline,
                    }),
                )
            }
            Some("finish") => {
                self.finished = true;
                let held = self.held && asked.body["result"] == "ok";
                let why = (!held).then_some("somebody wrote to it");
                (
                    200,
                    json!({ "run": RUN, "held_throughout": held, "why": why }),
                )
            }
            _ => refusal(404, "not_found"),
        }
    }
}

impl Peer {
    fn start(played: Played) -> Result<Self> {
        Self::at(
            TcpListener::bind("127.0.0.1:0")?,
            Arc::new(Mutex::new(played)),
        )
    }

    fn at(listener: TcpListener, state: Arc<Mutex<Played>>) -> Result<Self> {
        let address = listener.local_addr()?;
        let closing = Arc::new(AtomicBool::new(false));
        let (played, closed) = (Arc::clone(&state), Arc::clone(&closing));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(std::result::Result::ok) {
                if closed.load(Ordering::SeqCst) {
                    break;
                }
                // Whoever gives up a request is no failure of ours.
                let _ = serve(stream, &played);
            }
        });
        Ok(Self {
            state,
            closing,
            address,
            thread: Some(thread),
        })
    }

    fn played(&self) -> std::sync::MutexGuard<'_, Played> {
        self.state.lock().expect("no panic in there")
    }

    /// The paths that were asked, without their run.
    fn asked(&self) -> Vec<String> {
        let last = |asked: &Asked| {
            let path = asked.line.split(['?', ' ']).nth(1).unwrap_or_default();
            path.rsplit('/').next().unwrap_or_default().to_owned()
        };
        self.played().asked.iter().map(last).collect()
    }

    fn bodies(&self, path: &str) -> Vec<Value> {
        let played = self.played();
        let of = played
            .asked
            .iter()
            .filter(|asked| asked.line.ends_with(path));
        of.map(|asked| asked.body.clone()).collect()
    }

    fn until(&self, what: &str, wanted: impl Fn(&Played) -> bool) {
        let began = Instant::now();
        while !wanted(&self.played()) {
            assert!(
                began.elapsed() < PATIENCE,
                "{what} did not come: {:?}",
                self.played()
            );
            std::thread::yield_now();
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        // It waits for a connection.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn serve(mut stream: impl std::io::Read + std::io::Write, state: &Mutex<Played>) -> Result {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8(head)?;
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.unwrap_or("0").parse()?];
    stream.read_exact(&mut body)?;
    let (line, header) = head.split_once("\r\n").ok_or("a request line")?;
    let asked = Asked {
        line: line.trim_end_matches(" HTTP/1.1").to_owned(),
        header: header.to_owned(),
        body: serde_json::from_slice(&body)?,
    };
    let mut played = state.lock().expect("no panic in there");
    let path = asked.line.split('?').next().unwrap_or_default();
    // Whether it is let in a sidecar asks at its start, of no run: no fault is meant for that.
    let of_a_run = !path.contains(NO_RUN);
    if of_a_run {
        played.asked.push(asked.clone());
    }
    let faults = if of_a_run {
        &played.faults
    } else {
        &VecDeque::new()
    };
    let at = faults.iter().position(|(of, _)| path.ends_with(of));
    let (status, body) = match at.and_then(|at| played.faults.remove(at)) {
        None => played.answer(&asked),
        Some((_, Fault::Answer(status, body))) => (status, body),
        Some((_, Fault::Dropped)) => return Ok(()),
        Some((_, Fault::Lost)) => {
            played.answer(&asked);
            return Ok(());
        }
        Some((_, Fault::Garbage)) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>")?;
            return Ok(());
        }
    };
    drop(played);
    let body = body.to_string();
    write!(
        stream,
        "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    Ok(stream.flush()?)
}

impl Home {
    /// With a directory for what commands make.
    fn with_copies() -> Result<Self> {
        let home = Self::new()?;
        fs::create_dir(home.path("copies"))?;
        Ok(home)
    }

    fn sidecar(&self, peer: &Peer, arguments: &[&str]) -> Result<Output> {
        self.spawn_sidecar(peer, arguments)?.ended()
    }

    fn spawn_sidecar(&self, peer: &Peer, arguments: &[&str]) -> Result<Running> {
        let endpoint = format!("http://{}", peer.address);
        self.spawn(&[&["sidecar", "--endpoint", &endpoint], arguments].concat())
    }

    fn spawn(&self, arguments: &[&str]) -> Result<Running> {
        let child = Command::new(env!("CARGO_BIN_EXE_torrust-maintenance"))
            .args(["--config", "tracker.toml"])
            .args(arguments)
            .current_dir(&self.directory)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TORRUST_TRACKER_MAINTENANCE_TOKEN", TOKEN)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Running(child))
    }

    fn copies(&self) -> Result<Vec<String>> {
        names_in(&self.path("copies"))
    }

    fn published(&self) -> Result<Vec<String>> {
        names_in(&self.path("backups"))
    }
}

fn names_in(directory: &Path) -> Result<Vec<String>> {
    let mut names = fs::read_dir(directory)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .filter(|name| !matches!(name, Ok(name) if name == ".lock"))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// A sidecar that runs.
struct Running(Child);

impl Running {
    fn ended(mut self) -> Result<Output> {
        let (mut out, mut err) = (String::new(), String::new());
        let mut stderr = self.0.stderr.take().ok_or("piped")?;
        let errors = std::thread::spawn(move || stderr.read_to_string(&mut err).map(|_| err));
        self.0
            .stdout
            .take()
            .ok_or("piped")?
            .read_to_string(&mut out)?;
        let status = self.0.wait()?;
        let err = errors.join().expect("no panic")?;
        assert_eq!(status.signal(), None, "{err}");
        Ok(Output {
            code: status.code().ok_or("killed")?,
            out,
            err,
        })
    }

    /// Sends a signal; how it ended, and how long that took.
    fn told(self, signal: &str) -> Result<(Output, Duration)> {
        let began = Instant::now();
        self.signal(signal)?;
        let output = self.ended()?;
        Ok((output, began.elapsed()))
    }

    fn signal(&self, signal: &str) -> Result {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status()?.success());
        Ok(())
    }

    /// Waits for a line on standard error.
    fn says(&mut self, what: &str) -> Result {
        let stderr = self.0.stderr.as_mut().ok_or("piped")?;
        // Byte by byte: what is behind the line is for `ended`.
        let mut lines = BufReader::with_capacity(1, stderr).lines();
        let found = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains(what)));
        found.ok_or_else(|| format!("it ended without saying {what}"))??;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A test that failed leaves nothing behind.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const COPY: [&str; 4] = [
    "--",
    "sh",
    "-c",
    "cp \"$TORRUST_MAINTENANCE_DATABASE\" \"$TORRUST_MAINTENANCE_STAGING/\"",
];

/// The arguments of one run with a command.
fn once<'a>(command: &[&'a str]) -> Vec<&'a str> {
    [&["--once", "--directory", "copies"], command].concat()
}

#[test]
fn one_run_with_our_engine() -> Result {
    let home = Home::new()?;
    let peer = Peer::start(Played::new(&home)?)?;
    let output = home.sidecar(&peer, &["--once", "--json", "--name", "night shift"])?;
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(
        output.json()?,
        json!({
            "run": RUN, "held_throughout": true, "backup": "20261122T030000Z", "promoted": null,
            "warnings": [],
        })
    );
    assert_eq!(home.published()?, ["20261122T030000Z"]);
    assert_eq!(peer.bodies("/claim")[0]["holder"], "night shift");
    let events: Vec<Value> = output
        .err
        .lines()
        .map(serde_json::from_str)
        .collect::<std::result::Result<_, _>>()?;
    let events: Vec<&str> = events
        .iter()
        .filter_map(|line| line["event"].as_str())
        .collect();
    assert_eq!(
        events,
        ["waiting", "claimed", "copied", "done"],
        "{}",
        output.err
    );
    let verified = home.run(&["verify"])?;
    assert_eq!(verified.code, 0, "{verified:?}");
    let manifest = fs::read_to_string(home.path("backups/20261122T030000Z/manifest.json"))?;
    assert!(
        manifest.contains("\"pinned\": \"2026-11-22T03:00:00.500Z\""),
        "{manifest}"
    );
    assert!(manifest.contains("sidecar night shift"), "{manifest}");
    Ok(())
}

#[test]
fn one_run_with_a_command() -> Result {
    let home = Home::with_copies()?;
    let peer = Peer::start(Played {
        token: Some(TOKEN),
        ..Played::new(&home)?
    })?;
    let script = "env | sort > $TORRUST_MAINTENANCE_STAGING/env; echo hello; echo there >&2";
    let output = home.sidecar(&peer, &once(&["--", "sh", "-c", script]))?;
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.out.starts_with("hello\n"), "{output:?}");
    assert!(output.err.contains("\nthere\n"), "{output:?}");
    assert!(!output.err.contains(TOKEN), "{output:?}");
    assert_eq!(home.copies()?, [RUN]);
    let environment = fs::read_to_string(home.path("copies").join(RUN).join("env"))?;
    let told = |name: &str| {
        let name = format!("TORRUST_MAINTENANCE_{name}=");
        environment
            .lines()
            .find_map(|line| line.strip_prefix(&name).map(str::to_owned))
    };
    assert_eq!(told("RUN").as_deref(), Some(RUN));
    assert_eq!(
        told("DATABASE"),
        home.path("tracker.db").to_str().map(str::to_owned)
    );
    assert_eq!(told("DEADLINE").as_deref(), Some("2026-11-22T03:05:00Z"));
    assert_eq!(told("COPY").as_deref(), Some("pinned_file"));
    let staging = format!("copies/.{RUN}.staging");
    assert_eq!(told("STAGING").as_deref(), Some(staging.as_str()));
    assert!(!environment.contains("TOKEN"), "{environment}");

    // For programs standard output is the answer alone; without a directory nothing is staged.
    let peer = Peer::start(Played::new(&home)?)?;
    let script = "echo hello; test -z \"${TORRUST_MAINTENANCE_STAGING+set}\"";
    let output = home.sidecar(&peer, &["--once", "--json", "--", "sh", "-c", script])?;
    assert_eq!(
        (output.code, &output.json()?["held_throughout"]),
        (0, &json!(true)),
        "{output:?}"
    );
    assert!(output.err.contains("hello\n"), "{output:?}");
    Ok(())
}

#[test]
fn what_is_lost_on_the_way_is_asked_again_and_done_once() -> Result {
    for fault in [
        Fault::Lost,
        Fault::Dropped,
        Fault::Garbage,
        Fault::Answer(503, json!({ "error": "no_reply", "message": "later" })),
    ] {
        let home = Home::with_copies()?;
        let mut played = Played {
            ttl: 3.0,
            ..Played::new(&home)?
        };
        for path in ["/ready", "/claim", "/renew", "/renew", "/finish", "/finish"] {
            played.faults.push_back((path, fault.clone()));
        }
        let peer = Peer::start(played)?;
        // Until it was renewed at last.
        let script = "while ! test -e renewed; do sleep 0.05; done; echo > $TORRUST_MAINTENANCE_STAGING/copy";
        let running = home.spawn_sidecar(&peer, &once(&["--", "sh", "-c", script]))?;
        peer.until("three renewals", |played| {
            played
                .asked
                .iter()
                .filter(|asked| asked.line.ends_with("/renew"))
                .count()
                >= 3
        });
        fs::write(home.path("renewed"), "")?;
        let output = running.ended()?;
        assert_eq!(output.code, 0, "{fault:?}: {output:?}");
        assert_eq!(home.copies()?, [RUN]);
        let (claims, finishes) = (peer.bodies("/claim"), peer.bodies("/finish"));
        assert_eq!((claims.len(), finishes.len()), (2, 3), "{fault:?}");
        assert!(
            claims
                .iter()
                .all(|claim| claim["lease"] == finishes[0]["lease"])
        );
        let nonce = claims[0]["lease"].as_str().ok_or("a lease")?;
        assert!((16..=64).contains(&nonce.len()), "{nonce}");
        assert!(
            output.err.contains("the tracker answers again"),
            "{output:?}"
        );
    }
    Ok(())
}

#[test]
fn only_a_good_verdict_promotes() -> Result {
    let verdict = |held| json!({ "run": RUN, "held_throughout": held, "why": "a checkpoint" });
    for (answer, error) in [
        (Fault::Answer(200, verdict(false)), "not_held"),
        (
            Fault::Answer(410, json!({ "error": "stale_run", "message": "restarted" })),
            "lost",
        ),
        (
            Fault::Answer(
                409,
                json!({ "error": "not_holder", "message": "not yours" }),
            ),
            "lost",
        ),
        (
            Fault::Answer(400, json!({ "error": "bad_body", "message": "what?" })),
            "refused",
        ),
    ] {
        for engine in [true, false] {
            let home = Home::with_copies()?;
            let mut played = Played::new(&home)?;
            played.faults.push_back(("/finish", answer.clone()));
            let peer = Peer::start(played)?;
            let arguments = if engine { vec!["--once"] } else { once(&COPY) };
            let output = home.sidecar(&peer, &[&["--json"], &arguments[..]].concat())?;
            assert_eq!(output.code, 1, "{output:?}");
            assert_eq!(output.out, "", "{output:?}");
            let last = output.err.split_once("\n{\n").ok_or("an error object")?.1;
            let told: Value = serde_json::from_str(&format!("{{{last}"))?;
            assert_eq!(told["error"], error, "{output:?}");
            let made = if engine {
                home.published()?
            } else {
                home.copies()?
            };
            assert_eq!(made, [""; 0], "{error}");
        }
    }
    Ok(())
}

#[test]
fn a_command_that_fails_is_told_and_leaves_nothing() -> Result {
    for (command, reason) in [
        (
            &[
                "--",
                "sh",
                "-c",
                "echo > $TORRUST_MAINTENANCE_STAGING/x; exit 3",
            ][..],
            "exited with 3",
        ),
        (&["--", "sh", "-c", "kill -9 $$"], "killed by signal 9"),
        (&["--", "no-such-program"], "could not be started"),
        (
            &["--", "true"],
            "left nothing in $TORRUST_MAINTENANCE_STAGING",
        ),
    ] {
        let home = Home::with_copies()?;
        let peer = Peer::start(Played::new(&home)?)?;
        let output = home.sidecar(&peer, &once(command))?;
        assert_eq!(output.code, 1, "{output:?}");
        assert!(output.err.contains(reason), "{output:?}");
        let finished = &peer.bodies("/finish")[0];
        assert_eq!(finished["result"], "failed");
        assert!(
            finished["reason"]
                .as_str()
                .is_some_and(|told| told.contains(reason)),
            "{finished}"
        );
        assert_eq!(home.copies()?, [""; 0]);
    }
    Ok(())
}

#[test]
fn what_a_command_leaves_running_is_ended_and_its_copy_void() -> Result {
    for (exit, reason) in [(0, "left processes running"), (3, "exited with 3")] {
        let home = Home::with_copies()?;
        let peer = Peer::start(Played::new(&home)?)?;
        let script = format!(
            "echo $$ >> pids; echo > $TORRUST_MAINTENANCE_STAGING/part; \
             (sh -c 'echo $$ >> pids; touch begun; while :; do sleep 0.05; done'; \
             echo x >> \"$TORRUST_MAINTENANCE_STAGING/f\") & \
             while ! test -e begun; do sleep 0.01; done; exit {exit}"
        );
        let output = home.sidecar(&peer, &once(&["--", "sh", "-c", &script]))?;
        assert_eq!(output.code, 1, "{output:?}");
        assert!(output.err.contains(reason), "{output:?}");
        assert_eq!(peer.bodies("/finish")[0]["result"], "failed");
        all_dead(&home)?;
        assert_eq!(home.copies()?, [""; 0]);
    }
    // What ends in its own time is waited for.
    let home = Home::with_copies()?;
    let peer = Peer::start(Played::new(&home)?)?;
    let script = "(sleep 0.1; echo x > $TORRUST_MAINTENANCE_STAGING/late) & exit 0";
    let output = home.sidecar(&peer, &once(&["--", "sh", "-c", script]))?;
    assert_eq!(output.code, 0, "{output:?}");
    assert!(home.path("copies").join(RUN).join("late").exists());
    Ok(())
}

#[test]
fn what_a_command_has_started_has_time_to_end_by_itself() -> Result {
    let home = Home::with_copies()?;
    let peer = Peer::start(Played {
        deadline: 1.0,
        ..Played::new(&home)?
    })?;
    // The first to go is the one that was started; the other tidies up.
    let script = "sh -c 'trap \"sleep 0.3; echo tidied >> tidy; exit\" TERM; touch begun; \
                  while :; do sleep 0.05; done' & \
                  while ! test -e begun; do sleep 0.01; done; exec sleep 60";
    let output = home.sidecar(&peer, &once(&["--", "sh", "-c", script]))?;
    assert_eq!(output.code, 5, "{output:?}");
    assert_eq!(fs::read_to_string(home.path("tidy"))?, "tidied\n");
    Ok(())
}

/// Ends with nothing but SIGKILL, and neither does what it started.
const DEAF: &str = "trap '' TERM; echo $$ >> pids; (trap '' TERM; sh -c 'echo $$ >> pids; while :; do sleep 0.05; done') & \
                    echo > $TORRUST_MAINTENANCE_STAGING/part; while :; do sleep 0.05; done";

fn all_dead(home: &Home) -> Result {
    let pids = fs::read_to_string(home.path("pids"))?;
    assert!(pids.lines().count() >= 2, "{pids}");
    for pid in pids.lines() {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{state}");
    }
    Ok(())
}

#[test]
fn at_the_deadline_the_command_and_all_it_started_are_killed() -> Result {
    let home = Home::with_copies()?;
    let peer = Peer::start(Played {
        deadline: 1.0,
        ..Played::new(&home)?
    })?;
    let output = home.sidecar(&peer, &once(&["--", "sh", "-c", DEAF]))?;
    assert_eq!(output.code, 5, "{output:?}");
    all_dead(&home)?;
    assert_eq!(home.copies()?, [""; 0]);
    assert_eq!(peer.bodies("/finish")[0]["result"], "failed");
    Ok(())
}

#[test]
fn a_lost_lease_ends_the_command() -> Result {
    let home = Home::with_copies()?;
    let mut played = Played {
        ttl: 1.5,
        ..Played::new(&home)?
    };
    let gone = json!({ "error": "stale_run", "message": "this run is not the current one" });
    played
        .faults
        .push_back(("/renew", Fault::Answer(410, gone.clone())));
    played
        .faults
        .push_back(("/finish", Fault::Answer(410, gone)));
    let peer = Peer::start(played)?;
    let output = home.sidecar(&peer, &once(&["--", "sh", "-c", DEAF]))?;
    assert_eq!(output.code, 1, "{output:?}");
    assert!(
        output.err.contains("this run is not the current one"),
        "{output:?}"
    );
    all_dead(&home)?;
    assert_eq!(home.copies()?, [""; 0]);

    // The tracker cannot be reached any more, though the connection may be taken.
    let home = Home::with_copies()?;
    let mut played = Played {
        ttl: 1.5,
        ..Played::new(&home)?
    };
    played
        .faults
        .extend(std::iter::repeat_n(("/renew", Fault::Dropped), 100));
    played
        .faults
        .extend(std::iter::repeat_n(("/finish", Fault::Dropped), 100));
    let peer = Peer::start(played)?;
    let output = home.sidecar(&peer, &once(&["--", "sh", "-c", DEAF]))?;
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.err.contains("the lease ran out"), "{output:?}");
    all_dead(&home)?;
    assert_eq!(home.copies()?, [""; 0]);
    Ok(())
}

#[test]
fn a_signal_ends_it_in_time_and_lets_go() -> Result {
    for signal in ["-TERM", "-INT"] {
        let home = Home::with_copies()?;
        let peer = Peer::start(Played::new(&home)?)?;
        let running =
            home.spawn_sidecar(&peer, &["--directory", "copies", "--", "sh", "-c", DEAF])?;
        let began = Instant::now();
        while fs::read_to_string(home.path("pids"))
            .unwrap_or_default()
            .lines()
            .count()
            < 2
        {
            assert!(began.elapsed() < PATIENCE, "the command was not started");
            std::thread::yield_now();
        }
        let (output, took) = running.told(signal)?;
        assert_eq!(output.code, 1, "{output:?}");
        assert!(took < Duration::from_secs(5), "{took:?}");
        let finished = &peer.bodies("/finish")[0];
        assert!(
            finished["reason"]
                .as_str()
                .is_some_and(|told| told.contains("asked to stop")),
            "{finished}"
        );
        all_dead(&home)?;
        assert_eq!(home.copies()?, [""; 0]);

        // Nothing was under way: to end is what it was told.
        let peer = Peer::start(Played {
            finished: true,
            ..Played::new(&home)?
        })?;
        let mut running = home.spawn_sidecar(&peer, &[])?;
        running.says("waiting for every run")?;
        let (output, took) = running.told(signal)?;
        assert_eq!(output.code, 0, "{output:?}");
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
    Ok(())
}

#[test]
fn another_file_than_the_one_held_still_is_not_claimed() -> Result {
    let home = Home::with_copies()?;
    fs::copy(home.path("tracker.db"), home.path("yesterday.db"))?;
    for arguments in [once(&COPY), vec!["--once"]] {
        let peer = Peer::start(Played::new(&home)?)?;
        let output = home.sidecar(
            &peer,
            &[&["--database", "yesterday.db"], &arguments[..]].concat(),
        )?;
        assert_eq!(output.code, 2, "{output:?}");
        assert!(
            output.err.contains("yesterday.db") && output.err.contains("inode"),
            "{output:?}"
        );
        assert_eq!(peer.asked(), ["ready", "ready"], "it is left to others");
        assert_eq!(home.copies()?, [""; 0]);
    }
    // One that goes on for ever says so once, and takes a run whose file is its own.
    let peer = Peer::start(Played::new(&home)?)?;
    let mut running = home.spawn_sidecar(
        &peer,
        &[
            &["--database", "yesterday.db", "--directory", "copies"],
            &COPY[..],
        ]
        .concat(),
    )?;
    running.says("not taken: ")?;
    let found = fs::metadata(home.path("yesterday.db"))?;
    {
        let mut played = peer.played();
        played.ready["run"] = json!("20261123T030000Z-efgh");
        played.ready["file"]["inode"] = json!(found.ino());
        played.ready["file"]["modified"] = json!(PinnedFile::modified_of(&found).to_string());
    }
    running.says("20261123T030000Z-efgh was published")?;
    let (output, _) = running.told("-TERM")?;
    assert!(!output.err.contains("not taken: "), "{output:?}");
    assert_eq!(peer.bodies("/claim").len(), 1);
    fs::remove_dir_all(home.path("copies").join("20261123T030000Z-efgh"))?;

    // Under another name it is the same one.
    fs::hard_link(home.path("tracker.db"), home.path("elsewhere.db"))?;
    let peer = Peer::start(Played::new(&home)?)?;
    let output = home.sidecar(
        &peer,
        &[&["--database", "elsewhere.db"], &once(&COPY)[..]].concat(),
    )?;
    assert_eq!(output.code, 0, "{output:?}");
    Ok(())
}

#[test]
fn a_file_that_is_another_after_the_claim_is_not_copied() -> Result {
    for arguments in [once(&COPY), vec!["--once"]] {
        let home = Home::with_copies()?;
        fs::copy(home.path("tracker.db"), home.path("yesterday.db"))?;
        let peer = Peer::start(Played {
            swapped: Some(["yesterday.db", "tracker.db"].map(|name| home.path(name))),
            ..Played::new(&home)?
        })?;
        let output = home.sidecar(&peer, &arguments)?;
        assert_eq!(output.code, 2, "{output:?}");
        let finished = &peer.bodies("/finish")[0];
        let reason = finished["reason"].as_str().ok_or("a reason")?;
        assert!(
            reason.contains("tracker.db") && reason.contains("inode"),
            "{reason}"
        );
        assert_eq!(home.copies()?, [""; 0]);
    }
    Ok(())
}

#[test]
fn exit_codes_of_what_only_an_operator_can_mend() -> Result {
    let home = Home::with_copies()?;
    let refusal = |error: &str| json!({ "error": error, "message": format!("{error}: told so") });
    let lease = json!({ "holder": "the other", "expires_seconds": 30.0 });
    for (fault, code, says) in [
        (("/claim", Fault::Answer(409, refusal("taken"))), 4, "taken"),
        (
            ("/claim", Fault::Answer(409, refusal("taken_by_tracker"))),
            2,
            "taken_by_tracker",
        ),
        (
            ("/claim", Fault::Answer(401, refusal("unauthorized"))),
            2,
            "unauthorized",
        ),
        (
            ("/ready", Fault::Answer(421, refusal("wrong_host"))),
            1,
            "wrong_host",
        ),
    ] {
        let mut played = Played::new(&home)?;
        played.faults.push_back(fault);
        let output = home.sidecar(&Peer::start(played)?, &once(&COPY))?;
        assert_eq!(output.code, code, "{output:?}");
        assert!(output.err.contains(says), "{output:?}");
    }
    for (key, value, code) in [("lease", lease, 4), ("taken_by", json!("tracker"), 2)] {
        let mut played = Played::new(&home)?;
        played.ready[key] = value;
        let peer = Peer::start(played)?;
        let output = home.sidecar(&peer, &once(&COPY))?;
        assert_eq!(output.code, code, "{output:?}");
        assert_eq!(peer.asked(), ["ready"], "nothing is claimed");
    }
    // Nobody there.
    let output = home.run(&[&["sidecar"], &once(&COPY)[..]].concat())?;
    assert_eq!(output.code, 3, "{output:?}");
    for wrong in [
        &["--touch-file", "x", "--start"][..],
        &["--touch-file", "x", "--endpoint", "127.0.0.1:1"],
        &["--endpoint", "https://tracker:1414"],
        &["--name", ""],
        &["--name", "a\u{202e}b"],
        &["--token-file", "none", "--once"],
        &["--directory", "none/none", "--once"],
    ] {
        let output = home.run(&[&["sidecar"], wrong].concat())?;
        assert_eq!(output.code, 2, "{wrong:?}: {output:?}");
    }
    assert_eq!(home.copies()?, [""; 0]);
    Ok(())
}

#[test]
fn a_wrong_token_is_known_before_there_is_a_run() -> Result {
    let home = Home::with_copies()?;
    let played = || -> Result<_> {
        Ok(Played {
            token: Some("the right one, which is not ours"),
            finished: true,
            ..Played::new(&home)?
        })
    };
    // One that goes on for ever says so; the tracker's may be mended yet.
    let peer = Peer::start(played()?)?;
    let mut running = home.spawn_sidecar(&peer, &["--directory", "copies"])?;
    running.says("warning: unauthorized: told so")?;
    peer.until("a look", |played| !played.asked.is_empty());
    assert_eq!(running.told("-TERM")?.0.code, 0);
    // One that came for a single run does not wait a day to say it.
    let peer = Peer::start(played()?)?;
    let output = home.sidecar(&peer, &once(&COPY))?;
    assert_eq!(output.code, 2, "{output:?}");
    assert!(output.err.contains("unauthorized"), "{output:?}");
    assert_eq!(peer.asked(), [""; 0]);
    Ok(())
}

#[test]
fn without_a_tracker_force_takes_a_pin_of_its_own() -> Result {
    for journal in [JournalMode::Wal, JournalMode::Delete] {
        let home = Home::with_copies()?;
        sqlite::set_journal_mode(&home.path("tracker.db"), journal)?;
        let output = home.run(&["sidecar", "--force", "--json"])?;
        assert_eq!(output.code, 0, "{output:?}");
        assert_eq!(output.json()?["held_throughout"], true);
        assert_eq!(home.published()?.len(), 1);
        assert_eq!(home.run(&["verify"])?.code, 0);
        let running = home.spawn(&[&["sidecar", "--force"], &once(&COPY)[..]].concat())?;
        let output = running.ended()?;
        assert_eq!(output.code, 0, "{output:?}");
        let runs = home.copies()?;
        assert_eq!(runs.len(), 1, "{runs:?}");
        let copy = home.path("copies").join(&runs[0]).join("tracker.db");
        assert!(fs::metadata(copy)?.len() > 0);
    }
    // A tracker that is running, but does not answer there, could not write meanwhile.
    let home = Home::new()?;
    sqlite::set_journal_mode(&home.path("tracker.db"), JournalMode::Delete)?;
    let in_use =
        torrust_tracker_maintenance::restore::hold(&home.path("tracker.db"), &Disk::default())?;
    assert!(in_use.is_some());
    let output = home.run(&["sidecar", "--force"])?;
    assert_eq!(output.code, 4, "{output:?}");
    drop(in_use);
    // Where one answers, its word is what counts.
    let peer = Peer::start(Played {
        held: false,
        ..Played::new(&home)?
    })?;
    let output = home.sidecar(&peer, &["--force"])?;
    assert_eq!(output.code, 1, "{output:?}");
    assert_eq!(home.published()?, [""; 0]);
    let output = home.run(&["sidecar", "--force", "--database", "none.db"])?;
    assert_eq!(output.code, 2, "{output:?}");
    Ok(())
}

#[test]
fn without_once_it_goes_on_for_ever_and_finds_a_restarted_tracker_again() -> Result {
    let home = Home::with_copies()?;
    let mut played = Played::new(&home)?;
    played.held = false;
    // Where no other test binds: the port must be free again in a moment.
    let listener = TcpListener::bind("127.0.0.77:0")?;
    let peer = Peer::at(listener, Arc::new(Mutex::new(played)))?;
    let mut running =
        home.spawn_sidecar(&peer, &[&["--directory", "copies"], &COPY[..]].concat())?;
    running.says("no backup (not_held)")?;
    let state = Arc::clone(&peer.state);
    let address = peer.address;
    drop(peer);
    running.says("no tracker answers")?;
    {
        let mut played = state.lock().expect("no panic");
        played.ready["run"] = json!("20261123T030000Z-efgh");
        (played.held, played.finished) = (true, false);
    }
    let peer = Peer::at(TcpListener::bind(address)?, state)?;
    running.says("20261123T030000Z-efgh was published")?;
    assert_eq!(home.copies()?, ["20261123T030000Z-efgh"]);
    let (output, _) = running.told("-TERM")?;
    assert_eq!(output.code, 0, "{output:?}");
    let claims = peer.bodies("/claim");
    assert_eq!(claims.len(), 2, "each run once");
    assert_ne!(claims[0]["lease"], claims[1]["lease"]);
    Ok(())
}

#[test]
fn a_run_can_be_started_and_taken() -> Result {
    let home = Home::with_copies()?;
    let mut played = Played::new(&home)?;
    // Begun, but the answer is lost; then one is in progress.
    played.faults.push_back(("/runs", Fault::Lost));
    played.faults.push_back((
        "/runs",
        Fault::Answer(409, json!({ "error": "busy", "message": "one is" })),
    ));
    let peer = Peer::start(played)?;
    let output = home.sidecar(&peer, &[&["--start"], &once(&COPY)[..]].concat())?;
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(peer.asked(), ["runs", "runs", "ready", "claim", "finish"]);
    assert_eq!(home.copies()?, [RUN]);
    Ok(())
}

#[test]
fn a_socket_is_as_good_as_an_address() -> Result {
    let home = Home::with_copies()?;
    let listener = UnixListener::bind(home.path("endpoint.sock"))?;
    let state = Arc::new(Mutex::new(Played::new(&home)?));
    let played = Arc::clone(&state);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(std::result::Result::ok) {
            let _ = serve(&stream, &played);
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
    let output = home.spawn(
        &[
            &["sidecar", "--endpoint", "unix:endpoint.sock"],
            &once(&COPY)[..],
        ]
        .concat(),
    )?;
    let output = output.ended()?;
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(home.copies()?, [RUN]);
    let asked = state.lock().expect("no panic").asked.clone();
    assert!(
        asked
            .iter()
            .all(|asked| asked.header.contains("host: localhost\r\n")),
        "{asked:?}"
    );
    Ok(())
}

#[test]
fn a_dry_run_claims_nothing_and_writes_nothing() -> Result {
    let home = Home::with_copies()?;
    let before = names_in(home.directory.path())?;
    let status = json!({
        "version": "1", "service": "tracker 3.0.0", "alive": true, "state": "offered", "ready": true,
        "gate": {
            "open": true, "closed_for_ms": null, "held": { "udp": 0, "http": 0 },
            "released": { "udp": 0, "http": 0 }, "merged": { "udp": 0, "http": 0 },
            "turned_away": { "udp": 0, "http": 0 }, "forced_open": 0,
        },
        "next": null, "run": null, "runs": [],
        "database": { "path": home.path("tracker.db"), "journal_mode": "wal" },
        "taken_by": "sidecar",
    });
    let other = home.path("other.db");
    fs::copy(home.path("tracker.db"), &other)?;
    let lease = json!({ "holder": "the other", "expires_seconds": 30.0 });
    let cases = [
        (&[][..], None, 0, "would take the next run"),
        (&["--database", "other.db"], None, 2, "inode"),
        (&[], Some(("lease", lease)), 4, "\"the other\""),
        (&["--directory", "none"], None, 2, "not a directory"),
        (&["--", "sh"], None, 0, "/sh"),
        (
            &["--", "./tracker.db"],
            None,
            1,
            "no program `./tracker.db`",
        ),
        (&["--", "none-such"], None, 1, "no program `none-such`"),
    ];
    for (arguments, change, code, says) in cases {
        let mut played = Played::new(&home)?;
        if let Some((key, value)) = change {
            played.ready[key] = value;
        }
        played
            .faults
            .push_back(("/status", Fault::Answer(200, status.clone())));
        let peer = Peer::start(played)?;
        let default: &[&str] = if arguments.contains(&"--directory") {
            &[]
        } else {
            &["--directory", "copies"]
        };
        let output = home.sidecar(&peer, &[&["--dry-run"], default, arguments].concat())?;
        assert_eq!(output.code, code, "{output:?}");
        assert!(output.out.contains(says), "{output:?}");
        assert_eq!(peer.asked(), ["status", "ready"]);
    }
    // Nothing is ready, and by day is when this is asked.
    let mut by_itself = status.clone();
    by_itself["taken_by"] = json!("tracker");
    for (status, token, says) in [
        (by_itself, None, "it will never offer a run"),
        (status, Some("another"), "would fail: unauthorized"),
    ] {
        let mut played = Played {
            finished: true,
            token,
            ..Played::new(&home)?
        };
        played
            .faults
            .push_back(("/status", Fault::Answer(200, status)));
        let peer = Peer::start(played)?;
        let output = home.sidecar(&peer, &["--dry-run", "--directory", "copies"])?;
        assert_eq!(output.code, 2, "{output:?}");
        assert!(output.out.contains(says), "{output:?}");
        assert_eq!(peer.asked(), ["status", "ready"]);
    }
    let output = home.run(&["sidecar", "--dry-run", "--directory", "copies"])?;
    assert_eq!(output.code, 3, "{output:?}");
    for (file, code) in [("ready.json", 0), ("none/ready.json", 1)] {
        let database = ["--database", "tracker.db"];
        let files = [
            "sidecar",
            "--dry-run",
            "--directory",
            "copies",
            "--touch-file",
            file,
        ];
        let output = home.run(&[&files[..], &database].concat())?;
        assert_eq!(output.code, code, "{output:?}");
    }
    fs::remove_file(other)?;
    assert_eq!(
        (names_in(home.directory.path())?, home.copies()?),
        (before, Vec::new())
    );
    Ok(())
}

/// A tracker that is seen by its files alone.
struct Files<'a>(&'a Home);

impl Files<'_> {
    fn show(&self, run: &str, seconds: i64) -> Result {
        let found = fs::metadata(self.0.path("tracker.db"))?;
        let until = Utc::now() + chrono::TimeDelta::seconds(seconds);
        let ready = json!({
            "run": run, "database": self.0.path("tracker.db"), "driver": "sqlite3",
            "copy": "pinned_file", "until": until, "began": until, "pinned": until,
            "journal_mode": "wal", "pause_ms": 1.5,
            "file": {
                "device": 0, "inode": found.ino(), "page_size": 4096,
                "page_count": found.len() / 4096, "bytes": found.len(),
                "modified": PinnedFile::modified_of(&found).to_string(),
            },
        });
        self.put("ready.json", &ready)
    }

    /// Says how the run ended, as soon as the sidecar says that it has its copy.
    fn judge(&self, run: &str, of: &str, held: bool) -> Result {
        let began = Instant::now();
        let done = self.0.path("ready.json.done");
        while !done.exists() {
            assert!(began.elapsed() < PATIENCE, "no .done came");
            std::thread::yield_now();
        }
        let said: Value = serde_json::from_slice(&fs::read(&done)?)?;
        assert_eq!(said["run"], run);
        fs::remove_file(&done)?;
        fs::remove_file(self.0.path("ready.json"))?;
        self.put(
            "ready.json.result",
            &json!({
                "run": of, "held_throughout": held, "done": true, "why": null, "ended": Utc::now(),
            }),
        )
    }

    fn put(&self, name: &str, value: &Value) -> Result {
        fs::write(self.0.path("new"), value.to_string())?;
        Ok(fs::rename(self.0.path("new"), self.0.path(name))?)
    }
}

#[test]
fn files_are_enough_but_only_a_result_of_the_run_promotes() -> Result {
    let home = Home::with_copies()?;
    let files = Files(&home);
    let arguments = || [&["sidecar", "--touch-file", "ready.json"], &once(&COPY)[..]].concat();
    files.show(RUN, 60)?;
    let running = home.spawn(&arguments())?;
    files.judge(RUN, RUN, true)?;
    let output = running.ended()?;
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(home.copies()?, [RUN]);

    // The result of yesterday is still there, and not taken for today's.
    let next = "20261123T030000Z-efgh";
    files.show(next, 60)?;
    let running = home.spawn(&arguments())?;
    files.judge(next, next, false)?;
    let output = running.ended()?;
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.err.contains("not still throughout"), "{output:?}");

    // Its time is over, or it is gone: nothing is said to be done.
    for gone in [false, true] {
        files.show(next, if gone { 60 } else { 2 })?;
        let deaf = once(&["--", "sh", "-c", DEAF]);
        let mut running =
            home.spawn(&[&["sidecar", "--touch-file", "ready.json"], &deaf[..]].concat())?;
        running.says("claimed")?;
        if gone {
            fs::remove_file(home.path("ready.json"))?;
        }
        let output = running.ended()?;
        assert_eq!(output.code, if gone { 1 } else { 5 }, "{output:?}");
        assert!(!home.path("ready.json.done").exists());
    }
    assert_eq!(home.copies()?, [RUN]);
    Ok(())
}

#[test]
fn of_two_sidecars_at_the_files_the_second_has_nothing() -> Result {
    let home = Home::with_copies()?;
    let files = Files(&home);
    files.show(RUN, 60)?;
    let at_files = |command: &[&str]| {
        home.spawn(
            &[
                &["sidecar", "--touch-file", "ready.json"],
                &once(command)[..],
            ]
            .concat(),
        )
    };
    let script = "touch begun; while ! test -e first; do sleep 0.05; done; \
                  echo > $TORRUST_MAINTENANCE_STAGING/copy";
    fs::create_dir(home.path("others"))?;
    let mut second = home.spawn(&[
        "sidecar",
        "--touch-file",
        "ready.json",
        "--once",
        "--directory",
        "others",
        "--",
        "sh",
        "-c",
        script,
    ])?;
    second.says("claimed")?;
    let first = at_files(&COPY)?;
    files.judge(RUN, RUN, true)?;
    let output = first.ended()?;
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(home.copies()?, [RUN]);
    // The result is of its run, and good, but its copy was not complete before.
    fs::write(home.path("first"), "")?;
    let output = second.ended()?;
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.err.contains("finished it"), "{output:?}");
    assert_eq!(names_in(&home.path("others"))?, [""; 0]);
    assert!(!home.path("ready.json.done").exists());
    Ok(())
}

#[test]
fn the_configured_token_goes_to_the_configured_endpoint_alone() -> Result {
    let mut home = Home::with_copies()?;
    let peer = || {
        Peer::start(Played {
            token: Some(TOKEN),
            ..Played::new(&home)?
        })
    };
    let (configured, other) = (peer()?, peer()?);
    home.endpoint = configured.address;
    home.configure("")?;
    let text = fs::read_to_string(home.path("tracker.toml"))?;
    fs::write(home.path("token"), TOKEN)?;
    fs::write(
        home.path("tracker.toml"),
        format!("{text}token_file = \"token\"\n"),
    )?;
    let at = |peer: &Peer, more: &[&str]| {
        let endpoint = peer.address.to_string();
        let there = ["sidecar", "--endpoint", &endpoint];
        home.run(&[&there, more, &once(&COPY)[..]].concat())
    };
    let output = at(&other, &[])?;
    assert_eq!(output.code, 2, "{output:?}");
    let told = |peer: &Peer| {
        let played = peer.played();
        played
            .asked
            .iter()
            .any(|asked| asked.header.contains(TOKEN))
    };
    assert!(!told(&other), "{:?}", other.played());
    // Where the operator says so, and at the configured one, named or not.
    let output = at(&other, &["--token-file", "token"])?;
    assert_eq!(output.code, 0, "{output:?}");
    assert!(told(&other));
    fs::remove_dir_all(home.path("copies").join(RUN))?;
    let output = at(&configured, &[])?;
    assert_eq!(output.code, 0, "{output:?}");
    fs::remove_dir_all(home.path("copies").join(RUN))?;
    configured.played().finished = false;
    let output = home.run(&[&["sidecar"], &once(&COPY)[..]].concat())?;
    assert_eq!(output.code, 0, "{output:?}");
    Ok(())
}

#[test]
fn what_a_sidecar_that_was_killed_has_left_is_removed() -> Result {
    let home = Home::with_copies()?;
    let peer = Peer::start(Played::new(&home)?)?;
    let running = home.spawn_sidecar(&peer, &once(&["--", "sh", "-c", DEAF]))?;
    let began = Instant::now();
    let part = home.path("copies").join(format!(".{RUN}.staging/part"));
    while !part.exists() {
        assert!(began.elapsed() < PATIENCE, "the command was not started");
        std::thread::yield_now();
    }
    drop(running);
    // Its command is nobody's child now; the sidecar could not end it.
    let pids = fs::read_to_string(home.path("pids"))?;
    for pid in pids.lines() {
        let _ = Command::new("kill").args(["-KILL", pid]).status()?;
    }
    assert_eq!(home.copies()?, [format!(".{RUN}.staging")]);
    peer.played().ready["run"] = json!("20261123T030000Z-efgh");
    let output = home.sidecar(&peer, &once(&COPY))?;
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(home.copies()?, ["20261123T030000Z-efgh"]);
    Ok(())
}
