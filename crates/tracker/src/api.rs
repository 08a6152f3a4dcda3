//! The REST API: upstream's router, of which the requests that write to the database pass
//! the gate's door.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::Method;
use axum::http::request::Parts;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use torrust_tracker::core::Tracker;
use torrust_tracker::servers::apis::routes;
use torrust_tracker::servers::apis::v1::middlewares::auth::QueryParams;
use torrust_tracker_configuration::AccessTokens;
use torrust_tracker_maintenance::door::{Lobby, Way};
use tower::Layer as _;

use crate::writer::Writer;

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
    let mut routes = routes::router(tracker, tokens);
    if let Some(writer) = writer {
        routes = routes.layer(from_fn_with_state(writer, execute));
    }
    Router::new().fallback_service(gate.layer(routes))
}

/// Executes what writes when its turn to do so has come. That it could not be stored upstream
/// says itself.
async fn execute(State(writer): State<Writer>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let _turn = if is_write(&parts) {
        Some(writer.turn().await)
    } else {
        None
    };
    next.run(Request::from_parts(parts, body)).await
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
