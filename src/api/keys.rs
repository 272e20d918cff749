//! `/keys`: made (shown once), listed (never shown again), revoked.

use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    auth::caller,
    error::ApiError,
    grants::{authorize, check_expiry, check_limits, check_name, check_scopes, may_change, may_have, may_see_again},
    idempotency,
    key_change::{KeyChangeRequest, asked, authorized, existing, managed, target},
    parameters::{ById, OnePage, Repeatable, path_id, take_tenant},
};
use crate::{
    config::identity::RateLimit,
    core::{
        id::{KeyId, TenantId},
        identity::{
            Caller, Scope,
            cache::Propagation,
            change::{self, KeyPatch, Rotated},
            create::{self, AcceptedKey},
            rate_limit,
            store::{self, KeyRecord},
        },
        invalid::Invalid,
    },
    http::{body, problem::Problem, query::Query, timestamp::Timestamp},
};

/// The body of `POST /keys`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    pub(super) name: String,
    /// Not empty; only such as the caller's key holds.
    #[schema(value_type = Vec<Scope>, example = json!(["instances:read"]))]
    pub(super) scopes: Vec<String>,
    /// Refused before this moment.
    pub(super) not_before: Option<Timestamp>,
    /// Refused from this moment on.
    pub(super) expires_at: Option<Timestamp>,
    /// Another tenant's; admin only.
    pub(super) tenant_id: Option<Uuid>,
    /// How often it may ask; absent: as often as the caller's.
    pub(super) limits: Option<Limits>,
}

/// How often a key may ask, instead of `RATE_LIMIT_RPS` and `RATE_LIMIT_BURST`.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Requests per second; 0: no limit.
    pub(super) rps: f64,
    /// Requests at once.
    pub(super) burst: u32,
}

impl Limits {
    pub(super) fn stored(self) -> serde_json::Value {
        rate_limit::stored(RateLimit { rps: self.rps, burst: self.burst })
    }
}

/// A key, without itself.
#[derive(Serialize, ToSchema)]
pub struct Key {
    #[schema(value_type = Uuid)]
    id: KeyId,
    name: String,
    #[schema(value_type = Uuid)]
    tenant_id: TenantId,
    #[schema(value_type = Vec<Scope>)]
    scopes: Vec<&'static str>,
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
    /// Written every half minute.
    #[serde(with = "time::serde::rfc3339::option")]
    last_used_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    revoked_at: Option<OffsetDateTime>,
    /// `null`: the general ones.
    limits: Option<Limits>,
}

/// The body of `PATCH /keys/{id}`: what is absent stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchKey {
    name: Option<String>,
    /// Not empty; only such as the caller's key holds.
    #[schema(value_type = Option<Vec<Scope>>)]
    scopes: Option<Vec<String>>,
    /// `null`: it never expires.
    expires_at: Option<Timestamp>,
    /// `null`: the general ones.
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

/// A week.
const GRACE_S_MAX: u32 = 604_800;

/// When a change is in force that Redis could not be told of.
#[derive(Serialize, ToSchema)]
pub struct Pending {
    propagation: PropagationStatus,
    #[serde(with = "time::serde::rfc3339")]
    effective_by: OffsetDateTime,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PropagationStatus {
    Pending,
}

/// A key just made.
#[derive(Serialize, ToSchema)]
pub struct NewKey {
    #[serde(flatten)]
    fields: Key,
    /// Shown this once.
    key: String,
    /// Of a rotation whose old key some may still accept for a moment.
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

fn texts(scopes: &[Scope]) -> Vec<&'static str> {
    scopes.iter().map(|scope| scope.as_str()).collect()
}

impl From<&Caller> for Key {
    fn from(caller: &Caller) -> Self {
        let scopes = texts(&caller.scopes);
        Self {
            id: caller.key,
            name: caller.name.clone(),
            tenant_id: caller.tenant,
            scopes,
            expires_at: caller.expires_at,
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
            limits: serde_json::from_value(record.limits.clone()).ok(),
            key: record.into(),
        }
    }
}

impl From<KeyRecord> for Key {
    fn from(record: KeyRecord) -> Self {
        let scopes = texts(&record.scopes);
        Self { id: record.id, name: record.name, tenant_id: record.tenant, scopes, expires_at: record.expires_at }
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
    let spec = authorize(body.value, &caller, &state.limiter)?;
    match create::create(&state.db, &state.ring, caller.tenant, &spec, idempotency.as_ref()).await? {
        Some(made) => {
            if made.replayed {
                may_see_again(&caller, &state.limiter, &made.record)?;
            }
            state.read_your_writes.record_write(made.record.tenant).await;
            Ok(shown(made, None))
        }
        None => {
            let unknown = Invalid::new("/tenant_id", "not_found", "there is no such tenant");
            Err(Problem::invalid(vec![unknown]).into())
        }
    }
}

#[utoipa::path(get, path = "/keys", operation_id = "list_keys", tag = "keys", params(OnePage),
    responses((status = 200, description = "A page of keys, newest first, without revoked ones", body = KeyList), ApiError))]
pub async fn list(request: HttpRequest, state: web::Data<ApiState>) -> Result<HttpResponse, ApiError> {
    let mut query = Query::of(&request)?;
    let page = query.take_page();
    let tenant = take_tenant(&mut query, &caller(&request));
    query.finish()?;
    let page = store::list(&state.db, state.read_your_writes.consistency_for(tenant).await, Some(tenant), page).await?;
    let items = page.items.into_iter().map(ListedKey::from).collect();
    Ok(HttpResponse::Ok().json(KeyList { items, next_cursor: page.next_cursor }))
}

