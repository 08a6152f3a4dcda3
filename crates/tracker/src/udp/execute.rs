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
use torrust_tracker_maintenance::gate;
use torrust_tracker_primitives::info_hash::InfoHash;

use super::queue::{Announce, Turn};
use super::replies::Replies;
use super::{Shared, Storage, answer, survive};
use crate::writer::{self, Turn as Writing, Writer};

/// Announces executed in one turn.
const TURN: usize = 256;

/// How long a turn may take before it goes on to its sync, if it was not waited for longer. A
/// gate that closes waits for the announce in hand, as nothing more is taken then.
const TURN_TIME: Duration = Duration::from_millis(5);

/// The longest turn, however long it was waited for: others wait for it.
const LONGEST_TURN: Duration = Duration::from_millis(50);

/// Executes until the queue is finished and empty.
#[expect(
    clippy::disallowed_methods,
    reason = "the turn is ended by what it does, not by when somebody asks"
)]
pub fn run(shared: &Shared) {
    let mut replies = Replies::default();
    while let Some(turn) = shared.queue.turn(&shared.runtime) {
        match &shared.storage {
            Storage::Memory => {
                shared.execute_turn(&turn, None, TURN_TIME, &mut replies);
                replies.send(&shared.socket, shared.queue.counters());
            }
            Storage::Database(writer) => {
                let asked = Instant::now();
                let writing = writer.blocking_turn();
                let began = Instant::now();
                // Beside others that write, half of the time.
                let limit = (began - asked).clamp(TURN_TIME, LONGEST_TURN);
                shared.execute_turn(&turn, Some(&writing), limit, &mut replies);
                drop(writing);
                shared.send_durably(writer, &mut replies);
                shared.queue.counters().spend(began.elapsed());
            }
        }
        drop(turn);
    }
}

impl Shared {
    #[expect(
        clippy::disallowed_methods,
        reason = "the turn is ended by what it does, not by when somebody asks"
    )]
    fn execute_turn(
        &self,
        turn: &Turn<'_>,
        writing: Option<&Writing<'_>>,
        limit: Duration,
        replies: &mut Replies,
    ) {
        let began = Instant::now();
        while replies.len() < TURN && began.elapsed() < limit {
            let batch = turn.take();
            if batch.is_empty() {
                break;
            }
            for announce in batch.fresh.into_iter().chain(batch.held) {
                survive("executing an announce", || {
                    self.execute(announce, writing, replies);
                });
            }
        }
    }

    /// Executes an announce whose connection id was valid when it arrived.
    pub(super) fn execute(
        &self,
        announce: Announce,
        writing: Option<&Writing<'_>>,
        replies: &mut Replies,
    ) {
        let Announce {
            from,
            mut request,
            arrived,
        } = announce;
        // It arrived minutes ago, perhaps.
        request.connection_id = into_connection_id(&make(&from));
        let answer = match self.drive(handlers::handle_announce(from, &request, &self.tracker)) {
            Ok(answer) => answer,
            Err(error) => answer::refusal(&error, request.transaction_id),
        };
        if writing.is_none_or(|writing| self.is_stored(&request, writing)) {
            replies.push_timed(&answer, from, gate::Request::Announce, arrived);
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
    fn send_durably(&self, writer: &Writer, replies: &mut Replies) {
        let counters = self.queue.counters();
        let durability = writer.durability();
        if durability.is_some_and(|durability| durability.sync().is_err()) {
            counters.leave_unconfirmed(replies.len() as u64);
            replies.clear();
        }
        replies.send(&self.socket, counters);
    }
}
