//! What measures, and writes a document of what it measured: a result is data, a document
//! is made of it by a pure function, and no figure is put in by hand.

pub mod capacity;
pub mod machine;
pub mod prose;
pub mod rates;
mod reading;
pub mod wal;
pub mod window;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Where the documentation has a tracker built that commits with `synchronous = FULL`.
const FULL: &str = "target/full/release/torrust-tracker";

/// A page and its drawings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Name of the page without `.md`, and of the directory of the drawings.
    pub name: &'static str,
    /// Markdown.
    pub text: String,
    /// File names and SVG.
    pub drawings: Vec<(String, String)>,
}

impl Document {
    /// Writes the page into a directory, and the drawings into one below it.
    ///
    /// # Errors
    /// When that cannot be written to.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let page = directory.join(format!("{}.md", self.name));
        write(&page, &self.text)?;
        let drawings = directory.join(self.name);
        std::fs::create_dir_all(&drawings)
            .with_context(|| format!("making {}", drawings.display()))?;
        for (name, svg) in &self.drawings {
            write(&drawings.join(name), svg)?;
        }
        Ok(())
    }
}

/// What an outcome shows of what must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judgement {
    /// What must hold and does not, each a sentence.
    pub broken: Vec<String>,
    /// What cannot be told: the generator was the limit, noise hides it, or it was left out.
    pub unknown: Vec<String>,
}

impl Judgement {
    /// Of a program: 0 if all holds, 1 if something does not, 3 if nothing is broken but
    /// something is not known.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match (self.broken.is_empty(), self.unknown.is_empty()) {
            (false, _) => 1,
            (true, false) => 3,
            (true, true) => 0,
        }
    }

    /// One line for each, for who waits for the program.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let broken = self
            .broken
            .iter()
            .map(|one| format!("DOES NOT HOLD: {one}"));
        let unknown = self.unknown.iter().map(|one| format!("NOT KNOWN: {one}"));
        broken.chain(unknown).collect()
    }
}

/// What becomes of an outcome: the options that each experiment has.
#[derive(Debug, Args)]
pub struct Output {
    /// Where the result is written as JSON; while it is measured, what there is by then.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Measures nothing: writes the documents of such a result.
    #[arg(long, conflicts_with = "json")]
    from: Option<PathBuf>,
    /// Writes the page and its drawings.
    #[arg(long)]
    write_docs: bool,
    /// Where they are written: the documentation of the workspace.
    #[arg(long, default_value_os_t = docs())]
    docs: PathBuf,
}

impl Output {
    /// The result that documents are asked of, if nothing is to be measured.
    ///
    /// # Errors
    /// As [`read`].
    pub fn given<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        self.from.as_deref().map(read).transpose()
    }

    /// Writes a result, or what there is of it, if it is to be kept.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&self, outcome: &impl Serialize) -> Result<()> {
        match &self.json {
            Some(path) => write(path, &format!("{:#}\n", serde_json::to_value(outcome)?)),
            None => Ok(()),
        }
    }

    /// Writes the document, or prints its text, and says what it shows.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn show(&self, document: &Document, judgement: &Judgement) -> Result<ExitCode> {
        if self.write_docs {
            document.write(&self.docs)?;
        } else {
            print!("{}", document.text);
        }
        for line in judgement.lines() {
            eprintln!("{line}");
        }
        Ok(ExitCode::from(judgement.exit_code()))
    }
}

/// In which order so many are measured in a round: forth, then back, as what drifts one way
/// makes none better than another.
fn order(round: usize, many: usize) -> Vec<usize> {
    let forth = 0..many;
    if round.is_multiple_of(2) {
        forth.collect()
    } else {
        forth.rev().collect()
    }
}

/// Writes a file that is no database.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Reads back the result of an experiment.
///
/// # Errors
/// When it cannot be read, or is of another version of the experiment.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no such result", path.display()))
}

/// The command that runs this program again, with the arguments it was given but for where
/// it writes.
#[must_use]
pub fn command(program: &str) -> String {
    command_of(program, !cfg!(debug_assertions), std::env::args().skip(1))
}

fn command_of(program: &str, release: bool, arguments: impl Iterator<Item = String>) -> String {
    let release = if release { " --release" } else { "" };
    let mut text = format!("cargo run{release} -p end-to-end --bin {program} --");
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let (option, value) = match argument.split_once('=') {
            Some((option, value)) => (option, Some(value)),
            None => (argument.as_str(), None),
        };
        // Paths of the machine; the file system is told. Each has a value.
        let in_its_place = match option {
            "--directory" | "--docs" | "--json" => Some(String::new()),
            "--full" => Some(format!(" --full {FULL}")),
            // What they are for, the page says.
            "--tracker" | "--upstream" | "--load-test" => Some(format!(" {option} PROGRAM")),
            _ => None,
        };
        if in_its_place.is_some() && value.is_none() {
            arguments.next();
        }
        text += &in_its_place.unwrap_or_else(|| {
            if argument.contains(' ') {
                format!(" '{argument}'")
            } else {
                format!(" {argument}")
            }
        });
    }
    text
}

/// The documentation of the workspace this was built in.
#[must_use]
pub fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_go_forth_and_back() {
        assert_eq!(order(0, 3), [0, 1, 2]);
        assert_eq!(order(1, 3), [2, 1, 0]);
        assert_eq!(order(2, 3), order(0, 3));
    }

    #[test]
    fn what_is_broken_counts_for_more_than_what_is_not_known() {
        for (broken, unknown, wanted) in [(0, 0, 0), (0, 1, 3), (1, 0, 1), (2, 1, 1)] {
            let judgement = Judgement {
                broken: vec!["a".to_owned(); broken],
                unknown: vec!["b".to_owned(); unknown],
            };
            assert_eq!(judgement.exit_code(), wanted);
            assert_eq!(judgement.lines().len(), broken + unknown);
        }
    }

    /// However an argument is written, no path of the machine gets into a page, and the
    /// command can be run as it stands there.
    #[test]
    fn a_command_has_no_path_of_the_machine() {
        let here = "cargo run --release -p end-to-end --bin it --";
        for (given, wanted) in [
            ("", ""),
            ("--write-docs", " --write-docs"),
            ("--directory /x --write-docs", " --write-docs"),
            ("--directory=/x --write-docs", " --write-docs"),
            ("--json /x/y.json --docs /x --udp 5", " --udp 5"),
            ("--json=/x/y.json --docs=/x --udp=5", " --udp=5"),
            (
                "--full /x/tracker --rounds 2",
                " --full target/full/release/torrust-tracker --rounds 2",
            ),
            (
                "--tracker /x --upstream=/y --rounds 2",
                " --tracker PROGRAM --upstream PROGRAM --rounds 2",
            ),
            (
                "--full=/x/tracker",
                " --full target/full/release/torrust-tracker",
            ),
        ] {
            let arguments = given.split_whitespace().map(str::to_owned);
            let found = command_of("it", true, arguments);
            assert_eq!(found, format!("{here}{wanted}"), "{given}");
        }
        let spaced = ["--only", "memory, error"].map(str::to_owned);
        let found = command_of("it", true, spaced.into_iter());
        assert_eq!(found, format!("{here} --only 'memory, error'"));
        let debug = command_of("it", false, std::iter::empty());
        assert_eq!(debug, "cargo run -p end-to-end --bin it --");
    }
}
