//! A bucket in memory whose requests fail one by one, and a directory on a disk that does.

#![expect(
    clippy::disallowed_methods,
    reason = "tests look at what is there behind the seam's back"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::TryStreamExt as _;
use object_store::ObjectStore as _;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use tempfile::TempDir;

use super::ledger::Ledger;
use super::*;
use crate::catalogue::testing::{manifest, memory_dir, time};
use crate::catalogue::{Owner, StoredFiles};
use crate::config::{Compression, Readback, Source};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Bytes of the larger file of a backup: in [`PART`]s there are several.
const LARGE: usize = 10_000;
const PART: u64 = 1500;

/// What goes wrong with the requests of a store, which it counts.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    made: Arc<AtomicUsize>,
    fault: Option<(usize, Fault)>,
}

/// What goes wrong with the request of an index, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It does not get there.
    Lost,
    /// It does, and its answer does not get here.
    Unanswered,
    /// Nor does any after it: the process is killed, or the network gone.
    Dead,
}

const FAULTS: [Fault; 3] = [Fault::Lost, Fault::Unanswered, Fault::Dead];

/// What is to become of one request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Next(Option<Fault>);

impl Faults {
    fn at(n: usize, fault: Fault) -> Self {
        Self {
            fault: Some((n, fault)),
            ..Self::default()
        }
    }

    fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    pub(super) fn next(&self) -> Next {
        let nth = self.made.fetch_add(1, Ordering::Relaxed);
        Next(self.fault.and_then(|(at, fault)| {
            let is_it = nth == at || fault == Fault::Dead && nth > at;
            is_it.then_some(fault)
        }))
    }
}

impl Next {
    pub(super) fn before(self) -> object_store::Result<()> {
        match self.0 {
            Some(Fault::Lost | Fault::Dead) => Err(broken()),
            _ => Ok(()),
        }
    }

    pub(super) fn after(self) -> object_store::Result<()> {
        match self.0 {
            Some(Fault::Unanswered) => Err(broken()),
            _ => Ok(()),
        }
    }
}

fn broken() -> object_store::Error {
    object_store::Error::Generic {
        store: "test",
        source: "the connection was cut".into(),
    }
}

/// A catalogue, and a bucket.
struct Bench {
    root: TempDir,
    bucket: Arc<InMemory>,
}

fn settings(more: &str) -> config::Remote {
    let text = format!(
        "[maintenance]\nenabled = true\nwindow = \"03:00-03:05\"\n[maintenance.remote]\n\
         url = \"s3://bucket/prefix\"\nattempts = 1\nback_off = \"1ms\"\n{more}"
    );
    let settings = Source::text(text).maintenance().expect("valid");
    let remote = settings.and_then(|settings| settings.remote);
    config::Remote {
        part_size: PART,
        ..remote.expect("enabled")
    }
}

impl Bench {
    fn new() -> Self {
        let bench = Self {
            root: memory_dir(),
            bucket: Arc::new(InMemory::new()),
        };
        bench.catalogue(&Disk::default());
        bench
    }

    fn catalogue(&self, disk: &Disk) -> Catalogue {
        Catalogue::open(disk.clone(), &self.root.path().join("backups")).expect("a catalogue")
    }

    /// Publishes a backup of files that do not compress.
    fn publish(&self, day: i64) -> BackupId {
        self.publish_as(day, day.cast_unsigned())
    }

    /// With other contents.
    fn publish_as(&self, day: i64, seed: u64) -> BackupId {
        let (disk, watch) = (Disk::default(), Watch::default());
        let draft = self
            .catalogue(&disk)
            .begin(time() + TimeDelta::days(day))
            .expect("a draft");
        let mut random = fastrand::Rng::with_seed(seed);
        let mut store = |path: &Path, bytes: usize| {
            let raw = draft.dir().join("raw");
            let bytes: Vec<u8> = (0..bytes).map(|_| random.u8(..)).collect();
            fs::write(&raw, bytes).expect("room");
            verify::compress(&raw, path, Compression::None, &disk, &watch).expect("stored")
        };
        let database = store(&draft.artifact_path(&Compression::None), LARGE);
        let files = StoredFiles {
            artifact: store(&draft.files_path(), 700),
            entries: Vec::new(),
        };
        let mut manifest = manifest(draft.id(), database);
        let run = format!("\"{}-{seed}\"", draft.id());
        manifest.run = serde_json::from_str(&run).expect("an id");
        manifest.files = Some(files);
        draft.publish(&manifest).expect("a backup").manifest.id
    }

    fn remote(&self, disk: &Disk, faults: Faults) -> Remote {
        self.remote_with(settings("keep.last = 10"), disk, faults)
    }

    fn remote_with(&self, settings: config::Remote, disk: &Disk, faults: Faults) -> Remote {
        Remote {
            store: Store::of(&self.bucket, &settings).failing(faults),
            settings,
            disk: disk.clone(),
        }
    }

    fn good(&self) -> Remote {
        self.remote(&Disk::default(), Faults::default())
    }

    /// The directory of the catalogue.
    fn directory(&self) -> PathBuf {
        self.root.path().join("backups")
    }

