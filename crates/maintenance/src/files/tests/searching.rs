//! Patterns, and links that lead too far.

use super::*;
use crate::files::choice::choose_within;
use crate::files::reach::{Bound, Bounds};

/// The same bounds with less of one.
fn names(names: usize) -> Bounds {
    Bounds {
        names,
        ..Bounds::OF_A_SEARCH
    }
}

/// What a search is given up for.
fn too_far(bench: &Bench, wanted: &config::Files, bounds: Bounds) -> Bound {
    let (disk, watch) = (Disk::default(), Watch::default());
    let chosen = choose_within(bounds, wanted, &bench.reserved(), &disk, &watch);
    match chosen {
        Err(Error::TooFar { bound, .. }) => bound,
        other => panic!("{other:?}"),
    }
}

/// What people know of patterns is what the crate of that name does.
#[test]
fn a_pattern_fits_what_it_fits_elsewhere() -> Outcome {
    let bench = Bench::new();
    for name in [
        "etc/a.toml",
        "etc/.hidden",
        "etc/b/a.toml",
        "etc/b/c/a.toml",
        "etc/b/c/d/x",
        "etc/bb/c/x",
        "etc/[x]",
    ] {
        bench.write(name, name);
    }
    symlink("b", bench.path("etc/link"))?;
    symlink("nowhere", bench.path("etc/dangling"))?;
    for pattern in [
        "etc/*",
        "etc/?",
        "etc/*.toml",
        "etc/[ab]*",
        "etc/[!ab]*",
        "etc/[[]x]",
        "etc/*/*",
        "etc/*/a.toml",
        "etc/b*/c/x",
        "etc/**",
        "etc/**/*",
        "etc/**/**/*",
        "etc/**/x",
        "etc/**/c/*",
        "etc/**/c/**/x",
        "etc/*/**/x",
        "etc/./*/../*.toml",
        "etc/none/*",
        "etc/a.toml/*",
        "etc/a.toml/**",
        "**/none",
    ] {
        let pattern = bench.path(pattern);
        let elsewhere = glob::glob(pattern.to_str().ok_or("UTF-8")?)?;
        let mut elsewhere = elsewhere.collect::<Result<BTreeSet<_>, _>>()?;
        let mut found = expand(&pattern, &|_| false)?;
        // A link to nothing is always found here, to be told of.
        elsewhere.retain(|path| path.exists());
        found.retain(|path| path.exists());
        assert_eq!(found, elsewhere, "{}", pattern.display());
    }
    assert!(expand(&bench.path("etc/***"), &|_| false).is_err());
    Ok(())
}

fn expand(pattern: &Path, excluded: &dyn Fn(&Path) -> bool) -> Result<BTreeSet<PathBuf>, Error> {
    let watch = Watch::default();
    let mut reach = reach::Reach::new(Bounds::OF_A_SEARCH, &watch);
    let disk = Disk::default();
    let search = pattern::Expansion::new(&mut reach, &disk, excluded);
    let (found, left_out) = search.of(pattern)?;
    assert_eq!(left_out, []);
    Ok(found)
}

/// Two that lead to each other, one to itself, and one to what is above.
#[test]
fn links_in_a_circle_are_gone_round_once() -> Outcome {
    let bench = Bench::new();
    for name in ["etc/a/x", "etc/b/x"] {
        bench.write(name, name);
    }
    symlink("../b", bench.path("etc/a/b"))?;
    symlink("../a", bench.path("etc/b/a"))?;
    symlink(".", bench.path("etc/a/self"))?;
    symlink("../..", bench.path("etc/b/up"))?;
    let found = |wanted: &str| {
        let mut wanted = bench.wanted(&[wanted]);
        wanted.exclude = patterns(&["data", "out", "stash"]);
        bench.chosen(&wanted)
    };
    let both = vec!["etc/a/x".to_owned(), "etc/b/x".to_owned()];
    assert_eq!(found("etc").0, both);
    assert_eq!(found("etc/**/x").0, both);
    assert_eq!(found("**/x").0, both);
    Ok(())
}

#[test]
fn a_link_to_everything_is_not_followed_to_its_end() -> Outcome {
    let bench = Bench::new();
    bench.write("etc/a", "a");
    symlink("/", bench.path("etc/everything"))?;
    for wanted in ["etc/**/*.none", "etc/*/**/none", "etc/**"] {
        let mut wanted = bench.wanted(&[wanted]);
        assert_eq!(
            too_far(&bench, &wanted, names(2_000)),
            Bound::Names(2_000),
            "{wanted:?}"
        );
        // What it says will help does.
        wanted.exclude = patterns(&["everything"]);
        bench.choose(&wanted)?;
    }
    // Of a directory all is taken, so it is what comes first.
    let told = choose_within(
        names(100),
        &bench.wanted(&["etc"]),
        &bench.reserved(),
        &Disk::default(),
        &Watch::default(),
    );
    let told = told.expect_err("too far").to_string();
    assert!(told.contains("100 names were looked at"), "{told}");
    assert!(told.contains("backup.exclude"), "{told}");
    Ok(())
}

#[test]
fn a_search_keeps_to_its_depth_its_time_and_its_watch() -> Outcome {
    let bench = Bench::new();
    bench.write(&format!("etc/{}/x", vec!["d"; 30].join("/")), "x");
    let deep = Bounds {
        depth: 20,
        ..Bounds::OF_A_SEARCH
    };
    let slow = Bounds {
        time: Duration::ZERO,
        ..Bounds::OF_A_SEARCH
    };
    for wanted in ["etc", "etc/**/x"] {
        let wanted = bench.wanted(&[wanted]);
        assert_eq!(bench.choose(&wanted)?.files.len(), 1);
        assert_eq!(too_far(&bench, &wanted, deep), Bound::Depth(20));
        assert_eq!(too_far(&bench, &wanted, slow), Bound::Time(Duration::ZERO));
        let watch = Watch::default();
        watch.cancel("enough");
        let given_up = choose(&wanted, &bench.reserved(), &Disk::default(), &watch);
        let error = given_up.expect_err("cancelled").to_string();
        assert!(error.contains("given up: enough"), "{error}");
    }
    Ok(())
}
