//! The readiness endpoint: HTTP/1.1 and JSON, on loopback, for sidecars, probes, the
//! operator's tool. `docs/api.md` has the bodies.
//!
//! | request                | answer                                                         |
//! |------------------------|----------------------------------------------------------------|
//! | `GET /health_check`    | 200 while the driver runs, 503 once it broke                   |
//! | `GET /ready`           | 200 while the file may be copied; else 503 and `Retry-After`   |
//! | `GET /api/v1/status`   | 200: [`Status`]                                                |
//! | `POST /api/v1/runs`    | 202: a run has begun; 409: another is in the way               |
//!
//! `HEAD` is answered like `GET`. Everything else is a refusal, a 4xx or 5xx whose body
//! `{"error": "a_code", "message": "what, why and what to do"}` is for programs and people.
//!
//! # Who may ask
//!
//! Whoever reaches the address: it is a loopback one. That leaves the browser of somebody
//! on the same machine, which any page may send here. It is kept from starting a run by
//! three rules, any one of which would do today: `POST` with an `Origin` is refused (a
//! browser sends one with every `POST`), the body must be declared as JSON (which a form
//! cannot), and the `Host` must be an IP address or `localhost` (so a name that an attacker
//! points at 127.0.0.1, DNS rebinding, gets nowhere, not even to read).
//!
//! # What a client can cost
//!
//! A connection takes one of [`CONNECTIONS`] slots and a task; while none is free, new ones
//! wait in the listen queue. It loses its slot when a request's header is not complete in
//! [`HEADER_WITHIN`], a body in [`BODY_WITHIN`] or [`BODY_LIMIT`] bytes, and always after
//! [`CONNECTION_WITHIN`] plus [`FINISH_WITHIN`], whatever it does: answers it does not read
//! included.
//!
//! # Layout
//!
//! Handlers are pure: a request's head or body and a [`Status`] in, an answer out. Only
//! [`serve`] and what it calls up to `Endpoint::answer` knows of sockets and time.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, ORIGIN,
    RETRY_AFTER,
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
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::driver::{Command, Refused};
use crate::status::{Reader, Status};
use crate::window::{Phase, RunId};

/// Connections served at once.
pub const CONNECTIONS: usize = 64;
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
/// How long the request being served then has left.
pub const FINISH_WITHIN: Duration = Duration::from_secs(30);
/// How long requests being served have left when the service goes down.
pub const SHUTDOWN_WITHIN: Duration = Duration::from_secs(1);

/// The driver of the only database kind there is, as readiness signals and manifests name it.
pub const DRIVER: &str = "sqlite3";

/// Bytes of a request's header: these requests need a few hundred.
const HEADER_LIMIT: usize = 16 * 1024;
/// Pause after a failed accept, which most often means that descriptors have run out.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// The endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "could not listen on {address}: {source}; \
     stop what is listening there or change maintenance.readiness.bind_address"
)]
pub struct Error {
    /// Where.
    pub address: SocketAddr,
    /// What the operating system said.
    pub source: io::Error,
}

/// Opens the endpoint's address. Connections wait in the listen queue until [`serve`]
/// takes them, so a service can find out that the port is taken before it starts anything.
///
/// # Errors
///
/// When the address cannot be had.
pub fn bind(address: SocketAddr) -> Result<std::net::TcpListener, Error> {
    let bound = std::net::TcpListener::bind(address)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    bound.map_err(|source| Error { address, source })
}

