//! What is to be uploaded and removed. Pure: reads no clock, speaks to nobody.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Entry, Stored, is_same};
use crate::catalogue::{Backup, BackupId};
use crate::config::Keep;
use crate::retention::{self, Candidate};

/// What there is in the second place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct There {
    /// The complete backups.
    pub complete: Vec<Candidate>,
    /// Names of backups under which something lies, but no manifest.
    pub unfinished: Vec<BackupId>,
    /// What was a backup and is none any more, and why.
    pub broken: BTreeMap<BackupId, String>,
    /// What nothing can be said of, and why: it cannot be read, or is another backup than the
    /// one here of that name. Neither counted nor touched.
    pub odd: BTreeMap<BackupId, String>,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// What is here, is to be there, and is not: newest first.
    pub upload: Vec<BackupId>,
    /// What is there and no rule keeps: oldest first.
    pub remove: Vec<BackupId>,
    /// What was begun there and will not be ended, as it is not here any more, and what is broken
    /// there and no rule keeps.
    pub sweep: Vec<BackupId>,
}

impl There {
    /// What a list shows, beside what is here. `finding`: what is wrong with a complete one, by
    /// a look at all of it.
    #[must_use]
    pub fn of(
        entries: &[Entry],
        here: &[Backup],
        finding: impl Fn(&Stored) -> Option<String>,
    ) -> Self {
        let mut there = Self::default();
        for entry in entries {
            match entry {
                Entry::Complete(stored) => {
                    let manifest = &stored.manifest;
                    let id = manifest.id.clone();
                    let namesake = here.iter().find(|here| here.manifest.id == id);
                    let other = namesake.filter(|here| !is_same(&here.manifest, manifest));
                    if let Some(other) = other {
                        let why = format!(
                            "it is of the run {} of {}, and the one here of that name is of the \
                             run {}: another tracker uploads there too; give each a prefix of its \
                             own (maintenance.remote.url)",
                            manifest.run,
                            manifest.source.display(),
                            other.manifest.run
                        );
                        there.odd.insert(id, why);
                    } else if namesake.is_some_and(|here| here.manifest != *manifest) {
                        let why = "its manifest is not that of the backup here".to_owned();
                        there.broken.insert(id, why);
                    } else if let Some(finding) = finding(stored) {
                        there.broken.insert(id, finding);
                    } else {
                        there.complete.push(Candidate {
                            id,
                            began: manifest.began,
                            full: manifest.is_full(),
                            protected: false,
                        });
                    }
                }
                Entry::Unfinished { name } => there.unfinished.push(name.clone()),
                Entry::Broken { name, why } => {
                    there.broken.insert(name.clone(), why.clone());
                }
                Entry::Unreadable { name, why } => {
                    let why = format!("its manifest cannot be read: {why}");
                    there.odd.insert(name.clone(), why);
                }
            }
        }
        there
    }

    /// Notes that this one is there now.
    pub(super) fn add(&mut self, uploaded: Candidate) {
        self.unfinished.retain(|id| *id != uploaded.id);
        self.broken.remove(&uploaded.id);
        self.complete.push(uploaded);
    }

    fn has(&self, id: &BackupId) -> bool {
        self.complete.iter().any(|complete| complete.id == *id)
    }

    /// The newest complete one, of full ones or of partial ones.
    fn newest(&self, full: bool) -> Option<&BackupId> {
        let of_kind = self.complete.iter().filter(|there| there.full == full);
        of_kind
            .max_by_key(|there| (there.began, &there.id))
            .map(|newest| &newest.id)
    }
}

