//! Uploads in parts that nobody will end: the process was killed before it could note what the
//! server calls them, or the answer that said so was lost. They take room there, and no list of
//! objects shows them.
//!
//! The store has no request that lists them, so it is made, and signed, here
//! (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListMultipartUploads.html>). A server
//! that does not know it, or a key that may not ask, is no failure: nothing is found then.

use std::time::Duration;

use object_store::aws::{AwsAuthorizer, AwsCredentialProvider};
use object_store::path::Path as Key;
use reqwest::{Method, Request, Url};

use super::note::Note;
use super::store::{Kind, within};
use super::{Error, Remote};
use crate::catalogue::{self, Catalogue};

/// How long the server has to answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

/// Asks a bucket for the uploads that were begun in it.
#[derive(Clone)]
pub(super) struct Strays {
    client: reqwest::Client,
    credentials: AwsCredentialProvider,
    region: String,
    bucket: Url,
}

/// An upload in parts, as the server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Begun {
    /// Of the object it is to become.
    pub(super) key: String,
    /// What the server calls it.
    pub(super) upload: String,
}

impl Strays {
    /// `bucket`: where its objects are. `None` for what is no address.
    pub(super) fn of(
        bucket: &str,
        region: String,
        credentials: AwsCredentialProvider,
    ) -> Option<Self> {
        let client = reqwest::Client::builder().timeout(ANSWERED_WITHIN).build();
        Some(Self {
            client: client.ok()?,
            credentials,
            region,
            bucket: Url::parse(bucket).ok()?,
        })
    }

    /// The uploads below a prefix, as many as one answer holds; the next pass sees the rest.
    /// `None` if there is no answer.
    pub(super) async fn list(&self, prefix: &Key) -> Option<Vec<Begun>> {
        match self.answer(prefix).await {
            Ok(answer) => parsed(&answer),
            Err(error) => {
                tracing::debug!(%error, "uploads that were begun are not listed");
                None
            }
        }
    }

    async fn answer(&self, prefix: &Key) -> Result<String, Box<dyn std::error::Error>> {
        let mut url = self.bucket.clone();
        url.query_pairs_mut()
            .append_pair("prefix", prefix.as_ref())
            .append_pair("uploads", "");
        let mut request = Request::new(Method::GET, url);
        let credential = self.credentials.get_credential().await?;
        AwsAuthorizer::new(&credential, "s3", &self.region).authorize(&mut request, None);
        let answer = self.client.execute(request).await?.error_for_status()?;
        Ok(answer.text().await?)
    }
}

/// What an answer lists. Keys of ours have no signs that XML writes otherwise.
fn parsed(answer: &str) -> Option<Vec<Begun>> {
    if !answer.contains("<ListMultipartUploadsResult") {
        return None;
    }
    let uploads = answer.split("<Upload>").skip(1);
    let begun = uploads.filter_map(|upload| {
        Some(Begun {
            key: within(upload, "Key")?.to_owned(),
            upload: within(upload, "UploadId")?.to_owned(),
        })
    });
    Some(begun.collect())
}

impl Remote {
    /// Ends the uploads there that nobody is at and that are in no note here. The place is this
    /// catalogue's, and whoever uploads a backup holds it.
    pub(super) async fn end_strays(&self, catalogue: &Catalogue) -> Result<(), Error> {
        let Kind::Parts(parts) = self.store.kind() else {
            return Ok(());
        };
        for (id, name, upload) in self.store.begun().await {
            let _held = match catalogue.hold(&id) {
                Ok(Some(held)) => Some(held),
                Ok(None) => continue,
                // What is not here is uploaded by nobody.
                Err(catalogue::Error::Unknown { .. }) => None,
                Err(error) => return Err(error.into()),
            };
            if Note::read(catalogue, &id).is_none_or(|note| note.upload != upload) {
                self.store
                    .abort(parts.as_ref(), &id, &name, &upload)
                    .await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_apart() {
        let answer = "<?xml version=\"1.0\"?><ListMultipartUploadsResult><Bucket>b</Bucket>\
            <Upload><Key>p/20261122T030000Z/database.sqlite3</Key><UploadId>u-1</UploadId>\
            <Owner><ID>x</ID></Owner></Upload><Upload><Key>p/other</Key>\
            <UploadId>u-2</UploadId></Upload><Upload><Key>half</Key>";
        let begun = |key: &str, upload: &str| Begun {
            key: key.to_owned(),
            upload: upload.to_owned(),
        };
        assert_eq!(
            parsed(answer),
            Some(vec![
                begun("p/20261122T030000Z/database.sqlite3", "u-1"),
                begun("p/other", "u-2"),
            ])
        );
        assert_eq!(parsed("<ListMultipartUploadsResult/>"), Some(vec![]));
        assert_eq!(parsed("<html>no S3</html>"), None);
    }
}
