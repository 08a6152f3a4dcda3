//! Packets in batches: one system call receives all that have arrived, one sends all
//! answers. At full load a call is most of what a packet costs the kernel's caller; when
//! there is little to do, batches are of one and nothing waits for a batch to fill.
//!
//! Receiving is `recvmmsg` through `nix`; sending is `sendmmsg` through `rustix`, because
//! `nix` says how many were sent only by iterating over addresses that a send never fills.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::AsRawFd as _;

use aquatic_udp_protocol::Response;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};
use torrust_tracker::servers::udp::UDP_TRACKER_LOG_TARGET;
use torrust_tracker::shared::bit_torrent::tracker::udp::MAX_PACKET_SIZE;

/// Packets received or answers sent with one system call. Beyond this a call's share of
/// the cost is a few nanoseconds, and what is first in a batch waits for what is last.
pub const BATCH: usize = 64;

/// The packets that were received last.
pub struct Inbox {
    headers: MultiHeaders<SockaddrStorage>,
    buffers: Box<[[u8; MAX_PACKET_SIZE]]>,
    /// Length and sender of what is in the buffers.
    received: Vec<(usize, Option<SocketAddr>)>,
}

/// Answers on their way. Dropping it drops them.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    answers: Vec<(Range<usize>, SocketAddrAny)>,
}

impl Inbox {
    /// Room for a batch.
    pub fn new() -> Self {
        Self {
            headers: MultiHeaders::preallocate(BATCH, None),
            buffers: vec![[0; MAX_PACKET_SIZE]; BATCH].into_boxed_slice(),
            received: Vec::with_capacity(BATCH),
        }
    }

    /// Waits for a packet, as long as the socket's read time-out lets it, and takes what
    /// else has arrived by then. A packet longer than any request is cut, as upstream does.
    ///
    /// # Errors
    ///
    /// As `recv_from`; the inbox is empty then.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<()> {
        self.receive_with(socket, MsgFlags::MSG_WAITFORONE)
    }

    /// Takes what has arrived and waits for nothing.
    ///
    /// # Errors
    ///
    /// As [`Inbox::receive`]; [`io::ErrorKind::WouldBlock`] if nothing has arrived.
    pub fn receive_more(&mut self, socket: &UdpSocket) -> io::Result<()> {
        self.receive_with(socket, MsgFlags::MSG_DONTWAIT)
    }

    /// Whether more may have arrived than the inbox has room for.
    pub fn is_full(&self) -> bool {
        self.received.len() == BATCH
    }

    fn receive_with(&mut self, socket: &UdpSocket, flags: MsgFlags) -> io::Result<()> {
        self.received.clear();
        let mut slices: Vec<_> = self
            .buffers
            .iter_mut()
            .map(|buffer| [IoSliceMut::new(buffer)])
            .collect();
        let messages = recvmmsg(
            socket.as_raw_fd(),
            &mut self.headers,
            &mut slices,
            flags,
            None,
        )?;
        self.received
            .extend(messages.map(|message| (message.bytes, message.address.and_then(sender))));
        Ok(())
    }

    /// What was received, in order. Without an address there is nobody to answer.
    pub fn packets(&self) -> impl Iterator<Item = (&[u8], SocketAddr)> {
        self.received
            .iter()
            .zip(&self.buffers)
            .filter_map(|((length, from), buffer)| Some((&buffer[..*length], (*from)?)))
    }
}

impl Outbox {
    /// Answers `to`, when it is sent.
    pub fn push(&mut self, answer: &Response, to: SocketAddr) {
        let begin = self.bytes.len();
        match answer.write_bytes(&mut self.bytes) {
            Ok(()) => self.answers.push((begin..self.bytes.len(), to.into())),
            Err(error) => {
                self.bytes.truncate(begin);
                tracing::warn!(target: UDP_TRACKER_LOG_TARGET, %error, %to, "failed to write an answer");
            }
        }
    }

    /// How many answers it has.
    pub fn len(&self) -> usize {
        self.answers.len()
    }

    /// Sends all answers; whether they arrive is the network's business. One that cannot
    /// be sent (to port 0, say) is logged and keeps no other back.
    pub fn send(&mut self, socket: &UdpSocket) {
        for answers in self.answers.chunks(BATCH) {
            let mut left = answers;
            while !left.is_empty() {
                match send(socket, &self.bytes, left) {
                    Ok(sent) => left = &left[sent..],
                    Err(error) => {
                        let to = SocketAddr::try_from(left[0].1.clone()).ok();
                        tracing::warn!(target: UDP_TRACKER_LOG_TARGET, %error, ?to, "failed to send");
                        left = &left[1..];
                    }
                }
            }
        }
        self.clear();
    }

    /// Drops all answers.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.answers.clear();
    }
}

/// Sends the first of the answers and as many after it as the kernel takes at once.
fn send(
    socket: &UdpSocket,
    bytes: &[u8],
    answers: &[(Range<usize>, SocketAddrAny)],
) -> io::Result<usize> {
    let slices: Vec<_> = answers
        .iter()
        .map(|(range, _)| [IoSlice::new(&bytes[range.clone()])])
        .collect();
    let mut controls: Vec<_> = answers
        .iter()
        .map(|_| SendAncillaryBuffer::default())
        .collect();
    let mut messages: Vec<_> = answers
        .iter()
        .zip(&slices)
        .zip(&mut controls)
        .map(|(((_, to), slice), control)| MMsgHdr::new_with_addr(to, slice, control))
        .collect();
    loop {
        match sendmmsg(socket, &mut messages, SendFlags::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            sent => return Ok(sent?),
        }
    }
}

