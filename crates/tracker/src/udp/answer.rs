//! What upstream answers, where the function that does it is private there
//! (`servers::udp::handlers::handle_packet`, `handle_error`).

use std::panic::Location;
use std::sync::Arc;

use aquatic_udp_protocol::{ErrorResponse, RequestParseError, Response, TransactionId};
use torrust_tracker::servers::udp::error::Error;

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