    fn ledger(&self) -> Ledger {
        let place = place(&settings(""));
        Ledger::read(&self.catalogue(&Disk::default()), &place)
            .expect("it can be read")
            .expect("there is one")
    }

    fn object(id: &BackupId, name: &str) -> Key {
        Key::from(format!("prefix/{id}/{name}"))
    }

    /// Changes one byte of an object.
    async fn alter(&self, id: &BackupId, name: &str) -> Outcome {
        let key = Self::object(id, name);
        let mut bytes = self.bucket.get(&key).await?.bytes().await?.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        self.bucket.put(&key, bytes.into()).await?;
        Ok(())
    }

    /// Changes one byte of a file here.
    fn damage(&self, id: &BackupId, name: &str) -> Outcome {
        let path = self.directory().join(id.to_string()).join(name);
        let mut bytes = fs::read(&path)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes)?;
        Ok(())
    }

    /// As retention does.
    fn prune(&self, id: &BackupId) -> Outcome {
        fs::remove_dir_all(self.directory().join(id.to_string()))?;
        Ok(())
    }

    /// A pass without faults. A child that another test is starting has copies of all
    /// descriptors, that of a lock just let go of among them, until it is another program.
    async fn pass(&self, catalogue: &Catalogue) -> Result<Report, Error> {
        loop {
            let report = pass(&self.good(), catalogue).await?;
            if !matches!(report.failure, Some(Error::Busy(_))) {
                return Ok(report);
            }
            tokio::task::yield_now().await;
        }
    }

    /// What somebody who lists the bucket would restore, all of which must be whole.
    async fn listed(&self) -> BTreeSet<BackupId> {
        check_whole(&self.good()).await
    }

    fn notes(&self) -> Vec<BackupId> {
        self.catalogue(&Disk::default()).uploads().expect("lists")
    }

    async fn objects(&self) -> Vec<String> {
        let objects: Vec<_> = self
            .bucket
            .list(None)
            .try_collect()
            .await
            .expect("memory is read");
        let names = objects.iter().map(|object| object.location.to_string());
        names.collect()
    }
}

/// A pass that is made now.
async fn pass(remote: &Remote, catalogue: &Catalogue) -> Result<Report, Error> {
    pass_at(remote, catalogue, Utc::now()).await
}

async fn pass_at(
    remote: &Remote,
    catalogue: &Catalogue,
    now: DateTime<Utc>,
) -> Result<Report, Error> {
    remote
        .pass(catalogue, now, &Watch::default(), &|_| {})
        .await
}

/// The complete backups of a place, each read to the last byte.
async fn check_whole(remote: &Remote) -> BTreeSet<BackupId> {
    let mut complete = BTreeSet::new();
    for entry in remote.list().await.expect("it is listed") {
        if let Entry::Complete(stored) = entry {
            let id = stored.manifest.id;
            let verified = remote.verify(&id, &Watch::default()).await;
            verified.unwrap_or_else(|error| panic!("a bad backup is listed: {error}"));
            complete.insert(id);
        }
    }
    complete
}

#[tokio::test]
async fn what_is_uploaded_is_listed_and_comes_back_as_it_was() -> Outcome {
    let bench = Bench::new();
    let ids = [bench.publish(1), bench.publish(2)];
    let (remote, watch) = (bench.good(), Watch::default());
    let catalogue = bench.catalogue(&Disk::default());
    let report = pass(&remote, &catalogue).await?;
    assert!(report.failure.is_none(), "{report:?}");
    assert_eq!(
        report.uploaded,
        [ids[1].clone(), ids[0].clone()],
        "newest first"
    );
    assert_eq!(bench.listed().await, ids.clone().into());
    assert_eq!(remote.newest(false).await?, Some(ids[1].clone()));
    assert!(bench.notes().is_empty());

    let again = pass(&remote, &catalogue).await?;
    assert!(again.uploaded.is_empty() && again.removed.is_empty());

    let to = bench.root.path().join("downloaded");
    fs::create_dir(&to)?;
    let backup = remote.download(&ids[0], &to, &watch).await?;
    let here = catalogue.get(&ids[0])?;
    assert_eq!(backup.manifest, here.manifest);
    for name in [
        "manifest.json",
        "SHA256SUMS",
        "database.sqlite3",
        "files.tar.zst",
    ] {
        assert_eq!(
            fs::read(to.join(name))?,
            fs::read(here.dir.join(name))?,
            "{name}"
        );
    }
    let missing = BackupId::try_from("20000101T000000Z".to_owned())?;
    let unknown = remote.download(&missing, &to, &watch).await;
    assert!(matches!(unknown, Err(Error::Unknown { .. })), "{unknown:?}");
    Ok(())
}

