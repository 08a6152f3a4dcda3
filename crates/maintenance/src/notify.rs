//! Telling somebody how runs end: a webhook that gets a notice of each that went wrong, and a
//! heartbeat that is asked for when a verified backup was published, and otherwise is not.
//!
//! A heartbeat is what tells of silence: a service that expects one a day raises the alarm
//! itself when the machine is gone, the network is, or this process. The webhook says why.
//!
//! # What an address may hold
//!
//! Most such services know a caller by the address alone, so it is a secret: a [`Target`]
//! shows its scheme and host and no more, and errors are told without it. The same goes for
//! a header. Neither follows a redirect to another host.
//!
//! # What a receiver can cost
//!
//! Each attempt has a limit in time, and of the answer only the status is looked at. How often
//! one is made is the herald's; the pauses between them grow ([`Pauses`]) and are a little different
//! each time, so that a service that was down is not asked by everybody at once. Nothing waits for
//! any of it.

use std::time::Duration;

use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Url};
use serde::Serialize;
use tokio::time::timeout;

use crate::disk::{self, Disk};
use crate::herald::{OfUploads, Turn};
use crate::schedule::Interval;
use crate::status::{BackupStatus, RemoteStatus, RunReport};
use crate::switch;
use crate::window::Outcome;

/// Most redirects followed.
const REDIRECTS: usize = 3;
/// More bytes than a file with a header has.
const HEADER_LIMIT: u64 = 16 << 10;
/// Characters of a message, and warnings, that a notice carries.
const MESSAGE_LIMIT: usize = 4000;
const WARNINGS_LIMIT: usize = 20;

/// An address on the web. It may hold a secret, so nothing shows more of it than scheme and
/// host.
#[derive(Clone, PartialEq, Eq)]
pub struct Target(Url);

impl Target {
    /// `None` for what is no address of HTTP or HTTPS.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let url = Url::parse(text).ok()?;
        let fits = matches!(url.scheme(), "http" | "https") && url.has_host();
        fits.then_some(Self(url))
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (scheme, host) = (self.0.scheme(), self.0.host_str().unwrap_or_default());
        write!(f, "{scheme}://{host}")?;
        match self.0.port() {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Target({self})")
    }
}

/// A header that is sent with every notice. Its value is a secret.
#[derive(Clone)]
pub struct Header {
    name: HeaderName,
    value: HeaderValue,
}

impl Header {
    /// The one in the first line of a file, `Name: value`.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or its first line is no header.
    pub fn read(path: &std::path::Path, disk: &Disk) -> Result<Self, HeaderError> {
        let contents = disk.read(path, HEADER_LIMIT)?;
        let text = String::from_utf8_lossy(&contents);
        let line = text.lines().next().unwrap_or_default();
        Self::parse(line).ok_or_else(|| HeaderError::Unfit {
            path: path.to_owned(),
        })
    }

    fn parse(line: &str) -> Option<Self> {
        let (name, value) = line.split_once(':')?;
        let mut value = HeaderValue::from_str(value.trim()).ok()?;
        value.set_sensitive(true);
        let name = name.trim().parse().ok()?;
        (!value.is_empty()).then_some(Self { name, value })
    }
}

impl std::fmt::Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Header({}: ..)", self.name)
    }
}

/// Why there is no header although one was configured.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The file cannot be read.
    #[error("maintenance.notify.webhook_header_file: {0}")]
    Disk(#[from] disk::Error),
    /// What is there is no header.
    #[error(
        "{} (maintenance.notify.webhook_header_file) does not begin with a header: write one on \
         its first line, such as `Authorization: Bearer ...`",
        path.display()
    )]
    Unfit {
        /// The file.
        path: std::path::PathBuf,
    },
}

/// Where it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The service and its version.
    pub service: String,
    /// The machine's name.
    pub host: String,
}

/// What the webhook gets; its fields are a contract, see `docs/monitoring.md`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Notice<'a> {
    /// All of it in a line or two, for people; chat services show this.
    pub text: String,
    /// Whether there is nothing to be done.
    pub good: bool,
    /// `run`, `missed` or `uploads`.
    pub event: &'static str,
    /// The service and its version.
    pub service: &'a str,
    /// The machine's name.
    pub host: &'a str,
    /// Version of this library.
    pub version: &'static str,
    /// The run, as the status reports it: `null` with the other events.
    pub run: Option<&'a RunReport>,
    /// The backup it published.
    pub backup: Option<&'a BackupStatus>,
    /// The window that had no run.
    pub window: Option<Interval>,
    /// With `uploads`, how they stand, as the status reports it.
    pub remote: Option<&'a RemoteStatus>,
}

