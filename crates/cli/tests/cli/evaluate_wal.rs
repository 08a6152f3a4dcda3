//! `evaluate-wal` as a process, against the library's own driver and endpoint. What a switch does
//! is tried end to end.

use std::process::{Child, ChildStderr};

use torrust_tracker_maintenance::gate::{Door, Request};

use super::*;

/// One that measures a second at a time, for an hour.
const LONG: [&str; 6] = [
    "evaluate-wal",
    "--slice=1s",
    "--baseline=1h",
    "--comparison=1h",
    "--state=state.json",
    "--json",
];

/// An evaluation that runs, and what it says.
struct Evaluation {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStderr>>,
}

impl Evaluation {
    fn start(home: &Home) -> Result<Self> {
        let mut child = home
            .command(&LONG)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stderr.take().ok_or("it is piped")?).lines();
        Ok(Self { child, lines })
    }

    /// Waits for a line of this kind, and returns its message.
    fn says(&mut self, event: &str) -> Result<String> {
        for line in self.lines.by_ref() {
            let line: Value = serde_json::from_str(&line?)?;
            if line["event"] == event {
                return Ok(line["message"].as_str().ok_or("a text")?.to_owned());
            }
        }
        Err(format!("it ended without saying {event}").into())
    }

    /// Waits for a slice that counts. What is answered for the first may come before it begins, and
    /// then it is for the next one.
    fn slice(&mut self, gate: &Gate) -> Result<String> {
        answer(gate);
        for line in self.lines.by_ref() {
            let line: Value = serde_json::from_str(&line?)?;
            if line["event"] == "slice" {
                return Ok(line["message"].as_str().ok_or("a text")?.to_owned());
            }
            answer(gate);
        }
        Err("it ended without a slice".into())
    }

    /// Sends a signal and waits for its end: the exit code, and what it said last.
    fn told(mut self, signal: &str) -> Result<(Option<i32>, String)> {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status()?.success());
        let status = self.child.wait()?;
        let rest = self.lines.by_ref().collect::<std::io::Result<Vec<_>>>()?;
        Ok((status.code(), rest.join("\n")))
    }
}

