//! File descriptors: every HTTP request that is held keeps one. With all of them taken
//! nothing can be accepted any more, and the health check turns red.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The largest share of this process's descriptors that held requests may take. The rest
/// is for connections that are not held, the database and the backup.
const SHARE: u64 = 2;

/// Why `hold_http` held requests would be too many for `limit` descriptors, if they would.
pub fn problem(hold_http: usize, limit: u64) -> Option<String> {
    let most = limit / SHARE;
    (hold_http as u64 > most).then(|| {
        format!(
            "maintenance.gate.hold_at_most.http = {hold_http}: this process may open {limit} \
             files, of which held requests may take {most}; hold fewer, or raise the limit \
             (`ulimit -Hn`, `LimitNOFILE=`)"
        )
    })
}

/// Raises the soft limit on open files to the hard one, which a process may do by itself,
/// and says how many it may have open now; `None` where there is no limit.
pub fn raise() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    // Refused by some sandboxes; then what there is has to do.
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(_) => current,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_requests_may_take_half() {
        assert_eq!(problem(512, 1_024), None);
        let problem = problem(513, 1_024).expect("one too many");
        assert!(problem.contains("hold_at_most.http = 513"), "{problem}");
        assert!(problem.contains("1024"), "{problem}");
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let raised = raise();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!(raised, current);
        assert_eq!(current, maximum);
    }
}
