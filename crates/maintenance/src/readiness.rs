//! The readiness endpoint: HTTP/1.1 and JSON for sidecars, probes, the operator's tool.
//! `docs/api.md` has the bodies, and so has `openapi.json`, for programs.
//!
//! | request                        | answer                                                       |
//! |--------------------------------|--------------------------------------------------------------|
//! | `GET /health_check`            | 200 while the driver runs, 503 once it broke                 |
//! | `GET /ready`, `?wait=SECONDS`  | 200 while the file may be copied; else 503 and `Retry-After` |
//! | `GET /api/v1/status`           | 200: [`Status`]                                              |
//! | `POST /api/v1/runs`            | 202: a run has begun; 409: another is in the way             |
//! | `POST /api/v1/runs/ID/claim`   | 200: the lease; 409: somebody else's; 410: not this run      |
//! | `POST /api/v1/runs/ID/renew`   | 200: the lease; 409: not yours; 410: the run has ended       |
//! | `POST /api/v1/runs/ID/finish`  | 200: the verdict on the copy; 409, 410 as above              |
//! | `PUT /api/v1/journal-mode`     | 202: to WAL in the next run; 200: it is; 409: it cannot be   |
//! | `DELETE /api/v1/journal-mode`  | 200: it stays as it is; 409: a run is about to switch it     |
//! | `GET /metrics`                 | 200: the status as Prometheus reads it                       |
//! | `GET /openapi.json`            | 200: all this, as `OpenAPI` 3.1                              |
//!
//! `HEAD` is answered like `GET`. Everything else is a refusal, a 4xx or 5xx whose body
//! `{"error": "a_code", "message": "what, why and what to do"}` is for programs and people.
//!
//! # Who may ask
//!
//! To read, whoever reaches the address. To change something, whoever knows the token; if
//! there is none, whoever reaches the address, which is then a loopback one or a socket
//! whose file says who may connect ([`crate::maintenance`] sees to that).
//!
//! That leaves the browser of somebody on the same machine, which any page may send here.
//! It is kept from starting a run by three rules, any one of which would do today: what changes
//! something is refused with an `Origin` (a browser sends one with every `POST`), the body must be
//! declared as JSON (which a form cannot), and the `Host` must be an IP address, `localhost`
//! or a name that was configured (so a name that an attacker points at 127.0.0.1, DNS
//! rebinding, gets nowhere, not even to read).
//!
//! # What a client can cost
//!
//! A connection takes one of [`CONNECTIONS`] slots and a task. One that keeps the server
//! waiting gives way when all are taken (`slots`), and it loses its slot when a request's
//! header is not complete in [`HEADER_WITHIN`], a body in [`BODY_WITHIN`] or [`BODY_LIMIT`]
//! bytes, and always after [`CONNECTION_WITHIN`] plus [`FINISH_WITHIN`], whatever it does:
//! answers it does not read included. Of requests that wait for a run, [`POLLS`] wait at
//! once; to any more the answer is what there is to say now.
//!
//! # Layout
//!
//! Handlers are pure: a request's head or body and what is known in, an answer out. Only
//! [`serve`] and what it calls up to `Endpoint::answer` knows of sockets and time.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderValue,
    ORIGIN, RETRY_AFTER,
};
use http::request::Parts;
use http::uri::Authority;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, timeout};

use self::listener::Stream;
pub use self::listener::{Error, Listener};
use self::refusal::{Code, Refusal, too_large, unauthorized, wrong_method};
use self::slots::{Slot, Slots};
pub use self::token::Token;
use crate::driver::{Command, Refused};
use crate::lease::{self, Finished, Granted, Holder, Nonce, REASON_LIMIT, Verdict};
use crate::metrics;
use crate::status::{Reader, Ready, Status};
use crate::switch::{self, Ordered};
use crate::window::{Phase, RunId};

mod listener;
mod refusal;
mod slots;
pub mod token;

/// Connections served at once.
pub const CONNECTIONS: usize = 64;
/// Requests that wait for a run at once.
pub const POLLS: usize = 32;
/// The longest wait for a run.
pub const WAIT_AT_MOST: Duration = Duration::from_secs(60);
/// Most bytes of a request's body.
pub const BODY_LIMIT: usize = 64 * 1024;
/// Longest wait for a request's header, which is also how long a connection may be idle.
pub const HEADER_WITHIN: Duration = Duration::from_secs(5);
/// Longest wait for a request's body.
pub const BODY_WITHIN: Duration = Duration::from_secs(10);
/// Longest wait for the driver to take up a command.
pub const REPLY_WITHIN: Duration = Duration::from_secs(10);
/// After this a connection takes no further request.
pub const CONNECTION_WITHIN: Duration = Duration::from_secs(30);
/// How long the request being served then has left: it may have begun to wait just now.
pub const FINISH_WITHIN: Duration = Duration::from_secs(75);
/// How long requests being served have left when the service goes down.
pub const SHUTDOWN_WITHIN: Duration = Duration::from_secs(1);

