//! Columns of text, as wide as they have to be.

use std::fmt;

/// Which side of its column a cell stands on.
#[derive(Debug, Clone, Copy)]
pub enum Side {
    Left,
    Right,
}

/// A table with a heading. Printed without a line break at the end.
#[derive(Debug)]
pub struct Table<const N: usize> {
    sides: [Side; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub fn new(columns: [(&str, Side); N]) -> Self {
        Self {
            sides: columns.map(|(_, side)| side),
            rows: vec![columns.map(|(heading, _)| heading.to_owned())],
        }
    }

    pub fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            self.rows
                .iter()
                .map(|row| row[column].chars().count())
                .max()
        };
        let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
        for (n, row) in self.rows.iter().enumerate() {
            let cells = row
                .iter()
                .zip(self.sides)
                .zip(widths)
                .map(|((cell, side), width)| match side {
                    Side::Left => format!("{cell:<width$}"),
                    Side::Right => format!("{cell:>width$}"),
                });
            let line = cells.collect::<Vec<_>>().join("  ");
            let line_break = if n == 0 { "" } else { "\n" };
            write!(f, "{line_break}{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_nothing_trails() {
        let mut table = Table::new([
            ("ID", Side::Left),
            ("SIZE", Side::Right),
            ("NOTE", Side::Left),
        ]);
        table.row(["a".into(), "17.2 GB".into(), String::new()]);
        table.row(["bcd".into(), "4 B".into(), "ü".into()]);
        assert_eq!(
            table.to_string(),
            "ID      SIZE  NOTE\n\
             a    17.2 GB\n\
             bcd      4 B  ü"
        );
    }
}
