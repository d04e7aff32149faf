//! Tables of text: columns as wide as their widest cell, numbers to the right.

/// Rows of cells under a head.
pub struct Table {
    /// Names of the columns, and whether they hold numbers.
    head: Vec<(&'static str, bool)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table of these columns; those of which `true` is said are set to the right.
    pub fn new(head: &[(&'static str, bool)]) -> Table {
        Table { head: head.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The lines, without spaces at their ends.
    pub fn text(&self) -> String {
        let head: Vec<String> = self.head.iter().map(|(name, _)| name.to_string()).collect();
        let all = || std::iter::once(&head).chain(&self.rows);
        let width =
            |column: usize| all().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let cell = |(i, text): (usize, &String)| match self.head[i].1 {
            true => format!("{text:>width$}", width = widths[i]),
            false => format!("{text:<width$}", width = widths[i]),
        };
        let line = |row: &Vec<String>| {
            let line: Vec<String> = row.iter().enumerate().map(cell).collect();
            format!("{}\n", line.join("  ").trim_end())
        };
        all().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let mut table = Table::new(&[("layers", false), ("ms", true)]);
        table.row(["0–31".into(), "1.5".into()]);
        table.row(["head".into(), "120".into()]);
        assert_eq!(table.text(), "layers   ms\n0–31    1.5\nhead    120\n");
    }
}
