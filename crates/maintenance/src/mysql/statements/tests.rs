use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

/// What a dump says, read in chunks of every size there is, or of many: always the same.
fn read(dump: &str) -> Result<Rows, &'static str> {
    let in_chunks = |size: usize| {
        let mut statements = Statements::default();
        for chunk in dump.as_bytes().chunks(size) {
            statements.read(chunk);
        }
        statements.finish()
    };
    let whole = in_chunks(dump.len().max(1));
    for size in [1, 2, 3, 5, 7, 64] {
        assert_eq!(in_chunks(size), whole, "in chunks of {size}");
    }
    whole
}

/// The rows of a dump that consists of this and a footer.
fn rows(statements: &str) -> Vec<(String, u64)> {
    let dump = format!("{statements}\n-- Dump completed\n");
    let rows = read(&dump).unwrap_or_else(|why| panic!("{why}: {dump}"));
    rows.into_iter().collect()
}

fn of(counts: &[(&str, u64)]) -> Vec<(String, u64)> {
    let counts = counts.iter();
    counts
        .map(|(name, rows)| ((*name).to_owned(), *rows))
        .collect()
}

/// As mariadb-dump 10.11 writes it, shortened.
const REAL: &str = "\
/*M!999999\\- enable the sandbox mode */ 
-- MariaDB dump 10.19  Distrib 10.11.6-MariaDB, for debian-linux-gnu (x86_64)
--
-- Host: 127.0.0.1    Database: tracker
-- ------------------------------------------------------

/*!40101 SET @OLD_CHARACTER_SET_CLIENT=@@CHARACTER_SET_CLIENT */;
/*!40014 SET @OLD_UNIQUE_CHECKS=@@UNIQUE_CHECKS, UNIQUE_CHECKS=0 */;

--
-- Table structure for table `empty_one`
--

DROP TABLE IF EXISTS `empty_one`;
/*!40101 SET character_set_client = utf8mb4 */;
CREATE TABLE `empty_one` (
  `x` int(11) DEFAULT 5 COMMENT 'it''s (1),(2); -- Dump completed'
) ENGINE=InnoDB DEFAULT CHARSET=latin1;

LOCK TABLES `empty_one` WRITE;
/*!40000 ALTER TABLE `empty_one` DISABLE KEYS */;
UNLOCK TABLES;
DELIMITER ;;
/*!50003 CREATE*/ /*!50017 DEFINER=`root`@`localhost`*/ /*!50003 TRIGGER tg BEFORE INSERT
 ON empty_one FOR EACH ROW INSERT INTO `torrents` VALUES (1,'/*'),(2,'*/') */;;
DELIMITER ;

CREATE TABLE `torrents` (
  `id` int(11) NOT NULL AUTO_INCREMENT,
  PRIMARY KEY (`id`)
) ENGINE=InnoDB;

