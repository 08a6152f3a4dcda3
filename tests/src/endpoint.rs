//! The readiness endpoint, as a sidecar or an operator sees it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::{Method, StatusCode};
use serde_json::Value;

use crate::http1::{self, Answer};
use crate::{ASK_EVERY, PATIENCE};

/// Client of one tracker's endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint(pub SocketAddr);

impl Endpoint {
    /// `GET /api/v1/status`.
    ///
    /// # Errors
    /// When there is no answer, or another than 200 with JSON.
    pub async fn status(&self) -> Result<Value> {
        let answer = http1::get(self.0, "/api/v1/status").await?;
        ensure!(
            answer.status == StatusCode::OK,
            "status answered {}",
            answer.status
        );
        answer.json()
    }

    /// `POST /api/v1/runs`, whatever it answers.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn post_run(&self) -> Result<Answer> {
        http1::send_json(self.0, Method::POST, "/api/v1/runs", "{}").await
    }

    /// Starts a run that must be accepted; its id. Where announces were held a moment ago it
    /// is asked for until they have flowed for as long.
    ///
    /// # Errors
    /// When it is refused, with the reason.
    pub async fn start_run(&self) -> Result<String> {
        self.start_run_asking(ASK_EVERY).await
    }

    /// As [`Endpoint::start_run`], asking no more often than this.
    ///
    /// # Errors
    /// When it is refused, with the reason.
    pub async fn start_run_asking(&self, every: Duration) -> Result<String> {
        let what = "a run may begin again";
        let (answer, body) = crate::until_asking(every, what, PATIENCE, async || {
            let answer = self.post_run().await?;
            let body = answer.json()?;
            Ok((body["error"] != "too_soon").then_some((answer, body)))
        })
        .await?;
        ensure!(
            answer.status == StatusCode::ACCEPTED,
            "a run was refused: {}: {body}",
            answer.status
        );
        Ok(body["run"]
            .as_str()
            .context("202 without a run id")?
            .to_owned())
    }

    /// The first status that `wanted` accepts.
    ///
    /// # Errors
    /// When none came `within` this time, with the last one seen.
    pub async fn until(
        &self,
        what: &str,
        within: Duration,
        mut wanted: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        let mut last = Value::Null;
        let found = crate::until(what, within, async || {
            last = self.status().await?;
            Ok(wanted(&last).then(|| last.clone()))
        })
        .await;
        found.with_context(|| format!("the last status: {last:#}"))
    }

    /// The entry of a run that has ended, from the list of the last runs.
    ///
    /// # Errors
    /// When it has not ended `within` this time.
    pub async fn ended(&self, run: &str, within: Duration) -> Result<Value> {
        let status = self
            .until(&format!("run {run} ended"), within, |status| {
                ended(status, run).is_some()
            })
            .await?;
        ended(&status, run).cloned().context("the run just seen")
    }

    /// Starts a run and waits for its end.
    ///
    /// # Errors
    /// When it is refused or does not end `within` this time.
    pub async fn run(&self, within: Duration) -> Result<Value> {
        let run = self.start_run().await?;
        self.ended(&run, within).await
    }
}

/// A run's entry in a status, once it has ended.
#[must_use]
pub fn ended<'a>(status: &'a Value, run: &str) -> Option<&'a Value> {
    status["runs"]
        .as_array()?
        .iter()
        .find(|entry| entry["id"] == run)
}
