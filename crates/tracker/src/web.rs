//! An HTTP server as upstream runs its own, on a listener that is bound already, and with
//! an end that comes in seconds: upstream waits 90 s for connections to close.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use axum::Router;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use tokio::task::JoinHandle;
use torrust_tracker::servers::custom_axum_server::{
    TimeoutAcceptor, from_tcp_rustls_with_timeouts, from_tcp_with_timeouts,
};

use crate::alarm::Lifeline;

/// A listener and, for HTTPS, its certificate.
#[derive(Debug)]
pub struct Endpoint {
    /// Bound and listening.
    pub listener: TcpListener,
    /// `None`: plain HTTP.
    pub tls: Option<RustlsConfig>,
}

/// A server that answers.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    handle: Handle,
    task: JoinHandle<()>,
}

impl Endpoint {
    /// Where it listens.
    ///
    /// # Errors
    ///
    /// When the operating system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// `http` or `https`, as upstream's log lines have it.
    #[must_use]
    pub fn protocol(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

impl Server {
    /// Serves `app` in a task of the current runtime, which holds the lifeline.
    ///
    /// # Errors
    ///
    /// When the operating system does not say where the listener is bound.
    pub fn start(endpoint: Endpoint, app: Router, lifeline: Lifeline) -> io::Result<Self> {
        let address = endpoint.address()?;
        let handle = Handle::new();
        let task = tokio::spawn({
            let handle = handle.clone();
            async move {
                let _lifeline = lifeline;
                if let Err(error) = serve(endpoint, handle, app).await {
                    tracing::error!("the HTTP server on {address} ended: {error}");
                }
            }
        });
        Ok(Self {
            address,
            handle,
            task,
        })
    }

    /// Accepts no more, answers what has been asked, and closes what is left at `limit`.
    pub async fn stop(self, limit: Duration) {
        tracing::info!(
            "Shutting down HTTP server on socket address: {}",
            self.address
        );
        self.handle.graceful_shutdown(Some(limit));
        if let Err(error) = self.task.await {
            tracing::error!("the HTTP server on {} failed: {error}", self.address);
        }
    }
}

async fn serve(endpoint: Endpoint, handle: Handle, app: Router) -> io::Result<()> {
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    match endpoint.tls {
        // Without the acceptor that times out headers, as upstream: it does not work
        // with TLS (torrust-index issue 204).
        Some(tls) => {
            from_tcp_rustls_with_timeouts(endpoint.listener, tls)
                .handle(handle)
                .serve(service)
                .await
        }
        None => {
            from_tcp_with_timeouts(endpoint.listener)
                .handle(handle)
                .acceptor(TimeoutAcceptor)
                .serve(service)
                .await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alarm::Alarm;

    #[tokio::test]
    async fn a_server_that_ends_by_itself_is_heard_of() {
        let mut alarm = Alarm::new();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let endpoint = Endpoint {
            listener,
            tls: None,
        };
        let server = Server::start(endpoint, Router::new(), alarm.lifeline("the API"));
        let server = server.expect("a server");
        server.task.abort();
        assert_eq!(alarm.raised().await, "the API");
    }
}
