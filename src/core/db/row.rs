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

/// Decodes the row that a request is about. `noun`: what a row of the table is called.
///
/// # Errors
/// Those of `decode`; an `Invariant` also names the row, by its noun and `id`.
pub fn decode_one<T>(
    row: &Row,
    noun: &'static str,
    decode: impl FnOnce(&Row) -> Result<T, DbError>,
) -> Result<T, DbError> {
    decode(row).map_err(|error| match (error, row.try_get::<_, Uuid>("id")) {
        (DbError::Invariant(what), Ok(id)) => DbError::Invariant(format!("{noun} {id}: {what}")),
        (error, _) => error,
    })
}

/// Decodes one of several rows. A row that cannot be decoded is logged with its `id`; `None` leaves it out, so that it
/// does not fail the other rows.
pub fn decode_or_skip<T>(row: &Row, noun: &'static str, decode: impl FnOnce(&Row) -> Result<T, DbError>) -> Option<T> {
    let log = |error: &DbError| {
        let id: Option<Uuid> = row.try_get("id").ok();
        tracing::error!(noun, id = id.map(tracing::field::display), %error, "cannot read a row; leaving it out");
    };
    decode(row).inspect_err(log).ok()
}

/// Decodes each row by `decode_or_skip`.
pub fn decode_each<T>(rows: &[Row], noun: &'static str, decode: impl Fn(&Row) -> Result<T, DbError>) -> Vec<T> {
    rows.iter().filter_map(|row| decode_or_skip(row, noun, &decode)).collect()
}
