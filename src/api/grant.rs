//! What a key may grant: no more than it holds itself, and for no longer.

use time::OffsetDateTime;

use super::keys::CreateKey;
use crate::{
    core::{
        id::{KeyId, TenantId},
        identity::{Caller, Scope, store::KeySpec},
        invalid::Invalid,
    },
    http::problem::{Code, Problem},
};

/// A key grants only what it holds itself.
pub(super) fn judge(body: CreateKey, caller: &Caller) -> Result<KeySpec, Problem> {
    let mut wrong = Vec::new();
    check_name(&body.name, &mut wrong);
    let scopes = check_scopes(&body.scopes, &mut wrong);
    check_expiry(body.expires_at, &mut wrong);
    if body.not_before.is_some_and(|from| body.expires_at.is_some_and(|to| to <= from)) {
        wrong.push(Invalid::new("/not_before", "out_of_range", "is not before expires_at"));
    }
    if !wrong.is_empty() {
        return Err(Problem::invalid(wrong));
    }
    may_grant(caller, &scopes)?;
    may_last(caller, body.expires_at)?;
    let tenant = body.tenant_id.map_or(caller.tenant, TenantId::from);
    if tenant != caller.tenant && !caller.may(Scope::Admin) {
        return Err(Problem::new(Code::Forbidden, "only an admin makes keys of another tenant"));
    }
    Ok(KeySpec {
        id: KeyId::new(),
        name: body.name,
        tenant,
        scopes,
        not_before: body.not_before,
        expires_at: body.expires_at,
        created_by: Some(caller.key),
    })
}

pub(super) fn check_name(name: &str, wrong: &mut Vec<Invalid>) {
    if name.trim().is_empty() || name.len() > 255 {
        wrong.push(Invalid::new("/name", "invalid", "must have 1 to 255 bytes"));
    }
}

pub(super) fn check_scopes(texts: &[String], wrong: &mut Vec<Invalid>) -> Vec<Scope> {
    if texts.is_empty() {
        wrong.push(Invalid::new("/scopes", "invalid", "must not be empty"));
    }
    let mut scopes = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        match text.parse::<Scope>() {
            Ok(scope) => scopes.push(scope),
            Err(()) => wrong.push(Invalid::new(format!("/scopes/{at}"), "invalid", "is not a scope")),
        }
    }
    scopes.sort_unstable();
    scopes.dedup();
    scopes
}

pub(super) fn check_expiry(expires_at: Option<OffsetDateTime>, wrong: &mut Vec<Invalid>) {
    if expires_at.is_some_and(|at| at <= OffsetDateTime::now_utc()) {
        wrong.push(Invalid::new("/expires_at", "out_of_range", "is in the past"));
    }
}

pub(super) fn may_grant(caller: &Caller, scopes: &[Scope]) -> Result<(), Problem> {
    match scopes.iter().find(|scope| !caller.may(**scope)) {
        Some(scope) => Err(Problem::new(Code::Forbidden, format!("the caller's key does not hold {scope}"))),
        None => Ok(()),
    }
}

pub(super) fn may_last(caller: &Caller, expires_at: Option<OffsetDateTime>) -> Result<(), Problem> {
    match caller.expires_at {
        Some(limit) if expires_at.is_none_or(|at| at > limit) => {
            Err(Problem::new(Code::Forbidden, "the key would outlive the caller's"))
        }
        _ => Ok(()),
    }
}
