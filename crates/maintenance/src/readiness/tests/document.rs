//! What is written of the endpoint, against what it does.

use std::collections::BTreeSet;

use super::*;
use crate::window::{Cause, Outcome};

fn api_md() -> &'static str {
    include_str!("../../../../../docs/api.md")
}

fn document() -> Value {
    serde_json::from_str(OPENAPI).expect("openapi.json is JSON")
}

fn names() -> BTreeSet<&'static str> {
    Code::ALL.iter().map(|code| code.name()).collect()
}

#[test]
fn every_refusal_is_in_the_documentation_and_none_that_is_not() {
    let table = api_md().split("## Refusals").nth(1).expect("the chapter");
    let table = table.split("\n## ").next().expect("it ends");
    let rows = table.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| ")?.split('|').map(str::trim);
        let status: u16 = cells.next()?.parse().ok()?;
        Some((status, cells.next()?.trim_matches('`')))
    });
    let documented: BTreeSet<_> = rows.collect();
    let made: BTreeSet<_> = Code::ALL
        .iter()
        .map(|code| (code.status().as_u16(), code.name()))
        .collect();
    assert_eq!(documented, made);
}

#[test]
fn every_refusal_is_in_openapi_and_none_that_is_not() {
    fn errors(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                let listed = fields
                    .get("error")
                    .and_then(|error| error["enum"].as_array());
                let names = listed.into_iter().flatten().filter_map(Value::as_str);
                found.extend(names.map(str::to_owned));
                fields.values().for_each(|value| errors(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| errors(value, found)),
            _ => {}
        }
    }
    let mut documented = BTreeSet::new();
    errors(&document(), &mut documented);
    let documented: BTreeSet<&str> = documented.iter().map(String::as_str).collect();
    assert_eq!(documented, names());
}

#[test]
fn every_path_of_openapi_is_a_route_and_the_other_way_round() {
    let document = document();
    let paths = document["paths"].as_object().expect("paths");
    let mut routes = 0;
    for (path, methods) in paths {
        let target = path.replace("{run}", "20261122T030000Z-kfqz");
        for method in methods.as_object().expect("methods").keys() {
            let method = method.to_uppercase();
            admitted(&method, &target, &[HERE, JSON]).expect(path);
            routes += 1;
        }
    }
    // `Route` and `CommandRoute` have as many variants between them.
    assert_eq!(routes, 11);
    assert!(
        paths
            .keys()
            .all(|path| api_md().contains(&path.replace("{run}", "RUN")))
    );
}

#[test]
fn words_of_the_status_are_those_of_openapi() {
    let document = document();
    let listed = |schema: &str, field: Option<&str>| -> BTreeSet<String> {
        let schema = &document["components"]["schemas"][schema];
        let of = field.map_or(schema, |field| &schema["properties"][field]);
        let words = of["enum"].as_array().expect("an enum").iter();
        words
            .map(|word| word.as_str().expect("text").to_owned())
            .collect()
    };
    let word = |value: Value| value.as_str().map(str::to_owned).expect("a word");
    assert_eq!(
        listed("Phase", None),
        Phase::ALL.map(|phase| word(json!(phase))).into()
    );
    let causes = Cause::ALL.map(|cause| word(json!(cause)));
    assert!(
        causes
            .iter()
            .all(|cause| api_md().contains(&format!("`{cause}`")))
    );
    assert_eq!(listed("Outcome", Some("cause")), causes.into());
    let (phase, message) = (Phase::Serving, String::new());
    let said = || message.clone();
    let outcomes = [
        Outcome::Done,
        Outcome::Failed {
            phase,
            cause: Cause::Other,
            message: said(),
        },
        Outcome::WouldNotFit { message: said() },
        Outcome::NoSidecar { message: said() },
        Outcome::Deadline {
            phase,
            message: said(),
        },
        Outcome::Aborted {
            phase,
            message: said(),
        },
    ];
    let kinds = outcomes.map(|outcome| word(json!(outcome)["kind"].take()));
    assert!(
        kinds
            .iter()
            .all(|kind| api_md().contains(&format!("| `{kind}`")))
    );
    assert_eq!(listed("Outcome", Some("kind")), kinds.into());
}
