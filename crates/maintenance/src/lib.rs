//! A maintenance window for a service that must not stop: close the gate for
//! milliseconds, flush, pin a consistent `SQLite` file, copy it while the service goes on,
//! verify, publish, prune.
//!
//! The library knows nothing of the service it is linked into. A service gives it a
//! database path and lets its requests pass a [`gate::Gate`]; everything else follows
//! from the configuration. `docs/linking.md` shows a whole `main`; `docs/ARCHITECTURE.md`
//! has the code map and the invariants.

pub mod catalogue;
pub mod config;
pub mod consumption;
pub mod disk;
pub mod door;
pub mod driver;
pub mod durability;
pub mod encryption;
pub mod engine;
pub mod evaluation;
pub mod excerpt;
pub mod files;
pub mod gate;
pub mod herald;
pub mod hold;
pub mod hook;
pub mod latency;
pub mod lease;
pub mod maintenance;
pub mod metrics;
pub mod mysql;
pub mod notify;
mod priority;
pub mod process;
pub mod publication;
pub mod readiness;
pub mod remote;
pub mod restore;
pub mod retention;
pub mod schedule;
pub mod sidecar;
pub mod snapshot;
pub mod sqlite;
pub mod status;
pub mod switch;
pub mod touch_file;
pub mod verify;
pub mod window;

/// Version of this library, as manifests and `/api/v1/status` state it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The name of this machine (`nodename` of uname(2)), as locks, notices and owners state it.
#[must_use]
pub fn host() -> String {
    let system = rustix::system::uname();
    system.nodename().to_string_lossy().into_owned()
}
