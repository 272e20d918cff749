//! A key that is changed as it was judged: what the caller may is decided of one version of the key, and the change finds
//! no other. Changed by somebody else in between, the key is judged again.

use std::sync::Arc;

use actix_web::{HttpRequest, web};
use serde::de::DeserializeOwned;

use super::{ApiState, auth::caller, error::ApiError, idempotency, parameters::path_id};
use crate::{
    core::{
        id::{KeyId, TenantId},
        idempotency::IdempotencyKey,
        identity::{
            Caller, Scope,
            change::Target,
            store::{self, KeyRecord},
        },
    },
    http::{
        body::{self, Json},
        problem::{Code, Problem},
        query::Query,
    },
};

/// Whose keys the caller manages: its tenant's, or for an admin (`None`) any tenant's.
pub(super) fn managed(caller: &Caller) -> Option<TenantId> {
    (!caller.may(Scope::Admin)).then_some(caller.tenant)
}

/// The key, if the caller manages it; else 404.
pub(super) async fn existing(state: &ApiState, caller: &Caller, id: KeyId) -> Result<KeyRecord, ApiError> {
    store::get(&state.db, managed(caller), id).await?.ok_or_else(|| Problem::not_found().into())
}

/// A request to change a key: who asks, the key as it is, and what is asked.
pub(super) struct KeyChangeRequest<T> {
    pub caller: Arc<Caller>,
    pub key: KeyRecord,
    pub body: Json<T>,
    pub idempotency: Option<IdempotencyKey>,
}

/// Reads such a request.
///
/// # Errors
/// 404 before anything is said of query, body or `Idempotency-Key`; then what is wrong with these.
pub(super) async fn asked<T: DeserializeOwned>(
    request: &HttpRequest,
    state: &ApiState,
    payload: web::Payload,
) -> Result<KeyChangeRequest<T>, ApiError> {
    let caller = caller(request);
    let key = existing(state, &caller, path_id(request)?.into()).await?;
    Query::of(request)?.finish()?;
    let body = body::json::<T>(request, payload).await?;
    let idempotency = idempotency::key(request, &body.sent)?;
    Ok(KeyChangeRequest { caller, key, body, idempotency })
}

/// How often a change is judged anew because the key was changed in between by somebody else.
const JUDGEMENTS: usize = 10;

/// Judges and changes a key, in one closure: the change finds the key only as it was judged (else it is `None`), and is
/// judged again otherwise. `gone`: why no change is possible.
pub(super) async fn authorized<T>(
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
