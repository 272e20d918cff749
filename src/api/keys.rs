//! `/keys`: made (shown once), listed (never shown again), revoked.

use actix_web::{HttpRequest, HttpResponse, web};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    auth::caller,
    error::ApiError,
    idempotency,
    instances::{path_id, take_tenant},
};
use crate::{
    core::{
        id::{KeyId, TenantId},
        identity::{
            Caller, Scope,
            store::{self, KeyRecord, KeySpec},
        },
        invalid::Invalid,
        protocol::accept_key::{self, AcceptedKey},
    },
    http::{
        body,
        problem::{Code, Problem, ProblemBody},
        query::Query,
    },
};

/// The body of `POST /keys`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    name: String,
    /// Not empty; only such as the caller's key holds.
    #[schema(example = json!(["instances:read"]))]
    scopes: Vec<String>,
    #[serde(default, with = "time::serde::rfc3339::option")]
    expires_at: Option<OffsetDateTime>,
    /// Another tenant's; admin only.
    tenant_id: Option<Uuid>,
}

/// A key, without itself.
#[derive(Serialize, ToSchema)]
pub struct Key {
    #[schema(value_type = Uuid)]
    id: KeyId,
    name: String,
    #[schema(value_type = Uuid)]
    tenant_id: TenantId,
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
}