/// The driver of the only database kind there is, as readiness signals and manifests name it.
pub const DRIVER: &str = "sqlite3";

/// Bytes of a request's header: these requests need a few hundred.
const HEADER_LIMIT: usize = 16 * 1024;
/// Pause after a failed accept, which most often means that descriptors have run out.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// What the endpoint takes and gives, for programs.
const OPENAPI: &str = include_str!("readiness/openapi.json");

/// Who may ask for what.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// What whoever changes something must know; `None`: nothing.
    pub token: Option<Token>,
    /// Names, besides IP addresses and `localhost`, that a request may give as its host; in
    /// small letters.
    pub hosts: Vec<String>,
}

/// Serves until `shutdown` completes, then gives requests being served
/// [`SHUTDOWN_WITHIN`] to end. To be called within a tokio runtime with I/O and time;
/// dropping the future ends every connection.
///
/// # Errors
///
/// When the runtime does not take the listener.
pub async fn serve(
    listener: Listener,
    access: Access,
    reader: Reader,
    commands: mpsc::Sender<Command>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let listener = listener.open()?;
    let going_down = watch::Sender::new(false);
    let endpoint = Arc::new(Endpoint {
        access,
        reader,
        commands,
        polls: Semaphore::new(POLLS),
        going_down: going_down.subscribe(),
    });
    let slots = Slots::new(CONNECTIONS);
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let next = async {
            let slot = slots.take().await;
            (slot, listener.accept().await)
        };
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            (slot, accepted) = next => {
                let (endpoint, down) = (Arc::clone(&endpoint), going_down.subscribe());
                match accepted {
                    Ok(Stream::Tcp(stream)) => {
                        connections.spawn(connection(stream, slot, endpoint, down));
                    }
                    Ok(Stream::Unix(stream)) => {
                        connections.spawn(connection(stream, slot, endpoint, down));
                    }
                    Err(_) => sleep(ACCEPT_AGAIN_AFTER).await,
                }
                // What was accepted is looked at before more is.
                yield_now().await;
            }
        }
    }
    drop(listener);
    going_down.send_replace(true);
    let finished = async { while connections.join_next().await.is_some() {} };
    // Dropping the set ends what has not finished by then.
    let _ = timeout(SHUTDOWN_WITHIN, finished).await;
    Ok(())
}