/// Serves until `shutdown` completes, then gives requests being served
/// [`SHUTDOWN_WITHIN`] to end. To be called within a tokio runtime with I/O and time;
/// dropping the future ends every connection.
///
/// # Errors
///
/// When the runtime does not take the listener, which must be non-blocking.
pub async fn serve(
    listener: std::net::TcpListener,
    reader: Reader,
    commands: mpsc::Sender<Command>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let endpoint = Arc::new(Endpoint { reader, commands });
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let going_down = watch::Sender::new(false);
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            (slot, accepted) = next => match accepted {
                Ok((stream, _)) => {
                    let connection = connection(stream, Arc::clone(&endpoint), going_down.subscribe());
                    connections.spawn(async move {
                        connection.await;
                        drop(slot);
                    });
                }
                Err(_) => sleep(ACCEPT_AGAIN_AFTER).await,
            },
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
    stream: TcpStream,
    endpoint: Arc<Endpoint>,
    mut going_down: watch::Receiver<bool>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let endpoint = Arc::clone(&endpoint);
        async move { Ok::<_, Infallible>(endpoint.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_WITHIN)
        .max_buf_size(HEADER_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = sleep(CONNECTION_WITHIN) => {}
        _ = going_down.wait_for(|down| *down) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(FINISH_WITHIN, connection).await;
}

/// What requests are answered from.
#[derive(Debug)]
struct Endpoint {
    reader: Reader,
    commands: mpsc::Sender<Command>,
}

type Answer = Response<Full<Bytes>>;

impl Endpoint {
    async fn answer<B>(&self, request: Request<B>) -> Answer
    where
        B: Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let answer = match admit(&head) {
            Ok(Route::HealthCheck) => Ok(health_check(&self.reader.now())),
            Ok(Route::Ready) => Ok(ready(&self.reader.now(), wall_clock())),
            Ok(Route::Status) => Ok(status(&self.reader.now())),
            Ok(Route::Start) => self.start(body).await,
            Err(refusal) => Err(refusal),
        };
        answer.unwrap_or_else(Refusal::answer)
    }

    async fn start<B>(&self, body: B) -> Result<Answer, Refusal>
    where
        B: Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let StartRun {} = parse(&read(body).await?)?;
        let (reply, answered) = oneshot::channel();
        let asked = async {
            self.commands.send(Command::Start { reply }).await.ok()?;
            answered.await.ok()
        };
        match timeout(REPLY_WITHIN, asked).await {
            Ok(Some(result)) => Ok(started(&result?)),
            Ok(None) => Err(Refused::ShuttingDown.into()),
            Err(_) => Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "no_reply",
                "the maintenance driver did not take up the request in time and may still do so; \
                 look at /api/v1/status before you ask again",
            )),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "Retry-After counts from the moment of the answer; no decision hangs on it"
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
        Ok(Err(error)) => Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "bad_body",
            format!("the body could not be read: {error}"),
        )),
        Err(_) => Err(Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            "too_slow",
            format!("the body did not arrive within {BODY_WITHIN:?}"),
        )),
    }
}

// From here on everything is pure.

/// What is asked for, once it is clear that it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    HealthCheck,
    Ready,
    Status,
    Start,
}

/// The body of `POST /api/v1/runs`: an empty object, or nothing. Fields may come.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StartRun {}

/// A request that is turned down.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refusal {
    status: StatusCode,
    error: &'static str,
    message: String,
    allow: Option<&'static str>,
}

/// Decides by the head alone what is asked for and whether it may be.
fn admit(head: &Parts) -> Result<Route, Refusal> {
    check_host(head)?;
    let route = match head.uri.path() {
        "/health_check" => Route::HealthCheck,
        "/ready" => Route::Ready,
        "/api/v1/status" => Route::Status,
        "/api/v1/runs" => Route::Start,
        path => {
            return Err(Refusal::new(
                StatusCode::NOT_FOUND,
                "not_found",
                format!(
                    "there is no {path}; there are /health_check, /ready, /api/v1/status \
                     and /api/v1/runs"
                ),
            ));
        }
    };
    match (route, &head.method) {
        (Route::Start, &Method::POST) => check_command(&head.headers)?,
        (Route::Start, method) => return Err(wrong_method(method, "POST")),
        (_, &Method::GET | &Method::HEAD) => {}
        (_, method) => return Err(wrong_method(method, "GET, HEAD")),
    }
    Ok(route)
}

