//! The torrust-tracker 3.0.0 with a maintenance window linked in. A drop-in: the same
//! configuration, environment, services, ports and log lines as upstream.
//!
//! Exit codes: 0 stopped by a signal, 1 could not start, serve or stop, 2 configuration.

mod alarm;
mod api;
mod app;
mod completed;
mod configuration;
mod database;
mod descriptors;
mod http;
mod logging;
mod signals;
mod sockets;
mod udp;
mod web;
mod writer;

use std::process::ExitCode;

use anyhow::Context as _;
use tokio::runtime::{Builder, Handle, Runtime};
use torrust_tracker::bootstrap;

use app::App;
use configuration::Configuration;
use signals::Signals;

/// Threads that execute HTTP announces and writes of the REST API. The database lets one
/// write at a time; the second thread reads or waits meanwhile.
const ANNOUNCE_THREADS: usize = 2;

fn main() -> ExitCode {
    // There are two in this process, axum-server's and that of the library's clients, and
    // rustls does not choose. It is upstream's own that serves. Fails only if one was chosen.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let configuration = match configuration::load() {
        Ok(configuration) => configuration,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(2);
        }
    };
    match run(configuration) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(configuration: Configuration) -> anyhow::Result<()> {
    bootstrap::app::initialize_static();
    logging::initialize(&configuration.tracker);
    let services = runtime(Builder::new_multi_thread().thread_name("service"))?;
    let announces = runtime(
        Builder::new_multi_thread()
            .thread_name("announce")
            .worker_threads(ANNOUNCE_THREADS),
    )?;
    let outcome = services.block_on(live(configuration, announces.handle().clone()));
    // What still runs has had its time; the process does not wait for it again.
    announces.shutdown_background();
    services.shutdown_background();
    outcome
}

/// From the start to the signal, and through the shutdown. A service that ends by itself
/// is a defect: what is left goes down in order, and whoever supervises the process is
/// told, instead of a process that looks alive and does not serve.
async fn live(configuration: Configuration, announces: Handle) -> anyhow::Result<()> {
    // Before anything starts, so that no signal finds nobody listening.
    let mut signals = Signals::listen().context("could not listen for signals")?;
    let mut app = tokio::select! {
        app = App::start(configuration, announces) => app?,
        () = signals.next() => {
            tracing::info!("Torrust shutting down ...");
            return Ok(());
        }
    };
    let lost = tokio::select! {
        biased;
        () = signals.next() => None,
        service = app.lost_a_service() => Some(service),
    };
    if let Some(service) = &lost {
        tracing::error!("{service} ended without being told to");
    }
    tracing::info!("Torrust shutting down ...");
    tokio::select! {
        () = app.shutdown() => tracing::info!("Torrust successfully shutdown."),
        () = signals.next() => anyhow::bail!("a second signal came before the shutdown was complete"),
    }
    match lost {
        None => Ok(()),
        Some(service) => anyhow::bail!("{service} ended without being told to; see the log"),
    }
}

fn runtime(builder: &mut Builder) -> anyhow::Result<Runtime> {
    builder
        .enable_all()
        .build()
        .context("could not start an async runtime")
}
