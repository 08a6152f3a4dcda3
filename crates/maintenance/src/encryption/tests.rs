#![expect(clippy::disallowed_methods, reason = "tests write files of their own")]

use std::fs;
use std::io::BufReader;

use super::testing::{recipient, somebody};
use super::*;
use crate::catalogue::testing::memory_dir;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn sealed(seal: &Seal, text: &[u8]) -> io::Result<Vec<u8>> {
    let mut writer = seal.writer(Vec::new())?;
    writer.write_all(text)?;
    writer.finish()
}

fn opened(identities: &Identities, bytes: &[u8]) -> Result<Vec<u8>, Closed> {
    let mut text = Vec::new();
    let mut reader = identities.open(BufReader::new(bytes))?;
    reader.read_to_end(&mut text).map_err(Closed::Unreadable)?;
    Ok(text)
}

#[test]
fn each_recipient_and_the_run_itself_opens_it_and_nobody_else() -> Outcome {
    let (one, _) = somebody();
    let (other, _) = somebody();
    let (stranger, _) = somebody();
    let seal = Seal::for_those(vec![recipient(&one), recipient(&other)]).ok_or("somebody")?;
    assert_eq!(seal.describe().recipients, 2);
    // Around the 64 KiB that age encrypts at a time.
    for length in [0, 1, 65_535, 65_536, 65_537, 200_000] {
        let text = vec![7; length];
        let bytes = sealed(&seal, &text)?;
        for identities in [&one, &other, seal.identities()] {
            assert_eq!(opened(identities, &bytes).expect("it is theirs"), text);
        }
        let closed = opened(&stranger, &bytes).expect_err("it is not theirs");
        assert!(matches!(closed, Closed::ForOthers), "{closed:?}");
    }
    Ok(())
}

#[test]
fn each_run_has_an_identity_of_its_own() -> Outcome {
    let (one, _) = somebody();
    let seal = || Seal::for_those(vec![recipient(&one)]).ok_or("somebody");
    let bytes = sealed(&seal()?, b"of one run")?;
    let closed = opened(seal()?.identities(), &bytes).expect_err("of another run");
    assert!(matches!(closed, Closed::ForOthers), "{closed:?}");
    assert!(Seal::for_those(Vec::new()).is_none(), "for nobody");
    Ok(())
}

#[test]
fn what_was_changed_or_cut_does_not_open() -> Outcome {
    let (one, _) = somebody();
    let seal = Seal::for_those(vec![recipient(&one)]).ok_or("somebody")?;
    let bytes = sealed(&seal, &[7; 1000])?;
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(opened(&one, &changed).is_err(), "byte {at} was changed");
        assert!(opened(&one, &bytes[..at]).is_err(), "cut to {at} bytes");
    }
    let longer = [&bytes[..], b"x"].concat();
    assert!(opened(&one, &longer).is_err(), "it was made longer");
    Ok(())
}

#[test]
fn files_of_identities_are_read_as_age_writes_them_and_never_quoted() -> Outcome {
    let root = memory_dir();
    let path = root.path().join("key.txt");
    let (one, text) = somebody();
    let (other, more) = somebody();
    let read = |contents: &str| {
        fs::write(&path, contents).expect("a writable directory");
        Identities::read(std::slice::from_ref(&path), &Disk::default())
    };
    let both = read(&format!("# created: now\r\n{text}\r\n\n{more}\n"))?.ok_or("two")?;
    assert_eq!(
        both.recipients(),
        [recipient(&one), recipient(&other)],
        "in their order"
    );
    let half = &text[..40];
    for (contents, said) in [
        (String::new(), "no identity in"),
        ("# nothing\n".to_owned(), "no identity in"),
        (format!("{text}\n{half}\n"), "line 2 of"),
        (format!("{}\n", recipient(&one)), "line 1 of"),
        (
            "age-encryption.org/v1\n-> scrypt".to_owned(),
            "encrypted itself",
        ),
        (
            "-----BEGIN AGE ENCRYPTED FILE-----\n".to_owned(),
            "encrypted itself",
        ),
    ] {
        let error = read(&contents).expect_err(said).to_string();
        assert!(error.contains(said), "{error}");
        assert!(!error.contains(half), "{error}");
    }
    assert_eq!(Identities::read(&[], &Disk::default())?, None);
    let shown = format!("{both:?} {:?}", Seal::for_those(one.recipients()));
    assert!(!is_secret(&shown) && !shown.contains(half), "{shown}");
    Ok(())
}

#[test]
fn recipients_are_of_the_configuration_and_of_a_file() -> Outcome {
    let root = memory_dir();
    let path = root.path().join("recipients.txt");
    let (one, secret) = somebody();
    let (other, _) = somebody();
    fs::write(&path, format!("# the safe\n{}\n", recipient(&other)))?;
    let wanted = config::Encryption {
        recipients: vec![recipient(&one)],
        recipients_file: Some(path.clone()),
    };
    let seal = || Seal::of(&wanted, &Disk::default());
    let bytes = sealed(&seal()?.ok_or("two recipients")?, b"for both")?;
    assert_eq!(opened(&other, &bytes).expect("theirs"), b"for both");

    for (contents, said) in [
        ("", "there is no recipient in"),
        ("age1nobody", "line 1 of"),
        (&secret, "is an identity, which must not be on this machine"),
    ] {
        fs::write(&path, contents)?;
        let error = seal().expect_err(said).to_string();
        assert!(error.contains(said), "{error}");
        assert!(!is_secret(&error), "{error}");
    }
    fs::remove_file(&path)?;
    assert!(matches!(seal(), Err(Error::Disk(_))));
    let nobody = config::Encryption::default();
    assert!(Seal::of(&nobody, &Disk::default())?.is_none());
    Ok(())
}
