//! End-to-end tests on the real binaries, one module per promise. `docs/testing.md` lists
//! them.

#![expect(
    clippy::disallowed_methods,
    reason = "tests read clocks and files; no live database is opened by descriptor"
)]

mod bounds;
mod completed;
mod crash;
mod deadline;
mod drop_in;
mod durable;
mod failures;
mod foreign;
mod harness;
mod modes;
mod operator;
mod order;
mod pause;
mod refusals;
mod rollback;
mod stop;
mod support;
mod upstream_clients;
mod wal;
