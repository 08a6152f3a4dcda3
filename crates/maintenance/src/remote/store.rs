//! Requests to the second place: each tried again where that may help.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::TryStreamExt as _;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential};
use object_store::local::LocalFileSystem;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as Key;
use object_store::{ClientOptions, ObjectMeta, ObjectStore, RetryConfig, StaticCredentialProvider};

use super::Error;
use super::claim::OWNER;
use super::stray::Strays;
use crate::catalogue::{BackupId, MANIFEST, SMALL_FILE};
use crate::config::{self, Place, S3};
use crate::disk::Disk;

/// How long a connection may take to be made.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Longest file with a secret worth reading.
const SECRET_LIMIT: u64 = 4096;
/// The region that is told to a server that has none.
const ANY_REGION: &str = "us-east-1";
/// Characters of an answer that are shown.
const SHOWN: usize = 300;
/// What S3 answers, with a 400, when a request did not get there whole or in time
/// (<https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>).
const CUT_SHORT: [&str; 3] = ["RequestTimeout", "IncompleteBody", "BadDigest"];
/// What it answers when it does not have an upload, or not its parts, any more.
const LOST: [&str; 3] = ["NoSuchUpload", "InvalidPart", "InvalidPartOrder"];
/// As these, of a server that answers 404 without a word.
const UNKNOWN: &str = "NotFound";
/// What it answers, with a 403, of an object that was moved to an archive.
const ARCHIVED: &str = "InvalidObjectState";

/// The second place, by the names of its objects.
#[derive(Clone)]
pub(super) struct Store {
    objects: Arc<dyn ObjectStore>,
    kind: Kind,
    /// Of a bucket.
    strays: Option<Strays>,
    prefix: Key,
    at: String,
    attempts: u32,
    back_off: Duration,
    /// What a test has go wrong.
    #[cfg(test)]
    faults: super::tests::Faults,
}

/// How files get there.
#[derive(Clone)]
pub(super) enum Kind {
    /// In parts, which the server puts together.
    Parts(Arc<dyn MultipartStore>),
    /// Written below this directory.
    Directory(PathBuf),
}

/// Not what it is made with: that holds secrets.
impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Store").field(&self.at).finish()
    }
}

/// The objects under the name of a backup.
#[derive(Debug, Clone, Default)]
pub(super) struct Objects(BTreeMap<String, (u64, DateTime<Utc>)>);

impl Objects {
    /// When it was uploaded, if it is there.
    pub(super) fn uploaded(&self, name: &str) -> Option<DateTime<Utc>> {
        self.0.get(name).map(|(_, uploaded)| *uploaded)
    }

    /// Whether it is there, and with so many bytes if these are known.
    pub(super) fn has(&self, name: &str, bytes: Option<u64>) -> bool {
        let found = self.0.get(name);
        found.is_some_and(|(found, _)| bytes.is_none_or(|bytes| bytes == *found))
    }
}

impl Store {
    pub(super) fn open(settings: &config::Remote, disk: &Disk) -> Result<Self, Error> {
        let (objects, kind, strays, prefix): (Arc<dyn ObjectStore>, _, _, _) = match &settings.place
        {
            Place::Directory(directory) => {
                // One that is not mounted must not be written beside.
                let files = LocalFileSystem::new_with_prefix(directory)
                    .map_err(|_| Error::NoDirectory(directory.clone()))?;
                let files = files.with_automatic_cleanup(true);
                (
                    Arc::new(files),
                    Kind::Directory(directory.clone()),
                    None,
                    Key::default(),
                )
            }
            Place::S3(s3) => {
                let (bucket, strays) = bucket(s3, settings.timeout, disk)?;
                let bucket = Arc::new(bucket);
                let prefix = Key::from(s3.prefix.as_str());
                (bucket.clone(), Kind::Parts(bucket), strays, prefix)
            }
        };
        Ok(Self {
            objects,
            kind,
            strays,
            prefix,
            at: settings.describe(),
            attempts: settings.attempts,
            back_off: settings.back_off,
            #[cfg(test)]
            faults: super::tests::Faults::default(),
        })
    }

    /// For tests: any store, by the settings of a bucket.
    #[cfg(test)]
    pub(super) fn of<T: ObjectStore + MultipartStore>(
        store: &Arc<T>,
        settings: &config::Remote,
    ) -> Self {
        Self {
            objects: store.clone(),
            kind: Kind::Parts(store.clone()),
            strays: None,
            prefix: Key::from("prefix"),
            at: settings.describe(),
            attempts: settings.attempts,
            back_off: settings.back_off,
            faults: super::tests::Faults::default(),
        }
    }

