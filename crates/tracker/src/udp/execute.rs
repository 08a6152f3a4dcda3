//! The thread that executes announces, each under a pass of the gate.

use torrust_tracker::servers::udp::connection_cookie::{into_connection_id, make};
use torrust_tracker::servers::udp::handlers;

use super::queue::Announce;
use super::{Shared, answer, survive};

/// Executes until the queue is finished and empty.
pub fn run(shared: &Shared) {
    while let Some((pass, batch)) = shared.queue.take(&shared.runtime) {
        // The two lists have no peer in common, so either may go first.
        for announce in batch.fresh.into_iter().chain(batch.held) {
            survive("executing an announce", || shared.execute(announce));
        }
        drop(pass);
    }
}

impl Shared {
    fn execute(&self, announce: Announce) {
        let Announce {
            from, mut request, ..
        } = announce;
        // Valid when it arrived, which may be minutes ago.
        request.connection_id = into_connection_id(&make(&from));
        let handler = handlers::handle_announce(from, &request, &self.tracker);
        let answer = self
            .runtime
            .block_on(handler)
            .unwrap_or_else(|error| answer::refusal(&error, request.transaction_id));
        answer::send(&self.socket, &answer, from);
    }
}