/// Serves one connection. What a client does wrong here is its own affair: hyper answers
/// what is not HTTP, and there is nobody to tell about a connection that broke.
async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    slot: Slot,
    endpoint: Arc<Endpoint>,
    mut going_down: watch::Receiver<bool>,
) {
    let service = service_fn(|request: Request<Incoming>| async {
        Ok::<_, Infallible>(endpoint.answer(request, &slot).await)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_WITHIN)
        .max_buf_size(HEADER_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = slot.given_away() => return,
        () = sleep(CONNECTION_WITHIN) => {}
        _ = going_down.wait_for(|down| *down) => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        _ = timeout(FINISH_WITHIN, connection) => {}
        () = slot.given_away() => {}
    }
}

/// What requests are answered from.
#[derive(Debug)]
struct Endpoint {
    access: Access,
    reader: Reader,
    commands: mpsc::Sender<Command>,
    polls: Semaphore,
    /// Nobody waits for what will not come.
    going_down: watch::Receiver<bool>,
}

type Answer = Response<Full<Bytes>>;

impl Endpoint {
    async fn answer<B>(&self, request: Request<B>, slot: &Slot) -> Answer
    where
        B: Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let answer = match admit(&head, &self.access) {
            Ok(Route::HealthCheck) => Ok(health_check(&self.reader.now())),
            Ok(Route::OpenApi) => Ok(openapi()),
            Ok(Route::Metrics) => Ok(metrics(&self.reader.now())),
            Ok(Route::Ready { wait }) => {
                self.wait_until_ready(wait, slot).await;
                let now = self.reader.now();
                Ok(ready(self.reader.ready().as_ref(), &now, wall_clock()))
            }
            Ok(Route::Status) => Ok(status(&self.reader.now())),
            Ok(Route::Command(command)) => self.command(command, body, slot).await,
            Err(refusal) => Err(refusal),
        };
        answer.unwrap_or_else(Refusal::answer)
    }

    /// Waits for a run to become ready, but not if too many wait already.
    async fn wait_until_ready(&self, wait: Duration, slot: &Slot) {
        let Ok(_poll) = self.polls.try_acquire() else {
            return;
        };
        let mut reader = self.reader.clone();
        let ready = async {
            if reader.wait_for(|status| status.ready).await.is_none() {
                // Without a driver it will never be. Whoever asks in a loop should not have
                // to wait less for that.
                std::future::pending::<()>().await;
            }
        };
        let mut down = self.going_down.clone();
        let _served = slot.serve();
        tokio::select! {
            _ = timeout(wait, ready) => {}
            _ = down.wait_for(|down| *down) => {}
        }
    }

    async fn command<B>(&self, route: CommandRoute, body: B, slot: &Slot) -> Result<Answer, Refusal>
    where
        B: Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let body = read(body).await?;
        let _served = slot.serve();
        match route {
            CommandRoute::Start => {
                let StartRun {} = parse_or_default(&body)?;
                let begun = self.ask(|reply| Command::Start { reply }).await??;
                Ok(started(&begun))
            }
            CommandRoute::Claim(run) => {
                let Claim { holder, lease } = parse(&body)?;
                let run = current(run)?;
                let asked = |reply| Command::Claim {
                    run: run.clone(),
                    holder,
                    nonce: lease.clone(),
                    reply,
                };
                let granted = self.ask(asked).await??;
                Ok(leased(&run, &lease, &granted, wall_clock()))
            }
            CommandRoute::Renew(run) => {
                let Renew { lease } = parse(&body)?;
                let run = current(run)?;
                let asked = |reply| Command::Renew {
                    run: run.clone(),
                    nonce: lease.clone(),
                    reply,
                };
                let granted = self.ask(asked).await??;
                Ok(leased(&run, &lease, &granted, wall_clock()))
            }
            CommandRoute::Finish(run) => {
                let Finish { lease, how } = parse::<FinishAs>(&body)?.check()?;
                let run = current(run)?;
                let asked = |reply| Command::Finish {
                    run: run.clone(),
                    nonce: lease,
                    how,
                    reply,
                };
                let verdict = self.ask(asked).await??;
                Ok(finished(&run, &verdict))
            }
            CommandRoute::OrderWal => {
                parse::<JournalMode>(&body)?.check()?;
                let ordered = self.ask(|reply| Command::OrderWal { reply }).await??;
                Ok(to_wal(&ordered))
            }
            CommandRoute::WithdrawWal => {
                let Withdraw {} = parse_or_default(&body)?;
                let asked = |reply| Command::WithdrawWal { reply };
                let withdrawn = self.ask(asked).await??;
                Ok(json(StatusCode::OK, &withdrawn))
            }
        }
    }

    /// What the driver replies.
    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Refusal> {
        let (reply, answered) = oneshot::channel();
        let asked = async {
            self.commands.send(command(reply)).await.ok()?;
            answered.await.ok()
        };
        match timeout(REPLY_WITHIN, asked).await {
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => Err(Refused::ShuttingDown.into()),
            Err(_) => Err(Refusal::new(
                Code::NoReply,
                "the maintenance driver did not take up the request in time and may still do so; \
                 look at /api/v1/status before you ask again",
            )),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "Retry-After and deadlines count from the moment of the answer; no decision hangs on it"
)]
fn wall_clock() -> DateTime<Utc> {
    Utc::now()
}

/// The whole body, if it is short enough and comes in time.
async fn read<B>(body: B) -> Result<Bytes, Refusal>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match timeout(BODY_WITHIN, Limited::new(body, BODY_LIMIT).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(cut_short(&error)),
        Err(_) => Err(too_slow()),
    }
}

// From here on everything is pure.

fn cut_short(error: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(
        Code::BadBody,
        format!("the body did not arrive whole: {error}; send the request again"),
    )
}

fn too_slow() -> Refusal {
    Refusal::new(
        Code::TooSlow,
        format!("the body did not arrive within {BODY_WITHIN:?}; send it at once"),
    )
}

/// What is asked for, once it is clear that it may be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Route {
    HealthCheck,
    OpenApi,
    Metrics,
    Ready { wait: Duration },
    Status,
    Command(CommandRoute),
}

