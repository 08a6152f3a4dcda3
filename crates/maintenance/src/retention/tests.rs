use std::collections::BTreeSet;

use chrono::{Duration, NaiveDateTime};
use proptest::prelude::*;

use super::*;

fn time(text: &str) -> DateTime<Utc> {
    NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M")
        .expect(text)
        .and_utc()
}

fn candidate(began: DateTime<Utc>) -> Candidate {
    Candidate {
        id: began
            .format("%Y%m%dT%H%M%SZ")
            .to_string()
            .parse()
            .expect("a name"),
        began,
        full: true,
        protected: false,
    }
}

fn keep(last: usize, daily: usize, weekly: usize, monthly: usize) -> Keep {
    Keep {
        last,
        daily,
        weekly,
        monthly,
    }
}

/// Backups at these times, and the reasons to keep them; none to drop one.
fn check(keep: Keep, expected: &[(&str, &[&str])]) {
    let backups: Vec<_> = expected
        .iter()
        .map(|(began, _)| candidate(time(began)))
        .collect();
    let found: Vec<_> = plan(&backups, &keep)
        .into_iter()
        .map(|decision| (decision.id, decision.keep, decision.reasons))
        .collect();
    let expected: Vec<_> = backups
        .iter()
        .zip(expected)
        .map(|(backup, (_, reasons))| {
            let reasons: Vec<_> = reasons.iter().map(|&reason| reason.to_owned()).collect();
            (backup.id.clone(), !reasons.is_empty(), reasons)
        })
        .collect();
    assert_eq!(found, expected);
}

const NEWEST: &str = "the newest good backup";

#[test]
fn the_newest_stays_even_if_nothing_else_does() {
    check(
        keep(0, 0, 0, 0),
        &[("2026-11-22 03:00", &[NEWEST]), ("2026-11-21 03:00", &[])],
    );
    check(keep(0, 0, 0, 0), &[]);
}

#[test]
fn last_counts_backups() {
    check(
        keep(2, 0, 0, 0),
        &[
            ("2026-11-22 03:00", &[NEWEST, "last 1 of 2"]),
            ("2026-11-22 02:59", &["last 2 of 2"]),
            ("2026-11-22 02:58", &[]),
        ],
    );
}

#[test]
fn a_period_keeps_its_newest_and_skips_gaps() {
    check(
        keep(0, 2, 0, 0),
        &[
            ("2026-11-22 15:00", &[NEWEST, "daily 2026-11-22"]),
            ("2026-11-22 03:00", &[]),
            ("2026-10-01 23:59", &["daily 2026-10-01"]),
            ("2026-10-01 00:00", &[]),
            ("2026-09-30 23:59", &[]),
        ],
    );
}

#[test]
fn all_rules_together_give_all_reasons() {
    check(
        keep(1, 2, 2, 3),
        &[
            (
                "2026-11-22 03:00",
                &[
                    NEWEST,
                    "last 1 of 1",
                    "daily 2026-11-22",
                    "weekly 2026-W47",
                    "monthly 2026-11",
                ],
            ),
            ("2026-11-21 03:00", &["daily 2026-11-21"]),
            ("2026-11-20 03:00", &[]),
            ("2026-11-15 03:00", &["weekly 2026-W46"]),
            ("2026-11-08 03:00", &[]),
            ("2026-10-31 03:00", &["monthly 2026-10"]),
            ("2026-09-30 03:00", &["monthly 2026-09"]),
            ("2026-08-31 03:00", &[]),
        ],
    );
}

#[test]
fn weeks_are_iso_weeks_of_iso_years() {
    // 2027-01-01 is a Friday of 2026-W53; 2024-12-30 a Monday of 2025-W01.
    check(
        keep(0, 0, 9, 0),
        &[
            ("2027-01-04 03:00", &[NEWEST, "weekly 2027-W01"]),
            ("2027-01-01 03:00", &["weekly 2026-W53"]),
            ("2026-12-31 03:00", &[]),
            ("2026-01-01 03:00", &["weekly 2026-W01"]),
            ("2025-01-01 03:00", &["weekly 2025-W01"]),
            ("2024-12-30 03:00", &[]),
            ("2024-12-29 03:00", &["weekly 2024-W52"]),
            ("2024-01-01 03:00", &["weekly 2024-W01"]),
        ],
    );
}

#[test]
fn protected_and_partial_backups_have_rules_of_their_own() {
    let mut backups: Vec<_> = [
        "2026-11-22 03:00",
        "2026-11-21 03:00",
        "2026-11-20 03:00",
        "2026-11-19 03:00",
    ]
    .map(|began| candidate(time(began)))
    .into();
    backups[0].full = false;
    backups[1].full = false;
    backups[3].protected = true;
    let reasons: Vec<_> = plan(&backups, &keep(1, 0, 0, 0))
        .into_iter()
        .map(|decision| decision.reasons.join(", "))
        .collect();
    assert_eq!(
        reasons,
        [
            "the newest partial backup, last 1 of 1",
            "",
            "the newest good backup, last 1 of 1",
            "protected",
        ]
    );
}