impl Drop for Evaluation {
    fn drop(&mut self) {
        // A test that failed leaves nothing behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The tracker has answered as much as a slice needs.
fn answer(gate: &Gate) {
    let counters = gate.counters(Door::Udp);
    counters.answer(Request::Announce, Duration::from_millis(2), 1_000);
    counters.spend(Duration::from_millis(5));
}

fn on_a_rollback_journal() -> Result<(Tracker, Gate, Home)> {
    let (tracker, gate) = Tracker::with_gate(Idle {
        journal_mode: "delete",
        ..Idle::default()
    })?;
    let home = Home::at(tracker.address)?;
    Ok((tracker, gate, home))
}

#[test]
fn what_is_in_wal_already_is_refused() -> Result {
    let tracker = Tracker::start(Idle::default())?;
    let home = Home::at(tracker.address)?;
    let output = home.run(&["evaluate-wal", "--json"])?;
    assert_eq!(output.code, 3, "{output:?}");
    let error = output.error()?;
    assert_eq!(error["error"], "already_wal");
    let message = error["message"].as_str().ok_or("a message")?;
    assert!(message.contains("journal_mode = \"delete\""), "{message}");
    assert!(!home.path("evaluate-wal.json").exists(), "nothing is begun");
    Ok(())
}

/// A week later would be too late: it is known from the status, whatever configuration is here.
#[test]
fn a_tracker_that_would_not_switch_is_refused_at_once() -> Result {
    let tracker = Tracker::start(Idle {
        journal_mode: "delete",
        switch: Err(NoSwitch::Configured),
        ..Idle::default()
    })?;
    let home = Home::at(tracker.address)?;
    let output = home.run(&["evaluate-wal", "--json"])?;
    assert_eq!(output.code, 3, "{output:?}");
    let error = output.error()?;
    assert_eq!(error["error"], "switch_refused");
    let message = error["message"].as_str().ok_or("a message")?;
    assert!(message.contains("journal_mode = \"delete\""), "{message}");
    assert!(!home.path("evaluate-wal.json").exists(), "nothing is begun");
    Ok(())
}

/// The line can be typed as it is.
#[test]
fn what_was_interrupted_says_how_to_go_on_with_the_same_options() -> Result {
    let (tracker, gate, home) = on_a_rollback_journal()?;
    let endpoint = format!("--endpoint={}", tracker.address);
    let mut child = home
        .command(&[&LONG[..], &["--now", &endpoint]].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(child.stderr.take().ok_or("it is piped")?).lines();
    let mut evaluation = Evaluation { child, lines };
    evaluation.says("begins")?;
    evaluation.slice(&gate)?;
    let (_, said) = evaluation.told("-TERM")?;
    let line = format!(
        "--endpoint {} evaluate-wal --now --state state.json`",
        tracker.address
    );
    assert!(said.contains(&line), "{line}: {said}");
    Ok(())
}

#[test]
fn before_anything_was_measured_there_is_no_report() -> Result {
    let home = Home::new()?;
    let output = home.run(&["evaluate-wal", "--report", "--json"])?;
    assert_eq!(output.code, 3, "{output:?}");
    assert_eq!(output.error()?["error"], "no_evaluation");
    // Nor is one begun with a tracker that is not there.
    let output = home.run(&["evaluate-wal", "--json"])?;
    assert_eq!(output.error()?["error"], "not_running");
    assert!(!home.path("evaluate-wal.json").exists());
    for wrong in [
        &["--slice=1h", "--baseline=1h"][..],
        &["--slice=0s"],
        &["--report", "--now"],
    ] {
        let output = home.run(&[&["evaluate-wal"], wrong].concat())?;
        assert_eq!(output.code, 2, "{wrong:?}: {output:?}");
    }
    Ok(())
}

/// The baseline is collected from the real endpoint, slice by slice, and killing the tool takes no
/// more than the slice in progress.
#[test]
fn a_baseline_is_collected_over_kills_and_restarts_of_the_tool() -> Result {
    let (_tracker, gate, home) = on_a_rollback_journal()?;
    let mut had = 0;
    for (round, signal) in ["-KILL", "-TERM", "-INT"].into_iter().enumerate() {
        let mut evaluation = Evaluation::start(&home)?;
        evaluation.says("begins")?;
        for _ in 0..2 {
            let message = evaluation.slice(&gate)?;
            had += 1;
            assert_eq!(message, format!("baseline, {had} of 3600 slices"));
        }
        let (code, said) = evaluation.told(signal)?;
        if signal == "-KILL" {
            assert_eq!(code, None);
        } else {
            assert_eq!(code, Some(1), "{said}");
            for what in [
                "interrupted",
                "state.json",
                "to go on",
                signal.trim_matches('-'),
            ] {
                assert!(said.contains(what), "{what}: {said}");
            }
        }
        let report = home.run(&["evaluate-wal", "--report", "--state=state.json", "--json"])?;
        let report = report.json()?;
        assert_eq!(report["before"]["slices"], had, "round {round}: {report}");
        assert_eq!(report["phase"], "baseline");
        assert_eq!(report["evaluation"]["decision"], "undecided");
    }
    let text = home.run(&["evaluate-wal", "--report", "--state=state.json"])?;
    assert_eq!(text.code, 0, "{text:?}");
    for what in [
        "FIGURE",
        "announce p99, ms",
        "requests/s",
        "decision   none yet",
    ] {
        assert!(text.out.contains(what), "{what}: {}", text.out);
    }
    Ok(())
}

#[test]
fn two_cannot_collect_into_one_file_and_another_tracker_cannot_either() -> Result {
    let (_tracker, gate, home) = on_a_rollback_journal()?;
    let mut evaluation = Evaluation::start(&home)?;
    evaluation.says("begins")?;
    let second = home.run(&LONG)?;
    assert_eq!(second.code, 4, "{second:?}");
    assert_eq!(second.error()?["error"], "busy");
    evaluation.slice(&gate)?;
    evaluation.told("-TERM")?;

    let slices = home.run(&["evaluate-wal", "--state=state.json", "--slice=2s", "--json"])?;
    assert_eq!(slices.code, 2, "{slices:?}");
    assert_eq!(slices.error()?["error"], "usage");
    let (other, _gate, _home) = on_a_rollback_journal()?;
    let endpoint = format!("--endpoint={}", other.address);
    let refused = home.run(&["evaluate-wal", "--state=state.json", &endpoint, "--json"])?;
    assert_eq!(refused.code, 2, "{refused:?}");
    assert_eq!(refused.error()?["error"], "another_tracker");
    Ok(())
}