/// Whatever request fails, in whichever way: what is listed is whole, and the next attempt
/// does what is left.
#[tokio::test]
async fn whatever_request_fails_what_is_listed_is_whole_and_the_next_attempt_completes() -> Outcome
{
    let mut cases = 0;
    for fault in FAULTS {
        for n in 0.. {
            let bench = Bench::new();
            let id = bench.publish(1);
            let catalogue = bench.catalogue(&Disk::default());
            let faults = Faults::at(n, fault);
            let remote = bench.remote(&Disk::default(), faults.clone());
            let first = pass(&remote, &catalogue).await;
            let was_complete = first.is_ok_and(|report| report.failure.is_none());
            let listed = bench.listed().await;
            assert!(!was_complete || listed.contains(&id), "{fault:?} {n}");

            let next = bench.pass(&catalogue).await?;
            assert!(next.failure.is_none(), "{fault:?} {n}: {next:?}");
            assert_eq!(bench.listed().await, [id].into(), "{fault:?} {n}");
            assert!(bench.notes().is_empty(), "{fault:?} {n}");
            assert_eq!(bench.objects().await.len(), 5, "{fault:?} {n}");
            if faults.made() <= n {
                break;
            }
            cases += 1;
        }
    }
    println!("{cases} requests failed");
    assert!(cases > 60, "an upload has more requests than {cases}");
    Ok(())
}

#[tokio::test]
async fn whatever_operation_of_the_disk_fails_the_next_attempt_completes() -> Outcome {
    let mut cases = 0;
    for n in 0.. {
        let bench = Bench::new();
        let id = bench.publish(1);
        let disk = Disk::failing_at(n);
        let directory = bench.root.path().join("backups");
        let catalogue = Catalogue::open(disk.clone(), &directory);
        if let Ok(catalogue) = catalogue {
            let remote = bench.remote(&disk, Faults::default());
            // Only what it leaves behind matters.
            let _ = pass(&remote, &catalogue).await;
        }
        bench.listed().await;
        let catalogue = bench.catalogue(&Disk::default());
        let next = bench.pass(&catalogue).await?;
        assert!(next.failure.is_none(), "{n}: {next:?}");
        assert_eq!(bench.listed().await, [id].into(), "{n}");
        assert!(bench.notes().is_empty(), "{n}");
        if disk.operations() <= n {
            break;
        }
        cases += 1;
    }
    println!("{cases} operations failed");
    assert!(cases > 30, "an upload has more operations than {cases}");
    Ok(())
}

#[tokio::test]
async fn an_upload_goes_on_from_the_part_it_had_come_to() -> Outcome {
    let parts = LARGE.div_ceil(usize::try_from(PART)?);
    // From scratch: so many requests in all.
    let bench = Bench::new();
    bench.publish(1);
    let all = Faults::default();
    let catalogue = bench.catalogue(&Disk::default());
    let remote = bench.remote(&Disk::default(), all.clone());
    pass(&remote, &catalogue).await?;

    // Whose it is, list, two to say so, look, begin; then parts.
    for done in 1..parts {
        let bench = Bench::new();
        let id = bench.publish(1);
        let catalogue = bench.catalogue(&Disk::default());
        let killed = Faults::at(6 + done, Fault::Dead);
        let remote = bench.remote(&Disk::default(), killed);
        let report = pass(&remote, &catalogue).await?;
        assert_eq!(report.pending, std::slice::from_ref(&id), "{done}");
        assert_eq!(bench.notes(), std::slice::from_ref(&id), "{done}");

        // Another process, after a start that sweeps.
        let catalogue = bench.catalogue(&Disk::default());
        let next = Faults::default();
        let remote = bench.remote(&Disk::default(), next.clone());
        let report = pass(&remote, &catalogue).await?;
        assert!(report.failure.is_none(), "{report:?}");
        // Neither these parts nor the beginning are sent again, nor whose it is.
        assert_eq!(next.made(), all.made() - done - 3, "{done}");
        assert_eq!(bench.listed().await, [id].into());
    }
    Ok(())
}

#[tokio::test]
async fn what_was_altered_there_is_found_by_who_reads_it() -> Outcome {
    let bench = Bench::new();
    let id = bench.publish(1);
    let catalogue = bench.catalogue(&Disk::default());
    let (remote, watch) = (bench.good(), Watch::default());
    pass(&remote, &catalogue).await?;
    bench.alter(&id, "database.sqlite3").await?;

    let found = remote.verify(&id, &watch).await;
    assert!(matches!(found, Err(Error::Differs { .. })), "{found:?}");
    let to = bench.root.path().join("downloaded");
    fs::create_dir(&to)?;
    let found = remote.download(&id, &to, &watch).await;
    assert!(matches!(found, Err(Error::Differs { .. })), "{found:?}");

    // Without a manifest it is an upload that was not ended.
    let manifest = Bench::object(&id, MANIFEST);
    bench.bucket.delete(&manifest).await?;
    let report = pass(&remote, &catalogue).await?;
    assert!(report.failure.is_none(), "{report:?}");
    assert_eq!(bench.listed().await, [id].into());
    Ok(())
}

/// What may become of an object there.
#[derive(Debug, Clone, Copy)]
enum Harm {
    Gone,
    Shorter,
    /// It shows to who reads it.
    Altered,
}

