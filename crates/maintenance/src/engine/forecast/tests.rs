use super::*;
use crate::catalogue::{Artifact, BackupId, testing};
use crate::config::{Depth, Settings, Source};

const GB: u64 = 1_000_000_000;

fn settings(backup: &str) -> Settings {
    let text = "[maintenance]\nenabled = true\nwindow = \"03:00-03:05\"\n[maintenance.backup]\n";
    let settings = Source::text(format!("{text}{backup}")).maintenance();
    settings.expect("valid").expect("enabled")
}

fn manifest(method: Way, raw_bytes: u64, copy_seconds: f64) -> Manifest {
    let id = BackupId::try_from("20261122T030000Z".to_owned()).expect("an id");
    let artifact = Artifact {
        name: "database.sqlite3.zst".into(),
        stored_bytes: raw_bytes / 4,
        stored_sha256: String::new(),
        raw_bytes,
        raw_sha256: String::new(),
        compression: "zstd".into(),
        encrypted: None,
    };
    Manifest {
        method,
        copy_seconds,
        rested_seconds: 0.0,
        ..testing::manifest(&id, artifact)
    }
}

fn throttled(manifest: Manifest) -> Manifest {
    Manifest {
        bandwidth: Some(10_000_000),
        ..manifest
    }
}

/// 17 GB, on a rollback journal, of which nothing is known but what is given.
fn known<'a>(settings: &'a Settings, earlier: &'a [&'a Manifest]) -> Known<'a> {
    Known {
        bytes: 17 * GB,
        blocks_writers: true,
        clones: false,
        shares: false,
        announces: settings.announces,
        backup: &settings.backup,
        earlier,
    }
}

/// In tenths of a second.
fn pause(known: Known<'_>) -> u128 {
    match known.forecast().pause {
        Pause::UntilCopied(estimate) => estimate.as_millis() / 100,
        Pause::UntilPinned(_) => 0,
    }
}

#[test]
fn a_pause_is_reckoned_by_the_best_of_the_last_copies_of_its_kind() {
    let settings = settings("");
    let slow = manifest(Way::File, GB, 10.0);
    let fast = manifest(Way::File, GB, 2.0);
    let paged = manifest(Way::Pages, GB, 4.0);
    let limited = throttled(manifest(Way::File, GB, 100.0));
    let tiny = manifest(Way::File, 1_000, 1.0);
    let cloned = manifest(Way::Clone, GB, 0.1);
    let limited_clone = throttled(manifest(Way::Clone, GB, 0.05));
    let streamed = manifest(Way::Stream, GB, 0.001);
    for (clones, earlier, expected) in [
        (false, &[][..], 1133),
        (false, &[&limited, &tiny, &slow, &fast], 340),
        (false, &[&slow], 1700),
        // Each way has a rate of its own; but what is slower, if anything, is better than a guess.
        (false, &[&paged, &slow], 1700),
        (false, &[&paged, &cloned], 680),
        (false, &[&limited, &cloned, &streamed], 1133),
        (true, &[], 85),
        (true, &[&slow, &fast, &streamed], 85),
        (true, &[&cloned, &slow], 17),
        // A limit on bytes read is none on a clone.
        (true, &[&limited_clone], 8),
        // Six: the oldest no longer counts.
        (false, &[&slow, &slow, &slow, &slow, &slow, &fast], 1700),
    ] {
        let known = Known {
            clones,
            ..known(&settings, earlier)
        };
        assert_eq!(pause(known), expected, "{clones} {}", earlier.len());
        let serving = Known {
            blocks_writers: false,
            ..known
        };
        let copy = serving.forecast().copy;
        // A guess keeps no run from beginning that holds nobody up.
        let sure = (copy.basis == Basis::Measured).then_some(copy.time);
        assert_eq!(serving.forecast().pause, Pause::UntilPinned(sure));
        let of_a_sidecar = config::Backup {
            taken_by: TakenBy::Sidecar,
            ..settings.backup.clone()
        };
        let sidecars = Known {
            backup: &of_a_sidecar,
            ..serving
        };
        assert_eq!(sidecars.forecast().pause, Pause::UntilPinned(None));
        assert_eq!(copy, known.forecast().copy);
        let pausing = Known {
            announces: Announces::Pause,
            ..serving
        };
        assert_eq!(pause(pausing), expected);
    }
}

