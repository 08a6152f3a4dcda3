//! A BEP 15 client, one request at a time.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aquatic_udp_protocol::{
    ConnectRequest, ConnectionId, InfoHash, Request, Response, ScrapeRequest, TransactionId,
};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::announce::{Announce, Torrent};

/// Most bytes of a reply: 20 and 18 for each of 74 peers over IPv6, and room.
pub(crate) const REPLY: usize = 2048;

/// Most torrents of one scrape (BEP 15: "up to about 74").
const SCRAPED_AT_ONCE: usize = 74;

/// One peer's socket, connected to one tracker.
pub struct UdpClient {
    socket: UdpSocket,
    connection: ConnectionId,
    transaction: i32,
    /// How long an answer is waited for.
    pub patience: Duration,
}

impl UdpClient {
    /// Binds a socket of its own and asks for a connection id.
    ///
    /// # Errors
    /// When none comes.
    pub async fn connect(to: SocketAddr) -> Result<Self> {
        Self::connect_within(to, crate::PATIENCE).await
    }

    /// As [`UdpClient::connect`], waiting for so long; for every answer later on, too.
    ///
    /// # Errors
    /// When none comes.
    pub async fn connect_within(to: SocketAddr, patience: Duration) -> Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        socket.connect(to).await?;
        let mut client = Self {
            socket,
            connection: ConnectionId::new(0),
            transaction: fastrand::i32(..),
            patience,
        };
        client.reconnect().await?;
        Ok(client)
    }

    /// Asks for a connection id again.
    ///
    /// # Errors
    /// When none comes.
    pub async fn reconnect(&mut self) -> Result<()> {
        let transaction_id = self.next_transaction();
        match self
            .exchange(ConnectRequest { transaction_id }.into(), transaction_id)
            .await?
        {
            Response::Connect(reply) => {
                self.connection = reply.connection_id;
                Ok(())
            }
            other => bail!("a connect was answered with {other:?}"),
        }
    }

    /// Asks for a connection id and does not wait; its transaction id.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub async fn post_connect(&mut self) -> Result<TransactionId> {
        let transaction_id = self.next_transaction();
        self.write(&ConnectRequest { transaction_id }.into())
            .await?;
        Ok(transaction_id)
    }

    /// Announces and waits for the answer, which may be an error.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn announce(&mut self, announce: Announce) -> Result<Response> {
        let transaction_id = self.next_transaction();
        let request = announce.udp(self.connection, transaction_id.0.get());
        self.exchange(request.into(), transaction_id).await
    }

    /// Sends an announce and does not wait; its transaction id.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub async fn post(&mut self, announce: Announce) -> Result<TransactionId> {
        let transaction_id = self.next_transaction();
        self.write(&announce.udp(self.connection, transaction_id.0.get()).into())
            .await?;
        Ok(transaction_id)
    }

    /// The next reply to anything posted.
    ///
    /// # Errors
    /// When none comes.
    pub async fn reply(&self) -> Result<Response> {
        timeout(self.patience, self.read())
            .await
            .with_context(|| format!("no reply within {:?}", self.patience))?
    }

    /// Scrapes one torrent: seeders, completed, leechers.
    ///
    /// # Errors
    /// When there is no answer or it is an error.
    pub async fn scrape(&mut self, torrent: Torrent) -> Result<[i32; 3]> {
        let found = self.scrape_all(&[torrent]).await?;
        found
            .first()
            .copied()
            .context("a scrape of one torrent has one entry")
    }

    /// Scrapes these torrents, as many at a time as a packet takes: of each its seeders,
    /// completed and leechers.
    ///
    /// # Errors
    /// When there is no answer, or it is an error or not of as many torrents.
    pub async fn scrape_all(&mut self, torrents: &[Torrent]) -> Result<Vec<[i32; 3]>> {
        let mut found = Vec::new();
        for some in torrents.chunks(SCRAPED_AT_ONCE) {
            let transaction_id = self.next_transaction();
            let request = ScrapeRequest {
                connection_id: self.connection,
                transaction_id,
                info_hashes: some.iter().map(|one| InfoHash(one.info_hash())).collect(),
            };
            match self.exchange(request.into(), transaction_id).await? {
                Response::Scrape(reply) if reply.torrent_stats.len() == some.len() => {
                    found.extend(reply.torrent_stats.iter().map(|one| {
                        [
                            one.seeders.0.get(),
                            one.completed.0.get(),
                            one.leechers.0.get(),
                        ]
                    }));
                }
                other => bail!("a scrape was answered with {other:?}"),
            }
        }
        Ok(found)
    }

    fn next_transaction(&mut self) -> TransactionId {
        self.transaction = self.transaction.wrapping_add(1);
        TransactionId::new(self.transaction)
    }

    async fn exchange(&mut self, request: Request, transaction: TransactionId) -> Result<Response> {
        self.write(&request).await?;
        let answered = async {
            loop {
                let response = self.read().await?;
                if transaction_of(&response) == transaction {
                    return Ok(response);
                }
            }
        };
        timeout(self.patience, answered)
            .await
            .with_context(|| format!("no answer within {:?}", self.patience))?
    }

    async fn write(&self, request: &Request) -> Result<()> {
        let mut bytes = Vec::with_capacity(128);
        request.write_bytes(&mut bytes)?;
        self.socket.send(&bytes).await.context("sending")?;
        Ok(())
    }

    async fn read(&self) -> Result<Response> {
        let mut bytes = [0; REPLY];
        let length = self.socket.recv(&mut bytes).await.context("receiving")?;
        Ok(Response::parse_bytes(&bytes[..length], true)?)
    }
}

/// The transaction a response belongs to.
#[must_use]
pub fn transaction_of(response: &Response) -> TransactionId {
    match response {
        Response::Connect(reply) => reply.transaction_id,
        Response::AnnounceIpv4(reply) => reply.fixed.transaction_id,
        Response::AnnounceIpv6(reply) => reply.fixed.transaction_id,
        Response::Scrape(reply) => reply.transaction_id,
        Response::Error(reply) => reply.transaction_id,
    }
}
