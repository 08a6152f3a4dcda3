//! The readiness endpoint, asked: one request, one connection, one limit in time.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;
use std::{fs, io};

use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use torrust_tracker_maintenance::status::Status;
use torrust_tracker_maintenance::switch::Ordered;
use torrust_tracker_maintenance::window::RunId;

/// The whole exchange, once the tracker has no reason to wait any more. Longer than the
/// endpoint gives the driver to reply.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// Most bytes of an answer: a status has some ten thousand.
const ANSWER_LIMIT: usize = 4 << 20;

/// Where the order to go over to WAL is given.
const JOURNAL_MODE: &str = "/api/v1/journal-mode";

/// The renewal of a run that cannot be.
const NO_RUN: &str = "/api/v1/runs/none/renew";

/// Where a tracker's endpoint is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// Host and port; the host may be a name.
    Tcp(String),
    /// A Unix domain socket.
    Unix(PathBuf),
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path {
                "" => Err("the path of the socket is missing after `unix:`".to_owned()),
                path => Ok(Self::Unix(path.into())),
            };
        }
        if text.starts_with("https:") {
            return Err(
                "the endpoint does not speak TLS: write http://HOST:PORT, or \
                        unix:PATH for a socket on this machine"
                    .to_owned(),
            );
        }
        let authority = text.strip_prefix("http://").unwrap_or(text);
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let sound = authority.rsplit_once(':').is_some_and(|(host, port)| {
            let host = host
                .strip_prefix('[')
                .and_then(|host| host.strip_suffix(']'))
                .unwrap_or(host);
            let named = !host.is_empty()
                && host
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte));
            named && port.parse::<u16>().is_ok()
        });
        if sound {
            return Ok(Self::Tcp(authority.to_owned()));
        }
        Err("write HOST:PORT, http://HOST:PORT or unix:PATH".to_owned())
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(authority) => f.write_str(authority),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What a tracker asks for before it starts or ends something. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(HeaderValue);

impl Token {
    /// `None` for what cannot stand in a header.
    pub fn new(token: &str) -> Option<Self> {
        let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
        value.set_sensitive(true);
        Some(Self(value))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// A tracker's endpoint, and what it takes to be let in.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Endpoint,
    token: Option<Token>,
}

/// What was answered, if it was JSON.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Value,
}

/// Why there is no answer, or not the one that was wanted.
#[derive(Debug)]
pub enum Error {
    /// Nobody listens there.
    NotRunning {
        endpoint: Endpoint,
        source: io::Error,
    },
    /// Whether somebody does was not to be found out.
    Unreachable {
        endpoint: Endpoint,
        source: io::Error,
    },
    /// A socket that is for others.
    NotAllowed {
        endpoint: Endpoint,
        barrier: Barrier,
    },
    Silent {
        endpoint: Endpoint,
        why: String,
    },
    /// The endpoint's own words.
    Refused {
        status: u16,
        error: String,
        message: String,
    },
    NotUnderstood {
        endpoint: Endpoint,
        why: String,
    },
}

/// What keeps this user from a socket: the socket, or the first directory on the way to it
/// that cannot be passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Barrier {
    pub path: PathBuf,
    /// Its permissions.
    pub mode: u32,
    /// Its group's number.
    pub group: u32,
}

impl Barrier {
    /// On the way to `path`.
    fn before(path: &Path) -> Option<Self> {
        let seen = |path: &Path| Some((path.to_owned(), fs::metadata(path).ok()?));
        let (path, found) = path.ancestors().find_map(seen)?;
        Some(Self {
            path,
            mode: found.mode() & 0o7777,
            group: found.gid(),
        })
    }
}

impl std::error::Error for Error {}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotRunning { endpoint, source } => write!(
                f,
                "no tracker answers at {endpoint} ({source}): start it, or give the address of \
                 its maintenance.readiness.bind_address with --endpoint"
            ),
            Self::Unreachable { endpoint, source } => write!(
                f,
                "{endpoint} cannot be reached ({source}), so whether a tracker runs there is not \
                 known: is the address right, and the network up?"
            ),
            Self::NotAllowed {
                endpoint,
                barrier: Barrier { path, mode, group },
            } => write!(
                f,
                "this user may not connect to {endpoint}: {} is for its owner and the group \
                 {group} (mode {mode:04o}); run this as a user in that group",
                path.display()
            ),
            Self::Silent { endpoint, why } => write!(
                f,
                "{endpoint} took the connection but did not answer ({why}): \
                 is that the readiness endpoint? If so look at the tracker's log"
            ),
            Self::Refused { message, .. } => f.write_str(message),
            Self::NotUnderstood { endpoint, why } => write!(
                f,
                "{endpoint} answered something else ({why}): is that the readiness endpoint, \
                 and of the same version as this program?"
            ),
        }
    }
}

