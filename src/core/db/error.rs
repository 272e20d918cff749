//! The errors of statements, by what callers do about them: one table of SQLSTATEs.

use std::io;

use thiserror::Error;

#[derive(Debug, Error)]
pub enum DbError {
    /// No connection, no answer, or the server is starting, stopping or full. After a write: outcome unknown.
    #[error("database unavailable: {0}")]
    Unavailable(String),
    /// The server that should be the primary takes no writes. The statement was not executed, or its answer not used.
    #[error("the server of DATABASE_URL takes no writes: it is a standby, or read-only")]
    ReadOnly,
    /// The server no longer takes a prepared statement. It was not executed.
    #[error("a prepared statement is out of date: {code}: {message}")]
    StaleStatement { code: String, message: String },
    /// The server undid it because of what others did at the same time; the same may succeed when sent again.
    #[error("the statement was rolled back: {code}: {message}")]
    RolledBack { code: String, message: String },
    /// Somebody else held a lock for longer than `lock_timeout`.
    #[error("the database row is locked")]
    Locked,
    /// The statement itself refused the request (`app_refuse`), and undid all it had done.
    #[error("{code}: {detail}")]
    Refused { code: String, detail: String },
    /// A unique constraint or index, by name. Without the server's text about it, which is not for clients.
    #[error("conflict on {constraint}")]
    Conflict { constraint: String },
    /// A statement that is wrong, or met data it did not expect: a bug.
    #[error("database error {code}: {message}")]
    Statement { code: String, message: String },
    /// The data breaks a rule that this release relies on: a row that must exist is missing, or a value is unknown.
    #[error("the data breaks an invariant: {0}")]
    Invariant(String),
}

impl DbError {
    /// For metrics.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::ReadOnly => "read_only",
            Self::StaleStatement { .. } => "stale_statement",
            Self::RolledBack { .. } => "rolled_back",
            Self::Locked => "locked",
            Self::Refused { .. } => "refused",
            Self::Conflict { .. } => "conflict",
            Self::Statement { .. } => "error",
            Self::Invariant(_) => "invariant",
        }
    }

    /// Whether the server refused what the statement was to write: sent again with the same data, it fails again.
    pub fn is_about_the_data(&self) -> bool {
        // 22 data exception, 23 integrity constraint, 54 program limit, P0 raised by a function.
        let classes = ["22", "23", "54", "P0"];
        matches!(self, Self::Statement { code, .. } if classes.iter().any(|class| code.starts_with(class)))
    }

    /// Whether another server might do better: worth the fallback to the primary.
    pub fn is_about_the_server(&self) -> bool {
        match self {
            // A conflict with recovery rolls a read back.
            Self::Unavailable(_) | Self::Locked | Self::StaleStatement { .. } | Self::RolledBack { .. } => true,
            Self::ReadOnly
            | Self::Refused { .. }
            | Self::Conflict { .. }
            | Self::Statement { .. }
            | Self::Invariant(_) => false,
        }
    }

    /// Why a connection could not be opened.
    pub(super) fn of_connecting(error: &tokio_postgres::Error) -> Self {
        // The driver's own text hides the reason ("error connecting to server"): its source tells.
        let source = std::error::Error::source(error);
        let io = source.and_then(|source| source.downcast_ref::<io::Error>());
        // So the driver says that `target_session_attrs` is not met. What the system says has a number.
        if io.is_some_and(|io| io.kind() == io::ErrorKind::PermissionDenied && io.raw_os_error().is_none()) {
            return Self::ReadOnly;
        }
        Self::Unavailable(source.map_or_else(|| error.to_string(), ToString::to_string))
    }
}

/// What an error of the server means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Unavailable,
    ReadOnly,
    StaleStatement,
    RolledBack,
    Locked,
    Refused,
    Conflict,
    Statement,
}

