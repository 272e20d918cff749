//! A committed change of a key that the caches must apply.

use crate::core::db::{DbError, Row, column};

/// A change of a key.
#[derive(Clone, Debug)]
pub struct Invalidation {
    /// The change's row in the outbox; `None`: there is none, as for a change that is delivered once more.
    pub outbox: Option<i64>,
    /// The key's hash.
    pub hash: [u8; 32],
    /// The key's version after the change.
    pub ver: i64,
    /// Whether the key is refused now; otherwise it is valid with changed properties.
    pub refused: bool,
}

impl Invalidation {
    /// Reads the columns `outbox`, `key_hash`, `ver` and `refused`.
    ///
    /// # Errors
    /// `Invariant` when a column cannot be read.
    pub fn from_row(row: &Row) -> Result<Self, DbError> {
        let hash: &[u8] = column(row, "key_hash")?;
        Ok(Self {
            outbox: column(row, "outbox")?,
            hash: hash.try_into().map_err(|_| DbError::Invariant("a key's hash has not 32 bytes".into()))?,
            ver: column(row, "ver")?,
            refused: column(row, "refused")?,
        })
    }
}