impl Client {
    pub fn new(endpoint: Endpoint, token: Option<Token>) -> Self {
        Self { endpoint, token }
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// `GET /api/v1/status`, as the tracker gave it: another version may say more.
    pub async fn status_as_given(&self) -> Result<Value, Error> {
        self.ask(Method::GET, "/api/v1/status", &json!({})).await
    }

    pub async fn status(&self) -> Result<Status, Error> {
        self.understand(self.status_as_given().await?)
    }

    /// `POST /api/v1/runs`.
    pub async fn start(&self) -> Result<RunId, Error> {
        let mut begun = self.post("/api/v1/runs", &json!({})).await?;
        self.understand(begun["run"].take())
    }

    /// `PUT /api/v1/journal-mode`: to WAL in the next run. Without an order in the answer the
    /// database is there already.
    pub async fn order_wal(&self) -> Result<Ordered, Error> {
        let body = json!({ "journal_mode": "wal" });
        self.understand(self.ask(Method::PUT, JOURNAL_MODE, &body).await?)
    }

    /// Whether whoever has this token may start and end something. It is asked with the renewal
    /// of a run that cannot be: the token is looked at first, and then there is no such run.
    pub async fn lets_in(&self) -> Result<(), Error> {
        let body = json!({ "lease": "0000000000000000" });
        match self.post(NO_RUN, &body).await {
            Err(Error::Refused { status: 410, .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(self.not_understood(&"a run that cannot be was renewed")),
        }
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Error> {
        self.ask(Method::POST, path, body).await
    }

    /// `GET` of what the tracker may take `wait` to answer, whatever it answers.
    pub async fn get(&self, path: &str, wait: Duration) -> Result<Answer, Error> {
        let within = wait.saturating_add(ANSWER_WITHIN);
        self.request(Method::GET, path, &json!({}), within).await
    }

    pub fn understand<T: serde::de::DeserializeOwned>(&self, value: Value) -> Result<T, Error> {
        serde_json::from_value(value).map_err(|error| self.not_understood(&error))
    }

    async fn ask(&self, method: Method, path: &str, body: &Value) -> Result<Value, Error> {
        let answer = self.request(method, path, body, ANSWER_WITHIN).await?;
        self.accepted(answer)
    }

    /// The body of what is no refusal.
    pub fn accepted(&self, answer: Answer) -> Result<Value, Error> {
        let Answer { status, body } = answer;
        if status.is_success() {
            return Ok(body);
        }
        let text = |key: &str| body[key].as_str().map(str::to_owned);
        match (text("error"), text("message")) {
            (Some(error), Some(message)) => Err(Error::Refused {
                status: status.as_u16(),
                error,
                message,
            }),
            _ => Err(self.not_understood(&status)),
        }
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: &Value,
        within: Duration,
    ) -> Result<Answer, Error> {
        let stream = timeout(ANSWER_WITHIN, self.connect()).await;
        let stream = stream
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| self.not_connected(source))?;
        let (status, body) = timeout(within, self.exchange(stream, method, path, body))
            .await
            .unwrap_or_else(|_| Err(self.silent(&format!("nothing within {within:?}"))))?;
        let body = serde_json::from_slice(&body).map_err(|error| self.not_understood(&error))?;
        Ok(Answer { status, body })
    }

    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match &self.endpoint {
            Endpoint::Tcp(authority) => Box::new(TcpStream::connect(authority).await?),
            Endpoint::Unix(path) => Box::new(UnixStream::connect(path).await?),
        })
    }

    /// That nobody is there is sure only where the system says so; `--force` depends on it.
    fn not_connected(&self, source: io::Error) -> Error {
        let endpoint = self.endpoint.clone();
        match (source.kind(), &endpoint) {
            (io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound, _) => {
                Error::NotRunning { endpoint, source }
            }
            (io::ErrorKind::PermissionDenied, Endpoint::Unix(path)) => {
                match Barrier::before(path) {
                    Some(barrier) => Error::NotAllowed { endpoint, barrier },
                    None => Error::Unreachable { endpoint, source },
                }
            }
            _ => Error::Unreachable { endpoint, source },
        }
    }

    async fn exchange(
        &self,
        stream: Box<dyn Stream>,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<(StatusCode, Bytes), Error> {
        let silent = |error: hyper::Error| self.silent(&error);
        let io = TokioIo::new(stream);
        let (mut sender, connection) = http1::handshake(io).await.map_err(silent)?;
        let host = match &self.endpoint {
            Endpoint::Tcp(authority) => authority,
            Endpoint::Unix(_) => "localhost",
        };
        let mut request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header(HOST, host)
            .header(CONTENT_TYPE, "application/json");
        // What only asks needs no token, and one that is not sent cannot be seen.
        if let Some(Token(token)) = self.token.as_ref().filter(|_| method != Method::GET) {
            request = request.header(AUTHORIZATION, token);
        }
        let request = request
            .body(Full::new(Bytes::from(body.to_string())))
            .map_err(|error| self.not_understood(&error))?;
        let answered = async {
            let (head, body) = sender
                .send_request(request)
                .await
                .map_err(silent)?
                .into_parts();
            let body = Limited::new(body, ANSWER_LIMIT).collect().await;
            let body = body.map_err(|error| self.not_understood(&error))?;
            Ok((head.status, body.to_bytes()))
        };
        tokio::pin!(answered, connection);
        // The connection moves the bytes; it may end before the answer has been taken up.
        tokio::select! {
            biased;
            answer = &mut answered => return answer,
            ended = &mut connection => ended.map_err(silent)?,
        }
        answered.await
    }

    /// It gave no answer.
    pub fn silent(&self, why: &impl ToString) -> Error {
        Error::Silent {
            endpoint: self.endpoint.clone(),
            why: why.to_string(),
        }
    }

    /// It answered something else.
    pub fn not_understood(&self, why: &impl ToString) -> Error {
        Error::NotUnderstood {
            endpoint: self.endpoint.clone(),
            why: why.to_string(),
        }
    }
}

/// A connection to an endpoint of either kind.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Lets a command, which is not async, ask.
pub fn block_on<T>(asking: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime for one thread needs an epoll descriptor and no more")
        .block_on(asking)
}

#[cfg(test)]
mod tests;
