//! When the gate closed and opened, as the tracker's status says.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::Clock;
use crate::PATIENCE;
use crate::endpoint::{self, Endpoint};

/// How often the status is asked for. A gate that closes and opens between two looks is
/// seen by what the run says of itself.
const LOOK: Duration = Duration::from_millis(20);

/// Something that happened at an instant, in seconds from the beginning of the load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// When.
    pub second: f64,
    /// What: `gate closed`, `gate open`, a state of the window, or what an experiment did.
    pub what: String,
}

impl Mark {
    /// Of an instant of the load.
    #[must_use]
    pub fn new(at: Duration, what: &str) -> Self {
        Self {
            second: at.as_secs_f64(),
            what: what.to_owned(),
        }
    }
}

/// The status as last seen: what differs from it is a mark.
#[derive(Debug)]
struct Seen {
    state: String,
    /// Since when the gate is closed.
    closed: Option<f64>,
    runs: Vec<String>,
    marks: Vec<Mark>,
}

impl Seen {
    fn new(status: &Value) -> Self {
        Self {
            state: state(status),
            closed: None,
            runs: ended(status).map(|(id, _)| id).collect(),
            marks: Vec::new(),
        }
    }

    /// Enters a status that was asked for at this second.
    fn look(&mut self, second: f64, status: &Value) {
        let closed_for = status["gate"]["closed_for_ms"].as_f64();
        match (closed_for, self.closed) {
            (Some(milliseconds), None) => {
                let since = second - milliseconds / 1_000.0;
                self.closed = Some(since);
                self.mark(since, "gate closed");
            }
            (None, Some(_)) => {
                self.closed = None;
                self.mark(second, "gate open");
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        let state = state(status);
        if state != self.state {
            self.mark(second, &state);
            self.state = state;
        }
        let runs: Vec<_> = ended(status).collect();
        for (id, pause) in &runs {
            if !self.runs.contains(id) {
                self.mark(
                    second,
                    &format!("run ended: gate closed for {pause:.1} ms in all"),
                );
            }
        }
        self.runs = runs.into_iter().map(|(id, _)| id).collect();
    }

    fn mark(&mut self, second: f64, what: &str) {
        self.marks.push(Mark {
            second,
            what: what.to_owned(),
        });
    }
}

fn state(status: &Value) -> String {
    status["state"].as_str().unwrap_or("unknown").to_owned()
}

/// The runs that have ended, each with the milliseconds its gate was closed.
fn ended(status: &Value) -> impl Iterator<Item = (String, f64)> {
    let runs = status["runs"].as_array().into_iter().flatten();
    runs.filter_map(|run| Some((run["id"].as_str()?.to_owned(), run["pause_ms"].as_f64()?)))
}

/// Asks for the status again and again until it is stopped.
pub struct Marks {
    stop: oneshot::Sender<()>,
    watching: JoinHandle<Vec<Mark>>,
    /// The status as last seen; null before the first look.
    last: watch::Receiver<Value>,
}

/// The status before a load. What is new after it is a mark, however soon it happens.
pub struct Before {
    endpoint: Endpoint,
    seen: Seen,
}

impl Before {
    /// Asks for it.
    ///
    /// # Errors
    /// When the endpoint does not answer.
    pub async fn ask(endpoint: Endpoint) -> Result<Self> {
        let seen = Seen::new(&endpoint.status().await?);
        Ok(Self { endpoint, seen })
    }

    /// Begins to watch.
    #[must_use]
    pub fn watch(self, clock: Clock) -> Marks {
        self.watch_every(LOOK, clock)
    }

    /// Begins to watch, and asks for the status this often: each time costs the tracker a
    /// connection and an answer.
    #[must_use]
    pub fn watch_every(self, every: Duration, clock: Clock) -> Marks {
        let Self { endpoint, mut seen } = self;
        let (stop, mut stopped) = oneshot::channel();
        let (told, last) = watch::channel(Value::Null);
        let watching = tokio::spawn(async move {
            let mut looks = interval(every);
            looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            loop {
                tokio::select! {
                    _ = &mut stopped => return seen.marks,
                    _ = looks.tick() => {
                        // A tracker that does not answer is seen by the load.
                        if let Ok(Ok(status)) = timeout(PATIENCE, endpoint.status()).await {
                            seen.look(clock.elapsed().as_secs_f64(), &status);
                            told.send_replace(status);
                        }
                    }
                }
            }
        });
        Marks {
            stop,
            watching,
            last,
        }
    }
}

impl Marks {
    /// The entry of a run once it has ended, as seen by the looks that are taken anyhow:
    /// nothing more is asked of the tracker.
    ///
    /// # Errors
    /// When it has not ended `within` this time.
    pub async fn ended(&self, run: &str, within: Duration) -> Result<Value> {
        let mut last = self.last.clone();
        let over = |status: &Value| endpoint::ended(status, run).is_some();
        let seen = timeout(within, last.wait_for(over))
            .await
            .with_context(|| format!("run {run} has not ended within {within:?}"))?
            .context("watching the status")?;
        endpoint::ended(&seen, run)
            .cloned()
            .context("the run just seen")
    }

    /// What was seen, in order.
    ///
    /// # Errors
    /// When the task panicked.
    pub async fn stop(self) -> Result<Vec<Mark>> {
        // An error: it has ended already.
        let _ = self.stop.send(());
        let mut marks = self.watching.await.context("watching the status")?;
        marks.sort_by(|a, b| a.second.total_cmp(&b.second));
        Ok(marks)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(state: &str, closed_for_ms: Option<f64>, runs: &[(&str, f64)]) -> Value {
        let runs: Vec<Value> = runs
            .iter()
            .map(|(id, pause)| json!({ "id": id, "pause_ms": pause }))
            .collect();
        json!({ "state": state, "gate": { "closed_for_ms": closed_for_ms }, "runs": runs })
    }

    #[test]
    fn a_closure_that_was_seen_is_marked_from_its_beginning() {
        let old = [("old", 1.0)];
        let mut seen = Seen::new(&status("serving", None, &old));
        for (second, look) in [
            (1.0, status("serving", None, &old)),
            (2.0, status("copying", Some(500.0), &old)),
            (3.0, status("copying", Some(1_500.0), &old)),
            (4.0, status("finishing", None, &old)),
            (
                5.0,
                status("serving", None, &[("new", 2_400.0), ("old", 1.0)]),
            ),
            (
                6.0,
                status("serving", None, &[("new", 2_400.0), ("old", 1.0)]),
            ),
        ] {
            seen.look(second, &look);
        }
        let found: Vec<_> = seen
            .marks
            .iter()
            .map(|mark| (mark.second, mark.what.as_str()))
            .collect();
        let wanted = [
            (1.5, "gate closed"),
            (2.0, "copying"),
            (4.0, "gate open"),
            (4.0, "finishing"),
            (5.0, "serving"),
            (5.0, "run ended: gate closed for 2400.0 ms in all"),
        ];
        assert_eq!(found, wanted);
    }
}
