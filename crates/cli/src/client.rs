//! The readiness endpoint, asked: one request, one connection, one limit in time.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use torrust_tracker_maintenance::status::Status;
use torrust_tracker_maintenance::window::RunId;

/// The whole exchange. Longer than the endpoint gives the driver to reply.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// Most bytes of an answer: a status has a few thousand.
const ANSWER_LIMIT: usize = 4 << 20;

/// A tracker's endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    address: SocketAddr,
}

/// Why there is no answer, or not the one that was wanted.
#[derive(Debug)]
pub enum Error {
    NotRunning {
        address: SocketAddr,
        source: io::Error,
    },
    Silent {
        address: SocketAddr,
        why: String,
    },
    /// The endpoint's own words.
    Refused {
        status: u16,
        error: String,
        message: String,
    },
    NotUnderstood {
        address: SocketAddr,
        why: String,
    },
}

impl std::error::Error for Error {}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotRunning { address, source } => write!(
                f,
                "no tracker answers at {address} ({source}): start it, or give the address of \
                 its maintenance.readiness.bind_address with --endpoint"
            ),
            Self::Silent { address, why } => write!(
                f,
                "{address} took the connection but did not answer ({why}): \
                 is that the readiness endpoint? If so look at the tracker's log"
            ),
            Self::Refused { message, .. } => f.write_str(message),
            Self::NotUnderstood { address, why } => write!(
                f,
                "{address} answered something else ({why}): is that the readiness endpoint, \
                 and of the same version as this program?"
            ),
        }
    }
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Self { address }
    }

    /// `GET /api/v1/status`, as the tracker gave it: another version may say more.
    pub async fn status_as_given(self) -> Result<Value, Error> {
        self.ask(Method::GET, "/api/v1/status").await
    }

    pub async fn status(self) -> Result<Status, Error> {
        self.understand(self.status_as_given().await?)
    }

    /// `POST /api/v1/runs`.
    pub async fn start(self) -> Result<RunId, Error> {
        let mut begun = self.ask(Method::POST, "/api/v1/runs").await?;
        self.understand(begun["run"].take())
    }

    pub fn understand<T: serde::de::DeserializeOwned>(self, value: Value) -> Result<T, Error> {
        serde_json::from_value(value).map_err(|error| self.not_understood(&error))
    }

    async fn ask(self, method: Method, path: &str) -> Result<Value, Error> {
        let stream = timeout(ANSWER_WITHIN, TcpStream::connect(self.address)).await;
        let stream = stream
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| Error::NotRunning {
                address: self.address,
                source,
            })?;
        let (status, body) = timeout(ANSWER_WITHIN, self.exchange(stream, method, path))
            .await
            .unwrap_or_else(|_| Err(self.silent(&format!("nothing within {ANSWER_WITHIN:?}"))))?;
        let body: Value =
            serde_json::from_slice(&body).map_err(|error| self.not_understood(&error))?;
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

    async fn exchange(
        self,
        stream: TcpStream,
        method: Method,
        path: &str,
    ) -> Result<(StatusCode, Bytes), Error> {
        let silent = |error: hyper::Error| self.silent(&error);
        let io = TokioIo::new(stream);
        let (mut sender, connection) = http1::handshake(io).await.map_err(silent)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.address.to_string())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from_static(b"{}")))
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

    fn silent(&self, why: &impl ToString) -> Error {
        Error::Silent {
            address: self.address,
            why: why.to_string(),
        }
    }

    fn not_understood(&self, why: &impl ToString) -> Error {
        Error::NotUnderstood {
            address: self.address,
            why: why.to_string(),
        }
    }
}

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
