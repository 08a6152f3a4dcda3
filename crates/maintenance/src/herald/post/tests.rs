use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::notify::testing::{Receiver, answer};
use crate::status::NotifyStatus;

/// How long anything may take that should happen at once.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pauses no test has to wait for, and those that no test may.
const QUICK: Pauses = Pauses {
    first: Duration::from_millis(1),
    longest: Duration::from_millis(1),
};
const FOR_EVER: Pauses = Pauses {
    first: Duration::from_secs(3600),
    longest: Duration::from_secs(3600),
};

/// A post with its slot, and what is told of it.
struct Bench {
    slot: Slot,
    told: watch::Receiver<Told>,
    going_down: watch::Sender<bool>,
    posting: JoinHandle<()>,
}

impl Bench {
    fn new(channel: Channel, pauses: Pauses) -> Self {
        Self::with(channel, pauses, Messenger::new(Duration::from_secs(20)))
    }

    fn with(channel: Channel, pauses: Pauses, messenger: Result<Messenger, String>) -> Self {
        let blank = || ChannelStatus {
            target: "http://receiver".to_owned(),
            delivered: 0,
            failed: 0,
            waiting: 0,
            dropped: 0,
            last_delivered: None,
            failing: None,
        };
        let (told, status) = watch::channel(Told {
            notify: Some(NotifyStatus {
                webhook: Some(blank()),
                heartbeat: Some(blank()),
            }),
            ..Told::default()
        });
        let (going_down, down) = watch::channel(false);
        let (slot, post) = Post::new(channel, messenger, pauses, Arc::new(told), Down(down));
        Self {
            slot,
            told: status,
            going_down,
            posting: tokio::spawn(post.run()),
        }
    }

    /// The status once it is as `wanted`.
    async fn until(&mut self, wanted: impl Fn(&ChannelStatus) -> bool) -> ChannelStatus {
        let channel = self.slot.shared.channel;
        let of = |told: &Told| {
            let notify = told.notify.clone().expect("somebody is to be told");
            match channel {
                Channel::Webhook => notify.webhook.expect("configured"),
                Channel::Heartbeat => notify.heartbeat.expect("configured"),
            }
        };
        let came = self.told.wait_for(|told| wanted(&of(told)));
        let told = timeout(PATIENCE, came).await.expect("it comes to that");
        of(&told.expect("the post goes on"))
    }

    /// When all is delivered, or given up.
    async fn ended(self) -> ChannelStatus {
        let Self { slot, mut told, .. } = self;
        let channel = slot.shared.channel;
        drop(slot);
        let ended = timeout(PATIENCE, self.posting).await;
        ended.expect("nothing is left").expect("it does not panic");
        let notify = told.borrow_and_update().notify.clone();
        let notify = notify.expect("somebody is to be told");
        match channel {
            Channel::Webhook => notify.webhook,
            Channel::Heartbeat => notify.heartbeat,
        }
        .expect("configured")
    }
}

/// A notice that is known by its number.
fn notice(receiver: &Receiver, number: usize) -> Delivery {
    Delivery::Webhook {
        target: receiver.target("/hook"),
        header: None,
        json: format!("{{\"number\":{number}}}"),
    }
}

/// The numbers of the notices that a receiver got, in their order.
fn numbers(receiver: &Receiver) -> Vec<usize> {
    let got = receiver.got().into_iter();
    got.map(|request| {
        let (_, number) = request.rsplit_once(':').expect("a number");
        number.trim_end_matches('}').parse().expect("digits")
    })
    .collect()
}

fn answers(given: &[(&str, usize)]) -> Vec<String> {
    let given = given.iter();
    given
        .flat_map(|(status, times)| vec![answer(status, ""); *times])
        .collect()
}

/// Many times as often as the minute of attempts that says that it is down.
#[tokio::test]
async fn a_receiver_that_is_down_for_long_hears_of_it_when_it_is_back() {
    let down_for = 40;
    let receiver = Receiver::answering(answers(&[("503 No", down_for), ("200 OK", 1)])).await;
    let mut bench = Bench::new(Channel::Webhook, QUICK);
    bench.slot.put(notice(&receiver, 7));
    let status = bench.until(|status| status.failing.is_some()).await;
    assert_eq!((status.waiting, status.failed), (1, 0), "{status:?}");
    assert!(receiver.got().len() >= IN_VAIN as usize);
    let status = bench.ended().await;
    assert_eq!(numbers(&receiver), vec![7; down_for + 1]);
    assert_eq!((status.delivered, status.waiting, status.failed), (1, 0, 0));
    assert_eq!(status.failing, None, "it is reached");
}

/// News are told at once, and before what is old; nothing is lost on the way.
#[tokio::test]
async fn news_end_the_pause_and_come_first() {
    let receiver = Receiver::answering(answers(&[("503 No", 1), ("200 OK", 2)])).await;
    let mut bench = Bench::new(Channel::Webhook, FOR_EVER);
    bench.slot.put(notice(&receiver, 1));
    while receiver.got().is_empty() {
        tokio::task::yield_now().await;
    }
    bench.slot.put(notice(&receiver, 2));
    let status = bench.until(|status| status.delivered == 2).await;
    assert_eq!(numbers(&receiver), [1, 2, 1]);
    assert_eq!(status.waiting, 0);
}

#[tokio::test]
async fn what_will_never_be_taken_is_given_up_and_the_next_is_not() {
    let receiver = Receiver::answering(answers(&[("404 No", 1), ("200 OK", 1)])).await;
    let mut bench = Bench::new(Channel::Webhook, FOR_EVER);
    bench.slot.put(notice(&receiver, 1));
    let status = bench.until(|status| status.failed == 1).await;
    let failing = status.failing.expect("a reason");
    assert!(failing.reason.contains("404"), "{failing:?}");
    bench.slot.put(notice(&receiver, 2));
    let status = bench.ended().await;
    assert_eq!((status.delivered, status.failed), (1, 1));
    assert_eq!(numbers(&receiver), [1, 2]);
}

