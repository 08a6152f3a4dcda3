//! `[maintenance.remote]`: the second place.

use std::path::PathBuf;
use std::time::Duration;

use super::table::{Fault, Table};
use super::{GIB, KIB, Keep, MIB, value};

/// `[maintenance.remote]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Remote {
    /// `url` and what goes with it.
    pub place: Place,
    /// What retention keeps there.
    pub keep: Keep,
    /// How what was uploaded is verified.
    pub verify: Readback,
    /// How long after it was last read back a backup is read back again; `None`: never.
    pub check_every: Option<Duration>,
    /// Bytes uploaded at once, and held in memory.
    pub part_size: u64,
    /// Bytes a second; `None`: as fast as it can.
    pub bandwidth: Option<u64>,
    /// How often a request is tried.
    pub attempts: u32,
    /// How long it is waited before the second attempt.
    pub back_off: Duration,
    /// How long one request may take.
    pub timeout: Duration,
}

/// Where backups are uploaded to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A bucket.
    S3(S3),
    /// A directory, on another volume.
    Directory(PathBuf),
}

/// A bucket of S3, or of what speaks like it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct S3 {
    /// Its name.
    pub bucket: String,
    /// What the names of all objects begin with; empty: nothing.
    pub prefix: String,
    /// Where it is; `None`: at AWS, or where the environment says.
    pub endpoint: Option<String>,
    /// Its region; `None`: what the environment says.
    pub region: Option<String>,
    /// Whether the bucket is named in the path instead of the host's name.
    pub path_style: bool,
    /// Whether it may be spoken to without TLS.
    pub allow_http: bool,
    /// Who asks, and the file with the secret; `None`: as the environment says.
    pub credentials: Option<(String, PathBuf)>,
}

/// `remote.verify`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readback {
    /// Every byte is read back and compared with the checksums of the manifest.
    Full,
    /// The sizes are compared.
    Size,
}

/// `url`, taken apart.
enum Url {
    S3 { bucket: String, prefix: String },
    Directory(PathBuf),
}

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The keys that a directory has no use for.
const OF_S3: [&str; 6] = [
    "endpoint",
    "region",
    "path_style",
    "allow_http",
    "access_key_id",
    "secret_access_key_file",
];

impl Remote {
    pub(super) fn read(table: &mut Table<'_>) -> Option<Self> {
        let url = table.secret("url", url);
        if !table.is_empty() && !table.has("url") {
            let hint = r#"write one, such as "s3://bucket/prefix", or remove the table"#;
            table.object("url", Fault::new("is missing", hint));
        }
        let allow_http = table.or("allow_http", false, value::flag);
        let endpoint = table.secret("endpoint", endpoint(allow_http));
        let region = table.optional("region", value::text);
        let path_style = table.or("path_style", endpoint.is_some(), value::flag);
        let access_key_id = table.optional("access_key_id", value::text);
        let secret_file = table.optional("secret_access_key_file", value::path);
        let (has_id, has_secret) = (
            table.has("access_key_id"),
            table.has("secret_access_key_file"),
        );
        if has_id != has_secret {
            let missing = if has_id {
                "secret_access_key_file"
            } else {
                "access_key_id"
            };
            let hint = "write both, or neither to have them of the environment";
            table.object(missing, Fault::new("is missing", hint));
        }
        let readback = [("full", Readback::Full), ("size", Readback::Size)];
        let second = Duration::from_secs(1);
        let remote = Self {
            keep: table.table("keep", Keep::read),
            verify: table.or("verify", Readback::Full, value::choice(&readback)),
            check_every: table.or("check_every", Some(30 * DAY), value::interval(DAY)),
            // S3 takes no smaller parts. Each is held in memory.
            part_size: table.or("part_size", 8 * MIB, value::size_in(5 * MIB..=GIB)),
            bandwidth: table.or("bandwidth", None, value::limit(64 * KIB)),
            attempts: table.or("attempts", 5, value::whole(1..=20)),
            back_off: table.or(
                "back_off",
                second,
                value::duration_in(Duration::from_millis(1)..=60 * second),
            ),
            // A server that says nothing for an hour is not there.
            timeout: table.or(
                "timeout",
                300 * second,
                value::duration_in(second..=3600 * second),
            ),
            place: match url? {
                Url::Directory(directory) => {
                    let written: Vec<_> = OF_S3.into_iter().filter(|key| table.has(key)).collect();
                    for key in written {
                        let what = "has no meaning with a url of file://";
                        table.object_unseen(key, Fault::new(what, "remove it"));
                    }
                    Place::Directory(directory)
                }
                Url::S3 { bucket, prefix } => Place::S3(S3 {
                    bucket,
                    prefix,
                    endpoint,
                    region,
                    path_style,
                    allow_http,
                    credentials: access_key_id.zip(secret_file),
                }),
            },
        };
        Some(remote)
    }

    /// What it is called in messages. It holds no secret.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.place {
            Place::Directory(directory) => format!("file://{}", directory.display()),
            Place::S3(S3 { bucket, prefix, .. }) if prefix.is_empty() => format!("s3://{bucket}"),
            Place::S3(S3 { bucket, prefix, .. }) => format!("s3://{bucket}/{prefix}"),
        }
    }
}

/// `s3://bucket/prefix` or `file:///directory`. Anything else may hold a secret.
fn url(written: &toml::Value) -> Result<Url, Fault> {
    let fault = |what: &str| {
        let hint = r#"write "s3://bucket/prefix" or "file:///directory", without credentials"#;
        Fault::new(what, hint)
    };
    let text = value::text(written).map_err(|_| fault("is not a text"))?;
    if let Some(path) = text.strip_prefix("file://") {
        return if path.starts_with('/') {
            Ok(Url::Directory(path.into()))
        } else {
            Err(fault("is not an absolute path"))
        };
    }
    let rest = text
        .strip_prefix("s3://")
        .ok_or_else(|| fault("is of no kind that is known"))?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    // https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
    let in_a_bucket = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if bucket.is_empty() || !bucket.bytes().all(in_a_bucket) {
        return Err(fault("has no name of a bucket"));
    }
    let prefix = prefix.trim_end_matches('/');
    let in_a_key = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && part.bytes().all(in_a_bucket)
    };
    if !prefix.is_empty() && !prefix.split('/').all(in_a_key) {
        let what = "has a prefix with other signs than letters, digits, -, _ and .";
        return Err(fault(what));
    }
    Ok(Url::S3 {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
    })
}

/// `https://host:port`, or with `allow_http` `http://host:port`.
fn endpoint(allow_http: bool) -> impl Fn(&toml::Value) -> Result<String, Fault> {
    move |written| {
        let fault = |what: &str| {
            let hint = r#"write "https://host" or "https://host:port", without credentials"#;
            Fault::new(what, hint)
        };
        let text = value::text(written).map_err(|_| fault("is not a text"))?;
        let text = text.trim_end_matches('/');
        let host = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(host), _) => host,
            (None, Some(host)) if allow_http => host,
            (None, Some(_)) => {
                let what = "is without TLS";
                let hint = "write https://, or allow_http = true where the network is trusted";
                return Err(Fault::new(what, hint));
            }
            (None, None) => return Err(fault("is not an address")),
        };
        let in_a_host = |byte: u8| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':' | b'[' | b']')
        };
        if host.is_empty() || !host.bytes().all(in_a_host) {
            return Err(fault("is not the address of a host"));
        }
        Ok(text.to_owned())
    }
}
