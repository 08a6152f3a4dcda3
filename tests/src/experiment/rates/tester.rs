//! The public load tester, `aquatic_udp_load_test`, as a child process: it sends as fast as
//! answers come back, and says how many came.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::sync::oneshot;

/// What it prints between making up its peers and sending for them.
const BEGINS: &str = "Peers per info hash";

/// What the tester reports of a whole run, averages per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Report {
    /// All answers.
    pub(super) responses: f64,
    /// Those to announces.
    pub(super) announces: f64,
    /// How long it sent. It looks at its clock every 5 s.
    pub(super) seconds: f64,
}

/// What it says of its version.
///
/// # Errors
/// When it cannot be started.
pub(super) async fn version(program: &Path) -> Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| {
            format!(
                "starting {}: install it with `cargo install --locked aquatic_udp_load_test@0.9.0`, \
                 or say where it is with --load-test",
                program.display()
            )
        })?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs it to its end. Tells when it begins to send.
///
/// # Errors
/// When it fails or reports something else than expected.
pub(super) async fn run(
    program: &Path,
    tracker: SocketAddr,
    seconds: u64,
    loaded: oneshot::Sender<()>,
) -> Result<Report> {
    let directory = tempfile::tempdir()?;
    let configuration = directory.path().join("load_test.toml");
    // A receive buffer of what the kernel gives without further rights.
    let most = fs::read_to_string("/proc/sys/net/core/rmem_max")?;
    fs::write(
        &configuration,
        format!(
            "server_address = \"{tracker}\"\nduration = {seconds}\n\
             [network]\nrecv_buffer = {}\n\
             [requests]\nweight_connect = 50\nweight_announce = 50\nweight_scrape = 1\n",
            most.trim(),
        ),
    )?;
    let mut tester = Command::new(program)
        .arg("-c")
        .arg(&configuration)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let output = tester.stdout.take().context("its output is piped")?;
    let mut lines = BufReader::new(output).lines();
    let mut loaded = Some(loaded);
    let mut said = String::new();
    while let Some(line) = lines.next_line().await? {
        if line.starts_with(BEGINS)
            && let Some(loaded) = loaded.take()
        {
            // Who is told has its own error if it is not there any more.
            let _ = loaded.send(());
        }
        said = said + &line + "\n";
    }
    let status = tester.wait().await?;
    ensure!(status.success(), "the load tester failed: {status}\n{said}");
    report(&said)
}

fn report(said: &str) -> Result<Report> {
    Ok(Report {
        responses: last_number(said, "Average responses per second:")?,
        announces: last_number(said, "- Announce responses:")?,
        seconds: last_number(said, "Test ran for")?,
    })
}

/// The number behind the last occurrence of a label, which is the one of the whole run.
fn last_number(text: &str, label: &str) -> Result<f64> {
    let (_, after) = text
        .rsplit_once(label)
        .with_context(|| format!("the load tester did not say {label}"))?;
    let number = after.split_whitespace().next().unwrap_or_default();
    number
        .parse()
        .with_context(|| format!("{label} is followed by {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As version 0.9.0 prints it.
    const SAID: &str = "Number of info hashes: 864999\nPeers per info hash:\n  - p10: 1\n\n\
        Requests out: 90000.00/second\nResponses in: 80000.00/second\n\
        \x20 - Connect responses:  40000.00\n  - Announce responses: 39000.00\n\
        \x20 - Scrape responses:   1000.00\n  - Error responses:    0.00\n\
        Peers per announce response: 0.52\n\n\
        # aquatic load test report\n\nTest ran for 10 seconds \n\
        Average responses per second: 72595.53\n  - Connect responses:  35999.00\n\
        \x20 - Announce responses: 35999.73\n  - Scrape responses:   596.80\n\
        \x20 - Error responses:    0.00\n\nConfig: Config {\n    duration: 10,\n}\n";

    #[test]
    fn of_what_is_said_several_times_the_report_of_the_whole_run_counts() -> Result<()> {
        let wanted = Report {
            responses: 72_595.53,
            announces: 35_999.73,
            seconds: 10.0,
        };
        assert_eq!(report(SAID)?, wanted);
        assert!(SAID.lines().any(|line| line.starts_with(BEGINS)));
        Ok(())
    }

    #[test]
    fn what_is_missing_is_named() {
        let cut = SAID.replace("Test ran for", "It ran for");
        let error = report(&cut).expect_err("it does not say how long");
        assert!(format!("{error:#}").contains("Test ran for"), "{error:#}");
    }
}