/// Decides by the rules of `keep` about all there is, here and there together: what they keep
/// is to be there, what they do not keep is not. So nothing is uploaded only to be removed. What
/// is broken there is as if it were not, and is uploaded anew.
///
/// Never removed is the newest complete backup of either kind that is there, though a newer
/// one be here: it may never come. What is broken there and not here is left until it is older
/// than all that is kept there, and what was begun and is newer than all that is complete may be
/// on its way from here or elsewhere.
#[must_use]
pub fn plan(here: &[Candidate], there: &There, keep: &Keep) -> Plan {
    let is_here = |id: &BackupId| here.iter().any(|here| here.id == *id);
    let only_there = there.complete.iter().filter(|there| !is_here(&there.id));
    let all: Vec<_> = here.iter().chain(only_there).cloned().collect();
    let newest = [there.newest(true), there.newest(false)];
    let newest_of_all = newest.iter().flatten().max();

    let (mut plan, mut kept) = (Plan::default(), Vec::new());
    for decision in retention::plan(&all, keep) {
        let id = decision.id;
        let stays = decision.keep || newest.contains(&Some(&id));
        if there.has(&id) {
            if stays {
                kept.push(id);
            } else {
                plan.remove.push(id);
            }
        } else if decision.keep && !there.odd.contains_key(&id) {
            plan.upload.push(id);
        }
    }
    plan.remove.reverse();
    let oldest = kept.iter().min();
    let given_up = there
        .unfinished
        .iter()
        .filter(|id| newest_of_all.is_some_and(|newest| id < newest));
    let of_no_use = there
        .broken
        .keys()
        .filter(|id| is_here(id) || oldest.is_some_and(|oldest| *id < oldest));
    let swept = given_up.chain(of_no_use);
    let swept = swept.filter(|id| !plan.upload.contains(id));
    plan.sweep = swept.cloned().collect();
    plan
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;

    use super::*;
    use crate::catalogue::testing::time;

    fn keep(last: usize) -> Keep {
        Keep {
            last,
            daily: 0,
            weekly: 0,
            monthly: 0,
        }
    }

    fn candidate(day: i64, full: bool) -> Candidate {
        let began = time() + TimeDelta::days(day);
        let id = began.format("%Y%m%dT%H%M%SZ").to_string();
        Candidate {
            id: id.parse().expect("an id"),
            began,
            full,
            protected: false,
        }
    }

    fn full(days: &[i64]) -> Vec<Candidate> {
        days.iter().map(|day| candidate(*day, true)).collect()
    }

    fn ids(days: &[i64]) -> Vec<BackupId> {
        full(days).into_iter().map(|backup| backup.id).collect()
    }

    fn there(days: &[i64]) -> There {
        There {
            complete: full(days),
            ..There::default()
        }
    }

    #[test]
    fn what_the_rules_keep_is_to_be_there_and_nothing_else() {
        for (here, remote, last, upload, remove) in [
            (&[][..], &[][..], 3, &[][..], &[][..]),
            (&[1, 2, 3], &[], 3, &[3, 2, 1], &[]),
            // Not what the rules of the other place would not keep.
            (&[1, 2, 3], &[], 1, &[3], &[]),
            (&[1, 2, 3], &[1, 2], 3, &[3], &[]),
            (&[1, 2, 3], &[1, 2, 3], 3, &[], &[]),
            (&[1, 2, 3], &[1, 2, 3], 1, &[], &[1, 2]),
            // It may keep more than is here.
            (&[3], &[1, 2, 3], 3, &[], &[]),
            (&[3], &[1, 2], 1, &[3], &[1]),
            // Nothing is here any more: the disaster.
            (&[], &[1, 2, 3], 2, &[], &[1]),
            (&[], &[1], 0, &[], &[]),
        ] {
            let plan = plan(&full(here), &there(remote), &keep(last));
            assert_eq!(plan.upload, ids(upload), "{here:?} {remote:?} {last}");
            assert_eq!(plan.remove, ids(remove), "{here:?} {remote:?} {last}");
            assert_eq!(plan.sweep, ids(&[]));
        }
    }

    #[test]
    fn what_was_begun_is_ended_or_swept() {
        let remote = There {
            complete: full(&[3]),
            unfinished: ids(&[1, 2, 4, 5]),
            ..There::default()
        };
        let plan = plan(&full(&[2, 5]), &remote, &keep(10));
        assert_eq!(plan.upload, ids(&[5, 2]));
        // 4 is newer than all that is complete: it may be on its way.
        assert_eq!(plan.sweep, ids(&[1]));
        assert_eq!(plan.remove, ids(&[]));
    }

    fn because(days: &[i64]) -> BTreeMap<BackupId, String> {
        let why = || "it is not what it was".to_owned();
        ids(days).into_iter().map(|id| (id, why())).collect()
    }

    #[test]
    fn what_is_broken_is_uploaded_anew_or_left_until_nothing_older_is_kept() {
        for (here, complete, broken, last, upload, sweep, remove) in [
            (
                &[1, 2][..],
                &[1][..],
                &[2][..],
                9,
                &[2][..],
                &[][..],
                &[][..],
            ),
            // No rule keeps it any more.
            (&[1, 2], &[2], &[1], 1, &[], &[1], &[]),
            // It is not here: it is told of, until there is nothing older.
            (&[], &[1, 3], &[2], 9, &[], &[], &[]),
            (&[], &[2, 3], &[1], 9, &[], &[1], &[]),
            // With nothing good there it is all there is.
            (&[], &[], &[1], 1, &[], &[], &[]),
            // The newest is broken: the newest good one stays, whatever the rules are.
            (&[], &[1, 2], &[3], 1, &[], &[], &[1]),
            (&[3], &[1, 2], &[3], 1, &[3], &[], &[1]),
        ] {
            let remote = There {
                broken: because(broken),
                ..there(complete)
            };
            let plan = plan(&full(here), &remote, &keep(last));
            assert_eq!(plan.upload, ids(upload), "{here:?} {complete:?} {broken:?}");
            assert_eq!(plan.sweep, ids(sweep), "{here:?} {complete:?} {broken:?}");
            assert_eq!(plan.remove, ids(remove), "{here:?} {complete:?} {broken:?}");
        }
    }

    #[test]
    fn what_nothing_is_known_of_is_neither_counted_nor_touched() {
        let remote = There {
            odd: because(&[0, 2, 5]),
            ..there(&[1])
        };
        let plan = plan(&full(&[1, 2, 3]), &remote, &keep(1));
        assert_eq!(plan.upload, ids(&[3]));
        assert_eq!((plan.remove, plan.sweep), (ids(&[]), ids(&[])));
    }

    #[test]
    fn partial_backups_are_a_series_of_their_own() {
        let remote = There {
            complete: vec![candidate(1, true), candidate(2, false), candidate(3, false)],
            ..There::default()
        };
        let plan = plan(&[candidate(4, false)], &remote, &keep(1));
        assert_eq!(plan.upload, ids(&[4]));
        // Of full ones it is the newest, of partial ones 3 is until 4 is there.
        assert_eq!(plan.remove, ids(&[2]));
    }

    #[test]
    fn a_protected_backup_is_uploaded_and_stays() {
        let mut here = full(&[1, 2, 3]);
        here[0].protected = true;
        let plan = plan(&here, &there(&[1, 2]), &keep(1));
        assert_eq!((plan.upload, plan.remove), (ids(&[3]), ids(&[])));
    }

    proptest! {
        /// Whatever is here and there: once a plan is carried out there is nothing left to
        /// do, and never was the newest complete backup of a kind removed.
        #[test]
        fn a_plan_that_was_carried_out_leaves_nothing_to_do(
            here in prop::collection::btree_map(0_i64..40, any::<bool>(), 0..12),
            remote in prop::collection::btree_map(0_i64..40, any::<bool>(), 0..12),
            last in 0_usize..4, daily in 0_usize..4, monthly in 0_usize..3,
        ) {
            // One id is one backup.
            let kind = |day: &i64, full: &bool| *here.get(day).unwrap_or(full);
            let here: Vec<_> = here.iter().map(|(day, full)| candidate(*day, *full)).collect();
            let mut there = There {
                complete: remote.iter().map(|(day, full)| candidate(*day, kind(day, full))).collect(),
                ..There::default()
            };
            let keep = Keep { last, daily, weekly: 0, monthly };
            let mut rounds = 0;
            loop {
                let decided = plan(&here, &there, &keep);
                if decided == Plan::default() {
                    break;
                }
                for full in [true, false] {
                    if let Some(newest) = there.newest(full) {
                        prop_assert!(!decided.remove.contains(newest));
                    }
                }
                let uploaded = here.iter().filter(|here| decided.upload.contains(&here.id));
                there.complete.extend(uploaded.cloned());
                there.complete.retain(|there| !decided.remove.contains(&there.id));
                rounds += 1;
                // One more, as the newest that was there is removed once a newer one is.
                prop_assert!(rounds <= 2);
            }
        }
    }
}
