//! The errors of statements, sorted by what a caller can do about them.
//!
//! One table maps SQLSTATEs (appendix A of Postgres' manual) to variants. The server's texts are for the log only: they
//! may quote the statement or its data, so the API's error table answers with texts of its own.

use std::io;

use thiserror::Error;

/// Why a statement failed.
#[derive(Debug, Error)]
pub enum DbError {
    /// No connection, no answer, or the server is starting, stopping or full. The outcome of a write is unknown.
    #[error("database unavailable: {0}")]
    Unavailable(String),
    /// The server that should be the primary takes no writes. The statement was not executed, or its answer is not
    /// used.
    #[error("the server of DATABASE_URL takes no writes: it is a standby, or read-only")]
    ReadOnly,
    /// The server refused a prepared statement that is out of date. It was not executed.
    #[error("a prepared statement is out of date: {code}: {message}")]
    StaleStatement {
        /// The SQLSTATE.
        code: String,
        /// The server's text.
        message: String,
    },
    /// The server rolled the statement back because of concurrent transactions; repeated, it may succeed.
    #[error("the statement was rolled back: {code}: {message}")]
    RolledBack {
        /// The SQLSTATE.
        code: String,
        /// The server's text.
        message: String,
    },
    /// Another transaction held a lock for longer than `lock_timeout`.
    #[error("the database row is locked")]
    Locked,
    /// The statement refused the request by the SQL function `app_refuse` and was rolled back.
    #[error("{code}: {detail}")]
    Refused {
        /// The first argument of `app_refuse`.
        code: String,
        /// The second argument of `app_refuse`.
        detail: String,
    },
    /// The statement violated a unique constraint or index.
    #[error("conflict on {constraint}")]
    Conflict {
        /// Its name. The server's text about it is left out, since it quotes the data.
        constraint: String,
    },
    /// The statement is wrong or met data that it does not expect: a bug.
    #[error("database error {code}: {message}")]
    Statement {
        /// The SQLSTATE, or `driver`.
        code: String,
        /// The text of the server or of the driver.
        message: String,
    },
    /// The data breaks a rule that this release relies on: a row that must exist is missing, or a value is unknown.
    #[error("the data breaks an invariant: {0}")]
    Invariant(String),
}

impl DbError {
    /// Returns the variant's name in metrics.
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

    /// Returns whether the server refused the data that the statement was to write: repeated with the same data, it
    /// fails again.
    pub fn is_about_the_data(&self) -> bool {
        // 22 data exception, 23 integrity constraint, 54 program limit, P0 raised by a function.
        let classes = ["22", "23", "54", "P0"];
        matches!(self, Self::Statement { code, .. } if classes.iter().any(|class| code.starts_with(class)))
    }

    /// Returns whether the failure is one of the server and not of the statement, so that another server may answer.
    pub fn is_about_the_server(&self) -> bool {
        match self {
            // A replica rolls a read back that conflicts with recovery.
            Self::Unavailable(_) | Self::Locked | Self::StaleStatement { .. } | Self::RolledBack { .. } => true,
            Self::ReadOnly
            | Self::Refused { .. }
            | Self::Conflict { .. }
            | Self::Statement { .. }
            | Self::Invariant(_) => false,
        }
    }

    /// Returns why a connection could not be opened.
    pub(super) fn of_connecting(error: &tokio_postgres::Error) -> Self {
        // The driver's own text is "error connecting to server"; its source names the reason.
        let source = std::error::Error::source(error);
        let io = source.and_then(|source| source.downcast_ref::<io::Error>());
        // The driver reports an unmet `target_session_attrs` as `PermissionDenied` without a number; an error of the
        // operating system has one.
        if io.is_some_and(|io| io.kind() == io::ErrorKind::PermissionDenied && io.raw_os_error().is_none()) {
            return Self::ReadOnly;
        }
        Self::Unavailable(source.map_or_else(|| error.to_string(), ToString::to_string))
    }
}

/// The variant for an error of the server.
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

/// SQLSTATEs and their classes (appendix A of Postgres' manual); the first row whose text begins the code applies.
const MEANINGS: &[(&str, Meaning)] = &[
    ("AP001", Meaning::Refused),        // raised by our own `app_refuse`
    ("23505", Meaning::Conflict),       // unique_violation
    ("55P03", Meaning::Locked),         // lock_not_available: `lock_timeout`
    ("25006", Meaning::ReadOnly),       // read_only_sql_transaction
    ("26000", Meaning::StaleStatement), // invalid_sql_statement_name: a pooler in between reset the session
    ("42P05", Meaning::StaleStatement), // duplicate_prepared_statement: a pooler in between switched the session
    ("0A000", Meaning::StaleStatement), // feature_not_supported: see `meaning`
    ("40003", Meaning::Unavailable),    // statement_completion_unknown
    ("40", Meaning::RolledBack),        // deadlock, serialization failure, a conflict with recovery at a replica
    ("25P03", Meaning::Unavailable),    // idle_in_transaction_session_timeout: the server ended the session
    ("25P04", Meaning::Unavailable),    // transaction_timeout: the same
    ("08", Meaning::Unavailable),       // connection
    ("53", Meaning::Unavailable),       // out of disk, memory or connections
    ("57", Meaning::Unavailable),       // starting, stopping, `statement_timeout`, an operator
];

/// `0A000` (feature_not_supported) is a bug, unless a cached plan would return a result of another type. The routine's
/// name distinguishes it, since the message is in the server's language.
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
            // The driver reports a parameter or a column of the wrong type by its text only.
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
    fn sqlstates_map_to_their_variants() {
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
    fn no_row_of_the_table_shadows_a_later_one() {
        for (n, (code, _)) in MEANINGS.iter().enumerate() {
            let first = MEANINGS.iter().position(|(start, _)| code.starts_with(start));
            assert_eq!(first, Some(n), "{code}");
        }
    }
}
