//! A TCP proxy between a sidecar and its tracker, to cut the one off from the other, to lead it
//! to another, and to lose an answer.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A proxy, for as long as this lives.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    way: watch::Sender<Way>,
    lost: watch::Sender<usize>,
    _accepting: JoinSet<()>,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    To(SocketAddr),
    /// The same, but the first answer to a request whose path ends like this is read and not
    /// passed on, and both ends are hung up on.
    Losing(SocketAddr, &'static str),
    /// It is taken, and nothing comes of it: a packet filter that drops.
    Nowhere,
}

impl Proxy {
    /// To this address.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start(to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("a port")?;
        let address = listener.local_addr()?;
        let way = watch::Sender::new(Way::To(to));
        let mut accepting = JoinSet::new();
        let ways = way.subscribe();
        let lost = watch::Sender::new(0);
        let losses = lost.clone();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(lead(stream, ways.clone(), losses.clone()));
            }
        });
        Ok(Self {
            address,
            way,
            lost,
            _accepting: accepting,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Nothing gets through any more, on no connection, and nobody is told.
    pub fn cut(&self) {
        self.way.send_replace(Way::Nowhere);
    }

    /// From now on to this address, but the next answer to a request whose path ends with
    /// `path` is lost once the request has had its effect.
    pub fn lose_the_answer(&self, to: SocketAddr, path: &'static str) {
        self.way.send_replace(Way::Losing(to, path));
    }

    /// How many answers were lost.
    #[must_use]
    pub fn lost(&self) -> usize {
        *self.lost.borrow()
    }

    /// From now on to this address.
    pub fn lead_to(&self, to: SocketAddr) {
        self.way.send_replace(Way::To(to));
    }
}

/// Moves bytes for as long as the way stays the same; then the connection hangs if it is cut
/// off, and else is closed.
async fn lead(mut stream: TcpStream, mut ways: watch::Receiver<Way>, lost: watch::Sender<usize>) {
    let way = *ways.borrow_and_update();
    let moving = async {
        match way {
            Way::To(to) => {
                if let Ok(mut other) = TcpStream::connect(to).await {
                    // Who hangs up is no failure of the proxy.
                    let _ = copy_bidirectional(&mut stream, &mut other).await;
                }
            }
            Way::Losing(to, path) => {
                if let Ok(other) = TcpStream::connect(to).await {
                    let _ = lose(&mut stream, other, path, &lost).await;
                }
            }
            Way::Nowhere => std::future::pending().await,
        }
    };
    tokio::select! {
        () = moving => return,
        _ = ways.changed() => {}
    }
    if *ways.borrow() == Way::Nowhere {
        // Open, and silent, until somebody closes it.
        std::future::pending::<()>().await;
    }
}

/// Moves bytes until an answer to a request of this path, the first of all, has come, which is
/// where they end. A request is small enough to come in one piece.
async fn lose(
    stream: &mut TcpStream,
    mut other: TcpStream,
    path: &str,
    lost: &watch::Sender<usize>,
) -> std::io::Result<()> {
    let ending = format!("{path} HTTP/1.1\r\n");
    let (mut asked, mut answered) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut losing = false;
    loop {
        tokio::select! {
            read = stream.read(&mut asked) => {
                let request = &asked[..read?];
                if request.is_empty() {
                    return Ok(());
                }
                let line = ending.as_bytes();
                losing = *lost.borrow() == 0 && request.windows(line.len()).any(|part| part == line);
                other.write_all(request).await?;
            }
            read = other.read(&mut answered) => {
                let answer = &answered[..read?];
                if answer.is_empty() {
                    return Ok(());
                }
                if losing {
                    lost.send_modify(|lost| *lost += 1);
                    return Ok(());
                }
                stream.write_all(answer).await?;
            }
        }
    }
}