/// What changes something. Runs are named by whoever asks; `None` can be no run.
#[derive(Debug, Clone, PartialEq, Eq)]
enum CommandRoute {
    Start,
    Claim(Option<RunId>),
    Renew(Option<RunId>),
    Finish(Option<RunId>),
    OrderWal,
    WithdrawWal,
}

impl CommandRoute {
    /// What is possible at its path.
    fn allowed(&self) -> &'static str {
        match self {
            Self::Start | Self::Claim(_) | Self::Renew(_) | Self::Finish(_) => "POST",
            Self::OrderWal | Self::WithdrawWal => "PUT, DELETE",
        }
    }
}

/// The body of `POST /api/v1/runs`: an empty object, or nothing. Fields may come.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StartRun {}

/// The body of a claim.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claim {
    holder: Holder,
    lease: Nonce,
}

/// The body of a renewal.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Renew {
    lease: Nonce,
}

/// The body of a finish, as it comes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FinishAs {
    lease: Nonce,
    result: FinishResult,
    #[serde(default)]
    reason: Option<String>,
}

/// The body of `PUT /api/v1/journal-mode`, as it comes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct JournalMode {
    journal_mode: String,
}

impl JournalMode {
    /// There is one way to go while the service runs. The mode is not repeated in the answer: it
    /// may be anything.
    fn check(&self) -> Result<(), Refusal> {
        if self.journal_mode == switch::WAL {
            return Ok(());
        }
        let message = format!(
            "journal_mode can be \"wal\" here and nothing else; to go back to a rollback \
             journal, {}",
            switch::THE_WAY_BACK
        );
        Err(Refusal::new(Code::BadBody, message))
    }
}

/// The body of `DELETE /api/v1/journal-mode`: an empty object, or nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Withdraw {}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FinishResult {
    Ok,
    Failed,
}

/// A finish.
#[derive(Debug, PartialEq, Eq)]
struct Finish {
    lease: Nonce,
    how: Finished,
}

impl FinishAs {
    /// A failure needs a reason; it is shown and logged, so it is brought onto one line.
    fn check(self) -> Result<Finish, Refusal> {
        let Self {
            lease,
            result,
            reason,
        } = self;
        let reason = reason.unwrap_or_default();
        if reason.chars().count() > REASON_LIMIT {
            let message = format!("a reason may have {REASON_LIMIT} characters; shorten it");
            return Err(Refusal::new(Code::BadBody, message));
        }
        let how = match result {
            FinishResult::Ok => Finished::Ok,
            FinishResult::Failed if reason.is_empty() => {
                let message = "who has failed says why: send a reason, for the operator to read";
                return Err(Refusal::new(Code::BadBody, message));
            }
            FinishResult::Failed => Finished::Failed(lease::on_one_line(&reason)),
        };
        Ok(Finish { lease, how })
    }
}

/// Decides by the head alone what is asked for and whether it may be.
fn admit(head: &Parts, access: &Access) -> Result<Route, Refusal> {
    check_host(head, &access.hosts)?;
    let route = match head.uri.path() {
        "/health_check" => Route::HealthCheck,
        "/openapi.json" => Route::OpenApi,
        "/metrics" => Route::Metrics,
        // Read when it is clear that the method is right.
        "/ready" => Route::Ready {
            wait: Duration::ZERO,
        },
        "/api/v1/status" => Route::Status,
        "/api/v1/journal-mode" if head.method == Method::DELETE => {
            Route::Command(CommandRoute::WithdrawWal)
        }
        "/api/v1/journal-mode" => Route::Command(CommandRoute::OrderWal),
        path => Route::Command(command_route(path).ok_or_else(not_found)?),
    };
    match (route, &head.method) {
        (Route::Command(command), method) => {
            let allowed = command.allowed();
            if !allowed.split(", ").any(|it| it == method.as_str()) {
                return Err(wrong_method(method, allowed));
            }
            check_command(&head.headers, access.token.as_ref())?;
            Ok(Route::Command(command))
        }
        (Route::Ready { .. }, &Method::GET | &Method::HEAD) => Ok(Route::Ready {
            wait: wait_of(head.uri.query().unwrap_or_default())?,
        }),
        (route, &Method::GET | &Method::HEAD) => Ok(route),
        (_, method) => Err(wrong_method(method, "GET, HEAD")),
    }
}

