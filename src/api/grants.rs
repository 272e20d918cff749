//! What a key may grant: no more than it holds itself, and for no longer.

use time::OffsetDateTime;

use super::keys::{CreateKey, Limits};
use crate::{
    config::identity::RateLimit,
    core::{
        id::{KeyId, TenantId},
        identity::{
            Caller, Scope,
            change::KeyPatch,
            rate_limit::Limiter,
            store::{KeyRecord, KeySpec},
        },
        invalid::Invalid,
    },
    http::{
        problem::{Code, Problem},
        timestamp::Timestamp,
    },
};

/// A key grants only what it holds itself.
pub(super) fn authorize(body: CreateKey, caller: &Caller, limiter: &Limiter) -> Result<KeySpec, Problem> {
    let mut wrong = Vec::new();
    let (not_before, expires_at) = (body.not_before.map(Timestamp::utc), body.expires_at.map(Timestamp::utc));
    check_name(&body.name, &mut wrong);
    let scopes = check_scopes(&body.scopes, &mut wrong);
    check_expiry(expires_at, &mut wrong);
    check_limits(body.limits, &mut wrong);
    if not_before.is_some_and(|from| expires_at.is_some_and(|to| to <= from)) {
        wrong.push(Invalid::new("/not_before", "out_of_range", "is not before expires_at"));
    }
    if !wrong.is_empty() {
        return Err(Problem::invalid(wrong));
    }
    may_grant(caller, &scopes)?;
    may_last(caller, expires_at)?;
    // By default it inherits them: a limit would be none if new keys were without.
    let limits = body.limits.map_or_else(|| caller.limits.clone(), Limits::stored);
    may_ask(caller, limiter, &limits)?;
    let tenant = body.tenant_id.map_or(caller.tenant, TenantId::from);
    if tenant != caller.tenant && !caller.may(Scope::Admin) {
        return Err(Problem::new(Code::Forbidden, "only an admin makes keys of another tenant"));
    }
    Ok(KeySpec {
        id: KeyId::new(),
        name: body.name,
        tenant,
        scopes,
        limits,
        not_before,
        expires_at,
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
            Err(_) => wrong.push(Invalid::new(format!("/scopes/{at}"), "invalid", "is not a scope")),
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

pub(super) fn check_limits(limits: Option<Limits>, wrong: &mut Vec<Invalid>) {
    let Some(Limits { rps, burst }) = limits else { return };
    if RateLimit::new(rps, 1).is_none() {
        let range = format!("must be 0 (no limit) or from {} to {}", RateLimit::RPS_MIN, RateLimit::RPS_MAX);
        wrong.push(Invalid::new("/limits/rps", "out_of_range", range));
    }
    if RateLimit::new(0.0, burst).is_none() {
        let range = format!("must be from 1 to {}", RateLimit::BURST_MAX);
        wrong.push(Invalid::new("/limits/burst", "out_of_range", range));
    }
}

/// An admin sets any limit; others none that is laxer than their own.
pub(super) fn may_ask(caller: &Caller, limiter: &Limiter, limits: &serde_json::Value) -> Result<(), Problem> {
    if caller.may(Scope::Admin) || limiter.covers(&caller.limits, limits) {
        return Ok(());
    }
    Err(Problem::new(Code::Forbidden, "the key could ask more often than the caller's"))
}

pub(super) fn may_grant(caller: &Caller, scopes: &[Scope]) -> Result<(), Problem> {
    match scopes.iter().find(|scope| !caller.may(**scope)) {
        Some(scope) => Err(Problem::new(Code::Forbidden, format!("the caller's key does not hold {scope}"))),
        None => Ok(()),
    }
}

pub(super) fn may_last(caller: &Caller, expires_at: Option<OffsetDateTime>) -> Result<(), Problem> {
    if outlives(expires_at, caller.expires_at) {
        return Err(Problem::new(Code::Forbidden, "the key would outlive the caller's"));
    }
    Ok(())
}

fn outlives(expires_at: Option<OffsetDateTime>, other: Option<OffsetDateTime>) -> bool {
    other.is_some_and(|other| expires_at.is_none_or(|at| at > other))
}

/// Whoever gets the key gets all it may do, for as long as it may, as often as it may.
pub(super) fn may_have(caller: &Caller, limiter: &Limiter, key: &KeyRecord) -> Result<(), Problem> {
    may_grant(caller, &key.scopes)?;
    may_last(caller, key.expires_at)?;
    may_ask(caller, limiter, &key.limits)
}

/// A key made by an earlier request is shown to whoever may have it as it is now, and to the one that made it: it has
/// seen it, and may be about to expire, having rotated itself with a grace.
pub(super) fn may_see_again(caller: &Caller, limiter: &Limiter, key: &KeyRecord) -> Result<(), Problem> {
    if key.created_by == Some(caller.key) { Ok(()) } else { may_have(caller, limiter, key) }
}

/// What a change names is granted by the caller. So is the rest, if the key may then do more than before: more scopes
/// last for as long as the key, and a longer life is one of all its scopes.
pub(super) fn may_change(caller: &Caller, limiter: &Limiter, key: &KeyRecord, patch: &KeyPatch) -> Result<(), Problem> {
    let scopes = patch.scopes.as_ref().unwrap_or(&key.scopes);
    let expires_at = patch.expires_at.unwrap_or(key.expires_at);
    let limits = patch.limits.as_ref().unwrap_or(&key.limits);
    let widens = !scopes.iter().all(|scope| scope.is_held(&key.scopes))
        || outlives(expires_at, key.expires_at)
        || !limiter.covers(&key.limits, limits);
    if widens || patch.scopes.is_some() {
        may_grant(caller, scopes)?;
    }
    if widens || patch.expires_at.is_some() {
        may_last(caller, expires_at)?;
    }
    if widens || patch.limits.is_some() {
        may_ask(caller, limiter, limits)?;
    }
    Ok(())
}
