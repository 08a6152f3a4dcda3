//! Reads one TOML table key by key and remembers what is wrong instead of stopping at it.
//!
//! The keys a table knows are the keys it was asked for, so the list cannot drift from the
//! code that reads them. A value that cannot be read is replaced by the default, which is
//! harmless: a [`Problem`] was noted, and no settings come out of a table with problems.

use std::fmt;

use serde::Serialize;
use toml::Value;

/// One thing wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Problem {
    /// The whole key, `maintenance.gate.hold_for`.
    pub key: String,
    /// The value as TOML. `None` if there is none, for one that may be a secret, and for a key
    /// that is unknown: it may hold a secret meant for another version.
    pub value: Option<String>,
    /// What is wrong, as a verb and its object.
    pub what: String,
    /// What to do, as an imperative; `None` if [`Problem::what`] says it.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        write!(f, " {}", self.what)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// All that is wrong with the configuration, at least one thing. Printed one a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// `None` if there are none.
    pub(super) fn of(problems: Vec<Problem>) -> Option<Self> {
        (!problems.is_empty()).then_some(Self(problems))
    }

    /// In the order of the documentation.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }
}

impl<'p> IntoIterator for &'p Problems {
    type Item = &'p Problem;
    type IntoIter = std::slice::Iter<'p, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.iter().enumerate() {
            let line_break = if n == 0 { "" } else { "\n" };
            write!(f, "{line_break}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Why a value was refused: the two halves of a [`Problem`]'s sentence.
#[derive(Debug)]
pub(super) struct Fault {
    pub what: String,
    pub hint: Option<String>,
}

impl Fault {
    pub fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            hint: Some(hint.into()),
        }
    }

    /// For a sentence that says itself what to do.
    pub fn of(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            hint: None,
        }
    }

    /// For an error that says itself what to do.
    pub fn because(error: &impl std::error::Error) -> Self {
        Self {
            what: format!("is refused: {error}"),
            hint: None,
        }
    }
}

/// A table being read.
pub(super) struct Table<'t> {
    key: String,
    entries: &'t toml::Table,
    known: Vec<&'static str>,
    read: Read,
}

/// What is left when a table has been read.
#[derive(Default)]
pub(super) struct Read {
    pub problems: Vec<Problem>,
    /// Every key asked for, here and in tables inside.
    pub keys: Vec<String>,
}

/// Stands in for a table that is absent or no table.
static EMPTY: std::sync::LazyLock<toml::Table> = std::sync::LazyLock::new(toml::Table::new);

impl<'t> Table<'t> {
    /// Reads `value`, found under `key`, with `read`.
    pub fn read<T>(
        key: String,
        value: Option<&'t Value>,
        read: impl FnOnce(&mut Self) -> T,
    ) -> (T, Read) {
        let mut table = Self {
            key,
            entries: &EMPTY,
            known: Vec::new(),
            read: Read::default(),
        };
        match value {
            None => {}
            Some(Value::Table(entries)) => table.entries = entries,
            Some(other) => table.read.problems.push(Problem {
                key: table.key.clone(),
                value: (!may_be_secret(&table.key)).then(|| other.to_string()),
                what: "is not a table".to_owned(),
                hint: Some(format!("write its keys under [{}]", table.key)),
            }),
        }
        let result = read(&mut table);
        (result, table.finish())
    }