fn command_route(path: &str) -> Option<CommandRoute> {
    let below = path.strip_prefix("/api/v1/runs")?;
    if below.is_empty() {
        return Some(CommandRoute::Start);
    }
    let (run, what) = below.strip_prefix('/')?.split_once('/')?;
    if run.is_empty() {
        return None;
    }
    let run = RunId::parse(run);
    match what {
        "claim" => Some(CommandRoute::Claim(run)),
        "renew" => Some(CommandRoute::Renew(run)),
        "finish" => Some(CommandRoute::Finish(run)),
        _ => None,
    }
}

/// A path is not repeated in the answer: it may hold anything.
fn not_found() -> Refusal {
    Refusal::new(
        Code::NotFound,
        "there is nothing at this path; /openapi.json says what there is",
    )
}

/// What cannot be the id of a run is the id of none.
fn current(run: Option<RunId>) -> Result<RunId, Refusal> {
    run.ok_or_else(|| lease::Refused::StaleRun.into())
}

/// How long to wait for a run. Parameters that are not known are not looked at.
fn wait_of(query: &str) -> Result<Duration, Refusal> {
    let bad = || {
        Refusal::new(
            Code::BadQuery,
            format!(
                "wait is a whole number of seconds, said once, and more than {} are taken as that",
                WAIT_AT_MOST.as_secs()
            ),
        )
    };
    let mut values = query.split('&').filter_map(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        (name == "wait").then_some(value)
    });
    let (value, more) = (values.next(), values.next());
    match (value, more) {
        (None, _) => Ok(Duration::ZERO),
        (Some(value), None) if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) => {
            // Only a number that is too large for the type does not parse now.
            let seconds = value.parse().unwrap_or(u64::MAX);
            Ok(Duration::from_secs(seconds).min(WAIT_AT_MOST))
        }
        _ => Err(bad()),
    }
}

/// RFC 9112, section 3.2: exactly one `Host`; and a target in absolute form overrides it,
/// so both have to be right.
fn check_host(head: &Parts, configured: &[String]) -> Result<(), Refusal> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(Refusal::new(
            Code::BadHost,
            "a request needs exactly one Host header: the address it is sent to",
        ));
    };
    let target = head.uri.authority().map_or("", Authority::as_str);
    let named = [host.to_str().unwrap_or("?"), target];
    match named
        .into_iter()
        .find(|name| !name.is_empty() && !is_known(name, configured))
    {
        None if !named[0].is_empty() => Ok(()),
        _ => Err(Refusal::new(
            Code::WrongHost,
            "the Host must be an IP address, localhost or one of maintenance.readiness.hosts: any \
             other name could be pointed here by a web page; use http://127.0.0.1 and the port, \
             or add the name",
        )),
    }
}

/// Whether `host[:port]` is an IP address or `localhost`, what DNS has no say in, or was
/// configured.
fn is_known(authority: &str, configured: &[String]) -> bool {
    let Ok(authority) = authority.parse::<Authority>() else {
        return false;
    };
    let host = authority.host();
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let named = |name: &str| host.eq_ignore_ascii_case(name);
    let known = named("localhost")
        || configured.iter().any(|name| named(name))
        || bare.parse::<IpAddr>().is_ok();
    known && !authority.as_str().contains('@')
}

/// What a request that changes something must be, besides what every request must be.
fn check_command(headers: &HeaderMap, token: Option<&Token>) -> Result<(), Refusal> {
    if headers.contains_key(ORIGIN) {
        return Err(Refusal::new(
            Code::FromABrowser,
            "requests with an Origin header come from web pages, which may change nothing here; use \
             torrust-maintenance or curl",
        ));
    }
    if let Some(token) = token
        && !bearer(headers).is_some_and(|offered| token.is(offered))
    {
        return Err(unauthorized());
    }
    let media_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    let essence = media_type.split(';').next().unwrap_or("").trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(Refusal::new(
            Code::NotJson,
            "send Content-Type: application/json, and JSON as the body",
        ));
    }
    // Before anything of it is read; a body of unknown length is cut off while it is.
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok());
    match length.map(str::parse::<usize>) {
        Some(Ok(length)) if length > BODY_LIMIT => Err(too_large()),
        _ => Ok(()),
    }
}

/// RFC 6750, section 2.1: the one `Authorization`, if it is of this kind.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let (Some(only), None) = (all.next(), all.next()) else {
        return None;
    };
    let (scheme, token) = only.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}

