//! A bucket in memory whose requests fail one by one, and a directory on a disk that does.

#![expect(
    clippy::disallowed_methods,
    reason = "tests look at what is there behind the seam's back"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::TryStreamExt as _;
use object_store::ObjectStore as _;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use tempfile::TempDir;

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
        let (disk, watch) = (Disk::default(), Watch::default());
        let draft = self
            .catalogue(&disk)
            .begin(time() + TimeDelta::days(day))
            .expect("a draft");
        let mut random = fastrand::Rng::with_seed(day.cast_unsigned());
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

    /// A pass without faults. A child that another test is starting has copies of all
    /// descriptors, that of a lock just let go of among them, until it is another program.
    async fn pass(&self, catalogue: &Catalogue) -> Result<Report, Error> {
        loop {
            let report = self.good().pass(catalogue, &Watch::default()).await?;
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
    let report = remote.pass(&catalogue, &watch).await?;
    assert!(report.failure.is_none(), "{report:?}");
    assert_eq!(
        report.uploaded,
        [ids[1].clone(), ids[0].clone()],
        "newest first"
    );
    assert_eq!(bench.listed().await, ids.clone().into());
    assert_eq!(remote.newest(false).await?, Some(ids[1].clone()));
    assert!(bench.notes().is_empty());

    let again = remote.pass(&catalogue, &watch).await?;
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
            let first = remote.pass(&catalogue, &Watch::default()).await;
            let was_complete = first.is_ok_and(|report| report.failure.is_none());
            let listed = bench.listed().await;
            assert!(!was_complete || listed.contains(&id), "{fault:?} {n}");

            let next = bench.pass(&catalogue).await?;
            assert!(next.failure.is_none(), "{fault:?} {n}: {next:?}");
            assert_eq!(bench.listed().await, [id].into(), "{fault:?} {n}");
            assert!(bench.notes().is_empty(), "{fault:?} {n}");
            assert_eq!(bench.objects().await.len(), 4, "{fault:?} {n}");
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
            let _ = remote.pass(&catalogue, &Watch::default()).await;
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
    remote.pass(&catalogue, &Watch::default()).await?;

    // List, look, begin; then parts.
    for done in 1..parts {
        let bench = Bench::new();
        let id = bench.publish(1);
        let catalogue = bench.catalogue(&Disk::default());
        let killed = Faults::at(3 + done, Fault::Dead);
        let remote = bench.remote(&Disk::default(), killed);
        let report = remote.pass(&catalogue, &Watch::default()).await?;
        assert_eq!(report.pending, std::slice::from_ref(&id), "{done}");
        assert_eq!(bench.notes(), std::slice::from_ref(&id), "{done}");

        // Another process, after a start that sweeps.
        let catalogue = bench.catalogue(&Disk::default());
        let next = Faults::default();
        let remote = bench.remote(&Disk::default(), next.clone());
        let report = remote.pass(&catalogue, &Watch::default()).await?;
        assert!(report.failure.is_none(), "{report:?}");
        // Neither these parts nor the beginning are sent again.
        assert_eq!(next.made(), all.made() - done - 1, "{done}");
        assert_eq!(bench.listed().await, [id].into());
    }
    Ok(())
}

#[tokio::test]
async fn what_was_altered_there_is_found_and_uploaded_again_only_if_it_was_not_complete() -> Outcome
{
    let bench = Bench::new();
    let id = bench.publish(1);
    let catalogue = bench.catalogue(&Disk::default());
    let (remote, watch) = (bench.good(), Watch::default());
    remote.pass(&catalogue, &watch).await?;
    let key = Key::from(format!("prefix/{id}/database.sqlite3"));
    let mut bytes = bench.bucket.get(&key).await?.bytes().await?.to_vec();
    bytes[LARGE / 2] ^= 1;
    bench.bucket.put(&key, bytes.into()).await?;

    let found = remote.verify(&id, &watch).await;
    assert!(matches!(found, Err(Error::Differs { .. })), "{found:?}");
    let to = bench.root.path().join("downloaded");
    fs::create_dir(&to)?;
    let found = remote.download(&id, &to, &watch).await;
    assert!(matches!(found, Err(Error::Differs { .. })), "{found:?}");

    // Without a manifest it is an upload that was not ended.
    let manifest = Key::from(format!("prefix/{id}/manifest.json"));
    bench.bucket.delete(&manifest).await?;
    let report = remote.pass(&catalogue, &watch).await?;
    assert!(report.failure.is_none(), "{report:?}");
    assert_eq!(bench.listed().await, [id.clone()].into());

    // One that lacks a file is never taken for a backup, and never touched.
    bench.bucket.delete(&key).await?;
    let [Entry::Broken { name, .. }] = &remote.list().await?[..] else {
        panic!("it lacks its database");
    };
    assert_eq!(*name, id);
    let before = bench.objects().await;
    let report = remote.pass(&catalogue, &watch).await?;
    assert!(
        report.uploaded.is_empty() && report.failure.is_none(),
        "{report:?}"
    );
    assert_eq!(bench.objects().await, before);
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
            let _ = remote.pass(&catalogue, &Watch::default()).await;
            let left = bench.listed().await;
            assert!(left.contains(&ids[2]), "{fault:?} {n}: the newest stays");

            let remote = bench.remote_with(fewer(), &Disk::default(), Faults::default());
            let report = remote.pass(&catalogue, &Watch::default()).await?;
            assert!(report.failure.is_none(), "{fault:?} {n}: {report:?}");
            assert_eq!(bench.listed().await, [ids[2].clone()].into());
            assert_eq!(bench.objects().await.len(), 4, "{fault:?} {n}");
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
    let busy = bench.good().pass(&catalogue, &Watch::default()).await?;
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
        let report = remote.pass(&catalogue, &Watch::default()).await?;
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
        let first = remote.pass(&catalogue, &Watch::default()).await?;
        let good = Remote::open(&settings(other.path()), &Disk::default())?;
        let listed = check_whole(&good).await;
        assert!(first.failure.is_some() || listed.contains(&id), "{n}");

        let next = good.pass(&catalogue, &Watch::default()).await?;
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

#[test]
fn a_size_will_do_where_that_is_asked_for() {
    assert_eq!(settings("").verify, Readback::Full);
    assert_eq!(settings("verify = \"size\"").verify, Readback::Size);
}