#[test]
fn what_a_copy_rested_does_not_count() {
    let settings = settings("");
    let hurried = manifest(Way::File, GB, 2.0);
    let rested = Manifest {
        rested_seconds: 3.0,
        ..manifest(Way::File, GB, 5.0)
    };
    let slow = manifest(Way::File, GB, 5.0);
    let expected = pause(known(&settings, &[&hurried]));
    assert_eq!(pause(known(&settings, &[&rested])), expected);
    assert_ne!(pause(known(&settings, &[&slow])), expected);
}

#[test]
fn a_copy_by_pages_is_reckoned_by_copies_by_pages() {
    let settings = settings("method = \"pages\"\n");
    let file = manifest(Way::File, GB, 2.0);
    let paged = manifest(Way::Pages, GB, 4.0);
    assert_eq!(pause(known(&settings, &[&file])), 1133);
    assert_eq!(pause(known(&settings, &[&file, &paged])), 680);
}

/// Where the log and the backup are on one file system, the log takes some of the room for as
/// long as the pin lasts.
#[test]
fn the_log_takes_room_of_a_backup_on_the_same_file_system() {
    let settings = settings("wal_limit = \"2GB\"\n");
    let grew = |method, copy_seconds, wal_growth| Manifest {
        wal_growth,
        ..manifest(method, GB, copy_seconds)
    };
    // 17 s for a copy, 170 s for a stream, and in them 34 MB/s and half as much again.
    let busy = grew(Way::File, 1.0, Some(34_000_000));
    let quiet = grew(Way::File, 1.0, Some(1_000_000));
    let streamed = grew(Way::Stream, 10.0, Some(10_000_000));
    let short = grew(Way::File, 0.5, Some(GB));
    let untold = grew(Way::File, 1.0, None);
    let more = |earlier: &[&Manifest], blocks_writers, clones| {
        let alone = Known {
            blocks_writers,
            clones,
            ..known(&settings, earlier)
        };
        let together = Known {
            shares: true,
            ..alone
        };
        let (alone, together) = (alone.forecast(), together.forecast());
        assert_eq!(
            Forecast {
                room: alone.room,
                streamed: alone.streamed,
                ..together
            },
            alone
        );
        let streamed = together.streamed.zip(alone.streamed);
        (
            together.room - alone.room,
            streamed.map(|(together, alone)| together.room - alone.room),
        )
    };
    let limit = Some(2 * GB);
    for (earlier, expected) in [
        (&[&busy, &streamed][..], (17 * 51_000_000, limit)),
        (&[&quiet, &busy, &streamed], (17 * 51_000_000, limit)),
        (
            &[&quiet, &streamed],
            (17 * 1_500_000, Some(170 * 1_500_000)),
        ),
        // Unknown, or too short to tell: 40 MB/s, up to the limit.
        (&[&untold], (17 * 40_000_000, limit)),
        (&[&short, &untold], (340_000_000, limit)),
        (&[], (2 * GB, limit)),
    ] {
        assert_eq!(more(earlier, false, false), expected, "{}", earlier.len());
        // Nobody writes while announces wait.
        assert_eq!(more(earlier, true, false), (0, None));
    }
    let cloned = grew(Way::Clone, 1.0, Some(0));
    assert_eq!(more(&[&cloned, &busy], false, true).0, 17 * 51_000_000);
    assert_eq!(more(&[&cloned], false, true).0, 0);
}

#[test]
fn a_bandwidth_slows_a_copy_but_no_clone() {
    let settings = settings("bandwidth = \"100MB\"\n");
    let known = known(&settings, &[]);
    assert_eq!(pause(known), 1700);
    let serving = Known {
        blocks_writers: false,
        ..known
    };
    // What is configured is no guess. Nor is it a reason to stream.
    let forecast = serving.forecast();
    let copied = Pause::UntilPinned(Some(Duration::from_secs(170)));
    assert_eq!(forecast.copy.basis, Basis::Limited);
    assert_eq!(forecast.pause_of(Way::File), copied);
    // The compressor is slower than that, by guess.
    assert_eq!(forecast.pause_of(Way::Stream), Pause::UntilPinned(None));
    assert_eq!(
        pause(Known {
            clones: true,
            ..known
        }),
        85
    );
}

