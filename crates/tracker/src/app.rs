//! The services, started in upstream's order (`torrust_tracker::app::start`) and stopped
//! within seconds.
//!
//! ```text
//!   sockets bound ─▶ database checked ─▶ maintenance prepared ─▶ database opened
//!                                                                     │
//!   ┌─────────────────────────────────────────────────────────────────┘
//!   └▶ keys, whitelist, counters loaded ─▶ UDP, HTTP, API, cleanup, health ─▶ windows begin
//! ```
//!
//! Up to "prepared" nothing has been written, so what can fail because of somebody else (a
//! port in use, a missing directory) fails without a trace. Preparing is where the journal
//! mode is applied, which only works while nobody has the database open.
//!
//! What answers requests holds a lifeline (see [`crate::alarm`]): should it end by itself,
//! the process shuts down. The health check API needs none, as whoever asks it notices.
//!
//! The shutdown is the other way round: first the window, which opens the gate and ends the
//! run; then the held requests, which need an open gate; then the connections. Each part
//! has a limit, and together they stay below the 10 s that service managers give.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::join_all;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use torrust_tracker::bootstrap::jobs::{health_check_api, torrent_cleanup};
use torrust_tracker::core::Tracker;
use torrust_tracker::servers::apis::{self, API_LOG_TARGET};
use torrust_tracker::servers::http::{self as upstream_http, HTTP_TRACKER_LOG_TARGET};
use torrust_tracker::servers::logging::STARTED_ON;
use torrust_tracker::servers::registar::{FnSpawnServiceHeathCheck, Registar, ServiceRegistration};
use torrust_tracker::servers::udp::UDP_TRACKER_LOG_TARGET;
use torrust_tracker::servers::udp::server::launcher::Launcher;
use torrust_tracker_configuration::Configuration as TrackerConfiguration;
use torrust_tracker_maintenance::config::{Acknowledge, Settings};
use torrust_tracker_maintenance::door::Lobby;
use torrust_tracker_maintenance::durability::{Durability, Failures};
use torrust_tracker_maintenance::gate::{Door, Gate, Keeper};
use torrust_tracker_maintenance::hold::Bounds;
use torrust_tracker_maintenance::maintenance::{Maintenance, Running, Service, Storage};

use crate::alarm::Alarm;
use crate::configuration::Configuration;
use crate::sockets::Sockets;
use crate::writer::{Ledger, Writer};
use crate::{api, completed, database, http, udp, web};

/// What manifests and the status name as the service.
const SERVICE: &str = "torrust-tracker 3.0.0";

/// Announces that may wait while the gate is open, on each UDP socket: a bound on memory.
/// How long they may wait is bounded by the queue itself.
const QUEUED_UDP: usize = 16_384;

/// Without `[maintenance]` the gate never closes; these bounds are then of no effect.
const HOLD_UDP: usize = 65_536;
const HOLD_HTTP: usize = 500;

/// How long held requests may take to be executed. The window has had its own limit
/// before (`SHUTDOWN_WITHIN` of the library).
const DRAIN: Duration = Duration::from_secs(2);
/// How long HTTP connections may take to end, at the same time.
const END_CONNECTIONS: Duration = Duration::from_secs(4);
/// How often it is looked whether held requests have been executed.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Everything that runs.
#[derive(Debug)]
pub struct App {
    upkeep: Upkeep<Running>,
    udp: Vec<udp::Server>,
    web: Vec<web::Server>,
    gate: Gate,
    alarm: Alarm,
    /// Stops at SIGINT by itself, at SIGTERM it has to be told.
    cleanup: Option<JoinHandle<()>>,
    /// Listens for both signals itself and is left to it: its end is the process's.
    _health_check: JoinHandle<()>,
}

/// Who keeps the gate. `M` is [`Maintenance`] while the services start, then [`Running`].
#[derive(Debug)]
enum Upkeep<M> {
    /// Nobody closes it.
    Off(Keeper),
    /// The driver does.
    On(M),
}

