//! What a thread may take of the disk and the processor while the service needs both.
//!
//! Linux has both per thread, and a thread that is started begins with those of the one
//! that starts it: so a job lowers its own, and with it that of its helpers. It is never
//! raised again; each job has a thread of its own, which ends with it. A kernel or a
//! sandbox that refuses is no reason to go without a backup, and disk schedulers other
//! than `bfq` and `mq-deadline` take no notice anyway.

use ioprio::{BePriorityLevel, Class, Pid, Priority, Target};

use crate::config::IoPriority;

/// Of `nice`, what checking and compressing run at: the service gets ten times as much of
/// a processor both want (sched(7)), and what is left of it is still enough to end.
const NICE: i32 = 10;

/// What a thread does to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// It reads only: when nobody else wants the disk. Nothing waits for it.
    Reading,
    /// It writes and syncs, or a pin lasts until it is done: behind everybody, yet never
    /// last. What is written in the idle class can be put off for seconds, and a journal
    /// commit of the file system, the service's own `fsync` among them, waits for it.
    Writing,
}

/// Ranks the disk operations of this thread, and of those it starts from now on.
pub(crate) fn of_disk(work: Work, priority: IoPriority) {
    let class = match (priority, work) {
        (IoPriority::Normal, _) => return,
        (IoPriority::Low, Work::Reading) => Class::Idle,
        (IoPriority::Low, Work::Writing) => Class::BestEffort(BePriorityLevel::lowest()),
    };
    // Refused: it goes on as it is.
    let _ = ioprio::set_priority(this_thread(), Priority::new(class));
}

/// Has this thread, and those it starts from now on, give way to others at the processor.
pub(crate) fn of_processor() {
    let lowered = rustix::process::getpriority_process(None)
        .and_then(|nice| rustix::process::setpriority_process(None, nice.max(NICE)));
    // Refused: it goes on as it is.
    let _ = lowered;
}

/// Lets others have the processor, if some wait for it (`sched_yield(2)`). Called between two
/// pieces of work by what keeps a processor busy: that it is nice to others only says how much it
/// gets of one. Who wakes up, to answer a client, still waits until the scheduler takes it away
/// from the one that has it, and that may be for milliseconds. zstd takes as long for a piece at
/// its higher levels, and its own threads never ask.
pub(crate) fn give_way() {
    std::thread::yield_now();
}

/// To the kernel, process 0 is the thread that asks.
fn this_thread() -> Target {
    Target::Process(Pid::from_raw(0))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::thread;

    use super::*;

    /// Of this thread: its class, if it was given one, and its `nice`.
    pub(crate) fn mine() -> (Option<Class>, i32) {
        let disk = ioprio::get_priority(this_thread()).expect("Linux tells");
        let nice = rustix::process::getpriority_process(None).expect("POSIX tells");
        (disk.class(), nice)
    }

    fn after(lower: impl FnOnce() + Send + 'static) -> [(Option<Class>, i32); 2] {
        let thread = thread::spawn(|| {
            lower();
            let helper = thread::spawn(mine).join().expect("no panic");
            [mine(), helper]
        });
        thread.join().expect("no panic")
    }

    #[test]
    fn a_thread_and_those_it_starts_are_ranked_and_nobody_else() {
        let before = mine();
        let lowest = Class::BestEffort(BePriorityLevel::lowest());
        for (work, class) in [(Work::Reading, Class::Idle), (Work::Writing, lowest)] {
            let ranked = after(move || of_disk(work, IoPriority::Low));
            assert_eq!(ranked.map(|(class, _)| class), [Some(class); 2], "{work:?}");
            let ranked = after(move || of_disk(work, IoPriority::Normal));
            assert_eq!(ranked.map(|(class, _)| class), [before.0; 2], "{work:?}");
        }
        // Compressing comes after checking: out of the idle class there is a way.
        let ranked = after(|| {
            of_disk(Work::Reading, IoPriority::Low);
            of_disk(Work::Writing, IoPriority::Low);
        });
        assert_eq!(ranked.map(|(class, _)| class), [Some(lowest); 2]);
        for (_, nice) in after(of_processor) {
            assert_eq!(nice, before.1.max(NICE));
        }
        assert_eq!(mine(), before);
    }
}
