//! What a statement can end with, as far as anybody acts on the difference.

use thiserror::Error;
use tokio_postgres::error::SqlState;

#[derive(Debug, Error)]
pub enum DbError {
    /// No connection, no answer, or the server is starting, stopping or full. After a write: outcome unknown.
    #[error("database unavailable: {0}")]
    Unavailable(String),
    /// Somebody else held a lock for longer than `lock_timeout`.
    #[error("the database row is locked")]
    Locked,
    /// The statement itself refused the request (`app_refuse`), and undid all it had done.
    #[error("{code}: {detail}")]
    Refused { code: String, detail: String },
    /// A unique constraint or index, by name.
    #[error("conflict on {constraint}")]
    Conflict { constraint: String, detail: String },
    /// A statement that is wrong, or met data it did not expect: a bug.
    #[error("database error {code}: {message}")]
    Statement { code: String, message: String },
}

impl DbError {
    /// For metrics.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Locked => "locked",
            Self::Refused { .. } => "refused",
            Self::Conflict { .. } => "conflict",
            Self::Statement { .. } => "error",
        }
    }

    /// Whether another server might do better: worth the fallback to the primary.
    pub fn is_about_the_server(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::Locked => true,
            // Recovery conflicts at a replica.
            Self::Statement { code, .. } => code == SqlState::T_R_SERIALIZATION_FAILURE.code(),
            Self::Refused { .. } | Self::Conflict { .. } => false,
        }
    }
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
        let code = db.code();
        if code.code() == "AP001" {
            return Self::Refused { code: db.message().into(), detail: db.detail().unwrap_or_default().into() };
        }
        if *code == SqlState::UNIQUE_VIOLATION {
            let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
            return Self::Conflict { constraint: text(db.constraint()), detail: text(db.detail()) };
        }
        if *code == SqlState::LOCK_NOT_AVAILABLE {
            return Self::Locked;
        }
        // 08 connection, 53 out of resources (disk, memory, connections), 57 operator and time-outs.
        if ["08", "53", "57"].iter().any(|class| code.code().starts_with(class)) {
            return Self::Unavailable(db.message().into());
        }
        if *code == SqlState::T_R_DEADLOCK_DETECTED {
            metrics::counter!("db_deadlocks_total").increment(1);
        }
        Self::Statement { code: code.code().into(), message: db.message().into() }
    }
}
