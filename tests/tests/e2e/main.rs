//! End-to-end tests on the real binaries, one module per promise. `docs/testing.md` lists
//! them.

#![expect(
    clippy::disallowed_methods,
    reason = "tests read clocks and files; no live database is opened by descriptor"
)]

mod announce_load;
mod attack;
mod bounds;
mod completed;
mod contents;
mod crash;
mod deadline;
mod disaster;
mod drop_in;
mod durable;
mod evaluate_wal;
mod experiments;
mod failures;
mod foreign;
mod harness;
mod modes;
mod mysql;
mod operator;
mod order;
mod pause;
mod refusals;
mod remote;
mod restored;
mod rollback;
mod second_place;
mod secrets;
mod sidecar;
mod sidecar_faults;
mod sidecar_users;
mod soak;
mod stop;
mod support;
mod switch;
mod telling;
mod turns;
mod upstream_clients;
mod volume;
mod wal;
