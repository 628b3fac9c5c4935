//! The record's schema as numbered steps, each applied once and never changed afterwards.
//!
//! A step is a file of statements, each ended by a semicolon at a line's end. Statements can be run
//! again (`IF NOT EXISTS`), because a crash may come between two of them. To change the schema, add a
//! file: whoever applied the old one would never see an edit of it, and the migrator refuses one.

use std::fmt::Write as _;

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migration {
    /// Its number; steps are applied in this order.
    pub version: u32,
    /// Its file's name without number and ending.
    pub name: &'static str,
    /// Its statements.
    pub sql: &'static str,
}

/// All steps, in order.
pub const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "lifecycle", sql: include_str!("../migrations/001_lifecycle.sql") },
    Migration { version: 2, name: "views", sql: include_str!("../migrations/002_views.sql") },
    Migration { version: 3, name: "fates", sql: include_str!("../migrations/003_fates.sql") },
    Migration { version: 4, name: "last_word", sql: include_str!("../migrations/004_last_word.sql") },
    Migration { version: 5, name: "compression", sql: include_str!("../migrations/005_compression.sql") },
];

impl Migration {
    /// The statements, without comment lines and the semicolons between them.
    #[must_use]
    pub fn statements(&self) -> Vec<String> {
        let mut statements = vec![String::new()];
        for line in self.sql.lines().filter(|line| !line.trim_start().starts_with("--")) {
            let (text, ends) = line.trim_end().strip_suffix(';').map_or((line, false), |text| (text, true));
            if let Some(last) = statements.last_mut() {
                last.push_str(text);
                last.push('\n');
            }
            if ends {
                statements.push(String::new());
            }
        }
        statements.retain(|statement| !statement.trim().is_empty());
        statements
    }

    /// What the migrator remembers of an applied step: 128 bits of BLAKE3 over the file, in hex.
    #[must_use]
    pub fn checksum(&self) -> String {
        blake3::hash(self.sql.as_bytes()).as_bytes()[..16].iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::COLUMNS;

    #[test]
    fn steps_are_numbered_without_gaps_and_can_be_run_again() {
        for (index, step) in MIGRATIONS.iter().enumerate() {
            assert_eq!(step.version as usize, index + 1);
            for statement in step.statements() {
                let start = statement.trim_start();
                let says_what_is = start.starts_with("CREATE OR REPLACE") || start.contains(" MODIFY SETTING ");
                assert!(start.contains("IF NOT EXISTS") || says_what_is, "{start}");
            }
        }
    }

    // A real server checks the types; this keeps names and order honest without one.
    #[test]
    fn the_table_has_a_blocks_columns_in_a_blocks_order() {
        let table = MIGRATIONS[0].statements()[0].clone();
        let columns: Vec<&str> = table.lines().filter_map(|line| line.trim_start().strip_prefix('`')).collect();
        let names: Vec<&str> = columns.iter().filter_map(|line| line.split('`').next()).collect();
        let expected: Vec<&str> = COLUMNS.iter().map(|(name, _)| *name).collect();
        assert_eq!(names[..expected.len()], expected);
    }
}