#[utoipa::path(get, path = "/keys/{id}", operation_id = "get_key", tag = "keys", params(ById),
    responses((status = 200, description = "The key, without itself", body = ListedKey), ApiError))]
pub async fn show(request: HttpRequest, state: web::Data<ApiState>) -> Result<HttpResponse, ApiError> {
    let record = existing(&state, &caller(&request), path_id(&request)?.into()).await?;
    Query::of(&request)?.finish()?;
    Ok(HttpResponse::Ok().json(ListedKey::from(record)))
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
    let KeyChangeRequest { caller, key, body, idempotency } = asked::<PatchKey>(&request, &state, payload).await?;
    let (id, tenant) = (key.id, key.tenant);
    let mut wrong = Vec::new();
    if let Some(name) = &body.value.name {
        check_name(name, &mut wrong);
    }
    let scopes = body.value.scopes.as_deref().map(|texts| check_scopes(texts, &mut wrong));
    let expires_at = body.value.expires_at.map(Timestamp::utc);
    check_expiry(expires_at, &mut wrong);
    check_limits(body.value.limits, &mut wrong);
    if !wrong.is_empty() {
        return Err(Problem::invalid(wrong).into());
    }
    // `null` is not the same as absent: it never expires.
    let expires_at = body.sent.get("expires_at").map(|_| expires_at);
    let limits =
        body.sent.get("limits").map(|_| body.value.limits.map_or_else(|| serde_json::json!({}), Limits::stored));
    let patch = KeyPatch { name: body.value.name, scopes, expires_at, limits };
    let patched = authorized(&state, &caller, key, "the key is revoked", async |key| {
        may_change(&caller, &state.limiter, key, &patch)?;
        Ok(change::patch(&state.db, target(key, &caller, idempotency.as_ref()), &patch).await?)
    })
    .await?;
    state.read_your_writes.record_write(tenant).await;
    let (mut response, effective_by) = match state.identity.propagate(&patched.changes, true).await {
        Propagation::Complete => (HttpResponse::Ok(), None),
        Propagation::Pending { effective_by } => (HttpResponse::Accepted(), Some(effective_by)),
    };
    mark(&mut response, patched.replayed);
    Ok(match effective_by {
        None => response.json(ListedKey::from(existing(&state, &caller, id).await?)),
        Some(effective_by) => response.json(Pending { propagation: PropagationStatus::Pending, effective_by }),
    })
}

#[utoipa::path(post, path = "/keys/{id}/rotate", operation_id = "rotate_key", tag = "keys", request_body = RotateKey,
    params(ById, Repeatable),
    responses((status = 201, description = "The new key, shown this once", body = NewKey), ApiError))]
pub async fn rotate(
    request: HttpRequest,
    state: web::Data<ApiState>,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let KeyChangeRequest { caller, key: old, body, idempotency } =
        asked::<RotateKey>(&request, &state, payload).await?;
    let grace_s = u32::try_from(body.value.grace_s.unwrap_or_default()).ok().filter(|grace_s| *grace_s <= GRACE_S_MAX);
    let Some(grace_s) = grace_s else {
        let wrong = Invalid::new("/grace_s", "out_of_range", format!("must be from 0 to {GRACE_S_MAX}"));
        return Err(Problem::invalid(vec![wrong]).into());
    };
    let Rotated { new, changes } = authorized(&state, &caller, old, "the key is revoked or expired", async |old| {
        may_have(&caller, &state.limiter, old)?;
        let target = target(old, &caller, idempotency.as_ref());
        Ok(change::rotate(&state.db, &state.ring, target, grace_s).await?)
    })
    .await?;
    if new.replayed {
        may_see_again(&caller, &state.limiter, &new.record)?;
    }
    state.read_your_writes.record_write(new.record.tenant).await;
    let effective_by = match state.identity.propagate(&changes, true).await {
        Propagation::Complete => None,
        Propagation::Pending { effective_by } => Some(effective_by),
    };
    Ok(shown(new, effective_by))
}

/// The one answer with a key in it. `effective_by`: of a change that is not in force everywhere yet.
fn shown(made: AcceptedKey, effective_by: Option<OffsetDateTime>) -> HttpResponse {
    let mut response = HttpResponse::Created();
    mark(&mut response, made.replayed);
    let key = made.key.expose_secret().to_owned();
    let propagation = effective_by.map(|_| PropagationStatus::Pending);
    let answer = NewKey { fields: made.record.into(), key, propagation, effective_by };
    response.insert_header(("Cache-Control", "no-store")).json(answer)
}

fn mark(response: &mut HttpResponseBuilder, replayed: bool) {
    if replayed {
        response.insert_header(("Idempotent-Replayed", "true"));
    }
}

fn pending(effective_by: OffsetDateTime) -> HttpResponse {
    HttpResponse::Accepted().json(Pending { propagation: PropagationStatus::Pending, effective_by })
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
        // Revoking twice is the same: the header is checked, and needs no record.
        idempotency::key(&request, &serde_json::Value::Null)?;
        Ok(wait.unwrap_or(true))
    });
    let wait = match checked {
        Ok(wait) => wait,
        // Existence is judged before the query.
        Err(problem) => {
            existing(&state, &caller, id).await?;
            return Err(problem.into());
        }
    };
    let changes = store::revoke(&state.db, managed(&caller), id, caller.key).await?;
    let (tenant, changes) = changes.ok_or_else(Problem::not_found)?;
    state.read_your_writes.record_write(tenant).await;
    match state.identity.propagate(&changes, wait).await {
        Propagation::Complete => Ok(HttpResponse::NoContent().finish()),
        Propagation::Pending { effective_by } => Ok(pending(effective_by)),
    }
}
