//! The UDP side of a load: one task that sends, one per socket that receives.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aquatic_udp_protocol::{ConnectRequest, ConnectionId, Request, Response, TransactionId};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::timeout;

use super::Pacer;
use super::account::{Door, Outcome};
use super::book::Book;
use crate::udp::{REPLY, transaction_of};

/// A connection id is asked for again at this age; BEP 15 lets a client use one for 60 s.
const RENEW_AFTER: Duration = Duration::from_secs(45);

/// Announces from each socket in turn until stopped.
pub(super) async fn send(mut pacer: Pacer, sockets: Vec<Arc<Source>>) -> Result<()> {
    let mut turns = sockets.iter().cycle();
    while let Some(due) = pacer.due().await {
        for _ in 0..due {
            turns
                .next()
                .context("a load has a socket")?
                .announce()
                .await?;
        }
    }
    Ok(())
}

/// One UDP source port: a client of its own to the tracker.
pub(super) struct Source {
    socket: UdpSocket,
    book: Arc<Book>,
    connection: watch::Sender<Option<Granted>>,
    /// Number in the book of each transaction not answered yet.
    unanswered: Mutex<HashMap<i32, u64>>,
}

#[derive(Debug, Clone, Copy)]
struct Granted {
    id: ConnectionId,
    at: Instant,
    /// A newer one has been asked for.
    renewing: bool,
}

impl Source {
    pub(super) async fn open(to: SocketAddr, book: Arc<Book>) -> Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        socket.connect(to).await?;
        let source = Self {
            socket,
            book,
            connection: watch::Sender::default(),
            unanswered: Mutex::default(),
        };
        source.connect().await?;
        Ok(source)
    }

    async fn connect(&self) -> Result<()> {
        let transaction_id = TransactionId::new(self.book.next_transaction());
        self.write(&ConnectRequest { transaction_id }.into()).await
    }

    pub(super) async fn connected(&self) -> Result<()> {
        timeout(
            crate::PATIENCE,
            self.connection.subscribe().wait_for(Option::is_some),
        )
        .await
        .context("no answer to a connect")??;
        Ok(())
    }

    async fn announce(&self) -> Result<()> {
        let granted =
            (*self.connection.borrow()).context("a socket announces once it is connected")?;
        if granted.at.elapsed() > RENEW_AFTER && !granted.renewing {
            self.connection.send_replace(Some(Granted {
                renewing: true,
                ..granted
            }));
            self.connect().await?;
        }
        let transaction = self.book.next_transaction();
        let (number, announce) = self.book.send(Door::Udp);
        self.unanswered().insert(transaction, number);
        self.write(&announce.udp(granted.id, transaction).into())
            .await
    }

    pub(super) async fn receive(self: Arc<Self>) {
        let mut bytes = [0; REPLY];
        // An error is a closed port, which is no answer; the next receive waits again.
        loop {
            let Ok(length) = self.socket.recv(&mut bytes).await else {
                continue;
            };
            let Ok(response) = Response::parse_bytes(&bytes[..length], true) else {
                continue;
            };
            let number = self.unanswered().remove(&transaction_of(&response).0.get());
            match (response, number) {
                (Response::Connect(reply), _) => {
                    let granted = Granted {
                        id: reply.connection_id,
                        at: Instant::now(),
                        renewing: false,
                    };
                    self.connection.send_replace(Some(granted));
                }
                (Response::AnnounceIpv4(_), Some(number)) => {
                    self.book.end(number, Outcome::Answered);
                }
                (Response::Error(reply), Some(number)) => {
                    self.book
                        .end(number, Outcome::Refused(reply.message.into_owned()));
                }
                (other, Some(number)) => self
                    .book
                    .end(number, Outcome::Refused(format!("{other:?}"))),
                // Answered twice, or nothing of ours: the count of answers must not grow.
                (_, None) => {}
            }
        }
    }

    fn unanswered(&self) -> MutexGuard<'_, HashMap<i32, u64>> {
        self.unanswered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn write(&self, request: &Request) -> Result<()> {
        let mut bytes = Vec::with_capacity(128);
        request.write_bytes(&mut bytes)?;
        // Refused is what a closed port says of the packet before; that one is unanswered.
        match self.socket.send(&bytes).await {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionRefused => {
                Err(error).context("sending")
            }
            _ => Ok(()),
        }
    }
}