    /// For tests: with this to go wrong.
    #[cfg(test)]
    pub(super) fn failing(self, faults: super::tests::Faults) -> Self {
        Self { faults, ..self }
    }

    pub(super) fn at(&self) -> &str {
        &self.at
    }

    pub(super) fn kind(&self) -> &Kind {
        &self.kind
    }

    fn key(&self, id: &BackupId, name: &str) -> Key {
        self.prefix.child(id.to_string()).child(name)
    }

    /// What an object is called in messages.
    pub(super) fn object(&self, id: &BackupId, name: &str) -> String {
        format!("{}/{id}/{name}", self.at)
    }

    /// All that has the name of a backup, by that.
    pub(super) async fn list(&self) -> Result<BTreeMap<BackupId, Objects>, Error> {
        let listed: Vec<ObjectMeta> = self
            .attempt("list", self.at.clone(), async || {
                self.objects.list(Some(&self.prefix)).try_collect().await
            })
            .await?;
        let mut backups = BTreeMap::<BackupId, Objects>::new();
        for object in listed {
            let Some(mut parts) = object.location.prefix_match(&self.prefix) else {
                continue;
            };
            let id = parts
                .next()
                .and_then(|id| id.as_ref().parse::<BackupId>().ok());
            if let (Some(id), Some(name), None) = (id, parts.next(), parts.next()) {
                let found = (object.size as u64, object.last_modified);
                let objects = &mut backups.entry(id).or_default().0;
                objects.insert(name.as_ref().to_owned(), found);
            }
        }
        Ok(backups)
    }

    /// The uploads in parts that the server has: of which file of which backup, and what it
    /// calls each. None where that cannot be asked.
    pub(super) async fn begun(&self) -> Vec<(BackupId, String, String)> {
        let Some(strays) = &self.strays else {
            return Vec::new();
        };
        let of_backup = |key: &str| {
            let key = Key::parse(key).ok()?;
            let mut parts = key.prefix_match(&self.prefix)?;
            let id = parts.next()?.as_ref().parse().ok()?;
            let name = parts.next()?.as_ref().to_owned();
            parts.next().is_none().then_some((id, name))
        };
        let begun = strays.list(&self.prefix).await.unwrap_or_default();
        let begun = begun.into_iter().filter_map(|begun| {
            let (id, name) = of_backup(&begun.key)?;
            Some((id, name, begun.upload))
        });
        begun.collect()
    }

    /// Whether the server has said that it does not have this upload any more.
    pub(super) async fn has_lost(&self, id: &BackupId, name: &str, upload: &str) -> bool {
        let Some(strays) = &self.strays else {
            return false;
        };
        let begun = strays.list(&self.key(id, name)).await;
        begun.is_some_and(|begun| begun.iter().all(|begun| begun.upload != upload))
    }