/// SQLSTATEs and their classes (appendix A of Postgres' manual); the first row that a code begins with counts.
const MEANINGS: &[(&str, Meaning)] = &[
    ("AP001", Meaning::Refused),        // raised by our own `app_refuse`
    ("23505", Meaning::Conflict),       // unique_violation
    ("55P03", Meaning::Locked),         // lock_not_available: `lock_timeout`
    ("25006", Meaning::ReadOnly),       // read_only_sql_transaction
    ("26000", Meaning::StaleStatement), // invalid_sql_statement_name: something in between reset the session
    ("42P05", Meaning::StaleStatement), // duplicate_prepared_statement: something in between lent us another's session
    ("0A000", Meaning::StaleStatement), // feature_not_supported: see `meaning`
    ("40003", Meaning::Unavailable),    // statement_completion_unknown
    ("40", Meaning::RolledBack),        // deadlock, serialization failure, a conflict with recovery at a replica
    ("25P03", Meaning::Unavailable),    // idle_in_transaction_session_timeout: the server ended the session
    ("25P04", Meaning::Unavailable),    // transaction_timeout: the same
    ("08", Meaning::Unavailable),       // connection
    ("53", Meaning::Unavailable),       // out of disk, memory or connections
    ("57", Meaning::Unavailable),       // starting, stopping, `statement_timeout`, an operator
];

/// Of `0A000` only a cached plan whose result would have another type is no bug. The routine tells which it is, since the
/// message is in the server's language.
fn meaning(code: &str, routine: Option<&str>) -> Meaning {
    if code == "0A000" && routine != Some("RevalidateCachedQuery") {
        return Meaning::Statement;
    }
    MEANINGS.iter().find(|(start, _)| code.starts_with(start)).map_or(Meaning::Statement, |(_, meaning)| *meaning)
}

impl From<tokio_postgres::Error> for DbError {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(db) = error.as_db_error() else {
            let text = error.to_string();
            // The driver tells of a parameter or a column of the wrong type in words only.
            let ours = ["error serializing", "error deserializing", "invalid column"];
            return if ours.iter().any(|start| text.starts_with(start)) {
                Self::Statement { code: "driver".into(), message: text }
            } else {
                Self::Unavailable(text)
            };
        };
        let (code, message) = (db.code().code().to_owned(), db.message().to_owned());
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        if code == "40P01" {
            metrics::counter!("db_deadlocks_total").increment(1);
        }
        match meaning(&code, db.routine()) {
            Meaning::Unavailable => Self::Unavailable(message),
            Meaning::ReadOnly => Self::ReadOnly,
            Meaning::StaleStatement => Self::StaleStatement { code, message },
            Meaning::RolledBack => Self::RolledBack { code, message },
            Meaning::Locked => Self::Locked,
            Meaning::Refused => Self::Refused { code: message, detail: text(db.detail()) },
            Meaning::Conflict => Self::Conflict { constraint: text(db.constraint()) },
            Meaning::Statement => Self::Statement { code, message },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstates_mean_what_the_table_says() {
        for (codes, expected) in [
            (&["08000", "08003", "08006", "08P01"][..], Meaning::Unavailable),
            (&["53100", "53200", "53300"], Meaning::Unavailable),
            (&["57014", "57P01", "57P02", "57P03", "57P04", "57P05"], Meaning::Unavailable),
            (&["25P03", "25P04", "40003"], Meaning::Unavailable),
            (&["25006"], Meaning::ReadOnly),
            (&["26000", "42P05"], Meaning::StaleStatement),
            (&["40001", "40P01"], Meaning::RolledBack),
            (&["55P03"], Meaning::Locked),
            (&["AP001"], Meaning::Refused),
            (&["23505"], Meaning::Conflict),
            // Bugs: a broken constraint, bad data, a wrong statement, one after an error in its transaction.
            (&["23503", "23514", "22P05", "42P01", "42703", "25P02", "0A000", "XX000"], Meaning::Statement),
        ] {
            for code in codes {
                assert_eq!(meaning(code, None), expected, "{code}");
            }
        }
    }

    #[test]
    fn only_a_stale_plan_is_a_stale_statement_of_0a000() {
        assert_eq!(meaning("0A000", Some("RevalidateCachedQuery")), Meaning::StaleStatement);
        assert_eq!(meaning("0A000", Some("transformSelectStmt")), Meaning::Statement);
    }

    #[test]
    fn no_row_of_the_table_hides_a_later_one() {
        for (n, (code, _)) in MEANINGS.iter().enumerate() {
            let first = MEANINGS.iter().position(|(start, _)| code.starts_with(start));
            assert_eq!(first, Some(n), "{code}");
        }
    }
}
