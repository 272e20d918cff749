//! `/keys`: creates and rotates keys (the response shows the new key once), lists, changes and revokes them.
//!
//! Handlers read the request, call `ApiKeyService` and show the result; validation and grants are in `core::identity`.
//! A key that the caller does not manage is answered 404 before query, body and `Idempotency-Key` are checked.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    auth::caller,
    error::ApiError,
    idempotency,
    parameters::{ById, OnePage, Repeatable, path_id, take_tenant},
};
use crate::{
    core::{
        id::{KeyId, TenantId},
        idempotency::IdempotencyKey,
        identity::{
            Caller, CreatedKey, KeyError, KeyLimits, KeyRecord, Scope,
            cache::Propagation,
            draft::{KeyDraft, KeyPatchDraft, LimitsDraft, parse_grace},
        },
    },
    http::{
        body::{self, Json},
        query::Query,
        timestamp::Timestamp,
    },
};

/// The body of `POST /keys`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    /// 1 to 255 bytes.
    name: String,
    /// Not empty; only scopes that the caller's key has.
    #[schema(value_type = Vec<Scope>, example = json!(["instances:read"]))]
    scopes: Vec<String>,
    /// The key is refused before this moment.
    not_before: Option<Timestamp>,
    /// The key is refused from this moment on.
    expires_at: Option<Timestamp>,
    /// Another tenant, which owns the key; for admins.
    tenant_id: Option<Uuid>,
    /// How often the key may be used; absent: as often as the caller's.
    limits: Option<Limits>,
}

impl From<CreateKey> for KeyDraft {
    fn from(body: CreateKey) -> Self {
        Self {
            name: body.name,
            scopes: body.scopes,
            limits: body.limits.map(LimitsDraft::from),
            not_before: body.not_before.map(Timestamp::utc),
            expires_at: body.expires_at.map(Timestamp::utc),
            tenant: body.tenant_id.map(TenantId::from),
        }
    }
}

/// How often a key may be used, instead of `RATE_LIMIT_RPS` and `RATE_LIMIT_BURST`.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Requests per second; 0: no limit.
    rps: f64,
    /// Requests at once.
    burst: u32,
}

impl From<Limits> for LimitsDraft {
    fn from(Limits { rps, burst }: Limits) -> Self {
        Self { rps, burst }
    }
}

impl Limits {
    fn own(limits: KeyLimits) -> Option<Self> {
        limits.as_own().map(|limit| Self { rps: limit.rps, burst: limit.burst })
    }
}

/// A key, without its text.
#[derive(Serialize, ToSchema)]
pub struct Key {
    #[schema(value_type = Uuid)]
    id: KeyId,
    name: String,
    #[schema(value_type = Uuid)]
    tenant_id: TenantId,
    scopes: Vec<Scope>,
    #[serde(with = "time::serde::rfc3339::option")]
    expires_at: Option<OffsetDateTime>,
}

/// A key as listed.
#[derive(Serialize, ToSchema)]
pub struct ListedKey {
    #[serde(flatten)]
    key: Key,
    /// Its prefix and last characters.
    #[schema(example = "cpk_live_1…a1B2")]
    hint: String,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// Up to half a minute late.
    #[serde(with = "time::serde::rfc3339::option")]
    last_used_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    revoked_at: Option<OffsetDateTime>,
    /// `null`: the general limits.
    limits: Option<Limits>,
}

/// The body of `PATCH /keys/{id}`. Absent fields stay as they are.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchKey {
    name: Option<String>,
    /// Not empty; only scopes that the caller's key has.
    #[schema(value_type = Option<Vec<Scope>>)]
    scopes: Option<Vec<String>>,
    /// `null`: the key never expires.
    expires_at: Option<Timestamp>,
    /// `null`: the general limits.
    limits: Option<Limits>,
}

/// The body of `POST /keys/{id}/rotate`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateKey {
    /// How long the old key is still accepted, in whole seconds, at most a week; default 0.
    #[schema(minimum = 0, maximum = 604_800)]
    grace_s: Option<i64>,
}

/// A change that is committed and not in force everywhere yet.
#[derive(Serialize, ToSchema)]
pub struct Pending {
    propagation: PropagationStatus,
    /// When it is in force at the latest.
    #[serde(with = "time::serde::rfc3339")]
    effective_by: OffsetDateTime,
}

/// Whether a change is in force everywhere.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PropagationStatus {
    /// Some processes may still use the key as it was, until `effective_by`.
    Pending,
}

/// A new key.
#[derive(Serialize, ToSchema)]
pub struct NewKey {
    #[serde(flatten)]
    fields: Key,
    /// The key itself, shown this once.
    key: String,
    /// After a rotation: the change of the old key is not in force everywhere yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    propagation: Option<PropagationStatus>,
    #[serde(skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    effective_by: Option<OffsetDateTime>,
}

