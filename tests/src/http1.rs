//! HTTP/1.1 for tests: one request on one connection, or a connection kept alive.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A whole response.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status line's code.
    pub status: StatusCode,
    /// The body, decoded by nobody.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// When it is not.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| {
            format!(
                "{}: not JSON: {}",
                self.status,
                String::from_utf8_lossy(&self.body)
            )
        })
    }
}

/// A connection that serves one request after another.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: SocketAddr,
}

impl Connection {
    /// Opens one.
    ///
    /// # Errors
    /// When the server does not accept it.
    pub async fn open(to: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(to)
            .await
            .with_context(|| format!("connecting to {to}"))?;
        // Held requests are small and alone on their connection; waiting to fill a
        // segment would only be measured as latency of the tracker.
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, host: to })
    }

    /// Whether the server still has it open, as far as can be known.
    pub async fn is_usable(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    /// Sends one request and reads the whole answer.
    ///
    /// # Errors
    /// When the connection ends before the answer does.
    pub async fn send(&mut self, mut request: Request<Full<Bytes>>) -> Result<Answer> {
        if !request.headers().contains_key(header::HOST) {
            request
                .headers_mut()
                .insert(header::HOST, self.host.to_string().parse()?);
        }
        self.sender
            .ready()
            .await
            .context("the connection was closed")?;
        let response = self
            .sender
            .send_request(request)
            .await
            .context("no answer")?;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .context("half an answer")?
            .to_bytes();
        Ok(Answer { status, body })
    }

    /// A GET.
    ///
    /// # Errors
    /// See [`Connection::send`].
    pub async fn get(&mut self, path: &str) -> Result<Answer> {
        self.send(Request::get(path).body(Full::default())?).await
    }
}

/// Connections that are kept alive and used again. When all of them wait for an answer,
/// another is opened, so that a request never waits for one before it.
pub struct Pool {
    to: SocketAddr,
    idle: Mutex<Vec<Connection>>,
}

impl Pool {
    /// Without a connection yet.
    #[must_use]
    pub fn new(to: SocketAddr) -> Self {
        Self {
            to,
            idle: Mutex::default(),
        }
    }

    /// A GET on a connection that waits for no answer.
    ///
    /// # Errors
    /// See [`Connection::send`].
    pub async fn get(&self, path: &str) -> Result<Answer> {
        let mut connection = match self.kept().await {
            Some(connection) => connection,
            None => Connection::open(self.to).await?,
        };
        let answer = connection.get(path).await?;
        self.idle().push(connection);
        Ok(answer)
    }

    /// One the server has not closed meanwhile, as it may an idle one (RFC 9112, 9.5).
    async fn kept(&self) -> Option<Connection> {
        loop {
            let mut connection = self.idle().pop()?;
            if connection.is_usable().await {
                return Some(connection);
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A GET on a connection of its own.
///
/// # Errors
/// See [`Connection::send`].
pub async fn get(to: SocketAddr, path: &str) -> Result<Answer> {
    Connection::open(to).await?.get(path).await
}

/// A request with a JSON body on a connection of its own.
///
/// # Errors
/// See [`Connection::send`].
pub async fn send_json(to: SocketAddr, method: Method, path: &str, body: &str) -> Result<Answer> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::from(body.to_owned()))?;
    Connection::open(to).await?.send(request).await
}