#[tokio::test]
async fn no_more_wait_than_there_is_room_for_and_what_is_dropped_is_counted() {
    let room = Channel::Webhook.room();
    let more = 5;
    let all = room + more;
    let receiver = Receiver::answering(answers(&[("503 No", 1), ("200 OK", all)])).await;
    let mut bench = Bench::new(Channel::Webhook, FOR_EVER);
    // In this thread, so that none of them is attempted before all are there.
    for number in 0..all {
        bench.slot.put(notice(&receiver, number));
    }
    let status = bench.until(|status| status.dropped > 0).await;
    assert_eq!(status.dropped, more as u64);
    assert_eq!(status.waiting, room as u64);
    while receiver.got().is_empty() {
        tokio::task::yield_now().await;
    }
    // One more rings, and takes the place of the oldest.
    bench.slot.put(notice(&receiver, all));
    let status = bench.until(|status| status.delivered == room as u64).await;
    assert_eq!((status.waiting, status.dropped), (0, more as u64 + 1));
    let newest_first: Vec<usize> = (more + 1..=all).rev().collect();
    assert_eq!(numbers(&receiver)[1..], newest_first);
}

/// How things were before does not matter.
#[tokio::test]
async fn of_heartbeats_the_last_alone_is_kept() {
    let receiver = Receiver::answering(answers(&[("503 No", 1), ("200 OK", 9)])).await;
    let mut bench = Bench::new(Channel::Heartbeat, FOR_EVER);
    for path in ["/beat", "/fail", "/beat-again"] {
        let target = receiver.target(path);
        bench.slot.put(Delivery::Heartbeat { target });
    }
    while receiver.got().is_empty() {
        tokio::task::yield_now().await;
    }
    let target = receiver.target("/last");
    bench.slot.put(Delivery::Heartbeat { target });
    let status = bench.until(|status| status.delivered == 1).await;
    assert_eq!((status.waiting, status.dropped), (0, 3));
    let asked = receiver.got();
    assert_eq!(asked.len(), 2);
    for (request, path) in asked.iter().zip(["/beat-again ", "/last "]) {
        assert!(request.contains(path), "{request}");
    }
}

/// Three notices wait for a receiver that is down so often, and the service goes down once the
/// first attempt was made: what was attempted, and how it stands.
async fn at_a_shutdown(refusals: usize) -> (Vec<usize>, ChannelStatus) {
    let receiver = Receiver::answering(answers(&[("503 No", refusals), ("200 OK", 9)])).await;
    let bench = Bench::new(Channel::Webhook, FOR_EVER);
    for number in 0..3 {
        bench.slot.put(notice(&receiver, number));
    }
    while receiver.got().is_empty() {
        tokio::task::yield_now().await;
    }
    bench.going_down.send_replace(true);
    let status = bench.ended().await;
    (numbers(&receiver), status)
}

#[tokio::test]
async fn at_a_shutdown_there_is_one_more_attempt_at_once() {
    let (attempted, status) = at_a_shutdown(2).await;
    assert_eq!(attempted, [2, 2], "the others would fare no better");
    assert_eq!((status.delivered, status.failed, status.waiting), (0, 3, 0));

    let (attempted, status) = at_a_shutdown(1).await;
    assert_eq!(attempted, [2, 2, 1, 0], "it is back");
    assert_eq!((status.delivered, status.failed), (3, 0));
}

/// The driver tells of the run that the shutdown cuts off when others are being attempted.
#[tokio::test]
async fn what_comes_during_a_shutdown_has_its_attempt_as_well() {
    let receiver = Receiver::answering(answers(&[("503 No", 2), ("200 OK", 2)])).await;
    let bench = Bench::new(Channel::Webhook, FOR_EVER);
    bench.slot.put(notice(&receiver, 1));
    while receiver.got().is_empty() {
        tokio::task::yield_now().await;
    }
    bench.going_down.send_replace(true);
    while receiver.got().len() < 2 {
        tokio::task::yield_now().await;
    }
    bench.slot.put(notice(&receiver, 2));
    let status = bench.ended().await;
    assert_eq!(numbers(&receiver)[..3], [1, 1, 2]);
    assert!(status.delivered > 0, "{status:?}");
    assert_eq!(status.waiting, 0);
}

#[tokio::test]
async fn one_that_hangs_does_not_keep_the_service_from_going_down() {
    let receiver = Receiver::answering(Vec::new()).await;
    let bench = Bench::new(Channel::Webhook, FOR_EVER);
    bench.slot.put(notice(&receiver, 1));
    bench.slot.put(notice(&receiver, 2));
    bench.going_down.send_replace(true);
    let status = timeout(crate::maintenance::SHUTDOWN_WITHIN, bench.ended()).await;
    let status = status.expect("within the limit of a shutdown");
    assert_eq!(status.failed, 2);
    let failing = status.failing.expect("a reason");
    assert!(failing.reason.contains("went down"), "{failing:?}");
}

#[tokio::test]
async fn who_cannot_ask_anybody_says_so() {
    let receiver = Receiver::answering(Vec::new()).await;
    let nobody = Err("there are no certificates".to_owned());
    let bench = Bench::with(Channel::Webhook, FOR_EVER, nobody);
    bench.slot.put(notice(&receiver, 1));
    let status = bench.ended().await;
    let failing = status.failing.expect("a reason");
    assert!(failing.reason.contains("certificates"), "{failing:?}");
    assert_eq!(status.failed, 1);
}
