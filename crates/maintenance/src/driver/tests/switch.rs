//! The order to go over to WAL, and which run carries it out.

use super::*;

impl Bench {
    fn on_a_rollback_journal() -> Self {
        Self::begun(FLOWING, rules(), |_, script| {
            *script.rollback.lock().expect("unpoisoned") = true;
        })
    }

    async fn order(&self) -> Result<Ordered, Refused> {
        self.tell(|reply| Command::OrderWal { reply }).await
    }

    async fn withdraw(&self) -> Result<Ordered, Refused> {
        self.tell(|reply| Command::WithdrawWal { reply }).await
    }

    /// What the status says of it now.
    fn ordered(&self) -> Option<Order> {
        self.status.now().database.switch
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_run_carries_it_out_and_says_so() {
    let mut bench = Bench::on_a_rollback_journal();
    assert_eq!(bench.run().await.switched_to, None, "nobody asked for it");
    let ordered = bench.order().await.expect("it can be");
    assert_eq!(ordered.journal_mode, "delete");
    assert!(ordered.switch.is_some());
    assert_eq!(bench.ordered(), ordered.switch, "seen before it is told");
    // Once more is the same order.
    let again = bench.order().await.expect("it can be");
    assert_eq!(again, ordered);

    let report = bench.run().await;
    assert_eq!(report.outcome, Outcome::Done);
    assert_eq!(report.switched_to.as_deref(), Some("wal"));
    let status = bench.status.now();
    assert_eq!(status.database.journal_mode, "wal");
    assert_eq!(status.database.switch, None, "it has been done");

    let already = bench.order().await.expect("there is nothing to do");
    assert_eq!(
        (already.journal_mode.as_str(), already.switch),
        ("wal", None)
    );
    assert!(already.message.contains("already"), "{}", already.message);
    assert_eq!(bench.run().await.switched_to, None, "it was, before");
    let noted = bench.stop().await.noted();
    let reckoned = noted.iter().filter(|note| *note == "reckoned with WAL");
    assert_eq!(reckoned.count(), 1, "{noted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_in_the_way_is_told_and_the_order_stays() {
    let mut bench = Bench::on_a_rollback_journal();
    let ordered = bench.order().await.expect("it can be").switch;
    let ordered = ordered.expect("an order").ordered;
    bench.script.says(Job::Pin, &[Act::Busy]);
    let report = bench.run().await;
    assert_eq!(failed_in(&report), Some((Phase::Flushing, Cause::Busy)));
    assert_eq!(report.switched_to, None);
    assert!(bench.gate.is_open());
    let left = bench.ordered().expect("it stays");
    assert_eq!(left.ordered, ordered);
    let failed = left.failed.expect("it was tried");
    assert_eq!(failed.run, report.id);
    assert_eq!(failed.reason, report.outcome.message());
    assert!(failed.reason.contains("in the way"), "{}", failed.reason);

    bench.script.says(Job::Pin, &[Act::Busy, Act::Succeed]);
    let report = bench.run().await;
    assert_eq!(report.outcome, Outcome::Done, "at the second attempt");
    assert_eq!(report.switched_to.as_deref(), Some("wal"));
    assert_eq!(bench.ordered(), None);
    bench.stop().await;
}

/// The switch is made, whatever becomes of the run.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_fails_afterwards_has_carried_it_out() {
    let mut bench = Bench::on_a_rollback_journal();
    bench.order().await.expect("it can be");
    bench.script.says(Job::Copy, &[Act::Fail]);
    let report = bench.run().await;
    assert_eq!(failed_in(&report), Some((Phase::Copying, Cause::Other)));
    assert_eq!(report.switched_to.as_deref(), Some("wal"));
    assert_eq!(bench.ordered(), None);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_in_progress_was_reckoned_without_it() {
    let mut bench = Bench::on_a_rollback_journal();
    bench.script.says(Job::Prepare, &[Act::Hang, Act::Succeed]);
    let run = bench.ask().await.expect("nothing is in the way");
    let ordered = bench.order().await.expect("it can be");
    assert!(
        ordered.message.contains(run.as_str()),
        "{}",
        ordered.message
    );
    // Nor is it too late to withdraw it.
    assert_eq!(bench.withdraw().await.expect("it stood").switch, None);
    assert_eq!(bench.ordered(), None);
    bench.order().await.expect("it can be");
    bench.script.let_go();
    let report = bench.report(run).await;
    assert_eq!(report.switched_to, None);
    let left = bench.ordered().expect("it stays");
    assert_eq!(left.failed, None, "nobody has tried");
    assert_eq!(bench.run().await.switched_to.as_deref(), Some("wal"));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_not_withdrawn_from_under_the_run_that_is_to_carry_it_out() {
    let mut bench = Bench::on_a_rollback_journal();
    let nothing = bench.withdraw().await.expect("nothing is in the way");
    assert!(nothing.message.contains("no order"), "{}", nothing.message);
    bench.order().await.expect("it can be");
    bench.script.says(Job::Prepare, &[Act::Hang, Act::Succeed]);
    let run = bench.ask().await.expect("nothing is in the way");
    let refused = bench.withdraw().await.expect_err("it is reckoned with");
    assert!(
        matches!(&refused, Refused::Busy { run: busy, .. } if *busy == run),
        "{refused}"
    );
    let again = bench.order().await.expect("it stands");
    assert!(again.message.contains(run.as_str()), "{}", again.message);
    bench.script.let_go();
    let report = bench.report(run).await;
    assert_eq!(failed_in(&report), Some((Phase::Preparing, Cause::Other)));
    let failed = bench.ordered().expect("it stays").failed;
    assert_eq!(failed.map(|failed| failed.run), Some(report.id));

    let withdrawn = bench.withdraw().await.expect("no run is on");
    assert_eq!(
        (withdrawn.journal_mode.as_str(), withdrawn.switch),
        ("delete", None)
    );
    assert_eq!(bench.ordered(), None);
    let report = bench.run().await;
    assert_eq!((report.outcome, report.switched_to), (Outcome::Done, None));
    bench.stop().await;
}
