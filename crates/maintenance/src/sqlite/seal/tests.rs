use std::process::Command;

use super::*;
use crate::sqlite::tests::Fixture;

#[test]
fn what_keeps_to_the_locks_does_not_break_it() {
    let fixture = Fixture::wal();
    let pin = fixture.pin();
    let seal = Seal::of(&pin).expect("it is there");
    assert_eq!(seal.bytes(), pin.facts.bytes());
    fixture.sql("CREATE TABLE more (x); INSERT INTO more VALUES (1); PRAGMA wal_checkpoint(FULL)");
    assert_eq!(seal.broken(), None);
}

#[test]
fn what_does_not_is_noticed() {
    // By other processes: closing a descriptor here would drop the locks.
    for (tool, said) in [
        (
            "dd if=/dev/zero of=\"$0\" bs=1 count=1 seek=4000 conv=notrunc",
            "written to",
        ),
        ("touch \"$0\"", "written to"),
        (
            "touch -r \"$0\" \"$0.time\" && dd if=/dev/zero of=\"$0\" bs=1 count=1 seek=4000 \
             conv=notrunc && touch -r \"$0.time\" \"$0\"",
            "set back",
        ),
        ("truncate -s +4096 \"$0\"", "size"),
        ("cp \"$0\" \"$0.new\" && mv \"$0.new\" \"$0\"", "inode"),
        ("mv \"$0\" \"$0.gone\"", "cannot be looked at"),
    ] {
        let fixture = Fixture::wal();
        let pin = fixture.pin();
        let seal = Seal::of(&pin).expect("it is there");
        let path = pin.path().to_owned();
        let done = Command::new("sh").args(["-c", tool]).arg(&path).output();
        assert!(done.expect("a shell").status.success(), "{tool}");
        let why = seal.broken().expect(tool);
        assert!(why.contains(said), "{tool}: {why}");
        assert!(why.contains(&path.display().to_string()), "{why}");
    }
}

#[test]
fn a_pin_that_was_ended_is_noticed() {
    let fixture = Fixture::wal();
    let pin = fixture.pin();
    let seal = Seal::of(&pin).expect("it is there");
    assert!(pin.handle().end(std::time::Duration::from_secs(1)));
    let why = seal.broken().expect("it ended");
    assert!(why.contains("transaction"), "{why}");
}

/// As SQLite does by itself after some errors.
#[test]
fn a_transaction_that_was_rolled_back_is_noticed() {
    let fixture = Fixture::wal();
    let pin = fixture.pin();
    let seal = Seal::of(&pin).expect("it is there");
    let lent = pin.connection().expect("it stands");
    lent.execute_batch("ROLLBACK").expect("it is in one");
    drop(lent);
    assert!(!pin.stands());
    assert!(seal.broken().is_some());
}