INSERT INTO `torrents` VALUES
(1,'aaa',1),
(2,'b\\'b\\\\',2),
(3,'c\\\"),(c',NULL);
INSERT INTO `torrents` VALUES
(4,0x00FF27225C,-1.5e3);
/*!50001 CREATE VIEW `v` AS SELECT
 NULL AS `a``;(` */;
/*!40103 SET TIME_ZONE=@OLD_TIME_ZONE */;
";

#[test]
fn a_real_dump_is_counted() {
    assert_eq!(rows(REAL), of(&[("empty_one", 0), ("torrents", 4)]));
}

#[test]
fn what_only_looks_like_rows_is_none() {
    for (sql, counts) in [
        (
            "INSERT INTO `t` VALUES ('(a),(b)'),(\"(c)\");",
            &[("t", 2)][..],
        ),
        ("INSERT INTO `t` (`a`,`(`) VALUES (1,2);", &[("t", 1)]),
        (
            "INSERT IGNORE INTO `t` VALUES (POINT(1,2)),(f((3)));",
            &[("t", 2)],
        ),
        ("INSERT INTO `t` VALUES ('\\\\'),('\\''),('');", &[("t", 3)]),
        ("INSERT INTO `t` VALUES (1)/* ,(2) */,(3);", &[("t", 2)]),
        ("INSERT INTO `t` VALUES (1) -- ,(2)\n,(3);", &[("t", 2)]),
        (
            "INSERT INTO `t` VALUES (5--3),(5-3),(4/2),(4*2);",
            &[("t", 4)],
        ),
        ("INSERT INTO `t` VALUES (1) # ,(2)\n;", &[("t", 1)]),
        ("insert into `t` values (1);", &[("t", 1)]),
        ("/* INSERT INTO `t` VALUES (1); */", &[]),
        ("/*!50000 INSERT INTO `t` VALUES (1); */", &[]),
        ("/**/INSERT INTO `t` VALUES (1);/***/", &[("t", 1)]),
        ("REPLACE INTO `t` VALUES (1);", &[]),
        (
            "CREATE TABLE IF NOT EXISTS `a``b` (`c` int);",
            &[("a`b", 0)],
        ),
        ("CREATE VIEW `v` AS SELECT 1;", &[]),
        ("INSERT INTO `ü😀` VALUES ('ü😀');", &[("ü😀", 1)]),
        ("", &[]),
    ] {
        assert_eq!(rows(sql), of(counts), "{sql}");
    }
}

#[test]
fn only_a_footer_after_everything_makes_a_dump_whole() {
    let complete = |dump: &str| read(dump).is_ok();
    for dump in [
        "-- Dump completed",
        "-- Dump completed\n",
        "-- Dump completed on 2026-11-22 11:03:46\n\n",
        "INSERT INTO `t` VALUES (1);\n\n-- Dump completed\n",
    ] {
        assert!(complete(dump), "{dump}");
    }
    for dump in [
        "",
        "INSERT INTO `t` VALUES (1);\n",
        "--Dump completed\n",
        "-- Dump complete",
        "INSERT INTO `t` VALUES (1),('\n-- Dump completed\n",
        "INSERT INTO `t` VALUES (1)\n-- Dump completed\n",
        "/*\n-- Dump completed\n",
        "/*!50000 SET x\n-- Dump completed\n",
        "-- Dump completed\nINSERT INTO `t` VALUES (1);\n",
        "-- Dump completed\n-- more\n",
        "-- Dump completed\n'",
    ] {
        assert!(!complete(dump), "{dump}");
    }
}

/// Wherever a dump is cut off, it is not taken for a whole one.
#[test]
fn no_part_of_a_dump_is_whole() {
    let dump = format!("{REAL}\n-- Dump completed\n");
    let footer = dump.trim_end().len();
    for end in 0..footer {
        let mut statements = Statements::default();
        statements.read(&dump.as_bytes()[..end]);
        assert!(statements.finish().is_err(), "of {end} bytes");
    }
    assert!(read(&dump[..footer]).is_ok());
}

#[test]
fn the_first_table_shows_with_its_name() {
    let mut statements = Statements::default();
    let at = REAL.find("CREATE TABLE `empty_one`").expect("it is there");
    statements.read(&REAL.as_bytes()[..at]);
    assert!(!statements.has_table());
    statements.read(&REAL.as_bytes()[at..at + 60]);
    assert!(statements.has_table());
}

/// A text as `mysql_real_escape_string` writes it.
fn escaped(text: &str) -> String {
    let mut to = String::from("'");
    for sign in text.chars() {
        match sign {
            '\0' => to.push_str("\\0"),
            '\n' => to.push_str("\\n"),
            '\r' => to.push_str("\\r"),
            '\u{1a}' => to.push_str("\\Z"),
            '\'' | '"' | '\\' => {
                to.push('\\');
                to.push(sign);
            }
            sign => to.push(sign),
        }
    }
    to.push('\'');
    to
}

/// Texts full of what could be taken for something else.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("'".to_owned()),
        Just("\"".to_owned()),
        Just("\\".to_owned()),
        Just("`".to_owned()),
        Just("(),;".to_owned()),
        Just("-- ".to_owned()),
        Just("/*".to_owned()),
        Just("*/".to_owned()),
        Just("\n-- Dump completed\n".to_owned()),
        ".{0,3}",
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn rows_are_counted_whatever_is_in_them(
        tables in prop::collection::vec((text(), prop::collection::vec(text(), 0..9)), 1..4),
        size in 1_usize..80,
    ) {
        let (mut dump, mut expected) = (String::new(), Rows::new());
        for (n, (name, values)) in tables.iter().enumerate() {
            let name = format!("{n}{name}");
            let quoted = name.replace('`', "``");
            let _ = writeln!(dump, "CREATE TABLE `{quoted}` (`a` text);"); // to a String: cannot fail
            let rows: Vec<_> = values.iter().map(|text| format!("({},NULL)", escaped(text))).collect();
            for some in rows.chunks(4) {
                let _ = writeln!(dump, "INSERT INTO `{quoted}` VALUES\n{};", some.join(",\n"));
            }
            expected.insert(name, values.len() as u64);
        }
        dump.push_str("\n-- Dump completed\n");
        let mut statements = Statements::default();
        for chunk in dump.as_bytes().chunks(size) {
            statements.read(chunk);
        }
        prop_assert_eq!(statements.finish(), Ok(expected));
    }
}
