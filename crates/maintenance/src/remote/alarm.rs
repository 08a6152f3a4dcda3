//! When somebody is told of uploads. Pure: reads no clock, tells nobody.

use chrono::{DateTime, TimeDelta, Utc};

use crate::catalogue::BackupId;
use crate::status::RemoteStatus;

/// Seconds that a backup may be missing there though nothing fails: what takes longer than a day
/// never catches up.
const BEHIND_FOR: f64 = 24.0 * 3600.0;
/// Whoever was told is told again after this time.
const AGAIN: TimeDelta = TimeDelta::hours(24);

/// What was told.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    told: Option<DateTime<Utc>>,
    broken: Vec<BackupId>,
}

/// What there is to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word {
    /// Something is wrong.
    Trouble(String),
    /// It was, and is no more.
    Recovered,
}

impl Alarm {
    /// What is to be told of how it stands after a pass: of trouble once, when there is more of
    /// it, and once a day; and of its end.
    pub(super) fn heed(&mut self, status: &RemoteStatus, now: DateTime<Utc>) -> Option<Word> {
        let Some(trouble) = trouble(status) else {
            let was_told = self.told.is_some();
            *self = Self::default();
            return was_told.then_some(Word::Recovered);
        };
        let broken: Vec<_> = status.broken.iter().map(|it| it.id.clone()).collect();
        let is_more = broken.iter().any(|id| !self.broken.contains(id));
        if !is_more && self.told.is_some_and(|told| now - told < AGAIN) {
            return None;
        }
        self.told = Some(now);
        self.broken = broken;
        Some(Word::Trouble(trouble))
    }
}

/// What is wrong, if anything is.
fn trouble(status: &RemoteStatus) -> Option<String> {
    let mut said = Vec::new();
    if let Some(failure) = &status.failure {
        said.push(format!("uploads fail: {failure}"));
    }
    for broken in &status.broken {
        said.push(format!(
            "backup {} there is broken: {}; it could not be replaced by the one here",
            broken.id, broken.why
        ));
    }
    let behind_for = status.behind_since_seconds.unwrap_or_default();
    let is_late = behind_for > BEHIND_FOR;
    if is_late || status.failure.is_some() && status.behind > 0 {
        said.push(format!(
            "{} backups are missing there, the oldest for {:.0} h",
            status.behind,
            behind_for / 3600.0
        ));
    }
    (!said.is_empty()).then(|| said.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::testing::time;
    use crate::status::BrokenThere;

    fn failing() -> RemoteStatus {
        RemoteStatus {
            failure: Some("no network".to_owned()),
            ..RemoteStatus::default()
        }
    }

    fn broken(names: &[&str]) -> RemoteStatus {
        let broken = names.iter().map(|name| BrokenThere {
            id: name.parse().expect("an id"),
            why: "it has 1 bytes".to_owned(),
        });
        RemoteStatus {
            broken: broken.collect(),
            ..RemoteStatus::default()
        }
    }

    fn hour(nth: i64) -> DateTime<Utc> {
        time() + TimeDelta::hours(nth)
    }

    fn is_trouble(word: Option<&Word>) -> bool {
        matches!(word, Some(Word::Trouble(_)))
    }

    #[test]
    fn trouble_is_told_once_then_daily_and_so_is_its_end() {
        let (mut alarm, good) = (Alarm::default(), RemoteStatus::default());
        assert_eq!(alarm.heed(&good, hour(0)), None, "nothing was wrong");
        assert!(is_trouble(alarm.heed(&failing(), hour(1)).as_ref()));
        for nth in 2..25 {
            assert_eq!(alarm.heed(&failing(), hour(nth)), None, "{nth}");
        }
        assert!(is_trouble(alarm.heed(&failing(), hour(25)).as_ref()));
        assert_eq!(alarm.heed(&good, hour(26)), Some(Word::Recovered));
        assert_eq!(alarm.heed(&good, hour(27)), None);
        assert!(
            is_trouble(alarm.heed(&failing(), hour(28)).as_ref()),
            "anew"
        );
    }

    #[test]
    fn what_breaks_later_is_told_though_something_else_was() {
        let [one, other] = ["20261122T030000Z", "20261123T030000Z"];
        let mut alarm = Alarm::default();
        assert!(is_trouble(alarm.heed(&broken(&[one]), hour(0)).as_ref()));
        assert_eq!(alarm.heed(&broken(&[one]), hour(1)), None);
        assert!(is_trouble(
            alarm.heed(&broken(&[one, other]), hour(2)).as_ref()
        ));
        assert_eq!(alarm.heed(&broken(&[other]), hour(3)), None, "less of it");
    }

    #[test]
    fn what_is_missing_is_trouble_after_a_day_or_with_a_failure() {
        let behind = |hours: f64| RemoteStatus {
            behind: 2,
            behind_since_seconds: Some(hours * 3600.0),
            ..RemoteStatus::default()
        };
        assert_eq!(Alarm::default().heed(&behind(23.9), hour(0)), None);
        let late = Alarm::default().heed(&behind(25.0), hour(0));
        let said = "2 backups are missing there, the oldest for 25 h";
        assert_eq!(late, Some(Word::Trouble(said.to_owned())));
        let both = RemoteStatus {
            behind: 2,
            behind_since_seconds: Some(3600.0),
            ..failing()
        };
        let said = "uploads fail: no network; 2 backups are missing there, the oldest for 1 h";
        let word = Alarm::default().heed(&both, hour(0));
        assert_eq!(word, Some(Word::Trouble(said.to_owned())));
    }
}
