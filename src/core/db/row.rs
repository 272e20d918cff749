//! Reading rows into typed records: a value that no type knows is an error of its row, never a default.

use tokio_postgres::{Row, types::FromSql};
use uuid::Uuid;

use super::DbError;

/// Reads a column by its name.
///
/// # Errors
/// `Invariant`, with the column's name, when the row has no such column or its value is none of the type's.
pub fn column<'a, T: FromSql<'a>>(row: &'a Row, name: &str) -> Result<T, DbError> {
    row.try_get(name).map_err(|error| {
        let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        DbError::Invariant(format!("column {name}: {cause}"))
    })
}

/// Reads each row by `decode`. A row that cannot be read is logged with its `id` and left out, so that it does not fail the
/// rows beside it.
pub fn decode_each<T>(rows: &[Row], noun: &'static str, decode: impl Fn(&Row) -> Result<T, DbError>) -> Vec<T> {
    let read = |row| decode(row).inspect_err(|error| log_unreadable(row, noun, error)).ok();
    rows.iter().filter_map(read).collect()
}

/// Logs a row that cannot be read, with its `id`.
pub fn log_unreadable(row: &Row, noun: &'static str, error: &DbError) {
    let id: Option<Uuid> = row.try_get("id").ok();
    tracing::error!(noun, id = id.map(tracing::field::display), %error, "cannot read a row; leaving it out");
}