/// One page of keys.
#[derive(Serialize, ToSchema)]
pub struct KeyList {
    items: Vec<ListedKey>,
    next_cursor: Option<String>,
}

impl From<&Caller> for Key {
    fn from(caller: &Caller) -> Self {
        Self {
            id: caller.key,
            name: caller.name.clone(),
            tenant_id: caller.tenant,
            scopes: caller.scopes.clone(),
            expires_at: caller.expires_at,
        }
    }
}

impl From<KeyRecord> for Key {
    fn from(record: KeyRecord) -> Self {
        Self {
            id: record.id,
            name: record.name,
            tenant_id: record.tenant,
            scopes: record.scopes,
            expires_at: record.expires_at,
        }
    }
}

impl From<KeyRecord> for ListedKey {
    fn from(record: KeyRecord) -> Self {
        Self {
            hint: record.hint.clone(),
            created_at: record.created_at,
            last_used_at: record.last_used_at,
            revoked_at: record.revoked_at,
            limits: Limits::own(record.limits),
            key: record.into(),
        }
    }
}

#[utoipa::path(get, path = "/keys/self", operation_id = "get_own_key", tag = "keys",
    responses((status = 200, description = "The key in use", body = Key), ApiError))]
pub async fn myself(request: HttpRequest) -> Result<HttpResponse, ApiError> {
    Query::of(&request)?.finish()?;
    Ok(HttpResponse::Ok().json(Key::from(&*caller(&request))))
}

#[utoipa::path(post, path = "/keys", operation_id = "create_key", tag = "keys", request_body = CreateKey,
    params(Repeatable),
    responses((status = 201, description = "The key, shown this once", body = NewKey), ApiError))]
pub async fn create(
    request: HttpRequest,
    state: web::Data<ApiState>,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let caller = caller(&request);
    Query::of(&request)?.finish()?;
    let body = body::json::<CreateKey>(&request, payload).await?;
    let idempotency = idempotency::key(&request, &body.sent)?;
    let spec = KeyDraft::from(body.value).validate(OffsetDateTime::now_utc()).map_err(KeyError::Invalid)?;
    Ok(shown(state.keys.create(&caller, spec, idempotency.as_ref()).await?, None))
}

#[utoipa::path(get, path = "/keys", operation_id = "list_keys", tag = "keys", params(OnePage),
    responses((status = 200, description = "A page of keys, newest first, without revoked ones", body = KeyList),
              ApiError))]
pub async fn list(request: HttpRequest, state: web::Data<ApiState>) -> Result<HttpResponse, ApiError> {
    let mut query = Query::of(&request)?;
    let page = query.take_page();
    let tenant = take_tenant(&mut query, &caller(&request));
    query.finish()?;
    let page = state.keys.list(tenant, page).await?;
    let items = page.items.into_iter().map(ListedKey::from).collect();
    Ok(HttpResponse::Ok().json(KeyList { items, next_cursor: page.next_cursor }))
}

#[utoipa::path(get, path = "/keys/{id}", operation_id = "get_key", tag = "keys", params(ById),
    responses((status = 200, description = "The key, without its text", body = ListedKey), ApiError))]
pub async fn show(request: HttpRequest, state: web::Data<ApiState>) -> Result<HttpResponse, ApiError> {
    let record = state.keys.get(&caller(&request), path_id(&request)?.into()).await?;
    Query::of(&request)?.finish()?;
    Ok(HttpResponse::Ok().json(ListedKey::from(record)))
}

/// A request to change a key.
struct KeyChangeRequest<T> {
    caller: Arc<Caller>,
    /// The key as it is now.
    key: KeyRecord,
    body: Json<T>,
    idempotency: Option<IdempotencyKey>,
}

impl<T: DeserializeOwned> KeyChangeRequest<T> {
    async fn read(request: &HttpRequest, state: &ApiState, payload: web::Payload) -> Result<Self, ApiError> {
        let caller = caller(request);
        let key = state.keys.get(&caller, path_id(request)?.into()).await?;
        Query::of(request)?.finish()?;
        let body = body::json::<T>(request, payload).await?;
        let idempotency = idempotency::key(request, &body.sent)?;
        Ok(Self { caller, key, body, idempotency })
    }
}

#[utoipa::path(patch, path = "/keys/{id}", operation_id = "update_key", tag = "keys", request_body = PatchKey,
    params(ById, Repeatable),
    responses((status = 200, description = "The key as it is now, everywhere", body = ListedKey),
              (status = 202, description = "Changed, but not in force everywhere yet", body = Pending), ApiError))]
