//! What is acknowledged lasts: whatever ends the process, and whatever ends the machine.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aquatic_udp_protocol::Response;
use chrono::Utc;
use end_to_end::announce::{Announce, Event, Torrent, accepted};
use end_to_end::http1::Connection;
use end_to_end::load::{Load, Plan};
use end_to_end::power::{self, Recording};
use end_to_end::tracker::{Addresses, Setup, TOKEN};
use end_to_end::udp::{UdpClient, transaction_of};
use end_to_end::{PATIENCE, database, soak_in_full, until};
use http::{Method, Request, header};
use http_body_util::Full;
use hyper::body::Bytes;
use rustix::process::Signal;

use crate::support::{MIB, alone, done};

#[tokio::test(flavor = "multi_thread")]
async fn sigkill_under_load_loses_no_acknowledged_completion() -> Result<()> {
    let _alone = alone().await;
    let plan = Plan {
        udp_per_second: 1_000,
        http_per_second: 100,
        sockets: 16,
        torrents: 300,
    };
    let mut acknowledged = 0;
    for round in 0..if soak_in_full() { 100 } else { 10 } {
        let journal = if round % 2 == 0 { "wal" } else { "delete" };
        let setup = Setup::new()?.set("maintenance", "journal_mode", &format!("\"{journal}\""));
        let mut tracker = setup.start().await?;
        let load = Load::start(plan, tracker.addresses.udp, tracker.addresses.http).await?;
        load.answered_more(50, PATIENCE).await?;
        // The load is the clock.
        let sent = load.counts().sent + fastrand::usize(..600);
        load.until(PATIENCE, |counts| counts.sent >= sent).await?;
        tracker.kill().await?;
        let account = load.stop(Duration::from_millis(100)).await?;

        let stored = database::completed(&setup.database())?;
        for (torrent, completed) in account.completions_answered_by(Utc::now()) {
            let stored = stored.get(&torrent).copied().unwrap_or(0);
            assert!(
                stored >= completed,
                "round {round}, {journal}, {torrent:?}: {stored} of {completed}"
            );
            acknowledged += completed;
        }
    }
    assert!(acknowledged > 0, "nothing that could have been lost");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_failure_loses_nothing_that_was_acknowledged() -> Result<()> {
    let _alone = alone().await;
    for journal in ["wal", "delete"] {
        let life = Life::live(journal, "durable").await?;
        assert_eq!(life.losses()?, Losses::default(), "{journal}");
    }
    Ok(())
}

/// The same without the promise, or the test above would prove nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_failure_takes_back_what_was_only_committed() -> Result<()> {
    let _alone = alone().await;
    let losses = Life::live("wal", "committed").await?.losses()?;
    let of_each = [losses.completions, losses.keys, losses.listed];
    assert!(of_each.iter().all(|lost| *lost > 0), "{losses:?}");
    Ok(())
}

/// On a rollback journal only the last commit can be taken back, until the next one has synced
/// the directory for its own journal. So of many failures few find something, and more are
/// tried until one has.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_failure_brings_back_a_journal_whose_removal_nobody_synced() -> Result<()> {
    let _alone = alone().await;
    let life = Life::live("delete", "committed").await?;
    for _ in 0..TRIED {
        if life.losses()? != Losses::default() {
            return Ok(());
        }
    }
    bail!("nothing was lost: the test of `durable` on a rollback journal proves nothing")
}

/// How often many failures are tried until one of them takes something back.
const TRIED: usize = 10;
/// Torrents that are completed once each, over UDP.
const TORRENTS: u32 = 250;
/// Announces over UDP in flight at once.
const AT_ONCE: usize = 50;
/// Connections to the HTTP tracker, each of which has one announce in flight, and the torrents
/// that are completed over each.
const CONNECTIONS: u32 = 3;
const TORRENTS_OF_EACH: u32 = 40;
/// Keys and torrents of the whitelist that are written by the REST API, in turn.
const WRITES: u32 = 60;

/// What an answer acknowledges.
#[derive(Debug, Clone)]
enum Promise {
    Completed(Torrent),
    Key(String),
    Listed(Torrent),
}

/// A tracker's life from its start to its end, with all that it wrote and said.
struct Life {
    setup: Setup,
    recording: Recording,
    /// Which transaction's answer over UDP acknowledges what.
    udp: HashMap<i32, Torrent>,
    /// Of each connection, in the order in which they got their first answers, what its answers
    /// acknowledge.
    http: Vec<Vec<Option<Promise>>>,
}

/// What was acknowledged and is not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Losses {
    completions: usize,
    keys: usize,
    listed: usize,
}