/// A key just made.
#[derive(Serialize, ToSchema)]
pub struct NewKey {
    #[serde(flatten)]
    fields: Key,
    /// Shown this once.
    key: String,
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

impl From<Caller> for Key {
    fn from(caller: Caller) -> Self {
        let scopes = texts(&caller.scopes);
        Self { id: caller.key, name: caller.name, tenant_id: caller.tenant, scopes, expires_at: caller.expires_at }
    }
}

impl From<KeyRecord> for ListedKey {
    fn from(record: KeyRecord) -> Self {
        let (hint, created_at) = (record.hint.clone(), record.created_at);
        Self { key: record.into(), hint, created_at }
    }
}

impl From<KeyRecord> for Key {
    fn from(record: KeyRecord) -> Self {
        let scopes = texts(&record.scopes);
        Self { id: record.id, name: record.name, tenant_id: record.tenant, scopes, expires_at: record.expires_at }
    }
}

#[utoipa::path(get, path = "/keys/self", tag = "keys",
    responses((status = 200, body = Key), (status = "default", body = ProblemBody<'static>)))]
pub async fn myself(request: HttpRequest) -> Result<HttpResponse, ApiError> {
    Query::of(&request)?.finish()?;
    Ok(HttpResponse::Ok().json(Key::from(caller(&request))))
}

#[utoipa::path(post, path = "/keys", tag = "keys", request_body = CreateKey,
    params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 201, body = NewKey), (status = "default", body = ProblemBody<'static>)))]
pub async fn create(
    request: HttpRequest,
    state: web::Data<ApiState>,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let caller = caller(&request);
    Query::of(&request)?.finish()?;
    let body = body::json::<CreateKey>(&request, payload).await?;
    let idempotency = idempotency::key(&request, &body.sent)?;
    let spec = judge(body.value, &caller)?;
    match accept_key::create(&state.db, &state.ring, caller.tenant, &spec, idempotency.as_ref()).await? {
        Some(AcceptedKey { record, key, replayed }) => {
            state.recent_writers.wrote(record.tenant);
            let mut response = HttpResponse::Created();
            if replayed {
                response.insert_header(("Idempotent-Replayed", "true"));
            }
            let key = key.expose_secret().to_owned();
            Ok(response.insert_header(("Cache-Control", "no-store")).json(NewKey { fields: record.into(), key }))
        }
        None => {
            let unknown = Invalid::new("/tenant_id", "not_found", "there is no such tenant");
            Err(Problem::invalid(vec![unknown]).into())
        }
    }
}

/// A key grants only what it holds itself.
fn judge(body: CreateKey, caller: &Caller) -> Result<KeySpec, Problem> {
    let mut wrong = Vec::new();
    if body.name.trim().is_empty() || body.name.len() > 255 {
        wrong.push(Invalid::new("/name", "invalid", "must have 1 to 255 bytes"));
    }
    if body.scopes.is_empty() {
        wrong.push(Invalid::new("/scopes", "invalid", "must not be empty"));
    }
    let mut scopes = Vec::new();
    for (at, text) in body.scopes.iter().enumerate() {
        match text.parse::<Scope>() {
            Ok(scope) => scopes.push(scope),
            Err(()) => wrong.push(Invalid::new(format!("/scopes/{at}"), "invalid", "is not a scope")),
        }
    }
    if body.expires_at.is_some_and(|at| at <= OffsetDateTime::now_utc()) {
        wrong.push(Invalid::new("/expires_at", "out_of_range", "is in the past"));
    }
    if !wrong.is_empty() {
        return Err(Problem::invalid(wrong));
    }
    scopes.sort_unstable();
    scopes.dedup();
    let forbidden = |detail: String| Err(Problem::new(Code::Forbidden, detail));
    if let Some(scope) = scopes.iter().find(|scope| !caller.may(**scope)) {
        return forbidden(format!("the caller's key does not hold {scope}"));
    }
    if let Some(limit) = caller.expires_at
        && body.expires_at.is_none_or(|at| at > limit)
    {
        return forbidden("the new key would outlive the caller's".into());
    }
    let tenant = body.tenant_id.map_or(caller.tenant, TenantId::from);
    if tenant != caller.tenant && !caller.may(Scope::Admin) {
        return forbidden("only an admin makes keys of another tenant".into());
    }
    Ok(KeySpec {
        id: KeyId::new(),
        name: body.name,
        tenant,
        scopes,
        expires_at: body.expires_at,
        created_by: Some(caller.key),
    })
}

#[utoipa::path(get, path = "/keys", tag = "keys",
    params(("limit" = Option<u64>, Query), ("cursor" = Option<String>, Query),
           ("tenant_id" = Option<Uuid>, Query, description = "admin only")),
    responses((status = 200, body = KeyList), (status = "default", body = ProblemBody<'static>)))]
pub async fn list(request: HttpRequest, state: web::Data<ApiState>) -> Result<HttpResponse, ApiError> {
    let mut query = Query::of(&request)?;
    let page = query.take_page();
    let tenant = take_tenant(&mut query, &caller(&request));
    query.finish()?;
    let page = store::list(&state.db, state.recent_writers.consistency(tenant), Some(tenant), page).await?;
    let items = page.items.into_iter().map(ListedKey::from).collect();
    Ok(HttpResponse::Ok().json(KeyList { items, next_cursor: page.next_cursor }))
}

#[utoipa::path(delete, path = "/keys/{id}", tag = "keys",
    params(("id" = Uuid, Path), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 204), (status = "default", body = ProblemBody<'static>)))]
pub async fn revoke(request: HttpRequest, state: web::Data<ApiState>) -> Result<HttpResponse, ApiError> {
    let caller = caller(&request);
    let id = KeyId::from(path_id(&request)?);
    // An admin revokes keys of any tenant.
    let tenant = (!caller.may(Scope::Admin)).then_some(caller.tenant);
    let checked = Query::of(&request).and_then(Query::finish);
    // Revoking twice is the same: the header is checked, and needs no record.
    if let Err(problem) = checked.and_then(|()| idempotency::key(&request, &serde_json::Value::Null)) {
        let exists = store::exists(&state.db, tenant, id).await?;
        return Err(if exists { problem } else { Problem::not_found() }.into());
    }
    if !store::revoke(&state.db, tenant, id, caller.key).await? {
        return Err(Problem::not_found().into());
    }
    state.recent_writers.wrote(caller.tenant);
    Ok(HttpResponse::NoContent().finish())
}
