//! A key that is changed as it was judged: what the caller may is decided of one version of the key, and the change finds
//! no other. Changed by somebody else in between, the key is judged again.

use super::{ApiState, error::ApiError};
use crate::{
    core::{
        id::{KeyId, TenantId},
        identity::{
            Caller, Scope,
            store::{self, KeyRecord},
        },
        protocol::{IdempotencyKey, change_key::Target},
    },
    http::problem::{Code, Problem},
};

/// Whose keys the caller manages: its tenant's, or for an admin (`None`) any tenant's.
pub(super) fn managed(caller: &Caller) -> Option<TenantId> {
    (!caller.may(Scope::Admin)).then_some(caller.tenant)
}

/// The key, if the caller manages it; else 404.
pub(super) async fn existing(state: &ApiState, caller: &Caller, id: KeyId) -> Result<KeyRecord, ApiError> {
    store::get(&state.db, managed(caller), id).await?.ok_or_else(|| Problem::not_found().into())
}

/// How often a change is judged anew because the key was changed in between by somebody else.
const JUDGEMENTS: usize = 10;

/// Judges and changes a key, in one closure: the change finds the key only as it was judged (else it is `None`), and is
/// judged again otherwise. `gone`: why no change is possible.
pub(super) async fn judged<T>(
    state: &ApiState,
    caller: &Caller,
    mut key: KeyRecord,
    gone: &'static str,
    change: impl AsyncFn(&KeyRecord) -> Result<Option<T>, ApiError>,
) -> Result<T, ApiError> {
    for _ in 0..JUDGEMENTS {
        if let Some(done) = change(&key).await? {
            return Ok(done);
        }
        let now = existing(state, caller, key.id).await?;
        if now.ver == key.ver {
            return Err(Problem::new(Code::InvalidState, gone).into());
        }
        key = now;
    }
    Err(Problem::new(Code::InvalidState, "others keep changing the key; nothing was done").into())
}

/// What is changed: the key as it was judged.
pub(super) fn target<'a>(key: &KeyRecord, by: &'a Caller, idempotency: Option<&'a IdempotencyKey>) -> Target<'a> {
    Target { key: key.id, ver: key.ver, tenant: managed(by), by, idempotency }
}
