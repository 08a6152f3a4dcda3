//! What is in a dump, learned while it goes by: tables, rows, and whether it is complete.
//!
//! A lexer of as much SQL as dumps consist of, one byte after the other, so that chunks may
//! end anywhere. It knows strings, quoted names, comments, and the conditional comments
//! (`/*!50003 … */`) in which dumps put what is not for every server. Those are read as
//! code, because strings in them may hold anything, but nothing in them counts: tables and
//! their rows are never in one.

use std::collections::BTreeMap;
use std::io;

/// Rows of each table.
pub type Rows = BTreeMap<String, u64>;

/// What the last line of every complete dump begins with, after `--`.
const FOOTER: &[u8] = b" Dump completed";

/// Longest word worth telling apart; `REFERENCES` and numbers may be longer.
const WORD: usize = 8;

/// Longest quoted name kept; names have 64 characters of at most 4 bytes.
const NAME: usize = 512;

/// What was seen of a dump so far. Bytes are written to it.
#[derive(Debug, Default)]
pub struct Statements {
    lexer: Lexer,
    /// Conditional comments that are open.
    conditional: u32,
    /// The word, quoted name or line of comment being read.
    token: Vec<u8>,
    statement: Statement,
    rows: Rows,
    /// Whether nothing came after the last line of a complete dump.
    complete: bool,
}

/// Where in its text the lexer is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Lexer {
    #[default]
    Code,
    Word,
    Text(u8),
    /// After a backslash in a text.
    Escaped(u8),
    Name,
    /// After what ends a name, unless another follows.
    NameEnd,
    Slash,
    /// After `/*`.
    Opened,
    /// After `/*M`.
    OpenedM,
    Comment,
    /// After `*` in a comment.
    CommentStar,
    /// After `*` in code.
    Star,
    Dash,
    Dashes,
    Line,
}

/// What kind of statement it is, as far as it has been read.
#[derive(Debug, Default, PartialEq, Eq)]
enum Statement {
    #[default]
    Start,
    Create,
    CreateTable,
    Insert,
    InsertInto,
    /// Before `VALUES`, where a list of columns may stand.
    Into(String),
    Values {
        table: String,
        rows: u64,
        depth: u32,
    },
    Other,
}

/// Why a dump is not a whole one.
pub(super) const NO_FOOTER: &str = "its last line is another";

