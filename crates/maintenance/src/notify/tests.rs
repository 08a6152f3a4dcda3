use tempfile::TempDir;

use super::testing::{Receiver, answer};
use super::*;
use crate::window::{Cause, Phase};

fn messenger(timeout: Duration) -> Messenger {
    Messenger::new(timeout).expect("certificates")
}

fn webhook(target: Target) -> Delivery {
    Delivery::Webhook {
        target,
        header: Header::parse("X-Api-Key: HEADER-SECRET"),
        json: "{\"good\":false}".to_owned(),
    }
}

async fn deliver(delivery: &Delivery) -> Result<(), String> {
    let messenger = messenger(Duration::from_secs(20));
    messenger.attempt(delivery).await.map_err(|error| {
        let (shown, debug) = (error.to_string(), format!("{error:?} {delivery:?}"));
        assert!(!shown.contains("SECRET"), "{shown}");
        assert!(!debug.contains("SECRET"), "{debug}");
        shown
    })
}

#[tokio::test]
async fn a_notice_is_posted_with_its_header() {
    let receiver = Receiver::answering(vec![answer("204 No Content", "")]).await;
    deliver(&webhook(receiver.target("/SECRET?key=SECRET")))
        .await
        .expect("it was taken");
    let got = receiver.got().remove(0);
    assert!(
        got.starts_with("POST /SECRET?key=SECRET HTTP/1.1\r\n"),
        "{got}"
    );
    assert!(got.contains("x-api-key: HEADER-SECRET\r\n"), "{got}");
    assert!(got.contains("content-type: application/json\r\n"), "{got}");
    assert!(got.ends_with("\r\n\r\n{\"good\":false}"), "{got}");
}

#[tokio::test]
async fn what_may_pass_is_told_from_what_will_not() {
    for (status, may_pass) in [
        ("500 No", true),
        ("503 No", true),
        ("429 Later", true),
        ("408 Slow", true),
        ("400 No", false),
        ("401 No", false),
        ("404 No", false),
    ] {
        let receiver = Receiver::answering(vec![answer(status, "")]).await;
        let target = receiver.target("/SECRET");
        let messenger = messenger(Duration::from_secs(20));
        let delivered = messenger.attempt(&Delivery::Heartbeat { target }).await;
        let error = delivered.expect_err(status);
        assert_eq!(error.may_pass(), may_pass, "{error}");
        assert!(error.to_string().contains(&status[..3]), "{error}");
    }
}

#[tokio::test]
async fn redirects_are_followed_to_the_same_host_with_the_same_method() {
    let elsewhere = Receiver::answering(vec![answer("200 OK", ""); 9]).await;
    let away = format!("location: {}\r\n", elsewhere.target("/SECRET").0);
    let near = "location: /SECRET/next\r\n";
    for (status, to, heartbeat, followed) in [
        ("302 Found", near, true, true),
        ("307 Temporary", near, true, true),
        ("302 Found", near, false, false),
        ("308 Permanent", near, false, true),
        ("307 Temporary", &away, true, false),
        ("307 Temporary", &away, false, false),
    ] {
        let answers = vec![answer(status, to), answer("200 OK", "")];
        let receiver = Receiver::answering(answers).await;
        let target = receiver.target("/SECRET");
        let delivery = if heartbeat {
            Delivery::Heartbeat { target }
        } else {
            webhook(target)
        };
        let delivered = deliver(&delivery).await;
        assert_eq!(delivered.is_ok(), followed, "{status} {to} {delivered:?}");
        let got = receiver.got();
        assert_eq!(got.len(), 1 + usize::from(followed));
        if followed {
            assert_eq!(got[1].contains("HEADER-SECRET"), !heartbeat);
        }
    }
    assert_eq!(elsewhere.got(), [""; 0], "nobody else was told");
}

#[tokio::test]
async fn redirects_end() {
    let round = answer("307 Temporary", "location: /round\r\n");
    let receiver = Receiver::answering(vec![round; 100]).await;
    let target = receiver.target("/SECRET");
    let said = deliver(&Delivery::Heartbeat { target }).await.unwrap_err();
    assert!(said.contains("redirects more than 3 times"), "{said}");
    assert_eq!(receiver.got().len(), 4);
}

#[tokio::test]
async fn one_that_hangs_is_not_waited_for() {
    let receiver = Receiver::answering(Vec::new()).await;
    let delivery = webhook(receiver.target("/SECRET"));
    let messenger = messenger(Duration::from_millis(50));
    let delivered = messenger.attempt(&delivery).await;
    let error = delivered.expect_err("nobody answered");
    assert!(error.may_pass());
    let said = error.to_string();
    assert!(said.contains("did not take it"), "{said}");
    assert!(!said.contains("SECRET"), "{said}");
    assert!(said.contains(&receiver.address.to_string()), "{said}");
}

#[tokio::test]
async fn one_that_answers_ten_megabytes_is_not_listened_to() {
    let long = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: 10485760\r\n\r\n{}",
        "x".repeat(1 << 20)
    );
    let receiver = Receiver::answering(vec![long]).await;
    deliver(&webhook(receiver.target("/")))
        .await
        .expect("the status is all that counts");
}

