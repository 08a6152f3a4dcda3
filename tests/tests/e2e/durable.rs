//! What is acknowledged lasts: whatever ends the process, and whatever ends the machine.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquatic_udp_protocol::Response;
use chrono::Utc;
use end_to_end::announce::{Announce, Event, Torrent};
use end_to_end::load::{Load, Plan};
use end_to_end::power::{self, Recording};
use end_to_end::tracker::Setup;
use end_to_end::udp::{UdpClient, transaction_of};
use end_to_end::{PATIENCE, database, soak_in_full, until};

use crate::support::{MIB, alone};

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
async fn a_power_failure_loses_no_acknowledged_completion() -> Result<()> {
    let _alone = alone().await;
    let life = Life::live("durable").await?;
    assert_eq!(life.losses()?, 0);
    Ok(())
}

/// The same without the promise, or the test above would prove nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_failure_takes_back_what_was_only_committed() -> Result<()> {
    let _alone = alone().await;
    let life = Life::live("committed").await?;
    assert!(life.losses()? > 0);
    Ok(())
}

/// Torrents that are completed once each.
const TORRENTS: u32 = 600;
/// Announces in flight at once.
const AT_ONCE: usize = 100;

/// A tracker's life from its start to its end, with all that it wrote and said.
struct Life {
    setup: Setup,
    recording: Recording,
    /// Whose completion an answer acknowledges.
    completions: HashMap<i32, Torrent>,
}

impl Life {
    async fn live(acknowledge: &str) -> Result<Self> {
        let setup = Setup::new()?;
        // With tables, so that the first that is written is a counter.
        database::make(&setup.database(), MIB, "wal")?;
        let content = fs::read(setup.database())?;
        let recorded = setup.home().join("recording");
        let setup = setup
            .set("maintenance", "acknowledge", &format!("\"{acknowledge}\""))
            .started_by(power::recorder(&recorded));
        let mut tracker = setup.start().await?;
        let mut client = UdpClient::connect(tracker.addresses.udp).await?;
        let torrents: Vec<Torrent> = (0..TORRENTS).map(Torrent).collect();
        announce(&mut client, &torrents, Event::Started).await?;
        let completions = announce(&mut client, &torrents, Event::Completed).await?;
        let alive = power::recorder_of(tracker.pid()?)?;
        // Killed, as a last checkpoint would only make it easier.
        tracker.kill().await?;
        until("the recorder to end", PATIENCE, async || {
            Ok((!alive.exists()).then_some(()))
        })
        .await?;
        let database = setup.database().canonicalize()?;
        let recording = Recording::read(&recorded, &database, content)?;
        let (syncs, pages) = recording.syncs_and_checkpointed_pages();
        ensure!(pages > 0, "the log has never been checkpointed");
        println!(
            "acknowledged when {acknowledge}: {syncs} syncs of the log, {pages} pages checkpointed"
        );
        Ok(Self {
            setup,
            recording,
            completions,
        })
    }

    /// How many acknowledged completions are lost, over many failures.
    fn losses(&self) -> Result<usize> {
        let failures = if soak_in_full() { 500 } else { 60 };
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut lost = 0;
        let mut acknowledged = 0;
        for _ in 0..failures {
            let instant = chance.usize(..=self.recording.instants());
            let directory = tempfile::tempdir_in(self.setup.home())?;
            let path = directory.path().join("sqlite3.db");
            self.recording.fail(instant, &mut chance, &path)?;
            database::check(&path).with_context(|| format!("a failure at {instant}"))?;
            let stored = database::completed(&path)?;
            for packet in self.recording.sent_before(instant) {
                let Ok(answer @ Response::AnnounceIpv4(_)) = Response::parse_bytes(packet, true)
                else {
                    continue;
                };
                if let Some(torrent) = self.completions.get(&transaction_of(&answer).0.get()) {
                    acknowledged += 1;
                    lost += usize::from(stored.get(torrent) != Some(&1));
                }
            }
        }
        println!("{failures} failures, {acknowledged} acknowledged completions, {lost} lost");
        ensure!(acknowledged > 0, "nothing that could have been lost");
        Ok(lost)
    }
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
