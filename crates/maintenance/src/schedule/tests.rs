use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Datelike, NaiveDate, NaiveTime, TimeDelta, Timelike, Utc};
use proptest::collection::btree_set;
use proptest::prelude::*;

use super::{Error, Interval, Schedule};

const MINUTE: Duration = Duration::from_secs(60);

fn minutes(minutes: u32) -> Duration {
    MINUTE * minutes
}

fn hours(hours: u32) -> Duration {
    minutes(60) * hours
}

fn at(time: &str) -> DateTime<Utc> {
    format!("{time}Z").parse().expect("a time")
}

fn interval(begins: &str, ends: &str) -> Interval {
    Interval {
        begins: at(begins),
        ends: at(ends),
    }
}

fn daily(window: &str) -> Schedule {
    Schedule::daily(window).expect("a daily window")
}

fn crontab(line: &str, duration: Duration) -> Schedule {
    Schedule::crontab(line, duration).expect(line)
}

/// The first `count` beginnings after `from`.
fn beginnings(schedule: &Schedule, from: &str, count: usize) -> Vec<DateTime<Utc>> {
    let mut now = at(from);
    let next = std::iter::from_fn(|| {
        now = schedule.next_after(now)?.begins;
        Some(now)
    });
    next.take(count).collect()
}

#[test]
fn a_daily_window_begins_strictly_after_now() {
    let night = daily("03:00-03:05");
    assert_eq!(night.duration(), minutes(5));
    let today = interval("2026-11-22T03:00:00", "2026-11-22T03:05:00");
    let tomorrow = interval("2026-11-23T03:00:00", "2026-11-23T03:05:00");
    for (now, next) in [
        ("2026-11-22T00:00:00", today),
        ("2026-11-22T02:59:59.999999999", today),
        ("2026-11-22T03:00:00", tomorrow),
        ("2026-11-22T03:04:59", tomorrow),
        ("2026-11-22T23:59:59", tomorrow),
    ] {
        assert_eq!(night.next_after(at(now)), Some(next), "{now}");
    }
}

#[test]
fn a_window_is_half_open() {
    let night = daily("03:00-03:05");
    let today = interval("2026-11-22T03:00:00", "2026-11-22T03:05:00");
    for (now, inside) in [
        ("2026-11-22T02:59:59.999999999", false),
        ("2026-11-22T03:00:00", true),
        ("2026-11-22T03:04:59.999999999", true),
        ("2026-11-22T03:05:00", false),
    ] {
        assert_eq!(night.containing(at(now)), inside.then_some(today), "{now}");
    }
}

#[test]
fn a_daily_window_may_cross_midnight_month_and_leap_day() {
    let night = daily("23:50-00:20");
    assert_eq!(night.duration(), minutes(30));
    for (now, on) in [
        (
            "2028-02-29T00:10:00",
            interval("2028-02-28T23:50:00", "2028-02-29T00:20:00"),
        ),
        (
            "2028-02-29T23:55:00",
            interval("2028-02-29T23:50:00", "2028-03-01T00:20:00"),
        ),
        (
            "2027-01-01T00:00:00",
            interval("2026-12-31T23:50:00", "2027-01-01T00:20:00"),
        ),
    ] {
        assert_eq!(night.containing(at(now)), Some(on), "{now}");
    }
}

#[test]
fn the_longest_and_shortest_daily_windows() {
    let minute = "00:00-00:01";
    assert_eq!(daily(minute).duration(), MINUTE);
    let all_but_a_minute = daily("00:01-00:00");
    assert_eq!(all_but_a_minute.duration(), minutes(24 * 60 - 1));
    assert_eq!(all_but_a_minute.containing(at("2026-11-22T00:00:59")), None);
}

