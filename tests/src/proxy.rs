//! A TCP proxy between a sidecar and its tracker, to cut the one off from the other and to
//! lead it to another.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A proxy, for as long as this lives.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    way: watch::Sender<Way>,
    _accepting: JoinSet<()>,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    To(SocketAddr),
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
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(lead(stream, ways.clone()));
            }
        });
        Ok(Self {
            address,
            way,
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

    /// From now on to this address.
    pub fn lead_to(&self, to: SocketAddr) {
        self.way.send_replace(Way::To(to));
    }
}

/// Moves bytes for as long as the way stays the same; then the connection hangs if it is cut
/// off, and else is closed.
async fn lead(mut stream: TcpStream, mut ways: watch::Receiver<Way>) {
    let way = *ways.borrow_and_update();
    let moving = async {
        match way {
            Way::To(to) => {
                if let Ok(mut other) = TcpStream::connect(to).await {
                    // Who hangs up is no failure of the proxy.
                    let _ = copy_bidirectional(&mut stream, &mut other).await;
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