impl Statements {
    /// Takes the next bytes.
    pub fn read(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            if let Lexer::Text(quote) = self.lexer
                && byte != quote
                && byte != b'\\'
            {
                // Most of a dump is in texts, and there only two signs matter.
                let end = rest.iter().position(|&byte| byte == quote || byte == b'\\');
                bytes = end.map_or(&[], |end| &rest[end..]);
            } else {
                self.byte(byte);
                bytes = rest;
            }
        }
    }

    /// Whether the structure of a table has begun to come out.
    #[must_use]
    pub fn has_table(&self) -> bool {
        !self.rows.is_empty()
    }

    /// The rows of each table, if the dump is complete.
    ///
    /// # Errors
    ///
    /// Why it is not.
    pub fn finish(mut self) -> Result<Rows, &'static str> {
        if self.lexer == Lexer::Line {
            self.end_line();
        }
        if self.complete {
            Ok(self.rows)
        } else {
            Err(NO_FOOTER)
        }
    }

    fn byte(&mut self, byte: u8) {
        self.lexer = match self.lexer {
            Lexer::Word if is_word(byte) => {
                self.keep(byte, WORD + 1);
                Lexer::Word
            }
            Lexer::Word => {
                self.end_word();
                self.code(byte)
            }
            Lexer::Text(quote) if byte == quote => Lexer::Code,
            Lexer::Text(quote) if byte == b'\\' => Lexer::Escaped(quote),
            Lexer::Text(quote) | Lexer::Escaped(quote) => Lexer::Text(quote),
            Lexer::Name if byte == b'`' => Lexer::NameEnd,
            Lexer::Name => {
                self.keep(byte, NAME);
                Lexer::Name
            }
            Lexer::NameEnd if byte == b'`' => {
                self.keep(byte, NAME);
                Lexer::Name
            }
            Lexer::NameEnd => {
                self.end_name();
                self.code(byte)
            }
            Lexer::Slash if byte == b'*' => Lexer::Opened,
            Lexer::Opened | Lexer::OpenedM if byte == b'!' => {
                self.conditional += 1;
                Lexer::Code
            }
            Lexer::Opened if byte == b'M' => Lexer::OpenedM,
            Lexer::Opened | Lexer::OpenedM | Lexer::Comment | Lexer::CommentStar => match byte {
                b'*' => Lexer::CommentStar,
                b'/' if self.lexer == Lexer::CommentStar => Lexer::Code,
                _ => Lexer::Comment,
            },
            Lexer::Star if byte == b'/' && self.conditional > 0 => {
                self.conditional -= 1;
                Lexer::Code
            }
            Lexer::Dash if byte == b'-' => Lexer::Dashes,
            // `--` begins a comment only before white space; `5--3` is a sum.
            Lexer::Dashes if byte == b'\n' => Lexer::Code,
            Lexer::Dashes if byte.is_ascii_whitespace() => self.line(byte),
            Lexer::Code | Lexer::Slash | Lexer::Star | Lexer::Dash | Lexer::Dashes => {
                self.code(byte)
            }
            Lexer::Line if byte == b'\n' => {
                self.end_line();
                Lexer::Code
            }
            Lexer::Line => {
                self.keep(byte, FOOTER.len());
                Lexer::Line
            }
        };
    }

    /// A byte that is in no text, name, word or comment.
    fn code(&mut self, byte: u8) -> Lexer {
        if byte.is_ascii_whitespace() {
            return Lexer::Code;
        }
        // Another comment leaves it to be seen whether that is the last line.
        if byte != b'-' {
            self.complete = false;
        }
        match byte {
            b'\'' | b'"' => Lexer::Text(byte),
            b'`' => {
                self.token.clear();
                Lexer::Name
            }
            b'/' => Lexer::Slash,
            b'*' => Lexer::Star,
            b'-' => Lexer::Dash,
            b'#' => self.line(byte),
            byte if is_word(byte) => {
                self.token.clear();
                self.token.push(byte);
                Lexer::Word
            }
            byte => {
                self.sign(byte);
                Lexer::Code
            }
        }
    }

    fn line(&mut self, byte: u8) -> Lexer {
        self.token.clear();
        self.token.push(byte);
        Lexer::Line
    }

    fn keep(&mut self, byte: u8, limit: usize) {
        if self.token.len() < limit {
            self.token.push(byte);
        }
    }

    fn end_line(&mut self) {
        let outside = self.statement == Statement::Start && self.conditional == 0;
        self.complete = outside && self.token == FOOTER;
    }

    fn end_word(&mut self) {
        if self.conditional > 0 {
            return;
        }
        let is = |word: &[u8]| self.token.eq_ignore_ascii_case(word);
        self.statement = match std::mem::take(&mut self.statement) {
            Statement::Start if is(b"CREATE") => Statement::Create,
            Statement::Start if is(b"INSERT") => Statement::Insert,
            Statement::Create if is(b"TABLE") => Statement::CreateTable,
            Statement::CreateTable if is(b"IF") || is(b"NOT") || is(b"EXISTS") => {
                Statement::CreateTable
            }
            Statement::Insert if is(b"INTO") => Statement::InsertInto,
            Statement::Insert if is(b"IGNORE") => Statement::Insert,
            Statement::Into(table) if is(b"VALUES") => Statement::Values {
                table,
                rows: 0,
                depth: 0,
            },
            unchanged @ (Statement::Into(_) | Statement::Values { .. }) => unchanged,
            _ => Statement::Other,
        };
    }

    fn end_name(&mut self) {
        if self.conditional > 0 {
            return;
        }
        self.statement = match std::mem::take(&mut self.statement) {
            Statement::CreateTable => {
                let table = self.name();
                self.rows.entry(table).or_default();
                Statement::Other
            }
            Statement::InsertInto => Statement::Into(self.name()),
            unchanged => unchanged,
        };
    }

    fn name(&self) -> String {
        String::from_utf8_lossy(&self.token).into_owned()
    }

    fn sign(&mut self, sign: u8) {
        if self.conditional > 0 {
            return;
        }
        match (&mut self.statement, sign) {
            (Statement::Values { rows, depth, .. }, b'(') => {
                *rows += u64::from(*depth == 0);
                *depth += 1;
            }
            (Statement::Values { depth, .. }, b')') => *depth = depth.saturating_sub(1),
            (statement, b';') => {
                if let Statement::Values { table, rows, .. } = std::mem::take(statement) {
                    *self.rows.entry(table).or_default() += rows;
                }
            }
            (statement @ Statement::Start, _) => *statement = Statement::Other,
            _ => {}
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte == b'@' || byte >= 0x80
}

impl io::Write for Statements {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.read(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
