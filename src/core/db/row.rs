//! Reading rows into typed records: a value that is not in its type is an error of that row, never a default.

use std::time::Duration;

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

/// Reads a `float8` column of seconds. A negative value counts as zero: the time that it is measured from may lie in
/// the future.
///
/// # Errors
/// As for `column`; `Invariant` also when the number is no duration.
pub fn seconds(row: &Row, name: &str) -> Result<Duration, DbError> {
    let seconds: f64 = column(row, name)?;
    Duration::try_from_secs_f64(seconds.max(0.0))
        .map_err(|error| DbError::Invariant(format!("column {name}: {seconds} s: {error}")))
}

/// Decodes each row. A row that cannot be decoded is logged with its `id` and left out, so that it does not fail the
/// other rows.
pub fn decode_each<'a, T>(
    rows: impl IntoIterator<Item = &'a Row>,
    noun: &'static str,
    decode: impl Fn(&Row) -> Result<T, DbError>,
) -> Vec<T> {
    let decode = |row| decode(row).inspect_err(|error| log_unreadable(row, noun, error)).ok();
    rows.into_iter().filter_map(decode).collect()
}

/// Logs a row that cannot be decoded, with its `id`. `noun`: what a row of the table is called.
pub fn log_unreadable(row: &Row, noun: &'static str, error: &DbError) {
    let id: Option<Uuid> = row.try_get("id").ok();
    tracing::error!(noun, id = id.map(tracing::field::display), %error, "cannot read a row; leaving it out");
}