impl App {
    /// Starts everything. Dropping the future stops nothing that has been started: the
    /// process is expected to end.
    ///
    /// # Errors
    ///
    /// When a service cannot be started.
    pub async fn start(configuration: Configuration, announces: Handle) -> anyhow::Result<Self> {
        let Configuration {
            tracker: configuration,
            maintenance: settings,
        } = configuration;
        database::check_library()?;
        let sockets = Sockets::bind(&configuration).await?;
        let path = sqlite_path(&configuration);
        let load_completed = settings
            .as_ref()
            .and_then(|settings| settings.load_completed);
        let bounds = Bounds {
            held: settings
                .as_ref()
                .map_or(HOLD_UDP, |settings| settings.gate.hold_udp),
            queued: QUEUED_UDP,
        };
        let hold_http = settings
            .as_ref()
            .map_or(HOLD_HTTP, |settings| settings.gate.hold_http);
        let acknowledge = settings
            .as_ref()
            .map_or(Acknowledge::Durable, |settings| settings.acknowledge);

        let upkeep = blocking({
            let storage = storage(&configuration);
            move || Upkeep::prepare(settings, storage)
        })
        .await?;
        let tracker = open(&configuration, path.as_deref(), load_completed).await?;
        let stored = Stored::open(path, acknowledge).await?;
        let gate = upkeep.gate().clone();
        // One for all HTTP services, as their connections share the process's descriptors.
        let lobby = Lobby::new(gate.clone(), hold_http, announces);
        let registar = Registar::default();
        let alarm = Alarm::new();
        let writer = Writer::new(stored.ledger, stored.durability.clone());
        let starter = Starter {
            configuration: &configuration,
            tracker: &tracker,
            registar: &registar,
            gate: &gate,
            lobby: &lobby,
            writer: &writer,
            alarm: &alarm,
        };
        starter.warn_if_idle();
        let udp = starter.udp(sockets.udp, &starter.storage(), bounds)?;
        let mut web = starter.http(sockets.http)?;
        web.extend(starter.api(sockets.api)?);
        let cleanup = (configuration.core.inactive_peer_cleanup_interval > 0)
            .then(|| torrent_cleanup::start_job(&configuration.core, &tracker));
        let health_check =
            health_check_api::start_job(&configuration.health_check_api, registar.entries()).await;
        let upkeep = blocking(|| upkeep.start()).await?;
        if let (Upkeep::On(running), Some(durability)) = (&upkeep, &stored.durability) {
            running.heed(durability.failures());
        }
        Ok(Self {
            upkeep,
            udp,
            web,
            gate,
            alarm,
            cleanup,
            _health_check: health_check,
        })
    }

    /// Waits until a service ends that was not told to, and names it.
    pub async fn lost_a_service(&mut self) -> String {
        self.alarm.raised().await
    }

    /// Stops everything, in 10 s at most.
    pub async fn shutdown(self) {
        self.upkeep.stop().await;
        if let Some(cleanup) = self.cleanup {
            cleanup.abort();
        }
        let udp = join_all(self.udp.into_iter().map(|server| server.stop(DRAIN)));
        let web = join_all(
            self.web
                .into_iter()
                .map(|server| server.stop(END_CONNECTIONS)),
        );
        // A held request whose client has hung up keeps no connection open.
        let held = tokio::time::timeout(DRAIN, drained(&self.gate));
        let _ = tokio::join!(udp, web, held);
    }
}

impl Upkeep<Maintenance> {
    /// Checks the database and prepares it for the windows. Blocks.
    fn prepare(
        settings: Option<Settings>,
        storage: anyhow::Result<Storage>,
    ) -> anyhow::Result<Self> {
        if let Ok(Storage::Sqlite(path)) = &storage {
            database::check_file(path)?;
        }
        let Some(settings) = settings else {
            let (_, keeper) = Gate::new().context("could not start the gate's watchdog")?;
            return Ok(Self::Off(keeper));
        };
        let service = Service {
            name: SERVICE.to_owned(),
            database: storage?,
        };
        Maintenance::prepare(settings, service)
            .map(Self::On)
            .context("could not prepare the maintenance window")
    }

    fn gate(&self) -> &Gate {
        match self {
            Self::Off(keeper) => keeper.gate(),
            Self::On(maintenance) => maintenance.gate(),
        }
    }

    /// From now on windows come and go. Blocks.
    fn start(self) -> anyhow::Result<Upkeep<Running>> {
        match self {
            Self::Off(keeper) => Ok(Upkeep::Off(keeper)),
            Self::On(maintenance) => maintenance
                .start()
                .map(Upkeep::On)
                .context("could not start the maintenance window"),
        }
    }
}

impl Upkeep<Running> {
    /// The gate is open afterwards and stays so.
    async fn stop(self) {
        match self {
            Self::Off(keeper) => drop(keeper),
            Self::On(running) => running.shutdown().await,
        }
    }
}