    /// Whether nothing at all was written.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether `key` was written, rightly or not.
    pub fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// The value of `key`; `None` if it is absent or has a problem.
    pub fn optional<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&Value) -> Result<T, Fault>,
    ) -> Option<T> {
        let parsed = self.parsed(key, parse)?;
        parsed.map_err(|fault| self.object(key, fault)).ok()
    }

    /// As [`Table::optional`], of what may be a secret: a problem with it does not show it.
    pub fn secret<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&Value) -> Result<T, Fault>,
    ) -> Option<T> {
        let parsed = self.parsed(key, parse)?;
        parsed.map_err(|fault| self.object_unseen(key, fault)).ok()
    }

    /// What is made of the value of `key`, which is a known one from now on; `None` if it is
    /// absent.
    fn parsed<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&Value) -> Result<T, Fault>,
    ) -> Option<Result<T, Fault>> {
        self.known.push(key);
        self.read.keys.push(self.full(key));
        self.entries.get(key).map(parse)
    }

    /// The value of `key`, or `default` if it is absent.
    pub fn or<T>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&Value) -> Result<T, Fault>,
    ) -> T {
        self.optional(key, parse).unwrap_or(default)
    }

    /// The table under `key`, empty if it is absent.
    pub fn table<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Table<'t>) -> T) -> T {
        self.known.push(key);
        let (result, inner) = Table::read(self.full(key), self.entries.get(key), read);
        self.read.problems.extend(inner.problems);
        self.read.keys.extend(inner.keys);
        result
    }

    /// Notes a problem with `key`, which may be in a table inside (`gate.hold_for`).
    pub fn object(&mut self, key: &str, fault: Fault) {
        let mut path = key.split('.');
        let outermost = path.next().and_then(|first| self.entries.get(first));
        let value = path.fold(outermost, |value, inner| value?.get(inner));
        self.note(key, value.map(Value::to_string), fault);
    }

    /// As [`Table::object`], without the value, which may be a secret.
    pub fn object_unseen(&mut self, key: &str, fault: Fault) {
        self.note(key, None, fault);
    }

    fn note(&mut self, key: &str, value: Option<String>, fault: Fault) {
        self.read.problems.push(Problem {
            key: self.full(key),
            value,
            what: fault.what,
            hint: fault.hint,
        });
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.key)
    }

    /// Whatever was not asked for is unknown.
    fn finish(mut self) -> Read {
        for key in self.entries.keys() {
            if !self.known.contains(&key.as_str()) {
                self.read.problems.push(Problem {
                    key: self.full(key),
                    value: None,
                    what: "is unknown".to_owned(),
                    hint: Some(match nearest(key, &self.known) {
                        Some(meant) => format!("did you mean {meant}?"),
                        None => format!("remove it, or use one of {}", self.known.join(", ")),
                    }),
                });
            }
        }
        self.read
    }
}

/// The key most like `written`, if one is like it at all: at most a third of it differs.
fn nearest(written: &str, known: &[&'static str]) -> Option<&'static str> {
    let (distance, meant) = known
        .iter()
        .map(|known| (edits(written, known), *known))
        .min()?;
    (3 * distance <= written.len().max(meant.len())).then_some(meant)
}

/// Levenshtein's distance: the fewest insertions, removals and replacements of a character
/// that turn one word into the other.
fn edits(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.chars().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[other.chars().count()]
}

/// Whether a text in place of the table of this name may be a secret, one that belongs one level
/// below.
fn may_be_secret(key: &str) -> bool {
    matches!(key.rsplit('.').next(), Some("notify" | "hooks" | "remote"))
}

#[cfg(test)]
mod tests {
    use super::{edits, nearest};

    #[test]
    fn edits_are_counted() {
        for (one, other, count) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("hold_fro", "hold_for", 2),
            ("hold_for", "hold_for", 0),
            ("größe", "grösse", 2),
        ] {
            assert_eq!(edits(one, other), count, "{one} {other}");
        }
    }

    #[test]
    fn only_what_is_alike_is_suggested() {
        let known = ["hold_for", "hold_at_most", "udp"];
        assert_eq!(nearest("hold_fro", &known), Some("hold_for"));
        assert_eq!(nearest("hold-at-most", &known), Some("hold_at_most"));
        assert_eq!(nearest("tcp", &known), None);
        assert_eq!(nearest("remote", &known), None);
        assert_eq!(nearest("any", &[]), None);
    }
}