#[test]
fn room_is_reckoned_for_what_lies_there_at_once() {
    let earlier = &manifest(Way::File, GB, 1.0); // a quarter is left of it
    let (zstd, none, pages) = (
        settings(""),
        settings("compression = \"none\"\n"),
        settings("method = \"pages\"\n"),
    );
    let artifact = 17 * GB / 4;
    let streamed = Some(share(artifact, HURRIED) + SLACK);
    for (settings, clones, blocks_writers, way, room, streamed_room) in [
        (&zstd, false, false, Way::File, 17 * GB + artifact, streamed),
        (&zstd, false, true, Way::File, 17 * GB + artifact, None),
        (
            &zstd,
            true,
            false,
            Way::Clone,
            17 * GB / 8 + artifact,
            streamed,
        ),
        (&zstd, true, true, Way::Clone, 17 * GB / 8 + artifact, None),
        // The copy is the artifact; a clone grows to its full size in time.
        (&none, false, false, Way::File, 17 * GB, None),
        (&none, true, false, Way::Clone, 17 * GB, None),
        (&pages, true, false, Way::Pages, 17 * GB + artifact, None),
    ] {
        let forecast = Known {
            blocks_writers,
            clones,
            ..known(settings, &[earlier])
        }
        .forecast();
        assert_eq!(forecast.way, way);
        assert_eq!(forecast.room, room + SLACK, "{forecast:?}");
        let streamed = forecast.streamed.map(|streamed| streamed.room);
        assert_eq!(streamed, streamed_room, "{forecast:?}");

        assert_eq!(forecast.way_with(forecast.room), Some(way));
        let stream = streamed_room.map(|_| Way::Stream);
        assert_eq!(forecast.way_with(forecast.room - 1), stream);
        let least = streamed_room.unwrap_or(forecast.room);
        assert_eq!(forecast.way_with(least - 1), None);
    }
}

#[test]
fn only_what_would_need_less_room_is_advised() {
    let advice = |backup: &str, blocks_writers, clones| {
        let settings = settings(backup);
        let known = Known {
            blocks_writers,
            clones,
            ..known(&settings, &[])
        };
        known.forecast().with_less_room(&settings.backup)
    };
    let (journal, method) = ("journal_mode = \"wal\"", "method = \"auto\"");
    let (compression, streamed) = ("compression = \"zstd\"", "it still needs");
    let all = [journal, method, compression, streamed];
    for clones in [false, true] {
        for (backup, blocks_writers, expected) in [
            ("", false, &[streamed][..]),
            ("", true, &[journal]),
            ("method = \"pages\"\n", false, &[method]),
            ("method = \"pages\"\n", true, &[journal, method]),
            ("compression = \"none\"\n", false, &[compression]),
            ("compression = \"none\"\n", true, &[compression]),
        ] {
            let advised = advice(backup, blocks_writers, clones);
            for one in all {
                let is_expected = expected.contains(&one);
                assert_eq!(advised.contains(one), is_expected, "{backup:?}: {advised}");
            }
        }
        // An excerpt needs a raw copy, however the database is got hold of.
        for method in ["auto", "file", "pages"] {
            for compression in ["zstd", "none"] {
                for part in ["tables = [\"torrents\"]", "completed_only = true"] {
                    for blocks_writers in [false, true] {
                        let backup = format!(
                            "method = \"{method}\"\ncompression = \"{compression}\"\n{part}\n"
                        );
                        assert_eq!(advice(&backup, blocks_writers, clones), "", "{backup}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_check_is_reckoned_by_the_last_that_went_as_deep() {
    let checked = |verified, verify_seconds| Manifest {
        verified,
        verify_seconds,
        ..manifest(Way::File, GB, 1.0)
    };
    let quick = checked(Depth::Quick, Some(2.0));
    let full = checked(Depth::Full, Some(40.0));
    let older = checked(Depth::Full, Some(50.0));
    let unknown = checked(Depth::Full, None);
    let check = |depth: &str, earlier: &[&Manifest]| {
        let settings = settings(&format!("verify = \"{depth}\"\n"));
        known(&settings, earlier).forecast().check.as_secs()
    };
    assert_eq!(check("quick", &[]), 40);
    assert_eq!(check("full", &[]), 809);
    assert_eq!(check("full", &[&quick]), 809);
    assert_eq!(check("full", &[&unknown, &quick, &full, &older]), 680);
    assert_eq!(check("quick", &[&full, &quick]), 34);
}