/// What starting a service takes.
#[derive(Clone, Copy)]
struct Starter<'a> {
    configuration: &'a TrackerConfiguration,
    tracker: &'a Arc<Tracker>,
    registar: &'a Registar,
    gate: &'a Gate,
    lobby: &'a Lobby,
    writer: &'a Writer,
    alarm: &'a Alarm,
}

impl Starter<'_> {
    /// Whether announces are stored.
    fn stores(&self) -> bool {
        let policy = &self.configuration.core.tracker_policy;
        policy.persistent_torrent_completed_stat
    }

    /// The lobby before a service that writes.
    fn lobby(&self) -> Lobby {
        match self.writer.durability() {
            Some(durability) => self.lobby.durable(durability.clone()),
            None => self.lobby.clone(),
        }
    }

    fn warn_if_idle(&self) {
        let configuration = self.configuration;
        if configuration.http_api.is_none()
            && configuration.udp_trackers.iter().flatten().next().is_none()
            && configuration
                .http_trackers
                .iter()
                .flatten()
                .next()
                .is_none()
        {
            tracing::warn!("No services enabled in configuration");
        }
    }

    /// For requests that come one by one. A server lets many write.
    fn in_turn(&self) -> Option<Writer> {
        sqlite_path(self.configuration).map(|_| self.writer.clone())
    }

    fn storage(&self) -> udp::Storage {
        if self.stores() {
            udp::Storage::Database(self.writer.clone())
        } else {
            udp::Storage::Memory
        }
    }

    fn udp(
        &self,
        sockets: Vec<std::net::UdpSocket>,
        storage: &udp::Storage,
        bounds: Bounds,
    ) -> anyhow::Result<Vec<udp::Server>> {
        match &self.configuration.udp_trackers {
            None => tracing::info!("No UDP blocks in configuration"),
            Some(trackers) if self.tracker.is_private() => {
                for tracker in trackers {
                    tracing::warn!(
                        "Could not start UDP tracker on: {} while in private mode. UDP is not safe for private trackers!",
                        tracker.bind_address
                    );
                }
            }
            Some(_) => {}
        }
        let mut servers = Vec::new();
        for socket in sockets {
            let server = udp::Server::start(
                socket,
                Arc::clone(self.tracker),
                storage.clone(),
                self.gate.clone(),
                bounds,
                self.alarm,
            )
            .context("could not start a UDP tracker")?;
            let address = server.address();
            tracing::info!(target: UDP_TRACKER_LOG_TARGET, "Starting on: {address}");
            tracing::info!(target: UDP_TRACKER_LOG_TARGET, "{STARTED_ON}: udp://{address}");
            self.register(address, Launcher::check);
            servers.push(server);
        }
        Ok(servers)
    }

    fn http(&self, endpoints: Vec<web::Endpoint>) -> anyhow::Result<Vec<web::Server>> {
        if self.configuration.http_trackers.is_none() {
            tracing::info!("No HTTP blocks in configuration");
        }
        let (lobby, announces) = if self.stores() {
            (self.lobby(), http::Announces::Stored(self.in_turn()))
        } else {
            (self.lobby.clone(), http::Announces::InMemory)
        };
        let mut servers = Vec::new();
        for endpoint in endpoints {
            let protocol = endpoint.protocol();
            let address = endpoint
                .address()
                .context("an HTTP tracker has no address")?;
            tracing::info!(target: HTTP_TRACKER_LOG_TARGET, "Starting on: {protocol}://{address}");
            let app = http::router(Arc::clone(self.tracker), address, &lobby, announces.clone());
            let lifeline = self
                .alarm
                .lifeline(format!("the HTTP tracker on {address}"));
            let server = web::Server::start(endpoint, app, lifeline);
            servers.push(server.context("could not start an HTTP tracker")?);
            tracing::info!(target: HTTP_TRACKER_LOG_TARGET, "{STARTED_ON}: {protocol}://{address}");
            self.register(address, upstream_http::server::check_fn);
        }
        Ok(servers)
    }

    fn api(&self, endpoint: Option<web::Endpoint>) -> anyhow::Result<Option<web::Server>> {
        let (Some(endpoint), Some(configured)) = (endpoint, &self.configuration.http_api) else {
            tracing::info!("No API block in configuration");
            return Ok(None);
        };
        let protocol = endpoint.protocol();
        let address = endpoint.address().context("the API has no address")?;
        // Upstream's lines have no colon here.
        tracing::info!(target: API_LOG_TARGET, "Starting on {protocol}://{address}");
        let tokens = Arc::new(configured.access_tokens.clone());
        let app = api::router(
            Arc::clone(self.tracker),
            tokens,
            &self.lobby(),
            self.in_turn(),
        );
        let lifeline = self.alarm.lifeline(format!("the API on {address}"));
        let server = web::Server::start(endpoint, app, lifeline);
        let server = server.context("could not start the API")?;
        tracing::info!(target: API_LOG_TARGET, "{STARTED_ON} {protocol}://{address}");
        self.register(address, apis::server::check_fn);
        Ok(Some(server))
    }

    /// Lists a service for the health check API.
    fn register(&self, address: std::net::SocketAddr, check: FnSpawnServiceHeathCheck) {
        let registration = ServiceRegistration::new(address, check);
        if self.registar.give_form().send(registration).is_err() {
            tracing::error!("{address} will be missing from the health check");
        }
    }
}