impl<'a> Notice<'a> {
    /// Of a run that has ended. `troubled`: something beside it went wrong, a hook.
    #[must_use]
    pub fn of_run(
        origin: &'a Origin,
        report: &'a RunReport,
        made: Option<&'a BackupStatus>,
        troubled: bool,
    ) -> Self {
        let Origin { service, host } = origin;
        let ended = match &report.outcome {
            Outcome::Done => {
                let what = made.map_or_else(
                    || "the sidecar has its copy".to_owned(),
                    |made| {
                        let size = bytesize::ByteSize(made.stored_bytes);
                        format!("backup {} was published, {size}", made.id)
                    },
                );
                format!("{what}, announces paused {:.1} ms", report.pause_ms)
            }
            outcome => {
                let kind = outcome.kind().replace('_', " ");
                format!("no backup was made ({kind}): {}", outcome.message())
            }
        };
        let switched = report.switched_to.is_some();
        let switched = switched.then(|| format!("; {}", switch::SWITCHED));
        let warnings = report.warnings.iter().map(|it| format!("; warning: {it}"));
        let text = format!(
            "{service} on {host}: run {}: {ended}{}{}",
            report.id,
            switched.unwrap_or_default(),
            warnings.collect::<String>()
        );
        Self {
            text: shortened(&text),
            good: report.outcome == Outcome::Done && !troubled,
            event: "run",
            service,
            host,
            version: crate::VERSION,
            run: Some(report),
            backup: made,
            window: None,
            remote: None,
        }
    }

    /// Of a window that had no run; `why` says so.
    #[must_use]
    pub fn of_missed(origin: &'a Origin, window: Interval, why: &str) -> Self {
        let Origin { service, host } = origin;
        Self {
            text: format!("{service} on {host}: {why}"),
            good: false,
            event: "missed",
            service,
            host,
            version: crate::VERSION,
            run: None,
            backup: None,
            window: Some(window),
            remote: None,
        }
    }

    /// Of uploads to the second place of the backups.
    #[must_use]
    pub fn of_uploads(origin: &'a Origin, news: &'a OfUploads) -> Self {
        let Origin { service, host } = origin;
        Self {
            text: shortened(&format!("{service} on {host}: {}", news.text)),
            good: news.turn == Turn::Recovered,
            event: "uploads",
            service,
            host,
            version: crate::VERSION,
            run: None,
            backup: None,
            window: None,
            remote: Some(&news.status),
        }
    }
}

/// A report as it may be sent: of a bounded size, whatever a run came across.
#[must_use]
pub fn bounded(mut report: RunReport) -> RunReport {
    if let Outcome::Failed { message, .. }
    | Outcome::WouldNotFit { message }
    | Outcome::NoSidecar { message }
    | Outcome::Deadline { message, .. }
    | Outcome::Aborted { message, .. } = &mut report.outcome
    {
        *message = shortened(message);
    }
    report.warnings.truncate(WARNINGS_LIMIT);
    for warning in &mut report.warnings {
        *warning = shortened(warning);
    }
    report
}

fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(MESSAGE_LIMIT).collect();
    if short.len() < text.len() {
        short.push_str(" ...");
    }
    short
}

/// What there is to be delivered.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// A notice as JSON, by POST.
    Webhook {
        /// Where to.
        target: Target,
        /// What is sent with it.
        header: Option<Header>,
        /// The notice.
        json: String,
    },
    /// A request, by GET.
    Heartbeat {
        /// Where to.
        target: Target,
    },
}

/// Why nobody was told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The receiver does not want it.
    #[error("{target} answered {status}: {}", remedy(*status))]
    Refused {
        /// Scheme and host of the receiver.
        target: String,
        /// What it answered.
        status: StatusCode,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// There was no answer.
    #[error("{target} did not take it: {why}; is the address right, and the network up?")]
    Unreachable {
        /// Scheme and host of the receiver.
        target: String,
        /// Why.
        why: String,
    },
}

fn remedy(status: StatusCode) -> &'static str {
    match status.as_u16() {
        300..=399 => {
            "a redirect is followed to the same host only, if it keeps the method, and not for \
             ever; configure where it leads"
        }
        401 | 403 => "see that address and header are those it gave out",
        404 | 410 => "see that the address is the one it gave out, and still valid",
        400..=499 => "it does not take what is sent; is it the right kind of receiver?",
        _ => "it is out of order",
    }
}

impl Error {
    /// Whether another attempt may do better.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Refused { status, .. } => {
                status.is_server_error()
                    || *status == StatusCode::TOO_MANY_REQUESTS
                    || *status == StatusCode::REQUEST_TIMEOUT
            }
            Self::Unreachable { .. } => true,
        }
    }

    /// How long the receiver asks to be left alone.
    fn retry_after(&self) -> Duration {
        match self {
            Self::Refused { retry_after, .. } => retry_after.unwrap_or_default(),
            Self::Unreachable { .. } => Duration::ZERO,
        }
    }
}

