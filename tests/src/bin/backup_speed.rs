//! Measures how fast backups are made and restored, what writers meet meanwhile, and what a
//! run costs in memory and in pause; beside what an operator would use otherwise.
//!
//! ```text
//! cargo run --release --locked -p end-to-end --bin backup_speed -- --write-docs
//! ```

#![expect(
    clippy::disallowed_methods,
    reason = "writes its report; it has no live database open by descriptor"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use end_to_end::speed::method::Method;
use end_to_end::speed::summary::Summary;
use end_to_end::speed::{self, Plan, Report, cost, document, writer};
use serde_json::json;

/// Measures backups: speed, what writers meet, memory, pause.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// Size of the database, in 10^6 bytes.
    #[arg(long, default_value_t = 1_500)]
    megabytes: u64,
    /// How often what is held against a limit is measured; 0: only what a run costs.
    #[arg(long, default_value_t = 2)]
    rounds: u32,
    /// Commits a second beside the copies, one measurement for each.
    #[arg(long, value_delimiter = ',', default_value = "0,200,2000")]
    writers: Vec<u32>,
    /// Only these methods.
    #[arg(long, value_delimiter = ',', value_parser = method)]
    only: Vec<Method>,
    /// Seconds after which a program that does not end is given up.
    #[arg(long, default_value_t = 60)]
    give_up: u64,
    /// Runs on each database whose cost is measured; 0: only the speed.
    #[arg(long, default_value_t = 3)]
    cost_runs: u32,
    /// Sizes of those databases, in 10^6 bytes.
    #[arg(long, value_delimiter = ',', default_value = "30,100,3000")]
    cost_megabytes: Vec<u64>,
    /// Where databases and copies are put for the while: some four times the size.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    directory: PathBuf,
    /// Writes what was measured, and what it comes to, to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Measures nothing and takes what an earlier session wrote to this file.
    #[arg(long, conflicts_with_all = ["megabytes", "rounds", "writers", "only"])]
    from: Option<PathBuf>,
    /// Writes docs/performance.md.
    #[arg(long)]
    write_docs: bool,
}

/// What this program starts itself as.
#[derive(Debug, Subcommand)]
enum Part {
    /// Commits at a steady rate.
    #[command(hide = true)]
    Writer {
        #[arg(long)]
        database: PathBuf,
        #[arg(long)]
        rate: u32,
    },
    /// A service with the library linked in.
    #[command(hide = true)]
    Service {
        #[arg(long)]
        database: PathBuf,
        #[arg(long)]
        catalogue: PathBuf,
        #[arg(long)]
        compression: String,
    },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.part {
        Some(Part::Writer { database, rate }) => writer::serve(database, *rate),
        Some(Part::Service {
            database,
            catalogue,
            compression,
        }) => cost::serve(database, catalogue, compression),
        None => report(&arguments),
    }
}

fn report(arguments: &Arguments) -> Result<()> {
    let report = match &arguments.from {
        Some(path) => read(path)?,
        None => speed::measure(&plan(arguments))?,
    };
    println!("{}", document::tables(&report));
    if let Some(path) = &arguments.json {
        let summary = Summary::of(&report);
        let text = format!("{:#}\n", json!({ "summary": summary, "report": report }));
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    if arguments.write_docs {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/performance.md");
        fs::write(&path, document::page(&report))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn plan(arguments: &Arguments) -> Plan {
    let methods = if arguments.only.is_empty() {
        Method::ALL.to_vec()
    } else {
        arguments.only.clone()
    };
    Plan {
        megabytes: arguments.megabytes,
        rounds: arguments.rounds,
        writers: arguments.writers.clone(),
        methods,
        directory: arguments.directory.clone(),
        give_up: Duration::from_secs(arguments.give_up),
        cost_runs: arguments.cost_runs,
        cost_megabytes: arguments.cost_megabytes.clone(),
        command: command(std::env::args().skip(1)),
    }
}

/// The command as it can be repeated, without where files were put.
fn command(arguments: impl Iterator<Item = String>) -> String {
    let build = if cfg!(debug_assertions) {
        ""
    } else {
        " --release"
    };
    let mut words = vec![format!(
        "cargo run{build} --locked -p end-to-end --bin backup_speed --"
    )];
    let mut placeholder: Option<&str> = None;
    for argument in arguments {
        let name = argument.split('=').next().unwrap_or_default();
        let path = match name {
            "--directory" => Some("DIR"),
            "--json" | "--from" => Some("FILE"),
            _ => None,
        };
        words.push(match (placeholder.take(), path) {
            (Some(path), _) => path.to_owned(),
            (None, Some(path)) if argument.contains('=') => format!("{name}={path}"),
            (None, path) => {
                placeholder = path;
                argument
            }
        });
    }
    words.join(" ")
}

fn read(path: &Path) -> Result<Report> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let mut json: serde_json::Value = serde_json::from_str(&text)?;
    serde_json::from_value(json["report"].take())
        .with_context(|| format!("{} is not what --json writes", path.display()))
}

/// By the name it has in the JSON.
fn method(name: &str) -> Result<Method, String> {
    serde_json::from_value(json!(name)).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_told_without_paths() {
        let told = command(
            [
                "--json",
                "/a",
                "--rounds",
                "2",
                "--directory=/b/c",
                "--write-docs",
            ]
            .map(str::to_owned)
            .into_iter(),
        );
        let arguments = told.split(" -- ").nth(1);
        assert_eq!(
            arguments,
            Some("--json FILE --rounds 2 --directory=DIR --write-docs")
        );
    }

    #[test]
    fn methods_have_the_names_of_the_json() {
        assert_eq!(method("file_zstd"), Ok(Method::FileZstd));
        assert!(method("files").is_err());
        Arguments::try_parse_from(["backup_speed", "--only", "cp,file", "--writers", "0"])
            .expect("it is valid");
    }
}
