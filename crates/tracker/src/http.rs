//! The HTTP tracker: upstream's router behind the gate's door, and behind that, where announces
//! are stored, the turn of those that write.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use torrust_tracker::core::Tracker;
use torrust_tracker::servers::http::percent_encoding::{
    percent_decode_info_hash, percent_decode_peer_id,
};
use torrust_tracker::servers::http::v1::routes;
use torrust_tracker_maintenance::door::{Lobby, Way};
use torrust_tracker_maintenance::gate::{self, Door, Gate};
use torrust_tracker_primitives::info_hash::InfoHash;
use tower::Layer as _;

use crate::writer::{self, Spending, Writer};

/// What becomes of announces.
#[derive(Debug, Clone)]
pub enum Announces {
    /// They are in memory alone.
    InMemory,
    /// They are stored: in turn with others that write, or, without a writer, by a server which
    /// lets many write.
    Stored(Option<Writer>),
}

/// The routes of an HTTP tracker that listens on `address`.
pub fn router(
    tracker: Arc<Tracker>,
    address: SocketAddr,
    lobby: &Lobby,
    announces: Announces,
) -> Router {
    let on_reverse_proxy = tracker.is_behind_reverse_proxy();
    let gate = lobby
        .layer(move |parts| way(parts, on_reverse_proxy))
        .counting(request);
    let mut routes = routes::router(Arc::clone(&tracker), address);
    if let Announces::Stored(writer) = announces {
        let desk = Desk {
            tracker,
            writer,
            gate: lobby.gate().clone(),
        };
        routes = routes.layer(from_fn_with_state(desk, execute));
    }
    // Around the router as a whole: what it answers by itself, it answers at once.
    Router::new().fallback_service(gate.layer(routes))
}

/// What executing an announce that is stored takes.
#[derive(Clone)]
struct Desk {
    tracker: Arc<Tracker>,
    writer: Option<Writer>,
    gate: Gate,
}

/// Executes an announce when its turn to write has come. One that tells of a completed download
/// which could not be stored is answered 503, as one that is turned away: it is sent again.
async fn execute(State(desk): State<Desk>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let torrent = completes(&parts);
    let is_announce = is_announce(&parts);
    let request = Request::from_parts(parts, body);
    if !is_announce {
        return next.run(request).await;
    }
    let turn = match &desk.writer {
        Some(writer) => Some(writer.turn().await),
        None => None,
    };
    let counters = desk.gate.counters(Door::Http);
    let _spending = Spending::begin(counters);
    let response = next.run(request).await;
    let Some(torrent) = torrent else {
        return response;
    };
    let completed = writer::completed(&desk.tracker, torrent).await;
    let stored = turn.is_none_or(|turn| turn.is_stored(torrent, completed, counters));
    if stored {
        response
    } else {
        StatusCode::SERVICE_UNAVAILABLE.into_response()
    }
}

/// The torrent of which an announce tells that a download is complete.
fn completes(parts: &Parts) -> Option<InfoHash> {
    let query = parts.uri.query()?;
    let completed = parameter(query, "event")?.eq_ignore_ascii_case("completed");
    let info_hash = completed.then(|| parameter(query, "info_hash"))??;
    percent_decode_info_hash(info_hash).ok()
}

/// Announces pass the gate, those of one peer in the order of their arrival. Scrapes and
/// health checks touch memory alone.
fn way(parts: &Parts, on_reverse_proxy: bool) -> Way {
    if !is_announce(parts) {
        return Way::Straight;
    }
    peer(parts, on_reverse_proxy).map_or(Way::Gated, Way::InOrder)
}

/// As what it is counted. A health check is neither.
fn request(parts: &Parts) -> Option<gate::Request> {
    if is_announce(parts) {
        Some(gate::Request::Announce)
    } else if is_of(parts, "/scrape") {
        Some(gate::Request::Scrape)
    } else {
        None
    }
}

/// Whether upstream would execute an announce.
fn is_announce(parts: &Parts) -> bool {
    is_of(parts, "/announce")
}

/// Whether it is what upstream answers at this path, or at this path and a key. It does so for
/// HEAD, too. Other methods are refused by its router, which need not wait.
fn is_of(parts: &Parts, path: &str) -> bool {
    let below = parts.uri.path().strip_prefix(path);
    matches!(parts.method, Method::GET | Method::HEAD)
        && below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
}

/// Whose announces keep their order: the client's address, the torrent and the peer id.
/// `None` for a request that upstream will refuse, of which the order does not matter.
fn peer(parts: &Parts, on_reverse_proxy: bool) -> Option<Vec<u8>> {
    let query = parts.uri.query()?;
    // Decoded, as the same bytes may be escaped in more than one way.
    let info_hash = percent_decode_info_hash(parameter(query, "info_hash")?).ok()?;
    let peer_id = percent_decode_peer_id(parameter(query, "peer_id")?).ok()?;
    let mut key = info_hash.bytes().to_vec();
    key.extend(peer_id.0);
    key.extend(client(parts, on_reverse_proxy)?);
    Some(key)
}

fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find_map(|(key, value)| (key == name).then_some(value))
}

/// The client's address by upstream's rule: the connection's or, behind a reverse proxy,
/// the last one in `X-Forwarded-For`. Only ever compared, so taken as it is written.
fn client(parts: &Parts, on_reverse_proxy: bool) -> Option<Vec<u8>> {
    if on_reverse_proxy {
        let header = parts
            .headers
            .get_all("x-forwarded-for")
            .iter()
            .next_back()?;
        let last = header.as_bytes().rsplit(|byte| *byte == b',').next()?;
        Some(last.trim_ascii().to_vec())
    } else {
        let ConnectInfo(address) = parts.extensions.get::<ConnectInfo<SocketAddr>>()?;
        Some(address.ip().to_string().into_bytes())
    }
}

#[cfg(test)]
mod tests;