/// How long is waited between two attempts.
#[derive(Debug, Clone, Copy)]
pub struct Pauses {
    /// After the first attempt; each further pause is three times as long, plus up to half of it.
    pub first: Duration,
    /// The longest, though a receiver asks for more.
    pub longest: Duration,
}

impl Default for Pauses {
    /// A second, three, nine ... up to ten minutes.
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(600),
        }
    }
}

impl Pauses {
    /// How long to wait when so many attempts in a row have failed, the last one with this.
    #[must_use]
    pub fn after(&self, attempts: u32, error: &Error) -> Duration {
        let times = 3_u32.saturating_pow(attempts.saturating_sub(1));
        let pause = self.first.saturating_mul(times).max(error.retry_after());
        let jitter = 1.0 + fastrand::f64() / 2.0;
        pause.min(self.longest).mul_f64(jitter)
    }
}

/// Delivers things.
#[derive(Debug, Clone)]
pub struct Messenger {
    client: Client,
    timeout: Duration,
}

impl Messenger {
    /// A messenger each of whose attempts takes at most `timeout`.
    ///
    /// # Errors
    ///
    /// When the system's certificates cannot be read.
    pub fn new(timeout: Duration) -> Result<Self, String> {
        let client = Client::builder()
            .user_agent(concat!("torrust-maintenance/", env!("CARGO_PKG_VERSION")))
            // Followed here: the client would write whole addresses into a log of details.
            .redirect(Policy::none())
            .timeout(timeout)
            // Notices are hours apart.
            .pool_max_idle_per_host(0)
            .build()
            .map_err(|error| chain(&error))?;
        Ok(Self { client, timeout })
    }

    /// Makes one attempt at a delivery, redirects included.
    ///
    /// # Errors
    ///
    /// When the receiver does not take it, or does not answer.
    pub async fn attempt(&self, delivery: &Delivery) -> Result<(), Error> {
        let unreachable = |why| Error::Unreachable {
            target: delivery.target().to_string(),
            why,
        };
        let sent = async {
            let mut url = delivery.target().0.clone();
            for _ in 0..=REDIRECTS {
                let request = delivery.request(&self.client, url.clone());
                // Of the answer's body nothing is read: it may be long, or repeat what was sent.
                let answer = request
                    .send()
                    .await
                    .map_err(|error| unreachable(chain(&error.without_url())))?;
                let status = answer.status();
                if status.is_success() {
                    return Ok(());
                }
                let header = |name| answer.headers().get(name)?.to_str().ok();
                let leads = header(LOCATION).and_then(|to| url.join(to).ok());
                let leads = leads.filter(|to| delivery.follows(status) && is_same_host(&url, to));
                let Some(to) = leads else {
                    let seconds = header(RETRY_AFTER).and_then(|it| it.parse().ok());
                    return Err(Error::Refused {
                        target: delivery.target().to_string(),
                        status,
                        retry_after: seconds.map(Duration::from_secs),
                    });
                };
                url = to;
            }
            Err(unreachable(format!(
                "it redirects more than {REDIRECTS} times"
            )))
        };
        match timeout(self.timeout, sent).await {
            Ok(sent) => sent,
            Err(_) => Err(unreachable(format!("no answer within {:?}", self.timeout))),
        }
    }
}

/// To HTTPS a redirect may lead, but not from it.
fn is_same_host(from: &Url, to: &Url) -> bool {
    let upgraded = from.scheme() == "http" && to.scheme() == "https";
    from.origin() == to.origin() || (upgraded && from.host() == to.host())
}

impl Delivery {
    /// Where it goes.
    #[must_use]
    pub fn target(&self) -> &Target {
        match self {
            Self::Webhook { target, .. } | Self::Heartbeat { target } => target,
        }
    }

    fn request(&self, client: &Client, url: Url) -> RequestBuilder {
        match self {
            Self::Webhook { header, json, .. } => {
                let request = client
                    .post(url)
                    .header(CONTENT_TYPE, "application/json")
                    .body(json.clone());
                match header {
                    Some(Header { name, value }) => request.header(name, value),
                    None => request,
                }
            }
            Self::Heartbeat { .. } => client.get(url),
        }
    }

    /// Whether it is redirected by such an answer (RFC 9110, section 15.4): some make a POST a
    /// GET, without the notice.
    fn follows(&self, status: StatusCode) -> bool {
        match self {
            Self::Webhook { .. } => matches!(status.as_u16(), 307 | 308),
            Self::Heartbeat { .. } => matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308),
        }
    }
}

/// An error with all its causes, on a line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
