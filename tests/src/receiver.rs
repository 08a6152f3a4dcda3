//! Somebody who is told things: a small HTTP server that notes what it is asked, and answers
//! as it was told to, or not at all.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// 200, with nothing more.
    Takes,
    /// With this status.
    Refuses(u16),
    /// Never.
    Hangs,
    /// 200, and then 10 MB.
    Floods,
}

/// What it was asked.
#[derive(Debug, Clone)]
pub struct Request {
    /// Method and target, `POST /hook`.
    pub line: String,
    /// All header lines, names in small letters.
    pub headers: Vec<String>,
    /// The body.
    pub body: String,
}

impl Request {
    /// The body as JSON.
    ///
    /// # Errors
    /// When it is not.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.body).with_context(|| format!("not JSON: {}", self.body))
    }
}

/// A receiver, until it is dropped.
#[derive(Debug)]
pub struct Receiver {
    /// Where it listens.
    pub address: SocketAddr,
    got: Arc<watch::Sender<Vec<Request>>>,
    manner: Arc<Mutex<Manner>>,
    listening: tokio::task::JoinHandle<()>,
}

impl Receiver {
    /// Listens on a port of its own.
    ///
    /// # Errors
    /// When there is none.
    pub async fn start(manner: Manner) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let got = Arc::new(watch::Sender::new(Vec::new()));
        let notes = Arc::clone(&got);
        let manner = Arc::new(Mutex::new(manner));
        let current = Arc::clone(&manner);
        let listening = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let manner = *current.lock().unwrap_or_else(PoisonError::into_inner);
                // Who hangs up is noted by what it asked before.
                tokio::spawn(serve(stream, manner, Arc::clone(&notes)));
            }
        });
        Ok(Self {
            address,
            got,
            manner,
            listening,
        })
    }

    /// Answers in this manner from now on.
    pub fn answers(&self, manner: Manner) {
        *self.manner.lock().unwrap_or_else(PoisonError::into_inner) = manner;
    }

    /// All it was asked so far.
    #[must_use]
    pub fn got(&self) -> Vec<Request> {
        self.got.borrow().clone()
    }

    /// The first request that `wanted` accepts.
    ///
    /// # Errors
    /// When none comes `within` this time, with those that did.
    pub async fn gets(
        &self,
        what: &str,
        within: Duration,
        wanted: impl Fn(&Request) -> bool,
    ) -> Result<Request> {
        let mut got = self.got.subscribe();
        let came = got.wait_for(|requests| requests.iter().any(&wanted));
        let came = timeout(within, came).await;
        let found = self.got().into_iter().find(|request| wanted(request));
        drop(came);
        found.with_context(|| format!("{what} did not come within {within:?}: {:#?}", self.got()))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    manner: Manner,
    notes: Arc<watch::Sender<Vec<Request>>>,
) -> Result<()> {
    let mut bytes = Vec::new();
    let request = loop {
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer).await?;
        anyhow::ensure!(read > 0, "it hung up");
        bytes.extend_from_slice(&buffer[..read]);
        if let Some(request) = parsed(&bytes) {
            break request;
        }
    };
    notes.send_modify(|got| got.push(request));
    let status = match manner {
        Manner::Takes | Manner::Floods => 200,
        Manner::Refuses(status) => status,
        Manner::Hangs => {
            // Until the other side has enough.
            let _ = stream.read(&mut [0; 1]).await;
            return Ok(());
        }
    };
    let length = if manner == Manner::Floods {
        10 << 20
    } else {
        0
    };
    let head = format!("HTTP/1.1 {status} Said\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&vec![b'x'; length]).await?;
    Ok(())
}

/// A request that is whole.
fn parsed(bytes: &[u8]) -> Option<Request> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let line = lines.next()?.trim_end_matches(" HTTP/1.1").to_owned();
    let headers: Vec<String> = lines
        .map(|line| match line.split_once(':') {
            Some((name, value)) => format!("{}:{value}", name.to_ascii_lowercase()),
            None => line.to_owned(),
        })
        .collect();
    let length = headers
        .iter()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
        .unwrap_or(0);
    (body.len() >= length).then(|| Request {
        line,
        headers,
        body: body.to_owned(),
    })
}
