//! An announce, independent of the protocol that carries it, and the torrents of a test.

use aquatic_udp_protocol::{
    AnnounceActionPlaceholder, AnnounceEvent, AnnounceRequest, ConnectionId, InfoHash,
    Ipv4AddrBytes, NumberOfBytes, NumberOfPeers, PeerId, PeerKey, Port, TransactionId,
};
use std::num::NonZeroU16;

pub use aquatic_udp_protocol::AnnounceEvent as Event;

use crate::http1::Answer;

/// One of a test's torrents. Its info-hash is its number, so that a row is easily found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Torrent(pub u32);

impl Torrent {
    /// The 20 bytes on the wire. The number comes last, so that no two torrents of a test
    /// are equal, and the mixed number first, so that rows spread over the index.
    #[must_use]
    pub fn info_hash(self) -> [u8; 20] {
        let mut hash = [0xe2; 20];
        hash[..4].copy_from_slice(&self.0.wrapping_mul(0x9e37_79b9).to_be_bytes());
        hash[16..].copy_from_slice(&self.0.to_be_bytes());
        hash
    }

    /// A scrape of it over HTTP (BEP 48), from `/scrape` on.
    #[must_use]
    pub fn http_scrape(self) -> String {
        format!("/scrape?info_hash={}", percent(&self.info_hash()))
    }

    /// As the tracker stores it: 40 lower-case hexadecimal digits.
    #[must_use]
    pub fn hex(self) -> String {
        hex(&self.info_hash())
    }
}

/// Lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // to a String: cannot fail
        text
    })
}

/// What a peer tells of itself and one torrent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announce {
    /// Which torrent.
    pub torrent: Torrent,
    /// Which peer, of the test's peers.
    pub peer: u32,
    /// What happened.
    pub event: Event,
}

impl Announce {
    /// The peer's id, in the form most clients use.
    #[must_use]
    pub fn peer_id(&self) -> [u8; 20] {
        let mut id = *b"-EE0001-000000000000";
        id[8..].copy_from_slice(format!("{:012}", self.peer).as_bytes());
        id
    }

    /// Bytes the peer still lacks: none once it has completed.
    #[must_use]
    pub fn left(&self) -> i64 {
        i64::from(matches!(self.event, Event::Started))
    }

    /// As BEP 15 puts it on the wire.
    #[must_use]
    pub fn udp(&self, connection: ConnectionId, transaction: i32) -> AnnounceRequest {
        AnnounceRequest {
            connection_id: connection,
            action_placeholder: AnnounceActionPlaceholder::default(),
            transaction_id: TransactionId::new(transaction),
            info_hash: InfoHash(self.torrent.info_hash()),
            peer_id: PeerId(self.peer_id()),
            bytes_downloaded: NumberOfBytes::new(0),
            bytes_left: NumberOfBytes::new(self.left()),
            bytes_uploaded: NumberOfBytes::new(0),
            event: self.event.into(),
            ip_address: Ipv4AddrBytes([0; 4]),
            key: PeerKey::new(0),
            peers_wanted: NumberOfPeers::new(1),
            port: Port::new(NonZeroU16::MAX),
        }
    }

    /// As BEP 3 puts it into a URL, from `/announce` on.
    #[must_use]
    pub fn http(&self) -> String {
        let event = match self.event {
            AnnounceEvent::Started => "&event=started",
            AnnounceEvent::Completed => "&event=completed",
            AnnounceEvent::Stopped => "&event=stopped",
            AnnounceEvent::None => "",
        };
        format!(
            "/announce?info_hash={}&peer_id={}&port=65535&uploaded=0&downloaded=0&left={}&compact=1{event}",
            percent(&self.torrent.info_hash()),
            percent(&self.peer_id()),
            self.left(),
        )
    }
}

/// Whether an answer to an announce over HTTP holds peers.
///
/// # Errors
/// With what it holds instead. A tracker's refusal is a 200 too, with `failure reason` in
/// place of an interval (BEP 3).
pub fn accepted(answer: &Answer) -> Result<(), String> {
    holds(answer, b"8:interval")
}

/// Whether an answer to a scrape over HTTP holds counters.
///
/// # Errors
/// With what it holds instead.
pub fn scraped(answer: &Answer) -> Result<(), String> {
    holds(answer, b"5:files")
}

fn holds(answer: &Answer, key: &[u8]) -> Result<(), String> {
    let found = answer.body.windows(key.len()).any(|part| part == key);
    if answer.status.is_success() && found {
        Ok(())
    } else {
        let body = String::from_utf8_lossy(&answer.body);
        Err(format!("{}: {body}", answer.status))
    }
}

/// Every byte percent-encoded (RFC 3986, 2.1), needed or not.
fn percent(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "%{byte:02X}"); // to a String: cannot fail
        text
    })
}
