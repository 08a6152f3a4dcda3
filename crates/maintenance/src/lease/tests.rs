use super::*;

fn holder(text: &str) -> Result<Holder, Unfit> {
    Holder::try_from(text.to_owned())
}

fn nonce(text: &str) -> Result<Nonce, Unfit> {
    Nonce::try_from(text.to_owned())
}

#[test]
fn a_holder_is_printable_and_not_long() {
    for fits in ["a", "nas in the cellar", "häuschen ☂", &"é".repeat(100)] {
        assert!(holder(fits).is_ok(), "{fits:?}");
    }
    for unfit in [
        "",
        &"a".repeat(101),
        "a\nb",
        "\u{1b}[2J",
        "\u{7f}",
        "\u{85}",
        "\u{2028}",
        "abc\u{202e}cba",
        "\u{2066}",
    ] {
        assert_eq!(holder(unfit), Err(Unfit::Holder), "{unfit:?}");
    }
}

#[test]
fn a_nonce_is_long_enough_and_plain_and_is_not_shown() {
    for fits in ["0123456789abcdef", "-_-_-_-_-_-_-_-_", &"A".repeat(64)] {
        assert!(nonce(fits).is_ok(), "{fits}");
    }
    for unfit in [
        "",
        "0123456789abcde",
        &"A".repeat(65),
        "0123456789abcde/",
        "0123456789abcde\n",
        "0123456789abcdeé",
    ] {
        assert_eq!(nonce(unfit), Err(Unfit::Nonce), "{unfit:?}");
    }
    let lease = Lease {
        holder: holder("a").expect("fits"),
        nonce: nonce("0123456789abcdef").expect("fits"),
        #[expect(clippy::disallowed_methods, reason = "some instant")]
        until: Instant::now(),
    };
    assert!(!format!("{lease:?}").contains("0123456789abcdef"));
}

#[test]
fn what_is_not_printable_becomes_a_space() {
    assert_eq!(
        on_one_line("disk full\n2026 INFO all is well"),
        "disk full 2026 INFO all is well"
    );
}

#[test]
fn the_last_verdicts_are_remembered_by_run_and_nonce() {
    let run = |n: usize| RunId::parse(&format!("run-{n}")).expect("an id");
    let (a, b) = ("a".repeat(16), "b".repeat(16));
    let (a, b) = (nonce(&a).expect("fits"), nonce(&b).expect("fits"));
    let mut verdicts = Verdicts::default();
    for n in 0..=VERDICTS_KEPT {
        verdicts.remember(run(n), a.clone(), Verdict::broken(n.to_string()));
    }
    assert_eq!(verdicts.of(&run(0), &a), None, "the oldest is forgotten");
    for n in 1..=VERDICTS_KEPT {
        let verdict = Verdict::broken(n.to_string());
        assert_eq!(verdicts.of(&run(n), &a), Some(&verdict));
        assert_eq!(verdicts.of(&run(n), &b), None, "another's lease");
    }
}