/// The address in std's terms, for the two families a UDP socket has.
fn sender(address: SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().copied().map(SocketAddr::from);
    v4.or_else(|| address.as_sockaddr_in6().copied().map(SocketAddr::from))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use aquatic_udp_protocol::{ConnectResponse, ConnectionId, TransactionId};

    use super::*;

    fn pair(on: &str) -> (UdpSocket, UdpSocket) {
        let sockets = [(); 2].map(|()| {
            let socket = UdpSocket::bind((on, 0)).expect("a free port");
            let patience = Duration::from_secs(20);
            socket.set_read_timeout(Some(patience)).expect("a time-out");
            socket
        });
        sockets.into()
    }

    fn answer(transaction: i32) -> Response {
        Response::Connect(ConnectResponse {
            transaction_id: TransactionId::new(transaction),
            connection_id: ConnectionId::new(1),
        })
    }

    fn bytes(answer: &Response) -> Vec<u8> {
        let mut bytes = Vec::new();
        answer.write_bytes(&mut bytes).expect("memory takes it");
        bytes
    }

    /// More than a batch, so that more than one call is made for them in both directions.
    #[test]
    fn everything_arrives_in_order_with_its_sender() {
        for address in ["127.0.0.1", "::1"] {
            let (from, to) = pair(address);
            let answers: Vec<_> = (0..150).map(answer).collect();
            let mut outbox = Outbox::default();
            for answer in &answers {
                outbox.push(answer, to.local_addr().expect("an address"));
            }
            assert_eq!(outbox.len(), answers.len());
            outbox.send(&from);
            assert_eq!(outbox.len(), 0);
            let mut inbox = Inbox::new();
            let mut received = Vec::new();
            while received.len() < answers.len() {
                inbox.receive(&to).expect("packets in time");
                received.extend(
                    inbox
                        .packets()
                        .map(|(packet, from)| (packet.to_vec(), from)),
                );
            }
            let sender = from.local_addr().expect("an address");
            let sent: Vec<_> = answers
                .iter()
                .map(|answer| (bytes(answer), sender))
                .collect();
            assert_eq!(received, sent);
        }
    }

    #[test]
    fn an_answer_that_cannot_be_sent_keeps_no_other_back() {
        let (from, to) = pair("127.0.0.1");
        let nobody = SocketAddr::from(([127, 0, 0, 1], 0));
        let somebody = to.local_addr().expect("an address");
        let mut outbox = Outbox::default();
        for (transaction, to) in [
            (1, nobody),
            (2, somebody),
            (3, nobody),
            (4, nobody),
            (5, somebody),
        ] {
            outbox.push(&answer(transaction), to);
        }
        outbox.send(&from);
        let mut packet = [0; 100];
        for expected in [2, 5] {
            let length = to.recv(&mut packet).expect("an answer in time");
            assert_eq!(packet[..length], bytes(&answer(expected)));
        }
    }

    #[test]
    fn a_packet_longer_than_any_request_is_cut() {
        let (from, to) = pair("127.0.0.1");
        let address = to.local_addr().expect("an address");
        from.send_to(&[7; MAX_PACKET_SIZE + 1], address)
            .expect("loopback takes it");
        let mut inbox = Inbox::new();
        inbox.receive(&to).expect("a packet in time");
        let lengths: Vec<_> = inbox.packets().map(|(packet, _)| packet.len()).collect();
        assert_eq!(lengths, [MAX_PACKET_SIZE]);
    }

    #[test]
    fn the_time_out_is_the_sockets_and_leaves_nothing_behind() {
        let (from, to) = pair("127.0.0.1");
        let address = to.local_addr().expect("an address");
        from.send_to(&[7], address).expect("loopback takes it");
        let mut inbox = Inbox::new();
        inbox.receive(&to).expect("a packet in time");
        to.set_read_timeout(Some(Duration::from_millis(1)))
            .expect("a time-out");
        let error = inbox.receive(&to).expect_err("nothing was sent");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(inbox.packets().count(), 0);
    }

    #[test]
    fn what_has_arrived_is_taken_and_nothing_is_waited_for() {
        let (from, to) = pair("127.0.0.1");
        let address = to.local_addr().expect("an address");
        let mut inbox = Inbox::new();
        for packets in [BATCH, BATCH - 1, 0] {
            for _ in 0..packets {
                from.send_to(&[7], address).expect("loopback takes it");
            }
            let received = inbox.receive_more(&to);
            let kind = received.map_err(|error| error.kind());
            let expected = if packets == 0 {
                Err(io::ErrorKind::WouldBlock)
            } else {
                Ok(())
            };
            assert_eq!(kind, expected, "within the socket's time-out of 20 s");
            assert_eq!(inbox.packets().count(), packets);
            assert_eq!(inbox.is_full(), packets == BATCH);
        }
    }
}