    /// Bytes of an object; `None` if it is not there.
    pub(super) async fn size(&self, id: &BackupId, name: &str) -> Result<Option<u64>, Error> {
        let key = self.key(id, name);
        let asked = self.attempt("look at", self.object(id, name), async || {
            match self.objects.head(&key).await {
                Ok(found) => Ok(Some(found.size as u64)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        });
        asked.await
    }

    /// The object that says whose the place is, in messages.
    pub(super) fn owner(&self) -> String {
        format!("{}/{OWNER}", self.at)
    }

    /// That object; `None` if it is not there.
    pub(super) async fn read_owner(&self) -> Result<Option<Bytes>, Error> {
        let key = self.prefix.child(OWNER);
        let read = self.attempt("read", self.owner(), async || {
            let found = match self.objects.get(&key).await {
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                found => found?,
            };
            // It is a line or two; what is longer is none, and is not wanted in memory.
            if found.meta.size as u64 > SMALL_FILE {
                return Ok(Some(Bytes::new()));
            }
            found.bytes().await.map(Some)
        });
        read.await
    }

    pub(super) async fn write_owner(&self, bytes: Bytes) -> Result<(), Error> {
        let key = self.prefix.child(OWNER);
        self.attempt("write", self.owner(), async || {
            self.objects.put(&key, bytes.clone().into()).await.map(drop)
        })
        .await
    }

    pub(super) async fn read(
        &self,
        id: &BackupId,
        name: &str,
        range: Range<u64>,
    ) -> Result<Bytes, Error> {
        let key = self.key(id, name);
        let range = as_size(range.start)..as_size(range.end);
        self.attempt("read", self.object(id, name), async || {
            self.objects.get_range(&key, range.clone()).await
        })
        .await
    }

    /// All of an object that cannot be large.
    pub(super) async fn read_small(&self, id: &BackupId, name: &str) -> Result<Bytes, Error> {
        let differs = |why: String| Error::Differs {
            object: self.object(id, name),
            why,
        };
        match self.size(id, name).await? {
            None => Err(differs("it is not there".to_owned())),
            Some(bytes) if bytes > SMALL_FILE => Err(differs(format!("it has {bytes} bytes"))),
            Some(0) => Ok(Bytes::new()),
            Some(bytes) => self.read(id, name, 0..bytes).await,
        }
    }

    pub(super) async fn write(&self, id: &BackupId, name: &str, bytes: Bytes) -> Result<(), Error> {
        let key = self.key(id, name);
        self.attempt("write", self.object(id, name), async || {
            self.objects.put(&key, bytes.clone().into()).await.map(drop)
        })
        .await
    }

    /// Begins an upload in parts.
    pub(super) async fn begin(
        &self,
        parts: &dyn MultipartStore,
        id: &BackupId,
        name: &str,
    ) -> Result<String, Error> {
        let key = self.key(id, name);
        self.attempt("begin to write", self.object(id, name), async || {
            parts.create_multipart(&key).await
        })
        .await
    }

    pub(super) async fn write_part(
        &self,
        parts: &dyn MultipartStore,
        (id, name): (&BackupId, &str),
        upload: &String,
        nth: usize,
        bytes: Bytes,
    ) -> Result<String, Error> {
        let key = self.key(id, name);
        let doing = "write a part of";
        let part = self.attempt(doing, self.object(id, name), async || {
            let part = bytes.clone().into();
            parts.put_part(&key, upload, nth, part).await
        });
        Ok(part.await?.content_id)
    }

    pub(super) async fn complete(
        &self,
        parts: &dyn MultipartStore,
        (id, name): (&BackupId, &str),
        upload: &String,
        ids: &[String],
    ) -> Result<(), Error> {
        let key = self.key(id, name);
        self.attempt("put together", self.object(id, name), async || {
            let ids = ids.iter().map(|id| PartId {
                content_id: id.clone(),
            });
            let completed = parts.complete_multipart(&key, upload, ids.collect()).await;
            completed.map(drop)
        })
        .await
    }

    /// Gives an upload up, so that what came of it takes no room. One that is not known is as
    /// good.
    pub(super) async fn abort(
        &self,
        parts: &dyn MultipartStore,
        id: &BackupId,
        name: &str,
        upload: &String,
    ) -> Result<(), Error> {
        let key = self.key(id, name);
        self.attempt("give up", self.object(id, name), async || {
            match parts.abort_multipart(&key, upload).await {
                Err(object_store::Error::NotFound { .. }) => Ok(()),
                other => other,
            }
        })
        .await
    }

    /// Removes a backup, its manifest first: without that it is none.
    pub(super) async fn remove(&self, id: &BackupId) -> Result<(), Error> {
        let found = self.list().await?.remove(id).unwrap_or_default();
        let (first, rest): (Vec<_>, Vec<_>) =
            found.0.into_keys().partition(|name| name == MANIFEST);
        for name in first.into_iter().chain(rest) {
            self.remove_object(id, &name).await?;
        }
        Ok(())
    }

    pub(super) async fn remove_object(&self, id: &BackupId, name: &str) -> Result<(), Error> {
        let key = self.key(id, name);
        self.attempt("remove", self.object(id, name), async || {
            match self.objects.delete(&key).await {
                Err(object_store::Error::NotFound { .. }) => Ok(()),
                other => other,
            }
        })
        .await
    }

    /// Makes a request once.
    async fn made<T>(
        &self,
        request: &impl AsyncFn() -> object_store::Result<T>,
    ) -> object_store::Result<T> {
        #[cfg(test)]
        let fault = self.faults.next();
        #[cfg(test)]
        fault.before()?;
        let answer = request().await?;
        #[cfg(test)]
        fault.after()?;
        Ok(answer)
    }

    /// Makes a request, again after a while if it may go better then.
    async fn attempt<T>(
        &self,
        doing: &'static str,
        object: String,
        request: impl AsyncFn() -> object_store::Result<T>,
    ) -> Result<T, Error> {
        let mut nth = 1;
        loop {
            let error = match self.made(&request).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let why = told(&error);
            if !is_passing(&error) {
                return Err(refused(&error, doing, object, why));
            }
            if nth >= self.attempts {
                return Err(Error::Failed {
                    doing,
                    object,
                    why,
                    attempts: nth,
                });
            }
            tracing::debug!(%object, %why, nth, "will {doing} again");
            tokio::time::sleep(pause(self.back_off, nth, fastrand::f64())).await;
            nth += 1;
        }
    }
}

/// How long it is waited after the `nth` attempt has failed, counted from 1: twice as long each
/// time, and by `chance` (from 0 to 1) up to a half less, so that many do not come at once.
pub(super) fn pause(first: Duration, nth: u32, chance: f64) -> Duration {
    let doubled = first.saturating_mul(2_u32.saturating_pow(nth - 1));
    doubled.min(LONGEST_PAUSE).mul_f64(1.0 - chance / 2.0)
}

fn as_size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn bucket(s3: &S3, timeout: Duration, disk: &Disk) -> Result<(AmazonS3, Option<Strays>), Error> {
    let client = ClientOptions::new()
        .with_timeout(timeout)
        .with_connect_timeout(CONNECT_WITHIN)
        .with_allow_http(s3.allow_http);
    let mut builder = AmazonS3Builder::from_env()
        .with_client_options(client)
        .with_bucket_name(&s3.bucket)
        .with_allow_http(s3.allow_http)
        .with_virtual_hosted_style_request(!s3.path_style)
        // Requests are repeated here, where it is known what they are for.
        .with_retry(RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        });
    if let Some(endpoint) = &s3.endpoint {
        let endpoint = match endpoint.split_once("://") {
            // Otherwise it is the whole address that is asked for.
            Some((scheme, host)) if !s3.path_style => format!("{scheme}://{}.{host}", s3.bucket),
            _ => endpoint.clone(),
        };
        builder = builder.with_endpoint(endpoint);
    }
    builder = match &s3.region {
        Some(region) => builder.with_region(region),
        None if s3.endpoint.is_some() => builder.with_region(ANY_REGION),
        None => builder,
    };
    if let Some((id, file)) = &s3.credentials {
        // These alone: a token of the environment belongs to another key.
        let credential = AwsCredential {
            key_id: id.clone(),
            secret_key: secret(file, disk)?,
            token: None,
        };
        let provider = StaticCredentialProvider::new(credential);
        builder = builder
            .with_credentials(Arc::new(provider))
            .with_skip_signature(false);
    }
    let region = builder.get_config_value(&AmazonS3ConfigKey::Region);
    let region = region.unwrap_or_else(|| ANY_REGION.to_owned());
    let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
    let bucket = builder
        .build()
        .map_err(|error| Error::Unusable(told(&error)))?;
    // As the store has it.
    let name = &s3.bucket;
    let address = match (endpoint, s3.path_style) {
        (Some(endpoint), true) => format!("{}/{name}", endpoint.trim_end_matches('/')),
        (Some(endpoint), false) => endpoint,
        (None, true) => format!("https://s3.{region}.amazonaws.com/{name}"),
        (None, false) => format!("https://{name}.s3.{region}.amazonaws.com"),
    };
    let strays = Strays::of(&address, region, Arc::clone(bucket.credentials()));
    Ok((bucket, strays))
}

/// The first line of a small file.
fn secret(path: &Path, disk: &Disk) -> Result<String, Error> {
    let bytes = disk.read(path, SECRET_LIMIT).map_err(Error::Secret)?;
    let text = String::from_utf8(bytes).ok();
    let line = text.as_deref().and_then(|text| text.lines().next());
    let line = line.map(str::trim).filter(|line| !line.is_empty());
    line.map(str::to_owned)
        .ok_or_else(|| Error::NoSecret(path.to_owned()))
}

/// Whether it may go better in a while: a network, a server that is busy.
fn is_passing(error: &object_store::Error) -> bool {
    let text = chain(error);
    match error {
        object_store::Error::Generic { .. } => match client_error(&text) {
            Some(400) => code(&text).is_some_and(|code| CUT_SHORT.contains(&code)),
            Some(status) => matches!(status, 408 | 409 | 425 | 429),
            None => true,
        },
        object_store::Error::JoinError { .. } | object_store::Error::AlreadyExists { .. } => true,
        _ => false,
    }
}

/// What the server will not do, today or in a minute.
fn refused(error: &object_store::Error, doing: &'static str, object: String, why: String) -> Error {
    let text = chain(error);
    let code = code(&text);
    if code == Some(ARCHIVED) {
        return Error::Archived { object };
    }
    let is_unknown = matches!(error, object_store::Error::NotFound { .. });
    let code = code.or(is_unknown.then_some(UNKNOWN));
    Error::Refused {
        doing,
        object,
        why,
        code: code.map(str::to_owned),
    }
}

impl Error {
    /// Whether the server does not know an upload, or what it is said to have of it. Any other
    /// refusal leaves what is there of it as it is.
    pub(super) fn is_of_lost_upload(&self) -> bool {
        match self {
            Self::Refused { code, .. } => code
                .as_deref()
                .is_some_and(|code| code == UNKNOWN || LOST.contains(&code)),
            _ => false,
        }
    }
}

/// The status of an answer that blames the client, which the crate has in the text alone.
fn client_error(text: &str) -> Option<u16> {
    let (_, status) = text.split_once("Client error with status ")?;
    status.get(..3)?.parse().ok()
}

/// The code in an answer of S3.
fn code(text: &str) -> Option<&str> {
    within(text, "Code")
}

/// What is between the tags of this name, the first time they are there.
pub(super) fn within<'a>(text: &'a str, tag: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{tag}>"))?;
    Some(rest.split_once('<')?.0)
}