pub async fn patch(
    request: HttpRequest,
    state: web::Data<ApiState>,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let change = KeyChangeRequest::<PatchKey>::read(&request, &state, payload).await?;
    let KeyChangeRequest { caller, key, body, idempotency } = change;
    let Json { sent, value } = body;
    // `null` is not the same as an absent field: it clears the value.
    let draft = KeyPatchDraft {
        name: value.name,
        scopes: value.scopes,
        expires_at: sent.get("expires_at").map(|_| value.expires_at.map(Timestamp::utc)),
        limits: sent.get("limits").map(|_| value.limits.map(LimitsDraft::from)),
    };
    let patch = draft.validate(OffsetDateTime::now_utc()).map_err(KeyError::Invalid)?;
    let id = key.id;
    let changed = state.keys.change(&caller, key, &patch, idempotency.as_ref()).await?;
    match changed.propagation {
        Propagation::Complete => {
            let record = state.keys.get(&caller, id).await?;
            Ok(marked(HttpResponse::Ok(), changed.replayed).json(ListedKey::from(record)))
        }
        Propagation::Pending { effective_by } => {
            Ok(marked(HttpResponse::Accepted(), changed.replayed).json(pending(effective_by)))
        }
    }
}

#[utoipa::path(post, path = "/keys/{id}/rotate", operation_id = "rotate_key", tag = "keys", request_body = RotateKey,
    params(ById, Repeatable),
    responses((status = 201, description = "The new key, shown this once", body = NewKey), ApiError))]
pub async fn rotate(
    request: HttpRequest,
    state: web::Data<ApiState>,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let rotation = KeyChangeRequest::<RotateKey>::read(&request, &state, payload).await?;
    let KeyChangeRequest { caller, key, body, idempotency } = rotation;
    let grace_s = body.value.grace_s.unwrap_or_default();
    let grace_s = parse_grace(grace_s).map_err(|wrong| KeyError::Invalid(vec![wrong]))?;
    let rotation = state.keys.rotate(&caller, key, grace_s, idempotency.as_ref()).await?;
    let effective_by = match rotation.propagation {
        Propagation::Complete => None,
        Propagation::Pending { effective_by } => Some(effective_by),
    };
    Ok(shown(rotation.new, effective_by))
}

/// Answers with the text of a key. `effective_by`: when the change of the old key is in force everywhere, if it is not
/// yet.
fn shown(created: CreatedKey, effective_by: Option<OffsetDateTime>) -> HttpResponse {
    let key = created.key.expose_secret().to_owned();
    let propagation = effective_by.map(|_| PropagationStatus::Pending);
    let answer = NewKey { fields: created.record.into(), key, propagation, effective_by };
    let mut response = marked(HttpResponse::Created(), created.replayed);
    response.insert_header(("Cache-Control", "no-store")).json(answer)
}

fn marked(mut response: HttpResponseBuilder, replayed: bool) -> HttpResponseBuilder {
    if replayed {
        response.insert_header(("Idempotent-Replayed", "true"));
    }
    response
}

fn pending(effective_by: OffsetDateTime) -> Pending {
    Pending { propagation: PropagationStatus::Pending, effective_by }
}

#[utoipa::path(delete, path = "/keys/{id}", operation_id = "revoke_key", tag = "keys",
    params(ById, Repeatable, ("wait" = Option<bool>, Query,
                              description = "`false`: answer before every process refuses the key; default `true`")),
    responses((status = 204, description = "Revoked: refused everywhere"),
              (status = 202, description = "Revoked, but not in force everywhere yet", body = Pending), ApiError))]
pub async fn revoke(request: HttpRequest, state: web::Data<ApiState>) -> Result<HttpResponse, ApiError> {
    let caller = caller(&request);
    let id = KeyId::from(path_id(&request)?);
    let checked = Query::of(&request).and_then(|mut query| {
        let wait = query.take_parsed("wait", "must be true or false", |text| text.parse::<bool>().ok());
        query.finish()?;
        // Revoking twice does the same as once: the header is checked, and needs no record.
        idempotency::key(&request, &serde_json::Value::Null)?;
        Ok(wait.unwrap_or(true))
    });
    let wait = match checked {
        Ok(wait) => wait,
        // A key that does not exist is 404 whatever the query says.
        Err(problem) => {
            state.keys.get(&caller, id).await?;
            return Err(problem.into());
        }
    };
    match state.keys.revoke(&caller, id, wait).await? {
        Propagation::Complete => Ok(HttpResponse::NoContent().finish()),
        Propagation::Pending { effective_by } => Ok(HttpResponse::Accepted().json(pending(effective_by))),
    }
}
