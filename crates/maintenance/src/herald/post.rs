//! Delivers to one receiver what it is to be told, and does not give up soon.
//!
//! ```text
//!            put                 ┌──── delivered, or refused for good: out ────┐
//!  herald ────────▶ outbox ─▶ newest ─▶ attempt ─▶ failed: stays, and a pause ──┘
//!                      │                            (ended by news, or by a shutdown)
//!                      └─▶ too many, or for too long: dropped, given up; counted
//! ```
//!
//! A receiver that is down is asked again and again, at longer and longer intervals, for as long as
//! a notice is kept. After [`IN_VAIN`] attempts in a row, which is about a minute, the status says
//! that it is not reached; and why, until it is.
//!
//! At a shutdown the newest notice has one more attempt, at once, and the older ones if that went
//! well. What is not delivered then is not kept anywhere: the log says so.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::Down;
use super::outbox::Outbox;
use crate::driver::LOG_TARGET;
use crate::notify::{Delivery, Messenger, Pauses};
use crate::status::{ChannelStatus, NotDelivered, Told};

/// Attempts in a row after which a receiver is said not to be reached.
const IN_VAIN: u32 = 4;
/// How long a notice is kept that cannot be delivered.
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
/// How long the newest has when the service goes down.
const LAST_WITHIN: Duration = Duration::from_millis(2500);

/// Which of the ways of telling somebody.
#[derive(Debug, Clone, Copy)]
pub(super) enum Channel {
    Webhook,
    Heartbeat,
}

impl Channel {
    fn name(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Heartbeat => "heartbeat",
        }
    }

    /// How many notices wait at most. Of heartbeats only the last says how things are.
    fn room(self) -> usize {
        match self {
            Self::Webhook => 16,
            Self::Heartbeat => 1,
        }
    }
}

/// What both ends have.
#[derive(Debug, Clone)]
struct Shared {
    channel: Channel,
    outbox: Arc<Mutex<Outbox<Delivery>>>,
    told: Arc<watch::Sender<Told>>,
}

impl Shared {
    fn outbox(&self) -> MutexGuard<'_, Outbox<Delivery>> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is told of the channel, and how much waits.
    fn note(&self, change: impl FnOnce(&mut ChannelStatus)) {
        let waiting = self.outbox().len() as u64;
        self.told.send_modify(|told| {
            let status = told.notify.as_mut().and_then(|notify| match self.channel {
                Channel::Webhook => notify.webhook.as_mut(),
                Channel::Heartbeat => notify.heartbeat.as_mut(),
            });
            if let Some(status) = status {
                change(status);
                status.waiting = waiting;
            }
        });
    }
}

/// Where notices are put. Dropped, it says that there will be no more.
#[derive(Debug)]
pub(super) struct Slot {
    shared: Shared,
    /// Says that there is something new; one ring is as good as two.
    bell: mpsc::Sender<()>,
}

impl Slot {
    /// Has it delivered, and returns at once.
    pub(super) fn put(&self, delivery: Delivery) {
        let dropped = self.shared.outbox().put(delivery, monotonic());
        if dropped {
            tracing::error!(
                target: LOG_TARGET,
                "Nobody was told ({}): of the notices that could not be delivered the oldest was \
                 dropped for a newer one",
                self.shared.channel.name()
            );
        }
        self.shared
            .note(|status| status.dropped += u64::from(dropped));
        let _ = self.bell.try_send(());
    }
}

/// Delivers what is put into its [`Slot`].
#[derive(Debug)]
pub(super) struct Post {
    shared: Shared,
    messenger: Result<Messenger, String>,
    pauses: Pauses,
    bell: mpsc::Receiver<()>,
    down: Down,
}

/// What became of an attempt that failed.
#[derive(Debug)]
struct NotTold {
    reason: String,
    /// When the next attempt may do better: how long to wait.
    again_in: Option<Duration>,
}