/// An error and what led to it.
fn chain(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

/// What is worth telling: of an answer of S3 its code and its message, and not all that it
/// quotes of the request.
fn told(error: &object_store::Error) -> String {
    let text = chain(error);
    if let Some(code) = code(&text) {
        return match within(&text, "Message") {
            Some(message) => format!("{code}: {message}"),
            None => code.to_owned(),
        };
    }
    let mut root: &dyn std::error::Error = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root.to_string().chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: &str, code: &str) -> object_store::Error {
        let text = format!(
            "Client error with status {status}: <Error><Code>{code}</Code><Message>Said \
             so.</Message></Error>"
        );
        object_store::Error::Generic {
            store: "S3",
            source: text.into(),
        }
    }

    #[test]
    fn what_was_cut_short_passes_and_what_is_wrong_does_not() {
        for (status, code, passes) in [
            ("400 Bad Request", "RequestTimeout", true),
            ("400 Bad Request", "IncompleteBody", true),
            ("400 Bad Request", "BadDigest", true),
            ("400 Bad Request", "InvalidPart", false),
            ("400 Bad Request", "MalformedXML", false),
            ("408 Request Timeout", "Whatever", true),
            ("409 Conflict", "OperationAborted", true),
            ("429 Too Many Requests", "SlowDown", true),
            ("405 Method Not Allowed", "MethodNotAllowed", false),
        ] {
            assert_eq!(is_passing(&answer(status, code)), passes, "{status} {code}");
        }
        let cut = object_store::Error::Generic {
            store: "S3",
            source: "connection closed".into(),
        };
        assert!(is_passing(&cut));
    }

    #[test]
    fn an_upload_is_lost_only_if_the_server_says_so() {
        let refused = |error: &object_store::Error| refused(error, "do", "x".into(), "y".into());
        for (code, is_lost) in [
            ("NoSuchUpload", true),
            ("InvalidPart", true),
            ("InvalidPartOrder", true),
            ("AccessDenied", false),
            ("NoSuchBucket", false),
            ("EntityTooSmall", false),
        ] {
            let error = refused(&answer("400 Bad Request", code));
            assert_eq!(error.is_of_lost_upload(), is_lost, "{code}");
        }
        let unknown = |said: &str| object_store::Error::NotFound {
            path: "x".into(),
            source: said.into(),
        };
        assert!(refused(&unknown("404")).is_of_lost_upload());
        assert!(!refused(&unknown("<Code>NoSuchBucket</Code>")).is_of_lost_upload());
    }

    #[test]
    fn what_is_archived_is_said_to_be() {
        let error = refused(
            &answer("403 Forbidden", ARCHIVED),
            "read",
            "x".into(),
            "y".into(),
        );
        assert!(matches!(error, Error::Archived { .. }), "{error:?}");
        assert!(error.to_string().contains("restore-object"), "{error}");
    }
}