fn health_check(status: &Status) -> Answer {
    if status.alive {
        json(StatusCode::OK, &json!({ "status": "Ok" }))
    } else {
        let message = "the maintenance driver broke: announces flow, but there are no more \
                       backups until the service is restarted";
        Refusal::new(Code::Broken, message).answer()
    }
}

fn openapi() -> Answer {
    with_body(StatusCode::OK, Bytes::from_static(OPENAPI.as_bytes()))
}

fn metrics(status: &Status) -> Answer {
    let mut answer = with_body(StatusCode::OK, Bytes::from(metrics::render(status)));
    let text = HeaderValue::from_static(metrics::CONTENT_TYPE);
    answer.headers_mut().insert(CONTENT_TYPE, text);
    answer
}

fn ready(ready: Option<&Ready>, status: &Status, now: DateTime<Utc>) -> Answer {
    if let Some(ready) = ready {
        return json(StatusCode::OK, ready);
    }
    let body = json!({
        "ready": false,
        "state": status.state,
        "run": status.run.as_ref().map(|run| &run.id),
        "next": status.next,
    });
    let mut answer = json(StatusCode::SERVICE_UNAVAILABLE, &body);
    if let Some(seconds) = retry_after(status, now) {
        answer
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    answer
}

/// Seconds until it is worth asking again (RFC 9110, section 10.2.3): one while a run is on
/// its way to ready, else until the next window begins, if one ever does.
fn retry_after(status: &Status, now: DateTime<Utc>) -> Option<u64> {
    match status.state {
        Phase::Preparing | Phase::Draining | Phase::Flushing | Phase::Retrying => Some(1),
        Phase::Serving | Phase::Copying | Phase::Offered | Phase::Leased | Phase::Finishing => {
            let milliseconds = (status.next?.begins - now).num_milliseconds();
            let seconds = u64::try_from(milliseconds).unwrap_or(0).div_ceil(1000);
            Some(seconds.max(1))
        }
    }
}

fn status(status: &Status) -> Answer {
    json(StatusCode::OK, status)
}

fn started(run: &RunId) -> Answer {
    json(StatusCode::ACCEPTED, &json!({ "run": run }))
}

/// Accepted, unless there is nothing left to do.
fn to_wal(ordered: &Ordered) -> Answer {
    let status = match ordered.switch {
        Some(_) => StatusCode::ACCEPTED,
        None => StatusCode::OK,
    };
    json(status, ordered)
}

fn leased(run: &RunId, lease: &Nonce, granted: &Granted, now: DateTime<Utc>) -> Answer {
    let body = json!({
        "run": run,
        "lease": lease.as_str(),
        "holder": granted.holder,
        "ttl_seconds": granted.ttl.as_secs_f64(),
        "expires_seconds": granted.expires.as_secs_f64(),
        "deadline": now + granted.deadline,
        "deadline_seconds": granted.deadline.as_secs_f64(),
    });
    json(StatusCode::OK, &body)
}

fn finished(run: &RunId, verdict: &Verdict) -> Answer {
    let Verdict {
        held_throughout,
        why,
    } = verdict;
    let body = json!({ "run": run, "held_throughout": held_throughout, "why": why });
    json(StatusCode::OK, &body)
}

/// A command's body: an object. Serde would take an array of the fields' values as well.
fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    let parsed = if body.trim_ascii_start().starts_with(b"{") {
        serde_json::from_slice(body).map_err(|error| error.to_string())
    } else {
        Err("it is no JSON object".to_owned())
    };
    parsed.map_err(|why| {
        let message = format!(
            "the body is not what this request takes: {why}; /openapi.json says what that is"
        );
        Refusal::new(Code::BadBody, message)
    })
}

/// As [`parse`]; nothing at all is as good as an empty object.
fn parse_or_default<'a, T: Default + Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    if body.trim_ascii().is_empty() {
        return Ok(T::default());
    }
    parse(body)
}

/// Every answer goes through here but those that are no status: a file, and text.
fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    match serde_json::to_vec(body) {
        Ok(body) => with_body(status, Bytes::from(body)),
        // A database path that is not UTF-8 is the one thing JSON cannot say.
        Err(error) => {
            let message = format!(
                "the answer cannot be written as JSON: {error}; give the database a path in UTF-8"
            );
            let body = json!({ "error": Code::NotUtf8.name(), "message": message });
            with_body(Code::NotUtf8.status(), Bytes::from(body.to_string()))
        }
    }
}

/// None may be cached: it is about this moment.
fn with_body(status: StatusCode, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

#[cfg(test)]
mod tests;