#[test]
fn daily_windows_are_read_strictly() {
    for (window, message) in [
        (
            "03:00",
            r#""03:00" is not a daily window: write when it begins and ends, as in "03:00-03:05""#,
        ),
        (
            "3:00-03:05",
            r#""3:00" is not a time of day: write HH:MM, from 00:00 to 23:59"#,
        ),
        (
            "03:00-24:00",
            r#""24:00" is not a time of day: write HH:MM, from 00:00 to 23:59"#,
        ),
        (
            "03:00-03:60",
            r#""03:60" is not a time of day: write HH:MM, from 00:00 to 23:59"#,
        ),
        (
            "03:00-+3:05",
            r#""+3:05" is not a time of day: write HH:MM, from 00:00 to 23:59"#,
        ),
        (
            "03:00 - 03:05",
            r#""03:00 " is not a time of day: write HH:MM, from 00:00 to 23:59"#,
        ),
        (
            "03:00-03:05-04:00",
            r#""03:05-04:00" is not a time of day: write HH:MM, from 00:00 to 23:59"#,
        ),
        (
            "03:00-03:00",
            "the window begins and ends at 03:00: leave at least a minute between",
        ),
    ] {
        let error = Schedule::daily(window).expect_err(window);
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn a_schedule_is_shown_as_it_was_written() {
    assert_eq!(daily("23:50-00:20").to_string(), "23:50-00:20");
    let weekly = crontab("0 3 * * SUN", minutes(90));
    assert_eq!(weekly.to_string(), "0 3 * * SUN for 1h 30m");
}

/// `SUN` = 0.
const DAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

/// The weekdays (Sunday = 0) on which a line whose last field is `field` fires.
fn weekdays(field: &str) -> BTreeSet<u32> {
    let schedule = crontab(&format!("0 3 * * {field}"), MINUTE);
    // Two weeks, to see each day more than once: a day missed in one of them would show.
    let fortnight = beginnings(&schedule, "2026-11-22T03:00:00", 14);
    let until = at("2026-12-06T03:00:00");
    let fired: Vec<u32> = fortnight
        .into_iter()
        .take_while(|begins| *begins <= until)
        .map(|begins| begins.weekday().num_days_from_sunday())
        .collect();
    let days: BTreeSet<u32> = fired.iter().copied().collect();
    assert_eq!(fired.len(), 2 * days.len(), "{field}");
    days
}

#[test]
fn every_weekday() {
    assert_eq!(weekdays("*"), (0..7).collect());
    for number in 0..=7 {
        assert_eq!(
            weekdays(&number.to_string()),
            [number % 7].into(),
            "{number}"
        );
    }
    for (number, name) in (0..).zip(DAYS) {
        assert_eq!(weekdays(name), [number].into(), "{name}");
        assert_eq!(weekdays(&name.to_lowercase()), [number].into(), "{name}");
    }
}

#[test]
fn every_list_of_weekdays() {
    for bits in 1..1_u32 << 7 {
        let days: BTreeSet<u32> = (0..7).filter(|day| bits & (1 << day) != 0).collect();
        let join = |show: fn(&u32) -> String| days.iter().map(show).collect::<Vec<_>>().join(",");
        for list in [
            join(u32::to_string),
            join(|&day| if day == 0 { 7 } else { day }.to_string()),
            join(|&day| DAYS[day as usize].to_owned()),
        ] {
            assert_eq!(weekdays(&list), days, "{list}");
        }
    }
}

#[test]
fn every_range_of_weekdays_with_every_step() {
    for first in 0..=7_u32 {
        for last in 0..=7_u32 {
            for step in 1..=7 {
                // Walk on from the first day to the last, through Sunday if need be.
                let end = if last < first { last + 7 } else { last };
                let expected: BTreeSet<u32> =
                    (first..=end).step_by(step).map(|day| day % 7).collect();
                let range = match step {
                    1 => format!("{first}-{last}"),
                    _ => format!("{first}-{last}/{step}"),
                };
                assert_eq!(weekdays(&range), expected, "{range}");
                if first < 7 && last < 7 {
                    let named = format!("{}-{}/{step}", DAYS[first as usize], DAYS[last as usize]);
                    assert_eq!(weekdays(&named), expected, "{named}");
                }
            }
        }
    }
    assert_eq!(weekdays("*/2"), [0, 2, 4, 6].into());
    assert_eq!(weekdays("1-2,FRI-SUN,3"), [0, 1, 2, 3, 5, 6].into());
}

#[test]
fn every_month_by_number_and_name() {
    let names = [
        "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
    ];
    for (number, name) in (1..).zip(names) {
        for field in [number.to_string(), name.to_owned(), name.to_lowercase()] {
            let schedule = crontab(&format!("0 0 1 {field} *"), MINUTE);
            let months = beginnings(&schedule, "2026-12-31T00:00:00", 2);
            assert!(
                months.iter().all(|begins| begins.month() == number),
                "{field}"
            );
            assert_eq!(months[1].year() - months[0].year(), 1, "{field}");
        }
    }
}

#[test]
fn day_of_month_and_day_of_week_restricted_mean_either() {
    // Friday the 13th is crontab's classic trap: it is every Friday, and every 13th.
    let either = crontab("0 3 13 * FRI", MINUTE);
    assert_eq!(
        beginnings(&either, "2026-11-08T00:00:00", 5),
        [
            at("2026-11-13T03:00:00"), // both: once
            at("2026-11-20T03:00:00"),
            at("2026-11-27T03:00:00"),
            at("2026-12-04T03:00:00"),
            at("2026-12-11T03:00:00"),
        ]
    );
    assert_eq!(
        either.next_after(at("2026-12-11T03:00:00")),
        Some(interval("2026-12-13T03:00:00", "2026-12-13T03:01:00"))
    );
    // A field that begins with `*` restricts nothing by itself, and `*/2` narrows the other.
    let both = crontab("0 3 */2 * FRI", MINUTE);
    assert_eq!(
        beginnings(&both, "2026-11-08T00:00:00", 3),
        [
            at("2026-11-13T03:00:00"),
            at("2026-11-27T03:00:00"),
            at("2026-12-11T03:00:00"),
        ]
    );
}

#[test]
fn month_ends_and_leap_days() {
    let thirty_first = crontab("0 0 31 * *", MINUTE);
    assert_eq!(
        beginnings(&thirty_first, "2026-01-31T00:00:00", 2),
        [at("2026-03-31T00:00:00"), at("2026-05-31T00:00:00")]
    );
    let leap = crontab("30 23 29 2 *", hours(1));
    assert_eq!(
        leap.next_after(at("2026-11-22T00:00:00")),
        Some(interval("2028-02-29T23:30:00", "2028-03-01T00:30:00"))
    );
    assert_eq!(
        leap.last_before(at("2026-11-22T00:00:00")),
        Some(interval("2024-02-29T23:30:00", "2024-03-01T00:30:00"))
    );
}

#[test]
fn a_crontab_schedule_ends_with_the_year_2100() {
    let nightly = crontab("0 3 * * *", MINUTE);
    assert_eq!(nightly.next_after(at("2100-12-31T03:00:00")), None);
    assert_eq!(nightly.next_after(DateTime::<Utc>::MAX_UTC), None);
    assert_eq!(nightly.last_before(DateTime::<Utc>::MAX_UTC), None);
    assert_eq!(nightly.last_before(DateTime::<Utc>::MIN_UTC), None);
    assert_eq!(
        nightly
            .next_after(DateTime::<Utc>::MIN_UTC)
            .map(|next| next.begins),
        Some(at("1970-01-01T03:00:00"))
    );
}

#[test]
fn a_daily_window_ends_with_the_calendar() {
    let night = daily("03:00-03:05");
    assert_eq!(night.next_after(DateTime::<Utc>::MAX_UTC), None);
    assert_eq!(night.last_before(DateTime::<Utc>::MIN_UTC), None);
}

#[test]
fn crontab_lines_are_read_strictly() {
    let day = "write a number from 1 to 31, or *";
    let weekday = "write a number from 0 to 7, SUN to SAT, or *";
    for (line, message) in [
        ("0 3 * *", "a crontab line has five fields (minute, hour, day of month, month, day of week) and this one has 4".to_owned()),
        ("0 0 3 * * 0", "a crontab line has five fields (minute, hour, day of month, month, day of week) and this one has 6".to_owned()),
        ("@daily", "a crontab line has five fields (minute, hour, day of month, month, day of week) and this one has 1".to_owned()),
        ("60 3 * * *", r#"the minute cannot be "60": write a number from 0 to 59, or *"#.to_owned()),
        ("0 24 * * *", r#"the hour cannot be "24": write a number from 0 to 23, or *"#.to_owned()),
        ("0 3 0 * *", format!(r#"the day of month cannot be "0": {day}"#)),
        ("0 3 32 * *", format!(r#"the day of month cannot be "32": {day}"#)),
        ("0 3 ? * *", format!(r#"the day of month cannot be "?": {day}"#)),
        ("0 3 1,,2 * *", format!(r#"the day of month cannot be "": {day}"#)),
        ("0 3 +1 * *", format!(r#"the day of month cannot be "+1": {day}"#)),
        ("0 3 -1 * *", format!(r#"the day of month cannot be "": {day}"#)),
        ("0 3 001 * *", format!(r#"the day of month cannot be "001": {day}"#)),
        ("0 3 1-*/2 * *", format!(r#"the day of month cannot be "*": {day}"#)),
        ("0 3 * 13 *", r#"the month cannot be "13": write a number from 1 to 12, JAN to DEC, or *"#.to_owned()),
        ("0 3 * SUN *", r#"the month cannot be "SUN": write a number from 1 to 12, JAN to DEC, or *"#.to_owned()),
        ("0 3 * * 8", format!(r#"the day of week cannot be "8": {weekday}"#)),
        ("0 3 * * SUNDAY", format!(r#"the day of week cannot be "SUNDAY": {weekday}"#)),
        ("0 22-2 * * *", r#"the hour cannot be "22-2": write the lesser end of a range first"#.to_owned()),
        ("5/15 * * * *", r#"the minute cannot be "5": write a range before the step, 5-59"#.to_owned()),
        ("*/0 * * * *", r#"the minute cannot be "/0": write a step from /1 to /59"#.to_owned()),
        ("*/60 * * * *", r#"the minute cannot be "/60": write a step from /1 to /59"#.to_owned()),
        ("*/2/3 * * * *", r#"the minute cannot be "/2/3": write a step from /1 to /59"#.to_owned()),
        ("0 3 30 2 *", "it never begins: no year has such a day".to_owned()),
        ("0 3 31 4,6,9,11 *", "it never begins: no year has such a day".to_owned()),
    ] {
        let error = Schedule::crontab(line, MINUTE).expect_err(line);
        assert_eq!(error.to_string(), message, "{line}");
    }
}

#[test]
fn a_duration_has_bounds() {
    for (duration, ok) in [
        (Duration::ZERO, false),
        (Duration::from_millis(999), false),
        (Duration::from_secs(1), true),
        (hours(7 * 24), true),
        (hours(7 * 24) + Duration::from_nanos(1), false),
        (Duration::MAX, false),
    ] {
        let schedule = Schedule::crontab("0 3 1 1 *", duration);
        let refused = Err(Error::Duration(duration));
        assert_eq!(schedule.is_ok(), ok, "{duration:?}");
        assert!(ok || schedule == refused, "{duration:?}");
    }
}

/// The shortest duration a line cannot have, with the first two beginnings that forbid it; a
/// nanosecond less is fine.
#[test]
fn overlapping_windows_are_refused_with_the_two_beginnings() {
    let hour = hours(1);
    let day = hours(24);
    for (line, shortest_refused, first, second) in [
        (
            "* * * * *",
            MINUTE,
            "2026-01-01T00:00:00",
            "2026-01-01T00:01:00",
        ),
        (
            "0 3 * * *",
            day,
            "2026-01-01T03:00:00",
            "2026-01-02T03:00:00",
        ),
        (
            "0 3 * * SUN",
            7 * day,
            "2026-01-04T03:00:00",
            "2026-01-11T03:00:00",
        ),
        // The close pair is inside a day.
        (
            "0 1,3,4 * * *",
            hour,
            "2026-01-01T03:00:00",
            "2026-01-01T04:00:00",
        ),
        // Across midnight.
        (
            "0,30 1,22 * * *",
            MINUTE * 30,
            "2026-01-01T01:00:00",
            "2026-01-01T01:30:00",
        ),
        (
            "0 1,23 * * *",
            hour * 2,
            "2026-01-01T23:00:00",
            "2026-01-02T01:00:00",
        ),
        // Across midnight, on days that are neighbours once a month.
        (
            "0 1,23 1,2,15 * *",
            hour * 2,
            "2026-01-01T23:00:00",
            "2026-01-02T01:00:00",
        ),
        // Neighbours only when the 1st falls on a Monday or a Saturday.
        (
            "0 3 1 * SUN",
            day,
            "2026-05-31T03:00:00",
            "2026-06-01T03:00:00",
        ),
        // The 29th of February beside the 1st of March.
        (
            "0 3 29,1 2,3 *",
            day,
            "2028-02-29T03:00:00",
            "2028-03-01T03:00:00",
        ),
    ] {
        let error = Schedule::crontab(line, shortest_refused);
        let overlapping = Error::Overlapping {
            duration: shortest_refused,
            first: at(first),
            second: at(second),
        };
        assert_eq!(error, Err(overlapping), "{line}");
        let shorter = shortest_refused.saturating_sub(Duration::from_nanos(1));
        assert!(Schedule::crontab(line, shorter).is_ok(), "{line}");
    }
    let error = Schedule::crontab("*/30 * * * *", minutes(45)).expect_err("overlaps");
    assert_eq!(
        error.to_string(),
        "overlapping: a window of 45m that begins at 2026-01-01 00:00 has not ended before the \
         next begins, at 2026-01-01 00:30: shorten it, or let it begin less often"
    );
}

/// The five fields as sets, `None` for `*`, and the same line by a slow and plain reading.
#[derive(Debug, Clone)]
struct Model {
    minutes: Option<BTreeSet<u32>>,
    hours: Option<BTreeSet<u32>>,
    days: Option<BTreeSet<u32>>,
    months: Option<BTreeSet<u32>>,
    weekdays: Option<BTreeSet<u32>>,
}

impl Model {
    fn line(&self) -> String {
        [
            &self.minutes,
            &self.hours,
            &self.days,
            &self.months,
            &self.weekdays,
        ]
        .map(|field| match field {
            None => "*".to_owned(),
            Some(set) => set.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
        })
        .join(" ")
    }

    fn day(&self, date: NaiveDate) -> bool {
        let has =
            |field: &Option<BTreeSet<u32>>, n| field.as_ref().is_none_or(|set| set.contains(&n));
        let day = has(&self.days, date.day());
        let weekday = has(&self.weekdays, date.weekday().num_days_from_sunday());
        let days = match (&self.days, &self.weekdays) {
            (Some(_), Some(_)) => day || weekday,
            _ => day && weekday,
        };
        has(&self.months, date.month()) && days
    }

    /// Times of day in order; the same for every day.
    fn times(&self) -> Vec<NaiveTime> {
        let all = |field: &Option<BTreeSet<u32>>, count| {
            field.clone().unwrap_or_else(|| (0..count).collect())
        };
        let minutes = all(&self.minutes, 60);
        all(&self.hours, 24)
            .into_iter()
            .flat_map(|hour| minutes.iter().map(move |&minute| (hour, minute)))
            .filter_map(|(hour, minute)| NaiveTime::from_hms_opt(hour, minute, 0))
            .collect()
    }

    fn next_after(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let times = self.times();
        let days = now.date_naive().iter_days().take(366 * 9);
        days.filter(|date| self.day(*date))
            .flat_map(|date| times.iter().map(move |time| date.and_time(*time).and_utc()))
            .find(|begins| *begins > now)
    }

    fn last_before(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let times = self.times();
        let days = std::iter::successors(Some(now.date_naive()), NaiveDate::pred_opt);
        days.take(366 * 9)
            .filter(|date| self.day(*date))
            .flat_map(|date| {
                times
                    .iter()
                    .rev()
                    .map(move |time| date.and_time(*time).and_utc())
            })
            .find(|begins| *begins <= now)
    }
}

fn model() -> impl Strategy<Value = Model> {
    let field = |least: u32, most: u32| {
        prop_oneof![
            1 => Just(None),
            2 => btree_set(least..=most, 1..4).prop_map(Some),
        ]
    };
    (
        field(0, 59),
        field(0, 23),
        field(1, 31),
        field(1, 12),
        field(0, 6),
    )
        .prop_map(|(minutes, hours, days, months, weekdays)| Model {
            minutes,
            hours,
            days,
            months,
            weekdays,
        })
}

/// Any nanosecond of 2000 to 2089, and often a whole minute, where the edges are.
fn instant() -> impl Strategy<Value = DateTime<Utc>> {
    let seconds = 946_684_800_i64..3_786_912_000;
    (seconds, 0_u32..1_000_000_000, any::<bool>()).prop_map(|(seconds, nanos, whole)| {
        let instant = DateTime::from_timestamp(seconds, nanos).expect("in range");
        if whole {
            instant
                .with_second(0)
                .and_then(|i| i.with_nanosecond(0))
                .expect("in range")
        } else {
            instant
        }
    })
}

fn any_daily() -> impl Strategy<Value = Schedule> {
    (0..1440_u32, 1..1440_u32).prop_map(|(begins, minutes)| {
        let clock = |minute: u32| format!("{:02}:{:02}", minute / 60 % 24, minute % 60);
        let window = format!("{}-{}", clock(begins), clock(begins + minutes));
        let schedule = daily(&window);
        assert_eq!(schedule.duration(), MINUTE * minutes);
        schedule
    })
}

/// What holds of every schedule at every instant.
fn check(schedule: &Schedule, now: DateTime<Utc>) -> Result<(), TestCaseError> {
    let nanosecond = TimeDelta::nanoseconds(1);
    if let Some(next) = schedule.next_after(now) {
        prop_assert!(next.begins > now);
        let duration = (next.ends - next.begins).to_std().expect("positive");
        prop_assert_eq!(duration, schedule.duration());
        prop_assert_eq!(schedule.containing(next.begins), Some(next));
        prop_assert_eq!(schedule.containing(next.ends - nanosecond), Some(next));
        prop_assert_eq!(schedule.containing(next.ends), None);
        prop_assert_eq!(schedule.last_before(next.begins), Some(next));
        // Nothing begins between now and the next beginning.
        prop_assert_eq!(
            schedule.last_before(next.begins - nanosecond),
            schedule.last_before(now)
        );
        prop_assert_eq!(schedule.next_after(next.begins - nanosecond), Some(next));
        let after = schedule.next_after(next.begins);
        prop_assert!(after.is_none_or(|after| after.begins > next.ends));
    }
    if let Some(last) = schedule.last_before(now) {
        prop_assert!(last.begins <= now);
        let on = last.contains(now).then_some(last);
        prop_assert_eq!(schedule.containing(now), on);
        prop_assert_eq!(schedule.next_after(last.begins), schedule.next_after(now));
    }
    Ok(())
}

proptest! {
    #[test]
    fn daily_schedules_are_consistent(schedule in any_daily(), now in instant()) {
        check(&schedule, now)?;
    }

    #[test]
    fn crontab_schedules_are_consistent_and_agree_with_a_plain_reading(
        model in model(),
        seconds in 1_u64..60,
        now in instant(),
    ) {
        match Schedule::crontab(&model.line(), Duration::from_secs(seconds)) {
            Ok(schedule) => {
                check(&schedule, now)?;
                let begins = |interval: Interval| interval.begins;
                prop_assert_eq!(schedule.next_after(now).map(begins), model.next_after(now));
                prop_assert_eq!(schedule.last_before(now).map(begins), model.last_before(now));
            }
            Err(error) => {
                prop_assert_eq!(error, Error::Never);
                prop_assert_eq!(model.next_after(now), None);
            }
        }
    }

    #[test]
    fn no_text_makes_a_schedule_panic(text in "[-0-9*/,:A-Z ]{0,20}", now in instant()) {
        for schedule in [Schedule::daily(&text), Schedule::crontab(&text, MINUTE)].iter().flatten() {
            check(schedule, now)?;
        }
    }
}
