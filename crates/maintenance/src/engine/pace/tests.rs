use super::*;

const GB: u64 = 1_000_000_000;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_copy_is_reckoned_by_the_best_of_the_last() {
    let mut pace = Pace::default();
    assert_eq!(pace.expect(GB), None);
    pace.learn(GB, seconds(40), true);
    pace.learn(GB, seconds(20), true);
    pace.learn(GB, seconds(30), true);
    assert_eq!(pace.expect(GB), Some(seconds(20)));
    assert_eq!(pace.expect(3 * GB), Some(seconds(60)));
    for _ in 0..RECENT {
        pace.learn(GB, seconds(50), true);
    }
    assert_eq!(pace.expect(GB), Some(seconds(50)), "of late");
}

#[test]
fn what_is_small_says_nothing() {
    let mut pace = Pace::default();
    for done in [true, false] {
        pace.learn(TELLING - 1, seconds(80), done);
        pace.learn(TELLING - 1, seconds(80), done);
    }
    assert_eq!(pace.expect(GB), None);
}

#[test]
fn copies_that_are_never_done_in_time_are_not_begun_every_night() {
    let mut pace = Pace::default();
    pace.learn(GB, seconds(89), false);
    assert_eq!(pace.expect(GB), None, "one slow night");
    pace.learn(GB, seconds(89), false);
    for _ in 0..TRY_AGAIN {
        assert_eq!(pace.expect(GB), Some(seconds(178)));
    }
    assert_eq!(pace.expect(GB), None, "now and then it is tried");
    pace.learn(GB, seconds(89), false);
    pace.learn(GB, seconds(10), true);
    pace.learn(GB, seconds(89), false);
    assert_eq!(pace.expect(GB), Some(seconds(10)), "it can be done");
}
