//! A real S3 server, and what may be between it and its clients: a front that answers 503, cuts
//! connections in the middle of a request, or is slow.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::handshake;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::tracker::Setup;
use crate::{PATIENCE, binaries};

/// The one bucket.
pub const BUCKET: &str = "backups";

/// A server that ends with this, with one bucket and one user.
#[derive(Debug)]
pub struct Server {
    _child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// Who may use it.
    pub key: Key,
}

/// A user's key.
#[derive(Debug, Clone, Deserialize)]
pub struct Key {
    /// Its public half.
    pub access_key_id: String,
    /// Its secret half.
    pub secret_access_key: String,
}

#[derive(Deserialize)]
struct Started {
    port: u16,
    #[serde(flatten)]
    key: Key,
}

impl Server {
    /// Starts one.
    ///
    /// # Errors
    /// When it is not installed, or does not start.
    pub async fn start() -> Result<Self> {
        let python = tools()?.join("s3-venv/bin/python");
        ensure!(
            python.exists(),
            "there is no {}: `./tests/run` installs it",
            python.display()
        );
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("s3-server.py");
        let mut child = Command::new(python)
            .arg(script)
            .arg(BUCKET)
            // It ends with its standard input, however this ends.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("starting the S3 server")?;
        let lines = BufReader::new(child.stdout.take().context("a piped stdout")?).lines();
        let line = timeout(PATIENCE, { lines }.next_line())
            .await
            .context("the S3 server does not start")??;
        let started: Started = serde_json::from_str(&line.context("the S3 server ended")?)?;
        Ok(Self {
            _child: child,
            address: SocketAddr::from(([127, 0, 0, 1], started.port)),
            key: started.key,
        })
    }
}

impl Server {
    /// What a client that is not ours sees and does: lines of Python with `s3`, a client of
    /// boto3, and `bucket`. What they print.
    ///
    /// # Errors
    /// When they fail, with what they say.
    pub async fn ask(&self, lines: &str) -> Result<String> {
        const CLIENT: &str = "import boto3, json, sys\n\
            url, key, secret, bucket = sys.argv[1:]\n\
            s3 = boto3.client('s3', endpoint_url=url, region_name='us-east-1', \
            aws_access_key_id=key, aws_secret_access_key=secret)\n";
        let asked = Command::new(tools()?.join("s3-venv/bin/python"))
            .arg("-c")
            .arg(format!("{CLIENT}{lines}"))
            .arg(format!("http://{}", self.address))
            .args([&self.key.access_key_id, &self.key.secret_access_key])
            .arg(BUCKET)
            .kill_on_drop(true)
            .output();
        let output = timeout(PATIENCE, asked)
            .await
            .context("the client hangs")??;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{lines}: {said}");
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }
}

/// Where `./tests/run` installs what the tests need.
fn tools() -> Result<PathBuf> {
    let programs = binaries::path(binaries::TOOL)?;
    let target = programs.parent().and_then(Path::parent);
    Ok(target.context("the target directory")?.join("tools"))
}

/// A configuration that uploads to the bucket, below `prefix`, as the server or a front of it is
/// reached.
///
/// # Errors
/// When the secret cannot be written.
pub fn uploading(setup: Setup, at: SocketAddr, key: &Key, prefix: &str) -> Result<Setup> {
    let secret = setup.home().join("s3.secret");
    std::fs::write(&secret, format!("{}\n", key.secret_access_key))?;
    let table = "maintenance.remote";
    let text = |text: &str| format!("\"{text}\"");
    Ok(setup
        .set(table, "url", &text(&format!("s3://{BUCKET}/{prefix}")))
        .set(table, "endpoint", &text(&format!("http://{at}")))
        .set(table, "allow_http", "true")
        .set(table, "access_key_id", &text(&key.access_key_id))
        .set(table, "secret_access_key_file", "\"./s3.secret\"")
        .set(table, "part_size", "\"5MiB\"")
        .set(table, "attempts", "2")
        .set(table, "back_off", "\"10ms\"")
        .set(table, "timeout", "\"5s\""))
}

