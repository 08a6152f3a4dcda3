//! Keys for tests.

use age::secrecy::ExposeSecret as _;
use age::x25519;

use super::{Identities, Recipient};

/// Somebody: what opens, and the text of it.
pub(crate) fn somebody() -> (Identities, String) {
    let identity = x25519::Identity::generate();
    let text = identity.to_string().expose_secret().to_owned();
    (Identities(vec![identity]), text)
}

/// The recipient of the one identity there is.
pub(crate) fn recipient(identities: &Identities) -> Recipient {
    let mut recipients = identities.recipients();
    recipients.remove(0)
}
