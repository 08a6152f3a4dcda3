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

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;

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
    let release = if cfg!(debug_assertions) {
        ""
    } else {
        " --release"
    };
    let mut text = format!("cargo run{release} -p end-to-end --bin {program} --");
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // Paths of the machine; the file system is told.
            "--directory" | "--docs" | "--json" => drop(arguments.next()),
            // What they are for, the page says.
            "--full" | "--tracker" | "--upstream" | "--load-test" => {
                arguments.next();
                text = format!("{text} {argument} PROGRAM");
            }
            other if other.contains(' ') => text = format!("{text} '{other}'"),
            other => text = format!("{text} {other}"),
        }
    }
    text
}

/// The documentation of the workspace this was built in.
#[must_use]
pub fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}