impl Life {
    /// Announces over UDP and HTTP, keys, the whitelist and a maintenance window, all at once.
    async fn live(journal: &str, acknowledge: &str) -> Result<Self> {
        let setup = Setup::new()?;
        // With tables, so that the first that is written is a counter.
        database::make(&setup.database(), MIB, journal)?;
        let content = fs::read(setup.database())?;
        let recorded = setup.home().join("recording");
        let setup = setup
            .set("maintenance", "journal_mode", &format!("\"{journal}\""))
            .set("maintenance", "acknowledge", &format!("\"{acknowledge}\""))
            .started_by(power::recorder(&recorded));
        let mut tracker = setup.start().await?;
        let callers = callers(&tracker.addresses).await?;
        let mut client = UdpClient::connect(tracker.addresses.udp).await?;
        let torrents: Vec<Torrent> = (0..TORRENTS).map(Torrent).collect();
        announce(&mut client, &torrents, Event::Started).await?;
        let endpoint = tracker.endpoint()?;
        let (udp, callers, _run) = tokio::try_join!(
            announce(&mut client, &torrents, Event::Completed),
            call_all(callers),
            done(endpoint),
        )?;
        let alive = power::recorder_of(tracker.pid()?)?;
        // Killed, as a last checkpoint would only make it easier.
        tracker.signal(Signal::KILL)?;
        // Who traces a process reaps it first; until then it has ended and cannot be waited for.
        until("the recorder to end", PATIENCE, async || {
            Ok((!alive.exists()).then_some(()))
        })
        .await?;
        tracker.exited(PATIENCE).await?;
        let database = setup.database().canonicalize()?;
        let recording = Recording::read(&recorded, &database, content)?;
        let did = recording.done();
        println!("{journal}, acknowledged when {acknowledge}: {did:?}");
        ensure!(did.pages > 0, "nothing was written to the database itself");
        ensure!((did.removals > 0) == (journal == "delete"), "{did:?}");
        Ok(Self {
            setup,
            recording,
            udp,
            http: callers.into_iter().map(|caller| caller.answered).collect(),
        })
    }

    /// What is lost of what was acknowledged, over many failures.
    fn losses(&self) -> Result<Losses> {
        let failures = if soak_in_full() { 500 } else { 60 };
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut losses = Losses::default();
        let mut acknowledged = 0;
        for _ in 0..failures {
            let instant = chance.usize(..=self.recording.instants());
            let directory = tempfile::tempdir_in(self.setup.home())?;
            let path = directory.path().join("sqlite3.db");
            self.recording.fail(instant, &mut chance, &path)?;
            database::check(&path).with_context(|| format!("a failure at {instant}"))?;
            let completed = database::completed(&path)?;
            let keys = column(&path, "keys", "key")?;
            let listed = column(&path, "whitelist", "info_hash")?;
            for promise in self.acknowledged_before(instant)? {
                acknowledged += 1;
                match promise {
                    Promise::Completed(torrent) => {
                        let lost = completed.get(&torrent) != Some(&1);
                        losses.completions += usize::from(lost);
                    }
                    Promise::Key(key) => losses.keys += usize::from(!keys.contains(&key)),
                    Promise::Listed(torrent) => {
                        losses.listed += usize::from(!listed.contains(&torrent.hex()));
                    }
                }
            }
        }
        println!("{failures} failures, {acknowledged} acknowledged, lost: {losses:?}");
        ensure!(acknowledged > 0, "nothing that could have been lost");
        let all = self.acknowledged_before(self.recording.instants())?;
        let count = |kind: fn(&Promise) -> bool| all.iter().filter(|one| kind(one)).count();
        let kinds = [
            count(|one| matches!(one, Promise::Completed(_))),
            count(|one| matches!(one, Promise::Key(_))),
            count(|one| matches!(one, Promise::Listed(_))),
        ];
        let (over_http, writes) = (CONNECTIONS * TORRENTS_OF_EACH, WRITES / 2);
        let expected = [TORRENTS + over_http, writes, writes];
        ensure!(
            kinds == expected.map(|count| count as usize),
            "not all of what was acknowledged was understood: {kinds:?} of {expected:?}"
        );
        Ok(losses)
    }

    /// What had been acknowledged, or was about to be, before an instant.
    fn acknowledged_before(&self, instant: usize) -> Result<Vec<Promise>> {
        let mut promises = Vec::new();
        // Sockets that have answered over HTTP, and how often.
        let mut sockets: Vec<(&str, usize)> = Vec::new();
        for sent in self.recording.sent_before(instant) {
            if let Ok(answer @ Response::AnnounceIpv4(_)) = Response::parse_bytes(&sent.bytes, true)
            {
                let torrent = self.udp.get(&transaction_of(&answer).0.get());
                promises.extend(torrent.copied().map(Promise::Completed));
            }
            if !sent.says_well() {
                continue;
            }
            let known = sockets.iter().position(|(name, _)| *name == sent.socket);
            let connection = known.unwrap_or_else(|| {
                sockets.push((sent.socket.as_str(), 0));
                sockets.len() - 1
            });
            // Those behind the callers' are of the maintenance endpoint.
            let Some(answers) = self.http.get(connection) else {
                continue;
            };
            let answer = answers.get(sockets[connection].1);
            sockets[connection].1 += 1;
            promises.extend(answer.context("an answer to nothing asked")?.clone());
        }
        Ok(promises)
    }
}

