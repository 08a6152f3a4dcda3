//! The thread that executes announces which waited: for the database or for the gate.
//!
//! It works in turns, each under one pass of the gate:
//!
//! ```text
//!   wait ─▶ pass ─▶ execute, execute, .. ─▶ one sync of the disk ─▶ all answers ─▶ pass back
//! ```
//!
//! A turn ends when nothing waits any more, so with little to do each announce has its own
//! and is answered at once; or at a bound, in number and in time. While the disk syncs, the
//! next ones arrive. So the slower the disk, the more share its sync, and the answers of
//! one turn wait for each other no longer than a sync takes anyway.

use std::time::{Duration, Instant};

use aquatic_udp_protocol::{AnnounceEvent, AnnounceRequest};
use torrust_tracker::servers::udp::connection_cookie::{into_connection_id, make};
use torrust_tracker::servers::udp::handlers;
use torrust_tracker_primitives::info_hash::InfoHash;

use super::queue::{Announce, Turn};
use super::wire::Outbox;
use super::{Shared, Storage, answer, survive};
use crate::writer::{self, Turn as Writing};

/// Announces executed in one turn.
const TURN: usize = 256;

/// How long a turn may take before it goes on to its sync. A gate that closes waits for it.
const TURN_TIME: Duration = Duration::from_millis(5);

/// Executes until the queue is finished and empty.
pub fn run(shared: &Shared) {
    let mut outbox = Outbox::default();
    while let Some(turn) = shared.queue.turn(&shared.runtime) {
        shared.execute_turn(&turn, &mut outbox);
        shared.send_durably(&mut outbox);
        drop(turn);
    }
}

impl Shared {
    #[expect(
        clippy::disallowed_methods,
        reason = "the turn is ended by what it does, not by when somebody asks"
    )]
    fn execute_turn(&self, turn: &Turn<'_>, outbox: &mut Outbox) {
        let writing = match &self.storage {
            Storage::Memory => None,
            Storage::Database(writer) => Some(writer.blocking_turn()),
        };
        let began = Instant::now();
        while outbox.len() < TURN && began.elapsed() < TURN_TIME {
            let batch = turn.take();
            if batch.is_empty() {
                break;
            }
            for announce in batch.fresh.into_iter().chain(batch.held) {
                survive("executing an announce", || {
                    self.execute(announce, writing.as_ref(), outbox);
                });
            }
        }
    }

    /// Executes an announce whose connection id was valid when it arrived.
    pub(super) fn execute(
        &self,
        announce: Announce,
        writing: Option<&Writing<'_>>,
        outbox: &mut Outbox,
    ) {
        let Announce {
            from, mut request, ..
        } = announce;
        // It arrived minutes ago, perhaps.
        request.connection_id = into_connection_id(&make(&from));
        let answer = match self.drive(handlers::handle_announce(from, &request, &self.tracker)) {
            Ok(answer) => answer,
            Err(error) => answer::refusal(&error, request.transaction_id),
        };
        if writing.is_none_or(|writing| self.is_stored(&request, writing)) {
            outbox.push(&answer, from);
        }
    }

    /// Whether what the announce told will be missed by nobody: it told of no completed
    /// download, or the torrent's counter shows in the database.
    fn is_stored(&self, request: &AnnounceRequest, writing: &Writing<'_>) -> bool {
        if AnnounceEvent::from(request.event) != AnnounceEvent::Completed {
            return true;
        }
        let torrent = InfoHash::from(request.info_hash);
        let completed = self.drive(writer::completed(&self.tracker, torrent));
        writing.is_stored(torrent, completed, self.queue.counters())
    }

    /// Sends the answers once what was executed cannot be lost any more. If that cannot be
    /// had, none is sent: a client that gets no answer says it again.
    fn send_durably(&self, outbox: &mut Outbox) {
        if let Storage::Database(writer) = &self.storage
            && let Some(durability) = writer.durability()
            && durability.sync().is_err()
        {
            self.queue.counters().leave_unconfirmed(outbox.len() as u64);
            outbox.clear();
        }
        outbox.send(&self.socket);
    }
}