#[test]
fn pauses_grow_within_bounds() {
    let pauses = Pauses::default();
    let second = Duration::from_secs(1);
    let refused = |retry_after| Error::Refused {
        target: "https://example.org".to_owned(),
        status: StatusCode::SERVICE_UNAVAILABLE,
        retry_after,
    };
    for (attempts, retry_after, least) in [
        (1, None, second),
        (2, None, 3 * second),
        (6, None, 243 * second),
        (7, None, 600 * second),
        (u32::MAX, None, 600 * second),
        (1, Some(20 * second), 20 * second),
        (6, Some(20 * second), 243 * second),
        (1, Some(86_400 * second), 600 * second),
    ] {
        for _ in 0..100 {
            let pause = pauses.after(attempts, &refused(retry_after));
            assert!((least..=least * 3 / 2).contains(&pause), "{pause:?}");
        }
    }
}

#[test]
fn of_an_address_scheme_and_host_are_shown() {
    for (text, shown) in [
        (
            "https://user:SECRET@hooks.example.org/SECRET?SECRET#SECRET",
            "https://hooks.example.org",
        ),
        ("http://[::1]:8080/SECRET", "http://[::1]:8080"),
        ("HTTPS://Example.ORG:443/SECRET", "https://example.org"),
    ] {
        let target = Target::parse(text).expect(text);
        assert_eq!(target.to_string(), shown);
        assert_eq!(format!("{target:?}"), format!("Target({shown})"));
    }
    for none in [
        "",
        "SECRET",
        "ftp://example.org/",
        "file:///etc/passwd",
        "http://",
        "unix:/x",
    ] {
        assert_eq!(Target::parse(none), None, "{none}");
    }
}

#[test]
fn a_header_is_read_from_the_first_line() {
    let home = TempDir::new().expect("a directory");
    let path = home.path().join("header");
    let disk = Disk::default();
    for (contents, name) in [
        ("Authorization: Bearer SECRET\nmore", Some("authorization")),
        ("X-Key:SECRET\r\n", Some("x-key")),
        ("", None),
        ("SECRET", None),
        ("two words: SECRET", None),
        ("X-Key:", None),
    ] {
        disk.write_atomically(&path, contents.as_bytes())
            .expect("it can be written");
        match (Header::read(&path, &disk), name) {
            (Ok(header), Some(name)) => {
                assert_eq!(header.name, name);
                assert!(!format!("{header:?}").contains("SECRET"));
            }
            (Err(error), None) => assert!(!error.to_string().contains("SECRET"), "{error}"),
            (read, name) => panic!("{contents:?}: {read:?}, not {name:?}"),
        }
    }
}

fn report(outcome: &Outcome) -> RunReport {
    let report = serde_json::json!({
        "id": "20261122T030000Z-abcd",
        "trigger": "schedule",
        "began": "2026-11-22T03:00:00Z",
        "ended": "2026-11-22T03:00:09Z",
        "outcome": outcome,
        "pause_ms": 3.25,
        "longest_pause_ms": 3.25,
        "backup": null,
        "sidecar": null,
        "warnings": [],
    });
    serde_json::from_value(report).expect("a report")
}

#[test]
fn a_notice_says_it_in_a_line_and_in_fields() {
    let origin = Origin {
        service: "torrust-tracker 3.0.0".to_owned(),
        host: "box".to_owned(),
    };
    let report = report(&Outcome::Failed {
        phase: Phase::Finishing,
        cause: Cause::Verification,
        message: "row 7 is missing".to_owned(),
    });
    let notice = Notice::of_run(&origin, &report, None, false);
    assert_eq!(
        notice.text,
        "torrust-tracker 3.0.0 on box: run 20261122T030000Z-abcd: no backup was made (failed): row \
         7 is missing"
    );
    let json = serde_json::to_value(&notice).expect("JSON");
    assert_eq!(json["good"], false);
    assert_eq!(json["run"]["outcome"]["cause"], "verification");
    assert_eq!(json["backup"], serde_json::Value::Null);
}

#[test]
fn a_notice_says_that_the_journal_mode_was_switched() {
    let origin = Origin {
        service: "s".to_owned(),
        host: "h".to_owned(),
    };
    for outcome in [
        Outcome::Done,
        Outcome::WouldNotFit {
            message: "it".to_owned(),
        },
    ] {
        let report = RunReport {
            switched_to: Some("wal".to_owned()),
            ..report(&outcome)
        };
        let notice = Notice::of_run(&origin, &report, None, false);
        assert_eq!(notice.good, outcome == Outcome::Done);
        let told = format!("; {}", switch::SWITCHED);
        assert!(notice.text.ends_with(&told), "{}", notice.text);
    }
}

#[test]
fn a_good_run_with_a_hook_that_failed_is_not_good() {
    let origin = Origin {
        service: "s".to_owned(),
        host: "h".to_owned(),
    };
    let report = report(&Outcome::Done);
    assert!(Notice::of_run(&origin, &report, None, false).good);
    assert!(!Notice::of_run(&origin, &report, None, true).good);
}

#[test]
fn a_notice_is_bounded() {
    let mut long = report(&Outcome::WouldNotFit {
        message: "x".repeat(1 << 20),
    });
    long.warnings = vec!["y".repeat(1 << 20); 1000];
    let report = bounded(long);
    let origin = Origin {
        service: "s".to_owned(),
        host: "h".to_owned(),
    };
    let notice = Notice::of_run(&origin, &report, None, false);
    let json = serde_json::to_string(&notice).expect("JSON");
    assert!(json.len() < 128 * 1024, "{}", json.len());
}