/// The values of one column of text.
fn column(database: &Path, table: &str, column: &str) -> Result<HashSet<String>> {
    let connection = database::open(database)?;
    let mut select = connection.prepare(&format!("SELECT {column} FROM {table}"))?;
    let values = select.query_map([], |row| row.get(0))?;
    Ok(values.collect::<Result<_, _>>()?)
}

/// A client with a connection of its own, which asks for one thing after the other.
struct Caller {
    connection: Connection,
    to_ask: Vec<(Request<Full<Bytes>>, Option<Promise>)>,
    /// What each answer so far acknowledges.
    answered: Vec<Option<Promise>>,
}

impl Caller {
    /// Asks for what is next, if there is something.
    async fn call(&mut self) -> Result<bool> {
        let Some((request, promise)) = self.to_ask.pop() else {
            return Ok(false);
        };
        let is_announce = request.method() == Method::GET;
        let answer = self.connection.send(request).await?;
        ensure!(answer.status.is_success(), "{answer:?}");
        if is_announce {
            accepted(&answer).map_err(anyhow::Error::msg)?;
        }
        self.answered.push(promise);
        Ok(true)
    }
}

/// Those who announce over HTTP and the one who writes by the REST API. Each has got its first
/// answer before the next one asks, which tells the connections apart in a recording.
async fn callers(to: &Addresses) -> Result<Vec<Caller>> {
    let mut callers = Vec::new();
    for number in 0..CONNECTIONS {
        let first = TORRENTS + number * TORRENTS_OF_EACH;
        let torrents = (first..first + TORRENTS_OF_EACH).map(Torrent);
        let mut to_ask = Vec::new();
        for torrent in torrents {
            // The last is asked for first.
            for event in [Event::Completed, Event::Started] {
                let announce = Announce {
                    torrent,
                    peer: 1,
                    event,
                };
                let promise = (event == Event::Completed).then_some(Promise::Completed(torrent));
                let request = Request::get(announce.http()).body(Full::default())?;
                to_ask.push((request, promise));
            }
        }
        callers.push(Caller {
            connection: Connection::open(to.http).await?,
            to_ask,
            answered: Vec::new(),
        });
    }
    let mut to_ask = Vec::new();
    for number in 0..WRITES / 2 {
        let key = format!("{number:032}");
        let form = format!(r#"{{"key": "{key}", "seconds_valid": null}}"#);
        let request = Request::post(format!("/api/v1/keys?token={TOKEN}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(form))?;
        to_ask.push((request, Some(Promise::Key(key))));
        let torrent = Torrent(number);
        let path = format!("/api/v1/whitelist/{}?token={TOKEN}", torrent.hex());
        let request = Request::post(path).body(Full::default())?;
        to_ask.push((request, Some(Promise::Listed(torrent))));
    }
    callers.push(Caller {
        connection: Connection::open(to.api).await?,
        to_ask,
        answered: Vec::new(),
    });
    for caller in &mut callers {
        ensure!(caller.call().await?, "everybody has something to ask");
    }
    Ok(callers)
}

/// Everybody asks at the same time, until all is answered.
async fn call_all(callers: Vec<Caller>) -> Result<Vec<Caller>> {
    let ask_all = |mut caller: Caller| async move {
        while caller.call().await? {}
        anyhow::Ok(caller)
    };
    let calls: Vec<_> = callers
        .into_iter()
        .map(|caller| tokio::spawn(ask_all(caller)))
        .collect();
    let mut answered = Vec::new();
    for call in calls {
        answered.push(call.await??);
    }
    Ok(answered)
}

/// Announces all torrents and waits for all answers; which transaction was whose.
async fn announce(
    client: &mut UdpClient,
    torrents: &[Torrent],
    event: Event,
) -> Result<HashMap<i32, Torrent>> {
    let mut transactions = HashMap::new();
    for torrents in torrents.chunks(AT_ONCE) {
        let mut waiting = HashMap::new();
        for &torrent in torrents {
            let announce = Announce {
                torrent,
                peer: 1,
                event,
            };
            waiting.insert(client.post(announce).await?.0.get(), torrent);
        }
        let posted = waiting.clone();
        while !waiting.is_empty() {
            let answer = client.reply().await?;
            ensure!(matches!(answer, Response::AnnounceIpv4(_)), "{answer:?}");
            waiting.remove(&transaction_of(&answer).0.get());
        }
        transactions.extend(posted);
    }
    Ok(transactions)
}