/// RFC 9112, section 3.2: exactly one `Host`; and a target in absolute form overrides it,
/// so both have to be right.
fn check_host(head: &Parts) -> Result<(), Refusal> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "bad_host",
            "a request needs exactly one Host header",
        ));
    };
    let target = head.uri.authority().map_or("", Authority::as_str);
    let named = [host.to_str().unwrap_or("?"), target];
    match named
        .into_iter()
        .find(|name| !name.is_empty() && !is_address(name))
    {
        None if !named[0].is_empty() => Ok(()),
        _ => Err(Refusal::new(
            StatusCode::MISDIRECTED_REQUEST,
            "wrong_host",
            "the Host must be an IP address or localhost: a name could be pointed here by a web \
             page; use http://127.0.0.1 and the port",
        )),
    }
}

/// Whether `host[:port]` is `localhost` or an IP address: what DNS has no say in.
fn is_address(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<Authority>() else {
        return false;
    };
    let host = authority.host();
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let address = host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok();
    address && !authority.as_str().contains('@')
}

/// What a request that changes something must be, besides what every request must be.
fn check_command(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.contains_key(ORIGIN) {
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "from_a_browser",
            "requests with an Origin header come from web pages, which may not start a run; \
             use torrust-maintenance or curl",
        ));
    }
    let media_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    let essence = media_type.split(';').next().unwrap_or("").trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "not_json",
            "send Content-Type: application/json, with {} or nothing as the body",
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

fn health_check(status: &Status) -> Answer {
    if status.alive {
        json(StatusCode::OK, &json!({ "status": "Ok" }))
    } else {
        let message = "the maintenance driver broke: announces flow, but there are no more \
                       backups until the service is restarted";
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "broken", message).answer()
    }
}

fn ready(status: &Status, now: DateTime<Utc>) -> Answer {
    let run = status.run.as_ref().map(|run| &run.id);
    if let (true, Some(run)) = (status.ready, run) {
        let body = json!({
            "ready": true,
            "run": run,
            "database": status.database.path,
            "driver": DRIVER,
        });
        return json(StatusCode::OK, &body);
    }
    let body = json!({
        "ready": false,
        "state": status.state,
        "run": run,
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
        Phase::Serving | Phase::Copying | Phase::Finishing => {
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

/// A command's body; nothing at all is as good as an empty object.
fn parse<'a, T: Default + Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    if body.trim_ascii().is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|error| {
        let message = format!("the body is not what this request takes: {error}");
        Refusal::new(StatusCode::BAD_REQUEST, "bad_body", message)
    })
}

fn wrong_method(method: &Method, allow: &'static str) -> Refusal {
    let message = format!("{method} is not possible here; use {allow}");
    Refusal {
        allow: Some(allow),
        ..Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", message)
    }
}

fn too_large() -> Refusal {
    Refusal::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "too_large",
        format!("a body may have {BODY_LIMIT} bytes; {{}} is enough"),
    )
}

impl Refusal {
    fn new(status: StatusCode, error: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            status,
            error,
            message,
            allow: None,
        }
    }

    fn answer(self) -> Answer {
        let body = json!({ "error": self.error, "message": self.message });
        let mut answer = json(self.status, &body);
        if let Some(allow) = self.allow {
            answer
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static(allow));
        }
        answer
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        let message = refused.to_string();
        match refused {
            Refused::Busy { .. } => Self::new(StatusCode::CONFLICT, "busy", message),
            Refused::Stuck { .. } => Self::new(StatusCode::CONFLICT, "stuck", message),
            Refused::ShuttingDown => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message)
            }
        }
    }
}

/// Every answer goes through here. None may be cached: it is about this moment.
fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    let (status, body) = match serde_json::to_vec(body) {
        Ok(body) => (status, body),
        // A database path that is not UTF-8 is the one thing JSON cannot say.
        Err(error) => {
            let message = format!("the answer cannot be written as JSON: {error}");
            let body = json!({ "error": "not_utf8", "message": message }).to_string();
            (StatusCode::INTERNAL_SERVER_ERROR, body.into_bytes())
        }
    };
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

#[cfg(test)]
mod tests;