/// What is between a client and the server, for as long as this lives.
#[derive(Debug)]
pub struct Front {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    fault: watch::Sender<Fault>,
    _accepting: JoinSet<()>,
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Its method and where it goes: `PUT /bucket/key?partNumber=1&uploadId=x`.
    pub line: String,
    /// Whether it has the token of a session with it.
    pub has_token: bool,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is passed on.
    None,
    /// That of this index, counted from 0, is answered 503.
    Busy(usize),
    /// The connection is closed when half of the body of that one is read, or the head if there
    /// is none.
    Cut(usize),
    /// That one and all that follow are answered 503.
    Down(usize),
    /// Each takes so long.
    Slow(Duration),
    /// Those with this in their path or query are taken, and nobody answers.
    Hang(&'static str),
    /// Those are answered 403.
    Forbid(&'static str),
    /// The first of those is answered 400: it did not come in time.
    TimeOut(&'static str),
}

impl Front {
    /// In front of this server.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("a port")?;
        let address = listener.local_addr()?;
        let asked = Arc::new(Mutex::new(Vec::new()));
        let fault = watch::Sender::new(Fault::None);
        let (noted, faults) = (Arc::clone(&asked), fault.subscribe());
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (noted, faults) = (Arc::clone(&noted), faults.clone());
                connections.spawn(async move {
                    let pass = service_fn(|request| {
                        let fault = *faults.borrow();
                        let fate = Fate::of(fault, &note(&noted, &request));
                        pass(request, server, fate)
                    });
                    // An error is how a connection is cut.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), pass)
                        .await;
                });
            }
        });
        Ok(Self {
            address,
            asked,
            fault,
            _accepting: accepting,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many requests there have been since this was last set, or the start.
    #[must_use]
    pub fn made(&self) -> usize {
        self.asked().len()
    }

    /// These requests, in their order.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.asked).clone()
    }

    /// The numbers of the parts that were put, in their order.
    #[must_use]
    pub fn parts(&self) -> Vec<u32> {
        let asked = self.asked().into_iter();
        let parts = asked.filter_map(|Asked { line, .. }| {
            let (_, rest) = line.split_once("partNumber=")?;
            rest.split('&').next()?.parse().ok()
        });
        parts.collect()
    }

    /// How many uploads in parts were begun.
    #[must_use]
    pub fn begun(&self) -> usize {
        let asked = self.asked().into_iter();
        asked.filter(|it| it.line.contains("?uploads")).count()
    }

    /// From now on, counting from 0 again.
    pub fn set(&self, fault: Fault) {
        lock(&self.asked).clear();
        self.fault.send_replace(fault);
    }
}

/// Who panicked with it has failed its own test.
fn lock(asked: &Mutex<Vec<Asked>>) -> std::sync::MutexGuard<'_, Vec<Asked>> {
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes a request: all that were made, which ends with it.
fn note(asked: &Mutex<Vec<Asked>>, request: &Request<Incoming>) -> Vec<Asked> {
    let mut asked = lock(asked);
    asked.push(Asked {
        line: format!("{} {}", request.method(), request.uri()),
        has_token: request.headers().contains_key("x-amz-security-token"),
    });
    asked.clone()
}

/// What becomes of one request.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Passed,
    Answered(StatusCode, &'static str),
    Cut,
    Hung,
    Slowed(Duration),
}

impl Fate {
    /// Of the last of these requests.
    fn of(fault: Fault, asked: &[Asked]) -> Self {
        let nth = asked.len() - 1;
        let with = |part: &str| {
            let lines = asked.iter().map(|it| it.line.contains(part));
            (
                asked[nth].line.contains(part),
                lines.filter(|it| *it).count(),
            )
        };
        let busy = Self::Answered(StatusCode::SERVICE_UNAVAILABLE, "SlowDown");
        match fault {
            Fault::Busy(at) if at == nth => busy,
            Fault::Down(from) if nth >= from => busy,
            Fault::Cut(at) if at == nth => Self::Cut,
            Fault::Hang(part) if with(part).0 => Self::Hung,
            Fault::Slow(pause) => Self::Slowed(pause),
            Fault::Forbid(part) if with(part).0 => {
                Self::Answered(StatusCode::FORBIDDEN, "AccessDenied")
            }
            Fault::TimeOut(part) if with(part) == (true, 1) => {
                Self::Answered(StatusCode::BAD_REQUEST, "RequestTimeout")
            }
            _ => Self::Passed,
        }
    }
}

async fn pass(
    request: Request<Incoming>,
    server: SocketAddr,
    fate: Fate,
) -> Result<Response<Full<Bytes>>> {
    match fate {
        Fate::Answered(status, code) => {
            // All of it: who is still sending would not hear.
            request.into_body().collect().await?;
            return Ok(answer(status, code));
        }
        Fate::Hung => std::future::pending::<()>().await,
        Fate::Slowed(pause) => tokio::time::sleep(pause).await,
        Fate::Passed | Fate::Cut => {}
    }
    let (head, mut body) = request.into_parts();
    if matches!(fate, Fate::Cut) {
        // A part of it is here, and the rest on its way.
        let _ = body.frame().await;
        anyhow::bail!("the connection is cut");
    }
    let body = body.collect().await?.to_bytes();
    let stream = TcpStream::connect(server).await?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    // With all its headers: they are signed, that of the host, too.
    let request = Request::from_parts(head, Full::new(body));
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Response::from_parts(head, Full::new(body)))
}

fn answer(status: StatusCode, code: &str) -> Response<Full<Bytes>> {
    let body = format!("<Error><Code>{code}</Code><Message>Not now.</Message></Error>");
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer
}
