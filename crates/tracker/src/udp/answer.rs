//! What upstream answers, where the function that does it is private there
//! (`servers::udp::handlers::handle_packet`, `handle_error`, `Processor::send_response`).

use std::io::Cursor;
use std::net::{SocketAddr, UdpSocket};
use std::panic::Location;
use std::sync::Arc;

use aquatic_udp_protocol::{ErrorResponse, RequestParseError, Response, TransactionId};
use torrust_tracker::servers::udp::UDP_TRACKER_LOG_TARGET;
use torrust_tracker::servers::udp::error::Error;

/// More than any answer: 74 IPv6 peers take 20 + 74 * 18 bytes.
const LONGEST: usize = 1_496;

/// The error reply (BEP 15, action 3) to a request that was understood.
pub fn refusal(error: &Error, transaction_id: TransactionId) -> Response {
    Response::from(ErrorResponse {
        transaction_id,
        message: error.to_string().into(),
    })
}

/// The error reply to a packet that is no request. Its transaction id is 0, as upstream
/// takes none from a packet it could not parse.
pub fn bad_packet(error: &RequestParseError) -> Response {
    let parsing = Error::InternalServer {
        message: format!("{error:?}"),
        location: Location::caller(),
    };
    let error = Error::BadRequest {
        source: (Arc::new(parsing) as Arc<dyn std::error::Error + Send + Sync>).into(),
    };
    refusal(&error, TransactionId::new(0))
}

/// Sends an answer; whether it arrives is the network's business.
pub fn send(socket: &UdpSocket, answer: &Response, to: SocketAddr) {
    let mut packet = Cursor::new(Vec::with_capacity(LONGEST));
    let sent = answer
        .write_bytes(&mut packet)
        .and_then(|()| socket.send_to(packet.get_ref(), to));
    if let Err(error) = sent {
        tracing::warn!(target: UDP_TRACKER_LOG_TARGET, %error, %to, "failed to send");
    }
}
