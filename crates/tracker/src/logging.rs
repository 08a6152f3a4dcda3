//! The log, as upstream sets it up, but for spans nobody reads.
//!
//! Upstream's handlers of UDP requests open a span for each request, at level info, with
//! the request in its fields. A span writes no line by itself; it would precede the lines
//! that are written inside. At level info there are none, as whatever a handler says of a
//! request that succeeds is at debug level or below. All the same it is made, formatted and
//! thrown away for every request, which took upstream more than half of its rate at its
//! default threshold. So these spans are off, except at the thresholds `debug` and `trace`,
//! at which the lines inside them are on.
//!
//! What a handler refuses is a line at level error, which then has no span before it. It says
//! why, and what upstream's line has besides is the request.

use torrust_tracker_configuration::{Configuration, Threshold};
use tracing::Metadata;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Where upstream's handlers of UDP requests are.
const PER_REQUEST: &str = "torrust_tracker::servers::udp::handlers";

/// Writes the log to the standard output, from the configured threshold up. To be called once.
pub fn initialize(configuration: &Configuration) {
    let Some(threshold) = level(&configuration.logging.threshold) else {
        return;
    };
    tracing_subscriber::fmt()
        .with_max_level(threshold)
        .with_ansi(true)
        .finish()
        .with(filter_fn(move |metadata| is_read(metadata, threshold)))
        .init();
    // Upstream's line, from where it says it.
    tracing::info!(target: "torrust_tracker::bootstrap::logging", "Logging initialized");
}

fn level(threshold: &Threshold) -> Option<LevelFilter> {
    match threshold {
        Threshold::Off => None,
        Threshold::Error => Some(LevelFilter::ERROR),
        Threshold::Warn => Some(LevelFilter::WARN),
        Threshold::Info => Some(LevelFilter::INFO),
        Threshold::Debug => Some(LevelFilter::DEBUG),
        Threshold::Trace => Some(LevelFilter::TRACE),
    }
}

fn is_read(metadata: &Metadata<'_>, threshold: LevelFilter) -> bool {
    !metadata.is_span() || threshold > LevelFilter::INFO || metadata.target() != PER_REQUEST
}
