//! What an announce pays for the gate while it is open: a pass taken and given back.
//!
//! ```text
//! cargo bench --locked -p torrust-tracker-maintenance --bench gate
//! ```

#![expect(
    missing_docs,
    clippy::disallowed_methods,
    reason = "criterion's macros write undocumented items, and a benchmark reads the clock"
)]

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use torrust_tracker_maintenance::gate::Gate;

const THREADS: u64 = 8;

fn entering(criterion: &mut Criterion) {
    let (gate, _keeper) = Gate::new().expect("a thread for the watchdog");
    let mut group = criterion.benchmark_group("the open gate");
    group.throughput(Throughput::Elements(1));
    group.bench_function("one thread", |bencher| {
        bencher.iter(|| drop(black_box(gate.try_enter())));
    });
    // The time of all threads together, for a pass each.
    group.throughput(Throughput::Elements(THREADS));
    group.bench_function("eight threads, a pass each", |bencher| {
        bencher.iter_custom(|passes| together(&gate, passes));
    });
    group.finish();
}

/// How long eight threads take for so many passes each.
fn together(gate: &Gate, passes: u64) -> Duration {
    let begin = Barrier::new(usize::try_from(THREADS + 1).expect("a few"));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                begin.wait();
                for _ in 0..passes {
                    drop(black_box(gate.try_enter()));
                }
            });
        }
        begin.wait();
        Instant::now()
    })
    .elapsed()
}

criterion_group!(benches, entering);
criterion_main!(benches);
