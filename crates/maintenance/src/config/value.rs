//! Readers of single values. Each says what it wants when it is given something else.
//!
//! An override in an environment variable arrives as whatever TOML type it looks like, so a
//! path may come as a number and a size as either.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use glob::Pattern;
use humantime::format_duration;
use toml::Value;

use super::Address;
use super::table::Fault;
use crate::notify::Target;
use crate::schedule::Schedule;

pub(super) fn flag(value: &Value) -> Result<bool, Fault> {
    value
        .as_bool()
        .ok_or_else(|| Fault::new("is not a yes or no", "write true or false"))
}

pub(super) fn text(value: &Value) -> Result<String, Fault> {
    match value {
        Value::String(text) if !text.is_empty() => Ok(text.clone()),
        _ => Err(Fault::new("is not a text", "write a text in quotes")),
    }
}

pub(super) fn path(value: &Value) -> Result<PathBuf, Fault> {
    match value {
        Value::String(path) if !path.is_empty() => Ok(path.into()),
        Value::Integer(number) => Ok(number.to_string().into()),
        _ => Err(Fault::new("is not a path", "write a path in quotes")),
    }
}

pub(super) fn paths(value: &Value) -> Result<Vec<PathBuf>, Fault> {
    let fault = || {
        Fault::new(
            "is not a list of paths",
            r#"write paths in brackets, such as ["./config/tracker.toml"]"#,
        )
    };
    let paths = value.as_array().ok_or_else(fault)?.iter().map(path);
    paths.collect::<Result<_, _>>().map_err(|_| fault())
}

pub(super) fn texts(value: &Value) -> Result<Vec<String>, Fault> {
    let fault = || {
        Fault::new(
            "is not a list of names",
            r#"write names in brackets, such as ["torrents"]"#,
        )
    };
    let texts = value.as_array().ok_or_else(fault)?.iter().map(text);
    texts.collect::<Result<_, _>>().map_err(|_| fault())
}

/// A program and its arguments.
pub(super) fn command(value: &Value) -> Result<Vec<String>, Fault> {
    let word = |value: &Value| {
        let word = value.as_str()?;
        // No program can be handed one, so it would fail on the night it matters.
        (!word.contains('\0')).then(|| word.to_owned())
    };
    let words = value.as_array().and_then(|values| {
        let words = values.iter().map(word);
        words.collect::<Option<Vec<String>>>()
    });
    words
        .filter(|words| words.first().is_some_and(|program| !program.is_empty()))
        .ok_or_else(|| {
            Fault::new(
                "is not a command",
                r#"write the program and its arguments in brackets, such as ["/usr/local/bin/mount-backups", "-q"]; no shell reads them"#,
            )
        })
}

/// An address on the web, which may hold a secret.
pub(super) fn target(value: &Value) -> Result<Target, Fault> {
    let target = value.as_str().and_then(Target::parse);
    target.ok_or_else(|| {
        Fault::new(
            "is not an address on the web (it is not shown, since it may hold a secret)",
            "write one that begins with https:// or http:// and names a host",
        )
    })
}

/// What recipients are to be read from.
pub(super) fn recipients(value: &Value) -> Result<Vec<String>, Fault> {
    texts(value).map_err(|_| {
        Fault::new(
            "is not a list of recipients",
            r#"write them in brackets, such as ["age1..."]"#,
        )
    })
}

/// Paths, of which any may be a pattern.
pub(super) fn paths_or_patterns(value: &Value) -> Result<Vec<PathBuf>, Fault> {
    patterns(value).and_then(|_| paths(value))
}

/// Paths with `*`, `?`, `[..]`, and `**` for directories of any depth.
pub(super) fn patterns(value: &Value) -> Result<Vec<Pattern>, Fault> {
    let paths = paths(value)?.into_iter();
    paths
        .map(|path| {
            Pattern::new(&path.to_string_lossy()).map_err(|error| Fault {
                what: format!("has the pattern {}, which is none: {error}", path.display()),
                hint: Some("write * for what may stand there, and [*] for the sign".to_owned()),
            })
        })
        .collect()
}

pub(super) fn address(value: &Value) -> Result<Address, Fault> {
    let address = value.as_str().and_then(|text| text.parse().ok());
    address.ok_or_else(|| {
        Fault::new(
            "is not an IP address and a port",
            r#"write both, such as "127.0.0.1:1414" or "[::1]:1414", or "unix:" and a path"#,
        )
    })
}

/// Names of hosts (RFC 1123, section 2.1; and `_`, which container engines let into them).
pub(super) fn hosts(value: &Value) -> Result<Vec<String>, Fault> {
    let is_label = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(allowed)
    };
    let host = |value: &Value| {
        let name = value.as_str()?;
        let fits = name.len() <= 253 && name.split('.').all(is_label);
        fits.then(|| name.to_ascii_lowercase())
    };
    let hosts = value.as_array().and_then(|values| {
        let hosts = values.iter().map(host);
        hosts.collect::<Option<_>>()
    });
    hosts.ok_or_else(|| {
        Fault::new(
            "is not a list of host names",
            r#"write names without a port in brackets, such as ["tracker"]"#,
        )
    })
}