impl Post {
    pub(super) fn new(
        channel: Channel,
        messenger: Result<Messenger, String>,
        pauses: Pauses,
        told: Arc<watch::Sender<Told>>,
        down: Down,
    ) -> (Slot, Self) {
        let (ring, bell) = mpsc::channel(1);
        let shared = Shared {
            channel,
            outbox: Arc::new(Mutex::new(Outbox::new(channel.room(), KEPT_FOR))),
            told,
        };
        let slot = Slot {
            shared: shared.clone(),
            bell: ring,
        };
        let post = Self {
            shared,
            messenger,
            pauses,
            bell,
            down,
        };
        (slot, post)
    }

    /// Until there is nothing left to deliver and nobody to bring any more.
    pub(super) async fn run(mut self) {
        let mut in_vain = 0;
        let mut more_may_come = true;
        loop {
            self.expire();
            let Some((number, delivery)) = self.newest() else {
                if self.bell.recv().await.is_none() {
                    return;
                }
                continue;
            };
            let is_last = self.down.is();
            let error = match self.attempt(&delivery, in_vain + 1).await {
                Ok(()) => {
                    in_vain = 0;
                    self.delivered(number, &delivery);
                    continue;
                }
                Err(error) => error,
            };
            let Some(pause) = error.again_in else {
                self.shared.outbox().remove(number);
                self.give_up(1, error.reason);
                continue;
            };
            if is_last {
                // What came meanwhile has not had its attempt: the last run's own notice.
                if self.newest().is_none_or(|(newest, _)| newest == number) {
                    let left = self.shared.outbox().empty();
                    self.give_up(left, error.reason);
                }
                continue;
            }
            in_vain += 1;
            if in_vain == IN_VAIN {
                self.say_failing(error.reason);
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = self.down.comes() => {}
                news = self.bell.recv(), if more_may_come => more_may_come = news.is_some(),
            }
        }
    }

    fn newest(&self) -> Option<(u64, Delivery)> {
        self.shared.outbox().newest()
    }

    async fn attempt(&self, delivery: &Delivery, attempts: u32) -> Result<(), NotTold> {
        let target = delivery.target();
        let messenger = self.messenger.as_ref().map_err(|why| NotTold {
            reason: format!("{target} was not asked: {why}"),
            again_in: None,
        })?;
        tokio::select! {
            sent = messenger.attempt(delivery) => sent.map_err(|error| NotTold {
                again_in: error
                    .may_pass()
                    .then(|| self.pauses.after(attempts, &error)),
                reason: error.to_string(),
            }),
            () = self.down.came(LAST_WITHIN) => Err(NotTold {
                reason: format!("{target} was not told in time: the service went down"),
                again_in: Some(Duration::ZERO),
            }),
        }
    }

    fn expire(&self) {
        let expired = self.shared.outbox().expire(monotonic());
        if expired > 0 {
            self.give_up(expired, format!("not in {KEPT_FOR:?}"));
        }
    }

    fn delivered(&self, number: u64, delivery: &Delivery) {
        let Shared { channel, .. } = self.shared;
        tracing::info!(
            target: LOG_TARGET, "Told {} ({})", delivery.target(), channel.name()
        );
        self.shared.outbox().remove(number);
        self.shared.note(|status| {
            status.delivered += 1;
            status.last_delivered = Some(utc());
            status.failing = None;
        });
    }

    fn say_failing(&self, reason: String) {
        tracing::error!(
            target: LOG_TARGET,
            "Nobody was told so far ({}): {reason}; it is tried again for a day",
            self.shared.channel.name()
        );
        self.shared
            .note(|status| status.failing = Some(NotDelivered { at: utc(), reason }));
    }

    /// Says of so many notices, which are not in the outbox any more, that they were not
    /// delivered.
    fn give_up(&self, notices: usize, reason: String) {
        tracing::error!(
            target: LOG_TARGET,
            "Nobody was told ({}, {notices} given up): {reason}", self.shared.channel.name()
        );
        self.shared.note(|status| {
            status.failed += notices as u64;
            status.failing = Some(NotDelivered { at: utc(), reason });
        });
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "when somebody was told is told as it is; nothing is decided by it"
)]
fn utc() -> DateTime<Utc> {
    Utc::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a notice has waited is known where it is put and taken"
)]
fn monotonic() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests;
