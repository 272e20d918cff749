//! Idempotency keys: the first request with a key does the work, and later ones get its answer.
//!
//! The statement that accepts a request writes the record itself, so a record exists exactly when the work does. It holds
//! ids only (for a key, also the salt that the key is derived from); a replay shows the present state of what they name. A
//! record counts for 24 hours, whether or not `delete_expired` has removed it since.
//!
//! Requests with one key that arrive at the same time wait for each other at the record's row. The second one finds the
//! record of the first, or gives up after `lock_timeout` with `DbError::Locked`, which means that the first is in progress.

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio_postgres::types::Json;

use crate::core::{
    db::{DbError, DualDb, WriteConn, column},
    id::{InstanceId, JobId, TenantId},
};

/// The longest key, in characters.
const KEY_LENGTH_MAX: usize = 255;

/// An idempotency key, with the request that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The key, as the client sent it.
    pub key: String,
    /// Method and path: the same key on another route is another key.
    pub route: String,
    /// SHA-256 of the request's body as JSON, with sorted fields: the order of fields does not matter.
    pub request_hash: [u8; 32],
}

/// A key that is not 1 to 255 visible ASCII characters.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("must be 1 to {KEY_LENGTH_MAX} visible ASCII characters, once")]
pub struct InvalidKey;

impl IdempotencyKey {
    /// Checks a key. `route`: method and path in one spelling; `body`: the request's body, by which requests with one
    /// key are compared.
    ///
    /// # Errors
    /// `InvalidKey`.
    pub fn parse(key: &str, route: String, body: &Value) -> Result<Self, InvalidKey> {
        if !(1..=KEY_LENGTH_MAX).contains(&key.len()) || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidKey);
        }
        // The maps of serde_json are sorted, so equal documents are equal texts.
        let request_hash = Sha256::digest(body.to_string().as_bytes()).into();
        Ok(Self { key: key.to_owned(), route, request_hash })
    }
}

/// Returns key, route and hash for the parameters of a statement that writes the record. The key is `None` where the request
/// has none; such a statement writes no record.
pub fn columns(key: Option<&IdempotencyKey>) -> (Option<&str>, &str, &[u8]) {
    match key {
        Some(key) => (Some(&key.key), &key.route, &key.request_hash),
        None => (None, "", &[]),
    }
}

/// The ids that the first request with a key led to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Replay {
    /// The instance.
    #[serde(rename = "instance_id")]
    pub instance: InstanceId,
    /// The job.
    #[serde(rename = "job_id")]
    pub job: JobId,
}

/// Why there is nothing to replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoReplay {
    /// The key was used for another request.
    Reused,
    /// There is no record of the last 24 hours: the first request's transaction has not ended, or there was no request.
    InProgress,
}

/// Reads the record of a request about an instance.
///
/// # Errors
/// `Invariant` when the record has no such ids; others of `DualDb::write` and of the statement.
pub(super) async fn read(
    db: &DualDb,
    tenant: TenantId,
    key: &IdempotencyKey,
) -> Result<Result<Replay, NoReplay>, DbError> {
    answer(&db.write().await?, tenant, key).await
}

/// Reads what was recorded for this key and this request.
///
/// # Errors
/// Those of the statement; `Invariant` when the record is not that of such a request.
pub(super) async fn answer<T: DeserializeOwned>(
    conn: &WriteConn,
    tenant: TenantId,
    key: &IdempotencyKey,
) -> Result<Result<T, NoReplay>, DbError> {
    let rows = conn
        .query(
            "select request_hash, answer from idempotency
             where tenant_id = $1 and route = $2 and key = $3 and created_at > now() - interval '24 hours'",
            &[&tenant, &key.route, &key.key],
        )
        .await?;
    let Some(row) = rows.first() else { return Ok(Err(NoReplay::InProgress)) };
    if column::<&[u8]>(row, "request_hash")? != key.request_hash.as_slice() {
        return Ok(Err(NoReplay::Reused));
    }
    Ok(Ok(column::<Json<T>>(row, "answer")?.0))
}

/// Deletes at most 1000 records that are older than 24 hours.
///
/// # Errors
/// Those of `DualDb::write` and of the statement.
pub async fn delete_expired(db: &DualDb) -> Result<(), DbError> {
    db.write()
        .await?
        .query(
            "delete from idempotency where ctid = any(array(
               select ctid from idempotency where created_at < now() - interval '24 hours' limit 1000))",
            &[],
        )
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parse(key: &str, body: &Value) -> Result<IdempotencyKey, InvalidKey> {
        IdempotencyKey::parse(key, "POST /instances".into(), body)
    }

    #[test]
    fn key_is_1_to_255_visible_ascii_characters() {
        for good in ["k", "a-b_c~!", &"x".repeat(255)] {
            assert!(parse(good, &Value::Null).is_ok(), "{good}");
        }
        for bad in ["", " ", "a b", "a\n", "é", "\u{7f}", &"x".repeat(256)] {
            assert_eq!(parse(bad, &Value::Null), Err(InvalidKey), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_kept_as_it_is_or_refused(text in any::<String>(), ascii in "[ -~]{0,260}") {
            for text in [text, ascii] {
                let is_key = (1..=255).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic());

                let parsed = parse(&text, &Value::Null);

                prop_assert_eq!(parsed.map(|key| key.key), if is_key { Ok(text) } else { Err(InvalidKey) });
            }
        }
    }

    #[test]
    fn body_is_compared_without_the_order_of_fields() {
        let read = |text: &str| parse("k", &serde_json::from_str(text).expect("JSON")).expect("a key");

        assert_eq!(read(r#"{"a": 1, "b": [2]}"#), read(r#"{"b":[2],"a":1}"#));
        assert_ne!(read(r#"{"a": 1}"#), read(r#"{"a": 2}"#));
    }

    #[test]
    fn columns_of_a_request_without_a_key_are_empty() {
        let key = parse("k", &json!({})).expect("a key");

        assert_eq!(columns(Some(&key)), (Some("k"), "POST /instances", &key.request_hash[..]));
        assert_eq!(columns(None), (None, "", &[][..]));
    }
}
