//! The REST API: upstream's router, of which the requests that write to the database pass
//! the gate's door.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Query, Request, State};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use torrust_tracker::core::Tracker;
use torrust_tracker::servers::apis::routes;
use torrust_tracker::servers::apis::v1::middlewares::auth::QueryParams;
use torrust_tracker_configuration::AccessTokens;
use torrust_tracker_maintenance::door::{Lobby, Way};
use torrust_tracker_maintenance::gate::{Door, Gate};
use tower::Layer as _;

use crate::writer::{Spending, Writer};

/// How long a request that writes may take to arrive, as upstream has it.
const RECEIVE_WITHIN: Duration = Duration::from_secs(5);

/// Most bytes of its body, as upstream has it.
const BODY_LIMIT: usize = 2 << 20;

/// The routes of the API. Without a writer its requests are executed as they come: what they
/// write goes to a server which lets many write.
pub fn router(
    tracker: Arc<Tracker>,
    tokens: Arc<AccessTokens>,
    lobby: &Lobby,
    writer: Option<Writer>,
) -> Router {
    let known = Arc::clone(&tokens);
    let gate = lobby.layer(move |parts| way(parts, &known));
    let desk = Desk {
        tokens: Arc::clone(&tokens),
        writer,
        gate: lobby.gate().clone(),
    };
    let routes = routes::router(tracker, tokens).layer(from_fn_with_state(desk.clone(), execute));
    Router::new()
        .fallback_service(gate.layer(routes))
        .layer(from_fn_with_state(desk, receive))
}

/// What executing a request that writes takes.
#[derive(Clone)]
struct Desk {
    tokens: Arc<AccessTokens>,
    writer: Option<Writer>,
    gate: Gate,
}

/// Receives all of a request that writes before it asks for anything: a client that is slow, or
/// sends no more, must not keep a gate from closing or others from writing.
async fn receive(State(desk): State<Desk>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    if way(&parts, &desk.tokens) == Way::Straight {
        return next.run(Request::from_parts(parts, body)).await;
    }
    let received = tokio::time::timeout(RECEIVE_WITHIN, to_bytes(body, BODY_LIMIT)).await;
    match received {
        Ok(Ok(bytes)) => {
            next.run(Request::from_parts(parts, Body::from(bytes)))
                .await
        }
        Ok(Err(_)) => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
        Err(_) => StatusCode::REQUEST_TIMEOUT.into_response(),
    }
}

/// Executes what writes when its turn to do so has come. That it could not be stored upstream
/// says itself.
async fn execute(State(desk): State<Desk>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let way = way(&parts, &desk.tokens);
    let request = Request::from_parts(parts, body);
    if way == Way::Straight {
        return next.run(request).await;
    }
    let _turn = match &desk.writer {
        Some(writer) => Some(writer.turn().await),
        None => None,
    };
    let _spending = Spending::begin(desk.gate.counters(Door::Http));
    next.run(request).await
}

/// Writes pass the gate, but not those that upstream will refuse for their token: it looks
/// at that behind the door, and a stranger must not fill the places of those who wait.
/// There is no order to keep beyond that of a client which awaits each answer.
fn way(parts: &Parts, tokens: &AccessTokens) -> Way {
    if is_write(parts) && is_authorised(parts, tokens) {
        Way::Gated
    } else {
        Way::Straight
    }
}

/// Whether upstream writes to the database: POST and DELETE of keys and of the whitelist.
/// The two `reload` requests are GET, and read it.
fn is_write(parts: &Parts) -> bool {
    let context = parts
        .uri
        .path()
        .strip_prefix("/api/v1/")
        .and_then(|rest| rest.split('/').next());
    matches!(parts.method, Method::POST | Method::DELETE)
        && matches!(context, Some("key" | "keys" | "whitelist"))
}

/// Upstream's rule, with its own type for the query: a `token` that is one of those configured.
fn is_authorised(parts: &Parts, tokens: &AccessTokens) -> bool {
    let query = Query::<QueryParams>::try_from_uri(&parts.uri);
    query
        .ok()
        .and_then(|Query(parameters)| parameters.token)
        .is_some_and(|token| tokens.values().any(|known| *known == token))
}

#[cfg(test)]
mod tests;