impl Bench {
    async fn harm(&self, id: &BackupId, name: &str, harm: Harm) -> Outcome {
        let key = Self::object(id, name);
        match harm {
            Harm::Gone => self.bucket.delete(&key).await?,
            Harm::Shorter => {
                let bytes = self.bucket.get(&key).await?.bytes().await?;
                let shorter = bytes.slice(..bytes.len() - 1);
                self.bucket.put(&key, shorter.into()).await?;
            }
            Harm::Altered => self.alter(id, name).await?,
        }
        Ok(())
    }
}

/// When all that is there is to be read back again.
fn later() -> DateTime<Utc> {
    Utc::now() + TimeDelta::days(31)
}

#[tokio::test]
async fn whatever_breaks_there_is_told_and_replaced_by_what_is_good_here() -> Outcome {
    let harms = [Harm::Gone, Harm::Shorter, Harm::Altered];
    for name in ["database.sqlite3", "files.tar.zst", SUMS, MANIFEST] {
        for harm in harms {
            if name == MANIFEST && matches!(harm, Harm::Gone) {
                // That is an upload that was not ended.
                continue;
            }
            let bench = Bench::new();
            let id = bench.publish(1);
            let catalogue = bench.catalogue(&Disk::default());
            pass(&bench.good(), &catalogue).await?;
            bench.harm(&id, name, harm).await?;
            let report = pass_at(&bench.good(), &catalogue, later()).await?;
            let case = format!("{name} {harm:?}: {report:?}");
            assert!(report.failure.is_none(), "{case}");
            assert_eq!(report.uploaded, std::slice::from_ref(&id), "{case}");
            assert_eq!(report.replaced.len(), 1, "{case}");
            assert_eq!(report.replaced[0].id, id, "{case}");
            assert!(report.broken.is_empty(), "{case}");
            assert_eq!(bench.listed().await, [id].into(), "{case}");
            let next = pass(&bench.good(), &catalogue).await?;
            assert!(next.uploaded.is_empty() && next.broken.is_empty(), "{case}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_breaks_there_and_is_not_good_here_is_told_and_left() -> Outcome {
    for is_here in [false, true] {
        for harm in [Harm::Gone, Harm::Shorter, Harm::Altered] {
            let bench = Bench::new();
            let ids = [1, 2, 3].map(|day| bench.publish(day));
            let catalogue = bench.catalogue(&Disk::default());
            pass(&bench.good(), &catalogue).await?;
            // Older than all by when it was uploaded, so that it is looked at first.
            if is_here {
                bench.damage(&ids[1], "database.sqlite3")?;
            } else {
                bench.prune(&ids[1])?;
            }
            bench.harm(&ids[1], "database.sqlite3", harm).await?;
            let before = bench.objects().await;
            let mut report = Report::default();
            for _ in &ids {
                report = pass_at(&bench.good(), &catalogue, later()).await?;
            }
            let case = format!("{is_here} {harm:?}: {report:?}");
            assert_eq!(report.broken.len(), 1, "{case}");
            assert_eq!(report.broken[0].id, ids[1], "{case}");
            assert!(report.replaced.is_empty(), "{case}");
            assert_eq!(bench.objects().await, before, "{case}");
            if is_here {
                assert!(matches!(report.failure, Some(Error::Verify(_))), "{case}");
            } else {
                assert!(report.failure.is_none(), "{case}");
            }
            // Remembered, though it is not due to be read.
            let report = pass(&bench.good(), &catalogue).await?;
            assert_eq!(report.broken.len(), 1, "{case}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_newest_good_one_there_stays_though_a_newer_one_broke() -> Outcome {
    let bench = Bench::new();
    let ids = [1, 2, 3].map(|day| bench.publish(day));
    let catalogue = bench.catalogue(&Disk::default());
    pass(&bench.good(), &catalogue).await?;
    for id in &ids {
        bench.prune(id)?;
    }
    bench.harm(&ids[2], "database.sqlite3", Harm::Gone).await?;
    let fewest = settings("keep = { last = 1, daily = 0, weekly = 0, monthly = 0 }");
    let remote = bench.remote_with(fewest, &Disk::default(), Faults::default());
    for _ in 0..3 {
        let report = pass(&remote, &catalogue).await?;
        assert!(report.failure.is_none(), "{report:?}");
        assert_eq!(bench.listed().await, [ids[1].clone()].into());
    }
    Ok(())
}

#[tokio::test]
async fn one_a_pass_is_read_back_again_when_it_is_due_and_by_default_after_a_month() -> Outcome {
    let bench = Bench::new();
    let ids = [1, 2, 3].map(|day| bench.publish(day));
    let catalogue = bench.catalogue(&Disk::default());
    pass(&bench.good(), &catalogue).await?;
    let requests = async |more: &str, now| {
        let faults = Faults::default();
        let settings = settings(&format!("keep.last = 10\n{more}"));
        let remote = bench.remote_with(settings, &Disk::default(), faults.clone());
        let report = pass_at(&remote, &catalogue, now).await;
        assert!(report.is_ok_and(|it| it.failure.is_none()), "{more}");
        faults.made()
    };
    let idle = requests("", Utc::now()).await;
    let soon = Utc::now() + TimeDelta::days(29);
    assert_eq!(requests("", soon).await, idle, "none is due");
    for more in ["check_every = \"never\"", "verify = \"size\""] {
        assert_eq!(requests(more, later()).await, idle, "{more}");
    }
    for nth in 1..=ids.len() {
        assert!(requests("", later()).await > idle, "{nth}");
        let ledger = bench.ledger();
        let checks = &ledger.seen().ok_or("it was seen")?.checks;
        assert_eq!(checks.len(), nth, "another one each time");
        assert!(checks.values().all(|check| check.finding.is_none()));
    }
    assert_eq!(requests("", later()).await, idle, "all are done");
    Ok(())
}

#[tokio::test]
async fn a_manifest_that_cannot_be_read_is_shown_and_hides_no_other() -> Outcome {
    let bench = Bench::new();
    let ids = [bench.publish(1), bench.publish(2)];
    let catalogue = bench.catalogue(&Disk::default());
    pass(&bench.good(), &catalogue).await?;
    // List; then of each, newest first, its size and its contents.
    for n in [1, 2] {
        let remote = bench.remote(&Disk::default(), Faults::at(n, Fault::Lost));
        let entries = remote.list().await?;
        assert!(
            matches!(&entries[0], Entry::Unreadable { name, .. } if *name == ids[1]),
            "{entries:?}"
        );
        assert!(matches!(&entries[1], Entry::Complete(it) if it.manifest.id == ids[0]));
        let remote = bench.remote(&Disk::default(), Faults::at(n, Fault::Lost));
        assert_eq!(remote.newest(false).await?, Some(ids[0].clone()));

        // Whose it is comes first. What cannot be read is left as it is, and told of.
        let before = bench.objects().await;
        let remote = bench.remote(&Disk::default(), Faults::at(n + 1, Fault::Lost));
        let report = pass(&remote, &catalogue).await?;
        assert!(
            matches!(report.failure, Some(Error::Odd { .. })),
            "{report:?}"
        );
        assert!(report.uploaded.is_empty() && report.removed.is_empty());
        assert_eq!(bench.objects().await, before);
    }
    // A network that is gone is not twenty manifests that are.
    let remote = bench.remote(&Disk::default(), Faults::at(1, Fault::Dead));
    let gone = remote.list().await;
    assert!(matches!(gone, Err(Error::Failed { .. })), "{gone:?}");
    // What is none is broken.
    let manifest = Bench::object(&ids[1], MANIFEST);
    bench.bucket.put(&manifest, "no manifest".into()).await?;
    let entries = bench.good().list().await?;
    assert!(matches!(entries[0], Entry::Broken { .. }), "{entries:?}");
    Ok(())
}

#[tokio::test]
async fn what_is_damaged_here_is_not_uploaded_and_others_are() -> Outcome {
    let bench = Bench::new();
    let (older, newer) = (bench.publish(1), bench.publish(2));
    let catalogue = bench.catalogue(&Disk::default());
    let path = catalogue.get(&newer)?.dir.join("database.sqlite3");
    let mut bytes = fs::read(&path)?;
    bytes[LARGE - 1] ^= 1;
    fs::write(&path, bytes)?;
    let report = bench.pass(&catalogue).await?;
    assert!(
        matches!(report.failure, Some(Error::Verify(_))),
        "{report:?}"
    );
    assert_eq!(
        (report.uploaded, report.pending),
        (vec![older.clone()], vec![newer])
    );
    assert_eq!(bench.listed().await, [older].into());
    assert!(bench.notes().is_empty(), "the upload was given up");
    Ok(())
}

#[tokio::test]
async fn what_no_rule_keeps_is_removed_manifest_first_whatever_fails() -> Outcome {
    for fault in FAULTS {
        for n in 0.. {
            let bench = Bench::new();
            let ids = [1, 2, 3].map(|day| bench.publish(day));
            let catalogue = bench.catalogue(&Disk::default());
            bench.pass(&catalogue).await?;
            let fewer = || settings("keep = { last = 1, daily = 0, weekly = 0, monthly = 0 }");
            let faults = Faults::at(n, fault);
            let remote = bench.remote_with(fewer(), &Disk::default(), faults.clone());
            // Only what it leaves behind matters.
            let _ = pass(&remote, &catalogue).await;
            let left = bench.listed().await;
            assert!(left.contains(&ids[2]), "{fault:?} {n}: the newest stays");

            let remote = bench.remote_with(fewer(), &Disk::default(), Faults::default());
            let report = pass(&remote, &catalogue).await?;
            assert!(report.failure.is_none(), "{fault:?} {n}: {report:?}");
            assert_eq!(bench.listed().await, [ids[2].clone()].into());
            assert_eq!(bench.objects().await.len(), 5, "{fault:?} {n}");
            if faults.made() <= n {
                break;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_backup_stays_here_while_it_is_uploaded() -> Outcome {
    let bench = Bench::new();
    let ids = [1, 2].map(|day| bench.publish(day));
    let catalogue = bench.catalogue(&Disk::default());
    let held = catalogue.hold(&ids[0])?.ok_or("nobody has it")?;
    assert!(catalogue.hold(&ids[0])?.is_none(), "one at a time");
    let busy = pass(&bench.good(), &catalogue).await?;
    assert!(matches!(busy.failure, Some(Error::Busy(_))), "{busy:?}");
    assert_eq!(busy.uploaded, [ids[1].clone()], "others are uploaded");

    let keep = settings("keep = { last = 1, daily = 0, weekly = 0, monthly = 0 }").keep;
    let owner = Owner::this("a test", time());
    let locked = catalogue.lock(&owner)?;
    let pruned = locked.prune(&keep, &ids[1])?;
    assert!(pruned.removed.is_empty(), "{pruned:?}");
    assert_eq!(pruned.kept[1].reasons, ["it is being uploaded"]);
    let kept = locked.delete(&ids[0], false).expect_err("it is held");
    assert!(kept.to_string().contains("being uploaded"), "{kept}");
    drop(held);
    assert_eq!(locked.prune(&keep, &ids[1])?.removed, [ids[0].clone()]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_request_is_tried_again_as_often_as_is_said() -> Outcome {
    for (attempts, lost, good) in [(1, 0, true), (2, 1, true), (3, 1, true), (1, 1, false)] {
        let bench = Bench::new();
        let id = bench.publish(1);
        let catalogue = bench.catalogue(&Disk::default());
        let mut settings = settings("keep.last = 10");
        settings.attempts = attempts;
        let n = if lost == 0 { usize::MAX } else { 4 };
        let remote = bench.remote_with(settings, &Disk::default(), Faults::at(n, Fault::Lost));
        let report = pass(&remote, &catalogue).await?;
        assert_eq!(report.failure.is_none(), good, "{attempts} {report:?}");
        assert_eq!(bench.listed().await.contains(&id), good);
    }
    Ok(())
}

#[test]
fn pauses_double_and_end_at_a_minute() {
    let second = Duration::from_secs(1);
    for (nth, chance, expected) in [
        (1, 0.0, second),
        (1, 1.0, second / 2),
        (2, 0.0, 2 * second),
        (5, 0.0, 16 * second),
        (7, 0.0, 60 * second),
        (40, 1.0, 30 * second),
    ] {
        assert_eq!(
            store::pause(second, nth, chance),
            expected,
            "{nth} {chance}"
        );
    }
}

#[tokio::test]
async fn a_directory_on_another_volume_will_do() -> Outcome {
    let mut cases = 0;
    for n in 0.. {
        let bench = Bench::new();
        let id = bench.publish(1);
        let other = memory_dir();
        let settings = |other: &Path| config::Remote {
            place: config::Place::Directory(other.to_owned()),
            ..settings("keep.last = 10")
        };
        let disk = Disk::failing_at(n);
        let catalogue = bench.catalogue(&Disk::default());
        let remote = Remote::open(&settings(other.path()), &disk)?;
        let first = pass(&remote, &catalogue).await;
        let was_complete = first.is_ok_and(|report| report.failure.is_none());
        let good = Remote::open(&settings(other.path()), &Disk::default())?;
        let listed = check_whole(&good).await;
        assert!(!was_complete || listed.contains(&id), "{n}");

        let next = pass(&good, &catalogue).await?;
        assert!(next.failure.is_none(), "{n}: {next:?}");
        assert_eq!(check_whole(&good).await, [id.clone()].into(), "{n}");
        let names = Disk::default().list(&other.path().join(id.to_string()))?;
        assert_eq!(names.len(), 4, "{n}: nothing temporary is left: {names:?}");
        if disk.operations() <= n {
            break;
        }
        cases += 1;
    }
    println!("{cases} operations failed");
    assert!(cases > 20, "an upload has more operations than {cases}");
    let missing = config::Remote {
        place: config::Place::Directory("/nowhere/at/all".into()),
        ..settings("")
    };
    let error = Remote::open(&missing, &Disk::default()).expect_err("it is not there");
    assert!(error.to_string().contains("is not a directory"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_place_belongs_to_one_catalogue_until_another_takes_it_over() -> Outcome {
    let one = Bench::new();
    let other = Bench {
        root: memory_dir(),
        bucket: Arc::clone(&one.bucket),
    };
    let (here, there) = (one.catalogue(&Disk::default()), {
        other.catalogue(&Disk::default());
        other.catalogue(&Disk::default())
    });
    // Of the same second, so of the same name.
    let id = one.publish(1);
    other.publish(1);
    other.damage(&id, "files.tar.zst")?;
    let newer = other.publish(2);
    pass(&one.good(), &here).await?;
    let before = one.objects().await;

    let fewest = settings("keep = { last = 1, daily = 0, weekly = 0, monthly = 0 }");
    let greedy = other.remote_with(fewest, &Disk::default(), Faults::default());
    let refused = pass(&greedy, &there).await.expect_err("it is another's");
    let (ours, theirs) = (one.ledger(), other.ledger());
    let said = refused.to_string();
    assert!(matches!(refused, Error::NotOurs { .. }), "{said}");
    for named in [ours.instance(), theirs.instance()] {
        assert!(said.contains(&named.to_string()), "{said}");
    }
    assert!(said.contains("upload --take-over"), "{said}");
    assert_eq!(
        one.objects().await,
        before,
        "nothing was written or removed"
    );
    assert!(pass(&one.good(), &here).await?.failure.is_none());

    let watch = Watch::default();
    let former = other.good().take_over(&there, Utc::now(), &watch).await?;
    let former = former.ok_or("it was another's")?;
    assert_eq!(former.instance, *ours.instance());
    let again = other.good().take_over(&there, Utc::now(), &watch).await?;
    assert_eq!(again, None, "it is already");
    let report = pass(&other.good(), &there).await?;
    assert!(report.uploaded.contains(&newer), "{report:?}");
    let refused = pass(&one.good(), &here).await.expect_err("it was his");
    assert!(matches!(refused, Error::NotOurs { .. }), "{refused}");
    Ok(())
}

#[tokio::test]
async fn a_catalogue_takes_its_place_along_when_it_is_moved() -> Outcome {
    let bench = Bench::new();
    let id = bench.publish(1);
    pass(&bench.good(), &bench.catalogue(&Disk::default())).await?;
    let moved = bench.root.path().join("moved");
    fs::rename(bench.directory(), &moved)?;
    let catalogue = Catalogue::open(Disk::default(), &moved)?;
    let report = pass(&bench.good(), &catalogue).await?;
    assert!(
        report.failure.is_none() && report.uploaded.is_empty(),
        "{report:?}"
    );
    assert_eq!(bench.listed().await, [id].into());
    let is_listed = |name: &str| {
        let listed = catalogue.list().expect("it is listed");
        listed
            .iter()
            .any(|it| matches!(it, catalogue::Entry::Foreign(it) if it.name == name))
    };
    assert!(!is_listed(".remote"), "it is no foreign file");
    Ok(())
}

#[tokio::test]
async fn backups_of_nobody_knows_whom_make_a_place_nobodys_to_take() -> Outcome {
    let bench = Bench::new();
    let id = bench.publish(1);
    let catalogue = bench.catalogue(&Disk::default());
    pass(&bench.good(), &catalogue).await?;
    let owner = Key::from("prefix/owner.json");
    bench.bucket.delete(&owner).await?;

    // Who knows the place signs again; so does who has all that is there.
    assert!(pass(&bench.good(), &catalogue).await?.failure.is_none());
    bench.bucket.delete(&owner).await?;
    fs::remove_file(bench.directory().join(".remote"))?;
    assert!(pass(&bench.good(), &catalogue).await?.failure.is_none());

    // Another has to say that it means it.
    bench.bucket.delete(&owner).await?;
    fs::remove_file(bench.directory().join(".remote"))?;
    bench.prune(&id)?;
    let newer = bench.publish(2);
    let before = bench.objects().await;
    let refused = pass(&bench.good(), &catalogue).await.expect_err("whose?");
    assert!(
        matches!(refused, Error::Strangers { count: 1, .. }),
        "{refused}"
    );
    assert_eq!(bench.objects().await, before);
    let (remote, watch) = (bench.good(), Watch::default());
    let former = remote.take_over(&catalogue, Utc::now(), &watch).await?;
    assert_eq!(former, None);
    assert_eq!(pass(&remote, &catalogue).await?.uploaded, [newer]);
    Ok(())
}

/// A copy of a machine, catalogue and all: it is taken for the same one, and must not do harm.
#[tokio::test]
async fn another_backup_of_the_same_name_is_neither_hidden_nor_touched() -> Outcome {
    let bench = Bench::new();
    let older = bench.publish(1);
    let catalogue = bench.catalogue(&Disk::default());
    pass(&bench.good(), &catalogue).await?;
    let twin = Bench {
        root: memory_dir(),
        bucket: Arc::clone(&bench.bucket),
    };
    twin.catalogue(&Disk::default());
    fs::copy(
        bench.directory().join(".remote"),
        twin.directory().join(".remote"),
    )?;
    // The same second, another run.
    let id = bench.publish(2);
    pass(&bench.good(), &catalogue).await?;
    assert_eq!(twin.publish_as(2, 77), id);
    let before = bench.objects().await;
    let there = twin.catalogue(&Disk::default());
    let fewest = settings("keep = { last = 1, daily = 0, weekly = 0, monthly = 0 }");
    let remote = twin.remote_with(fewest, &Disk::default(), Faults::default());
    let report = pass(&remote, &there).await?;
    let said = report.failure.ok_or("it is told")?.to_string();
    assert!(said.contains("another tracker uploads there"), "{said}");
    assert_eq!(bench.objects().await, before);
    assert_eq!(bench.listed().await, [older, id].into());
    Ok(())
}

#[tokio::test]
async fn a_directory_that_is_not_the_one_it_was_is_not_written_to() -> Outcome {
    let bench = Bench::new();
    let id = bench.publish(1);
    let catalogue = bench.catalogue(&Disk::default());
    let (mount, away) = (
        bench.root.path().join("mnt"),
        bench.root.path().join("away"),
    );
    fs::create_dir(&mount)?;
    let settings = config::Remote {
        place: config::Place::Directory(mount.clone()),
        ..settings("keep.last = 10")
    };
    let open = || Remote::open(&settings, &Disk::default());
    pass(&open()?, &catalogue).await?;

    // The volume is not mounted: what is there is the directory below it.
    fs::rename(&mount, &away)?;
    let gone = open().expect_err("it is not there");
    assert!(matches!(gone, Error::NoDirectory(_)), "{gone}");
    fs::create_dir(&mount)?;
    bench.publish(2);
    let other = pass(&open()?, &catalogue).await.expect_err("another one");
    let said = other.to_string();
    assert!(matches!(other, Error::NotMounted(_)), "{said}");
    assert!(said.contains(&mount.display().to_string()), "{said}");
    assert!(said.contains("mount the volume"), "{said}");
    // Nor one that goes between two backups.
    let backup = catalogue.get(&id)?;
    let other = open()?.upload(&catalogue, &backup, &Watch::default()).await;
    assert!(matches!(other, Err(Error::NotMounted(_))), "{other:?}");
    assert_eq!(
        fs::read_dir(&mount)?.count(),
        0,
        "nothing was written there"
    );

    fs::remove_dir(&mount)?;
    fs::rename(&away, &mount)?;
    let report = pass(&open()?, &catalogue).await?;
    assert_eq!(report.uploaded.len(), 1, "{report:?}");

    // Another volume in its place, as the operator says.
    fs::rename(&mount, &away)?;
    fs::create_dir(&mount)?;
    let watch = Watch::default();
    open()?.take_over(&catalogue, Utc::now(), &watch).await?;
    let report = pass(&open()?, &catalogue).await?;
    assert_eq!(report.uploaded.len(), 2, "{report:?}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn what_is_read_back_keeps_to_the_bandwidth_and_what_is_restored_does_not() -> Outcome {
    let bench = Bench::new();
    let id = bench.publish(1);
    let catalogue = bench.catalogue(&Disk::default());
    let slow = config::Remote {
        bandwidth: Some(1000),
        ..settings("keep.last = 10")
    };
    let remote = bench.remote_with(slow, &Disk::default(), Faults::default());
    let bytes = f64::from(u16::try_from(LARGE + 700)?);
    let began = tokio::time::Instant::now();
    assert!(pass(&remote, &catalogue).await?.failure.is_none());
    let took = began.elapsed().as_secs_f64();
    // There and back. The time that the work itself takes is not of the paused clock.
    let due = 2.0 * bytes / 1000.0;
    assert!(
        (due - 2.0..due + 2.0).contains(&took),
        "{took} s, not {due} s"
    );

    let began = tokio::time::Instant::now();
    remote.check_again(&id, &Watch::default()).await?;
    let took = began.elapsed().as_secs_f64();
    assert!(took > bytes / 1000.0 - 1.0, "{took} s");
    let began = tokio::time::Instant::now();
    let to = bench.root.path().join("downloaded");
    fs::create_dir(&to)?;
    remote.download(&id, &to, &Watch::default()).await?;
    assert!(began.elapsed().as_secs_f64() < 1.0, "somebody waits for it");
    Ok(())
}

#[tokio::test]
async fn what_is_missing_is_known_from_the_start() -> Outcome {
    let bench = Bench::new();
    bench.publish(-9);
    let catalogue = bench.catalogue(&Disk::default());
    let started = || {
        let settings = settings("keep.last = 10");
        let (_, uploads) = Uploader::new(settings, Disk::default(), catalogue.clone());
        uploads.status()
    };
    let first = started();
    assert_eq!(
        (first.behind, first.last_uploaded),
        (1, None),
        "never uploaded"
    );
    pass(&bench.good(), &catalogue).await?;
    let status = started();
    assert_eq!(status.behind, 0);
    assert_eq!(status.behind_since_seconds, None);
    assert!(status.last_uploaded.is_some(), "{status:?}");
    bench.publish(-8);
    let status = started();
    assert_eq!(status.behind, 1);
    let published = catalogue.backups()?[0].manifest.published;
    let lag = (Utc::now() - published).num_seconds().max(0);
    let said = status.behind_since_seconds.ok_or("a lag")?;
    assert!(
        (said - f64::from(i32::try_from(lag)?)).abs() < 60.0,
        "{said}"
    );
    Ok(())
}

#[tokio::test]
async fn what_is_there_is_told_at_first_and_with_every_upload() -> Outcome {
    let bench = Bench::new();
    let ids = [1, 2].map(|day| bench.publish(day));
    let catalogue = bench.catalogue(&Disk::default());
    let told = std::cell::RefCell::new(Vec::new());
    let tell = |there: &There| told.borrow_mut().push(there.complete.len());
    let (remote, watch) = (bench.good(), Watch::default());
    remote.pass(&catalogue, Utc::now(), &watch, &tell).await?;
    let told = told.into_inner();
    assert_eq!(told.first(), Some(&0));
    assert!(
        told.contains(&1) && told.last() == Some(&ids.len()),
        "{told:?}"
    );
    Ok(())
}

#[test]
fn a_size_will_do_where_that_is_asked_for() {
    assert_eq!(settings("").verify, Readback::Full);
    assert_eq!(settings("verify = \"size\"").verify, Readback::Size);
}