/// Opens the database and loads what upstream loads, and the counters if asked to.
async fn open(
    configuration: &TrackerConfiguration,
    path: Option<&Path>,
    load_completed: Option<u64>,
) -> anyhow::Result<Arc<Tracker>> {
    let core = configuration.core.clone();
    let statistics = database::statistics(&core);
    let tracker = blocking(move || database::open(&core, Some(statistics))).await?;
    let tracker = Arc::new(tracker);
    tracing::info!(
        "Configuration:\n{}",
        configuration.clone().mask_secrets().to_json()
    );
    if tracker.is_private() {
        let keys = tracker.load_keys_from_database().await;
        keys.context("could not load the keys from the database")?;
    }
    if tracker.is_listed() {
        let whitelist = tracker.load_whitelist_from_database().await;
        whitelist.context("could not load the whitelist from the database")?;
    }
    if let (Some(path), Some(limit)) = (path, load_completed) {
        let (tracker, path) = (Arc::clone(&tracker), path.to_owned());
        blocking(move || completed::load(&tracker, &path, limit)).await?;
    }
    Ok(tracker)
}

/// What answers to writes are owed to, of a database that has just been opened.
#[derive(Default)]
struct Stored {
    /// Looks after what upstream writes.
    ledger: Option<Ledger>,
    /// `None` where answers do not wait for the disk.
    durability: Option<Durability>,
}

impl Stored {
    /// Also starts a task that tells when a sync fails.
    async fn open(path: Option<PathBuf>, acknowledge: Acknowledge) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        if !path.exists() {
            // What SQLite takes for something else than a path, `:memory:` for one.
            tracing::warn!(
                "There is no file {}: requests are answered before what they wrote is durable",
                path.display()
            );
            return Ok(Self::default());
        }
        let stored = blocking(move || {
            let ledger = Ledger::open(&path).context("could not open the database")?;
            let durability = match acknowledge {
                Acknowledge::Durable => Some(Durability::open(&path)?),
                Acknowledge::Committed => None,
            };
            Ok(Self {
                ledger: Some(ledger),
                durability,
            })
        });
        let stored = stored.await?;
        if let Some(durability) = &stored.durability {
            tokio::spawn(report(durability.failures()));
        }
        Ok(stored)
    }
}

/// The first failure says what is wrong; after that they only need not be forgotten.
async fn report(mut failures: Failures) {
    let mut told = 0;
    while let Some((count, error)) = failures.next().await {
        if count >= 2 * told {
            told = count;
            tracing::error!(
                "Requests are left unanswered, as what they wrote may not last (failure {count}): {error}"
            );
        }
    }
}

/// The database as the library is to know it. That it is wrong matters to nobody without
/// windows: upstream has its own words for it.
fn storage(configuration: &TrackerConfiguration) -> anyhow::Result<Storage> {
    if let Some(path) = sqlite_path(configuration) {
        return Ok(Storage::Sqlite(path));
    }
    let address = configuration.core.database.path.parse();
    address.map(Storage::MySql).context("core.database.path")
}

/// `None`: the database is not SQLite.
fn sqlite_path(configuration: &TrackerConfiguration) -> Option<PathBuf> {
    use torrust_tracker_configuration::Driver;
    let database = &configuration.core.database;
    (database.driver == Driver::Sqlite3).then(|| PathBuf::from(&database.path))
}

/// Runs what blocks where it may; a panic in it becomes an error.
async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(run)
        .await
        .context("the start was given up")?
}

/// Waits until no HTTP request is held and no request is in flight.
async fn drained(gate: &Gate) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    while gate.counters(Door::Http).held() > 0 || gate.in_flight() > 0 {
        look.tick().await;
    }
}