/// One of a few words.
pub(super) fn choice<T: Copy>(choices: &[(&str, T)]) -> impl Fn(&Value) -> Result<T, Fault> {
    move |value| {
        let chosen = value
            .as_str()
            .and_then(|text| choices.iter().find(|(name, _)| *name == text));
        chosen.map(|(_, choice)| *choice).ok_or_else(|| {
            let names: Vec<String> = choices
                .iter()
                .map(|(name, _)| format!("{name:?}"))
                .collect();
            Fault::new("is not a choice", format!("write {}", names.join(" or ")))
        })
    }
}

/// A whole number within `range`.
pub(super) fn whole<T>(range: RangeInclusive<T>) -> impl Fn(&Value) -> Result<T, Fault>
where
    T: TryFrom<i64> + PartialOrd + std::fmt::Display,
{
    move |value| {
        let hint = || format!("write one from {} to {}", range.start(), range.end());
        let number = value
            .as_integer()
            .ok_or_else(|| Fault::new("is not a whole number", hint()))?;
        T::try_from(number)
            .ok()
            .filter(|number| range.contains(number))
            .ok_or_else(|| Fault::new("is out of range", hint()))
    }
}

/// A length of time with its unit: `90s`, `1h 30m`.
pub(super) fn duration(value: &Value) -> Result<Duration, Fault> {
    let hint = r#"write a number and its unit, such as "90s" or "30m""#;
    match value {
        Value::String(text) => {
            humantime::parse_duration(text).map_err(|_| Fault::new("is not a duration", hint))
        }
        Value::Integer(_) | Value::Float(_) => Err(Fault::new("has no unit", hint)),
        _ => Err(Fault::new("is not a duration", hint)),
    }
}

/// A [`duration`] within `range`.
pub(super) fn duration_in(
    range: RangeInclusive<Duration>,
) -> impl Fn(&Value) -> Result<Duration, Fault> {
    move |value| {
        let duration = duration(value)?;
        if range.contains(&duration) {
            return Ok(duration);
        }
        let (shortest, longest) = (
            format_duration(*range.start()),
            format_duration(*range.end()),
        );
        let what = if duration < *range.start() {
            "is too short"
        } else {
            "is too long"
        };
        Err(Fault::new(
            what,
            format!("write a duration from {shortest} to {longest}"),
        ))
    }
}

/// A [`duration`] of at least `least`, or the word `never`.
pub(super) fn interval(least: Duration) -> impl Fn(&Value) -> Result<Option<Duration>, Fault> {
    move |value| match value.as_str() {
        Some("never") => Ok(None),
        _ => duration_in(least..=Duration::MAX)(value)
            .map(Some)
            .map_err(|fault| Fault {
                hint: Some(format!(
                    r#"write a duration of at least {}, or "never""#,
                    format_duration(least)
                )),
                ..fault
            }),
    }
}

/// A number of bytes, plain or with a unit, of at least `least`: `1048576`, `1GiB`, `500MB`.
pub(super) fn size(least: u64) -> impl Fn(&Value) -> Result<u64, Fault> {
    move |value| {
        let bytes = match value {
            Value::Integer(bytes) => u64::try_from(*bytes).ok(),
            Value::String(text) => text.trim().parse().ok().map(|ByteSize(bytes)| bytes),
            _ => None,
        };
        let hint = || format!(r#"write at least {}, such as "1GiB""#, ByteSize(least));
        match bytes {
            Some(bytes) if bytes >= least => Ok(bytes),
            Some(_) => Err(Fault::new("is too small", hint())),
            None => Err(Fault::new("is not a size", hint())),
        }
    }
}

/// A [`size`] within `range`.
pub(super) fn size_in(range: RangeInclusive<u64>) -> impl Fn(&Value) -> Result<u64, Fault> {
    move |value| {
        let bytes = size(*range.start())(value)?;
        if bytes <= *range.end() {
            return Ok(bytes);
        }
        let hint = format!("write at most {}", ByteSize(*range.end()));
        Err(Fault::new("is too large", hint))
    }
}

/// A [`size`], or the word `unlimited`.
pub(super) fn limit(least: u64) -> impl Fn(&Value) -> Result<Option<u64>, Fault> {
    move |value| match value.as_str() {
        Some("unlimited") => Ok(None),
        _ => size(least)(value).map(Some).map_err(|fault| Fault {
            hint: fault.hint.map(|hint| format!(r#"{hint}, or "unlimited""#)),
            ..fault
        }),
    }
}

/// A daily window.
pub(super) fn window(value: &Value) -> Result<Schedule, Fault> {
    Schedule::daily(&text(value)?).map_err(|error| Fault::because(&error))
}