#[test]
fn of_one_instant_the_later_name_is_the_newer() {
    let began = time("2026-11-22 03:00");
    let mut second = candidate(began);
    second.id = "20261122T030000Z-2".parse().expect("a name");
    let decisions = plan(&[candidate(began), second.clone()], &keep(0, 0, 0, 0));
    assert_eq!(decisions[0].id, second.id);
    assert!(decisions[0].keep && !decisions[1].keep);
}

/// Every set of backups out of 10 that lie on the edges of days, weeks, months and years,
/// under every policy of up to 2 each: 82,944 plans.
#[test]
fn every_small_catalogue_keeps_the_laws() {
    let edges = [
        "2026-12-27 23:59",
        "2026-12-28 00:00",
        "2026-12-31 23:59",
        "2027-01-01 00:00",
        "2027-01-01 23:59",
        "2027-01-03 23:59",
        "2027-01-04 00:00",
        "2027-01-31 23:59",
        "2027-02-01 00:00",
        "2027-03-01 00:00",
    ]
    .map(|began| candidate(time(began)));
    let mut plans = 0;
    for policy in 0..81 {
        let digit = |place: u32| policy / 3_usize.pow(place) % 3;
        let keep = keep(digit(0), digit(1), digit(2), digit(3));
        for subset in 0..1 << edges.len() {
            let backups: Vec<_> = edges
                .iter()
                .enumerate()
                .filter(|(index, _)| subset >> index & 1 == 1)
                .map(|(_, backup)| backup.clone())
                .collect();
            check_laws(&backups, &keep);
            plans += 1;
        }
    }
    println!("{plans} plans");
}

fn kept(backups: &[Candidate], keep: &Keep) -> BTreeSet<BackupId> {
    plan(backups, keep)
        .into_iter()
        .filter(|decision| decision.keep)
        .map(|decision| decision.id)
        .collect()
}

/// What holds of every plan. `backups` are full and oldest first.
fn check_laws(backups: &[Candidate], keep: &Keep) {
    let stays = kept(backups, keep);

    // The newest is never dropped, and a decision is made about each.
    if let Some(newest) = backups.last() {
        assert!(stays.contains(&newest.id), "{keep:?}: {backups:?}");
    }
    let most = 1.max(keep.last) + keep.daily + keep.weekly + keep.monthly;
    assert!(stays.len() <= most);
    assert!(stays.len() >= keep.last.min(backups.len()));

    // Once carried out, a plan asks for nothing more.
    let remaining: Vec<_> = backups
        .iter()
        .filter(|backup| stays.contains(&backup.id))
        .cloned()
        .collect();
    assert_eq!(kept(&remaining, keep), stays, "{keep:?}: {backups:?}");

    // An older backup costs no newer one its place.
    if let [_, newer @ ..] = backups {
        assert!(kept(newer, keep).is_subset(&stays), "{keep:?}: {backups:?}");
    }
}

fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let one = (0..60 * 24 * 800_i64, any::<bool>(), any::<bool>());
    prop::collection::btree_map(0..60 * 24 * 800_i64, one, 0..40).prop_map(|backups| {
        backups
            .into_iter()
            .map(|(minutes, (_, full, protected))| Candidate {
                full,
                protected,
                ..candidate(time("2025-12-01 00:00") + Duration::minutes(minutes))
            })
            .collect()
    })
}

fn policies() -> impl Strategy<Value = Keep> {
    (0..4_usize, 0..8_usize, 0..5_usize, 0..5_usize).prop_map(|(l, d, w, m)| keep(l, d, w, m))
}

proptest! {
    #[test]
    fn order_makes_no_difference(
        (backups, shuffled) in candidates()
            .prop_flat_map(|backups| (Just(backups.clone()), Just(backups).prop_shuffle())),
        keep in policies(),
    ) {
        prop_assert_eq!(plan(&backups, &keep), plan(&shuffled, &keep));
    }

    #[test]
    fn kinds_do_not_mix(backups in candidates(), keep in policies()) {
        let of_kind = |full| {
            let same: Vec<_> = backups.iter().filter(|b| b.full == full).cloned().collect();
            kept(&same, &keep)
        };
        let mut apart = of_kind(true);
        apart.extend(of_kind(false));
        prop_assert_eq!(kept(&backups, &keep), apart);
    }

    #[test]
    fn the_laws_hold_of_long_histories(mut backups in candidates(), keep in policies()) {
        for backup in &mut backups {
            backup.full = true;
            backup.protected = false;
        }
        check_laws(&backups, &keep);
    }

    #[test]
    fn what_is_protected_stays(backups in candidates(), keep in policies()) {
        let stays = kept(&backups, &keep);
        for backup in backups.iter().filter(|backup| backup.protected) {
            prop_assert!(stays.contains(&backup.id));
        }
    }
}
