use super::course::Tracker;
use super::figures::{LeftOut, Slice};
use super::*;

fn kept(phase: Phase, before: &[f64], after: &[f64]) -> Kept {
    let slice = |p99: &f64| Slice {
        began: testing::began(),
        seconds: 3_600.0,
        announces: 1_000,
        scrapes: 100,
        asked: 4_444_200,
        announce_p50_ms: Some(0.5),
        announce_p99_ms: Some(*p99),
        scrape_p99_ms: Some(0.25),
        refused: 0.0,
        cpu_ms: Some(12.5),
        database_ms: 400.0,
        resident_mb: Some(80.0),
        written_bytes: None,
        wal_mb: None,
    };
    let side = |p99s: &[f64]| Side {
        slices: p99s.iter().map(slice).collect(),
        left_out: [(LeftOut::Run, 2)].into(),
    };
    Kept {
        format: FORMAT,
        tracker: Tracker {
            endpoint: "127.0.0.1:1414".to_owned(),
            service: "torrust-tracker 3.0.0".to_owned(),
            version: "0.1.0".to_owned(),
            database: "./sqlite3.db".into(),
        },
        began: testing::began(),
        plan: course::plan(None, None, None, None).expect("the defaults"),
        phase,
        before: side(before),
        after: side(after),
    }
}

#[test]
fn each_decision_says_what_to_do_and_has_its_exit_code() {
    let path = Path::new("evaluate-wal.json");
    let cases: [(&[f64], Exit, &str, &str); 3] = [
        (
            &[5.0, 5.1],
            Exit::Done,
            "keep WAL; better: announce p99, ms",
            "journal_mode = \"wal\"",
        ),
        (
            &[20.0, 20.1],
            Exit::Verification,
            "GO BACK; worse: announce p99, ms",
            "journal_mode = \"delete\" in [maintenance] and restart",
        ),
        (
            &[10.0],
            Exit::Failed,
            "NOT DECIDED; not measured: announce p99, ms",
            "begin anew",
        ),
    ];
    for (after, exit, decision, to_do) in cases {
        let answer = answer(&kept(Phase::Decided, &[10.0, 10.1], after), path);
        assert_eq!(answer.exit, exit);
        for what in [format!("decision   {decision}"), to_do.to_owned()] {
            assert!(answer.text.contains(&what), "{what}: {}", answer.text);
        }
        let told = answer.json["to_do"].as_str().unwrap_or_default();
        assert!(told.contains(to_do), "{}", answer.json);
    }
}

#[test]
fn a_report_in_between_decides_nothing() {
    let path = Path::new("evaluate-wal.json");
    let answer = answer(&kept(Phase::Baseline, &[10.0, 10.1, 10.2], &[]), path);
    assert_eq!(answer.exit, Exit::Done);
    assert_eq!(answer.json["to_do"], Value::Null);
    assert_eq!(answer.json["phase"], "baseline");
    assert_eq!(
        answer.json["before"],
        json!({ "slices": 3, "left_out": { "run": 2 } })
    );
    for line in [
        "phase      baseline, 3 of 168 slices",
        "before     3 slices of 1 h since 2026-11-22 00:00:00 UTC; left out: 2 (a run took place in it)",
        "after      nothing; left out: 2 (a run took place in it)",
        "decision   none yet; so far not measured: ",
    ] {
        assert!(answer.text.contains(line), "{line}: {}", answer.text);
    }
}

#[test]
fn the_table_has_every_figure_and_what_it_counts_for() {
    let kept = kept(Phase::Decided, &[10.0, 11.0], &[5.0, 5.5]);
    let table = table_of(&kept.evaluation().differences).to_string();
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|line| {
            line.split("  ")
                .map(str::trim)
                .filter(|it| !it.is_empty())
                .collect()
        })
        .collect();
    assert_eq!(lines.len(), 11, "{table}");
    assert_eq!(
        lines[1],
        [
            "announce p99, ms",
            "10.5",
            "5.25",
            "0.500",
            "1.61",
            "better",
            "yes"
        ]
    );
    assert_eq!(
        [lines[10][0], lines[10][3], lines[10][5]],
        ["requests/s", "1.00", "not judged"]
    );
    assert_eq!(
        lines[8],
        [
            "written to disk, bytes an announce",
            "-",
            "-",
            "-",
            "-",
            "not known"
        ]
    );
}

#[test]
fn a_file_of_something_else_is_not_gone_on_with() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store {
        path: directory.path().join(STATE),
        disk: Disk::default(),
    };
    assert_eq!(store.read(), Ok(None));
    let kept = kept(Phase::Comparing, &[1.0, 2.0], &[3.0]);
    store.write(&kept).expect("there is room");
    assert_eq!(store.read(), Ok(Some(kept.clone())));
    let mut newer = serde_json::to_value(&kept).expect("it is plain");
    newer["format"] = json!(FORMAT + 1);
    for content in [newer.to_string(), "{}".to_owned(), "no JSON".to_owned()] {
        let written = store.disk.write_atomically(&store.path, content.as_bytes());
        written.expect("there is room");
        let refused = store.read().expect_err("it is something else");
        assert_eq!((refused.exit, refused.error), (Exit::Usage, "state"));
        assert!(refused.message.contains("--state"), "{}", refused.message);
    }
}

/// Whatever fails of a write, there is the old file or the new one.
#[test]
fn a_crash_loses_no_more_than_what_was_not_written() {
    let old = kept(Phase::Baseline, &[1.0], &[]);
    let new = kept(Phase::Baseline, &[1.0, 2.0], &[]);
    let mut failed = 0;
    loop {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(STATE);
        let at = |disk| Store {
            path: path.clone(),
            disk,
        };
        at(Disk::default()).write(&old).expect("there is room");
        let written = at(Disk::failing_at(failed)).write(&new);
        let read = at(Disk::default()).read().expect("a whole file");
        let read = read.expect("one of both");
        assert!(read == old || read == new, "{failed}: {read:?}");
        if written.is_ok() {
            assert_eq!(read, new);
            break;
        }
        failed += 1;
    }
    assert!(failed > 2, "nothing failed");
}

#[test]
fn two_do_not_collect_into_one_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store {
        path: directory.path().join(STATE),
        disk: Disk::default(),
    };
    let first = store.lock().expect("it is free");
    let second = store.lock().expect_err("it is taken");
    assert_eq!((second.exit, second.error), (Exit::Busy, "busy"));
    drop(first);
    assert!(store.lock().is_ok());
}

#[test]
fn what_is_to_be_typed_is_one_word_to_a_shell() {
    for (word, typed) in [
        ("unix:/run/t.sock", "unix:/run/t.sock"),
        ("[::1]:1414", "'[::1]:1414'"),
        ("my state.json", "'my state.json'"),
        ("it's", "'it'\\''s'"),
        ("", "''"),
    ] {
        assert_eq!(shell_word(word), typed);
    }
}
