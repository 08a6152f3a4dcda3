//! Whether a stored dump is whole, and has the rows it should.

use std::path::Path;
use std::time::Instant;

use super::artifact::read_into;
use super::{Error, Report, differing_rows};
use crate::catalogue::Artifact;
use crate::config::Depth;
use crate::disk::Disk;
use crate::encryption::Identities;
use crate::mysql::{Rows, Statements};
use crate::snapshot::Watch;

/// Reads a stored dump back: sizes, checksums, its last line, and its rows, counted again.
/// They were counted once before they were stored, by the same rules. One that is encrypted cannot
/// be looked into without `identities`.
pub(crate) fn dump(
    path: &Path,
    expected: &Artifact,
    rows: &Rows,
    identities: Option<&Identities>,
    disk: &Disk,
    watch: &Watch,
) -> Result<Report, Error> {
    #[expect(
        clippy::disallowed_methods,
        reason = "how long a check takes is measured where it is made"
    )]
    let began = Instant::now();
    let mut statements = Statements::default();
    let doing = "reading back";
    read_into(
        path,
        expected,
        identities,
        doing,
        &mut statements,
        disk,
        watch,
    )?;
    let found = statements
        .finish()
        .map_err(|why| Error::corrupt(path, format!("it is not a whole dump: {why}")))?;
    let findings = differing_rows(rows, &found);
    if findings.is_empty() {
        return Ok(Report {
            depth: Depth::Quick,
            rows: found,
            seconds: began.elapsed().as_secs_f64(),
        });
    }
    Err(Error::Corrupt {
        path: path.to_owned(),
        findings,
    })
}
