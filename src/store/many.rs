//! Statements that take many rows: each call to the database costs more than a row does.

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, Value};

use super::statements::run;

/// Rows that one statement takes, largest first: few sizes, so that few are prepared.
const SIZES: [usize; 4] = [64, 16, 4, 1];

/// Runs a statement over rows, in their order. `sql` makes its text around the tuples of
/// values, and `values` appends one row's `columns` values.
pub(super) async fn run_many<T>(
    tx: &DatabaseTransaction,
    mut rows: &[T],
    columns: usize,
    sql: impl Fn(&str) -> String,
    values: impl Fn(&T, &mut Vec<Value>),
) -> Result<(), DbErr> {
    while !rows.is_empty() {
        let (now, later) = rows.split_at(size(rows.len()));
        let mut all = Vec::with_capacity(now.len() * columns);
        for row in now {
            values(row, &mut all);
        }
        let tuples = tuples(tx.get_database_backend(), now.len(), columns);
        run(tx, &sql(&tuples), all).await?;
        rows = later;
    }
    Ok(())
}

fn size(rows: usize) -> usize {
    let fitting = SIZES.into_iter().find(|size| *size <= rows);
    fitting.unwrap_or(1)
}

/// `(?, ?), (?, ?)`: SQLite looks numbered parameters up by name, one after the other.
pub(super) fn tuples(backend: DbBackend, rows: usize, columns: usize) -> String {
    let numbered = backend == DbBackend::Postgres;
    let mut text = String::with_capacity(rows * (columns * 2 + 2));
    for value in 0..rows * columns {
        text.push_str(match value {
            0 => "(",
            _ if value % columns == 0 => "),(",
            _ => ",",
        });
        if numbered {
            text.push('$');
            text.push_str(&(value + 1).to_string());
        } else {
            text.push('?');
        }
    }
    text.push(')');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_taken_in_few_sizes() {
        let mut sizes = Vec::new();
        let mut left = 150;
        while left > 0 {
            sizes.push(size(left));
            left -= size(left);
        }
        assert_eq!(sizes, [64, 64, 16, 4, 1, 1]);
    }

    #[test]
    fn tuples_are_as_each_database_has_them() {
        assert_eq!(tuples(DbBackend::Sqlite, 2, 2), "(?,?),(?,?)");
        assert_eq!(tuples(DbBackend::Postgres, 2, 2), "($1,$2),($3,$4)");
        assert_eq!(tuples(DbBackend::Sqlite, 1, 1), "(?)");
    }
}
