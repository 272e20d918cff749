//! The rules of grants: a caller grants no more scopes than its own key has, for no longer, and no higher limits.
//!
//! The same holds for every way to get or widen a key: creating it, rotating it, changing it, and seeing it again by
//! repeating a request. An operator with a shell acts as an admin.

use thiserror::Error;
use time::OffsetDateTime;

use super::{
    caller::{Caller, Scope},
    draft::KeyPatch,
    limits::KeyLimits,
    store::KeyRecord,
};
use crate::config::identity::RateLimit;

/// Why a caller may not grant something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum GrantError {
    /// The caller's own key lacks a scope.
    #[error("the caller's key does not have the scope {0}")]
    Scope(Scope),
    /// The key would be valid for longer than the caller's.
    #[error("the key would expire after the caller's key")]
    Expiry,
    /// The key could be used more often than the caller's.
    #[error("the key's limits would be higher than those of the caller's key")]
    Limits,
    /// The key would belong to another tenant.
    #[error("only a key with the scope admin may create keys of another tenant")]
    Tenant,
}

/// The rights of a key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rights<'a> {
    pub scopes: &'a [Scope],
    pub expires_at: Option<OffsetDateTime>,
    pub limits: KeyLimits,
}

impl<'a> From<&'a KeyRecord> for Rights<'a> {
    fn from(key: &'a KeyRecord) -> Self {
        Self { scopes: &key.scopes, expires_at: key.expires_at, limits: key.limits }
    }
}

/// Checks that the caller may give a key with these rights. `general`: the limit of keys without their own.
///
/// # Errors
/// `Scope`, `Expiry` or `Limits`.
pub(super) fn check_grants(caller: &Caller, general: RateLimit, rights: Rights<'_>) -> Result<(), GrantError> {
    check_scopes(caller, rights.scopes)?;
    check_expiry(caller, rights.expires_at)?;
    check_limits(caller, general, rights.limits)
}

/// Checks that the caller may see a key that an earlier request created: one that it may be given as it is now, or one
/// that it created itself. The latter has seen the key before, and may be about to expire, having rotated itself with a
/// grace.
///
/// # Errors
/// As for `check_grants`.
pub(super) fn check_display(caller: &Caller, general: RateLimit, key: &KeyRecord) -> Result<(), GrantError> {
    if key.created_by == Some(caller.key) { Ok(()) } else { check_grants(caller, general, key.into()) }
}

/// Checks that the caller may change the key. What the patch names is granted by the caller. So are the other rights if
/// the key can do more than before: more scopes last for as long as the key does, and a longer life is one of all its
/// scopes.
///
/// # Errors
/// As for `check_grants`.
pub(super) fn check_change(
    caller: &Caller,
    general: RateLimit,
    key: &KeyRecord,
    patch: &KeyPatch,
) -> Result<(), GrantError> {
    let scopes = patch.scopes.as_ref().unwrap_or(&key.scopes);
    let expires_at = patch.expires_at.unwrap_or(key.expires_at);
    let limits = patch.limits.unwrap_or(key.limits);
    let widens = !scopes.iter().all(|scope| scope.is_held(&key.scopes))
        || is_later(expires_at, key.expires_at)
        || !key.limits.covers(limits, general);
    if widens || patch.scopes.is_some() {
        check_scopes(caller, scopes)?;
    }
    if widens || patch.expires_at.is_some() {
        check_expiry(caller, expires_at)?;
    }
    if widens || patch.limits.is_some() {
        check_limits(caller, general, limits)?;
    }
    Ok(())
}

fn check_scopes(caller: &Caller, scopes: &[Scope]) -> Result<(), GrantError> {
    scopes.iter().find(|scope| !caller.may(**scope)).map_or(Ok(()), |scope| Err(GrantError::Scope(*scope)))
}

fn check_expiry(caller: &Caller, expires_at: Option<OffsetDateTime>) -> Result<(), GrantError> {
    if is_later(expires_at, caller.expires_at) { Err(GrantError::Expiry) } else { Ok(()) }
}

/// An admin sets any limits; others none that are higher than their own.
fn check_limits(caller: &Caller, general: RateLimit, limits: KeyLimits) -> Result<(), GrantError> {
    if caller.may(Scope::Admin) || caller.limits.covers(limits, general) { Ok(()) } else { Err(GrantError::Limits) }
}

/// Returns whether `expires_at` is later than `other`; `None` is never.
fn is_later(expires_at: Option<OffsetDateTime>, other: Option<OffsetDateTime>) -> bool {
    other.is_some_and(|other| expires_at.is_none_or(|at| at > other))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::core::id::{KeyId, TenantId};

    const GENERAL: RateLimit = RateLimit { rps: 10.0, burst: 10 };
    const SOON: OffsetDateTime = datetime!(2030-01-01 00:00:00 UTC);
    const LATER: OffsetDateTime = datetime!(2031-01-01 00:00:00 UTC);

    fn caller(scopes: &[Scope], expires_at: Option<OffsetDateTime>) -> Caller {
        Caller {
            key: KeyId::new(),
            name: "caller".into(),
            tenant: TenantId::new(),
            scopes: scopes.to_vec(),
            expires_at,
            limits: KeyLimits::GENERAL,
        }
    }

    fn key(scopes: &[Scope], expires_at: Option<OffsetDateTime>) -> KeyRecord {
        KeyRecord {
            id: KeyId::new(),
            ver: 1,
            name: "key".into(),
            tenant: TenantId::new(),
            scopes: scopes.to_vec(),
            limits: KeyLimits::GENERAL,
            hint: String::new(),
            created_at: SOON,
            created_by: None,
            expires_at,
            revoked_at: None,
            last_used_at: None,
        }
    }

    #[test]
    fn caller_grants_no_more_than_it_has() {
        let fast = KeyLimits::own(RateLimit { rps: 11.0, burst: 1 });
        let writer = caller(&[Scope::KeysWrite], Some(SOON));
        let admin = caller(&[Scope::Admin], None);

        for (caller, scopes, expires_at, limits, expected) in [
            (&writer, &[Scope::KeysWrite][..], Some(SOON), KeyLimits::GENERAL, Ok(())),
            (&writer, &[Scope::KeysRead], Some(SOON), KeyLimits::GENERAL, Err(GrantError::Scope(Scope::KeysRead))),
            (&writer, &[Scope::KeysWrite], Some(LATER), KeyLimits::GENERAL, Err(GrantError::Expiry)),
            (&writer, &[Scope::KeysWrite], None, KeyLimits::GENERAL, Err(GrantError::Expiry)),
            (&writer, &[Scope::KeysWrite], Some(SOON), fast, Err(GrantError::Limits)),
            (&admin, Scope::ALL, None, fast, Ok(())),
        ] {
            assert_eq!(check_grants(caller, GENERAL, Rights { scopes, expires_at, limits }), expected);
        }
    }

    #[test]
    fn change_that_widens_a_key_grants_all_of_it() {
        let writer = caller(&[Scope::KeysWrite], None);
        let (strong, weak) = (key(&[Scope::InstancesRead], Some(SOON)), key(&[Scope::KeysWrite], Some(SOON)));
        let rename = KeyPatch { name: Some("new".into()), ..KeyPatch::default() };
        let extend = KeyPatch { expires_at: Some(Some(LATER)), ..KeyPatch::default() };
        let shorten = KeyPatch { expires_at: Some(Some(SOON)), ..KeyPatch::default() };

        assert_eq!(check_change(&writer, GENERAL, &strong, &rename), Ok(()));
        assert_eq!(check_change(&writer, GENERAL, &strong, &shorten), Ok(()));
        assert_eq!(
            check_change(&writer, GENERAL, &strong, &extend),
            Err(GrantError::Scope(Scope::InstancesRead)),
            "a longer life of scopes that the caller does not have"
        );
        assert_eq!(check_change(&writer, GENERAL, &weak, &extend), Ok(()));
    }

    #[test]
    fn created_key_is_shown_again_to_its_creator() {
        let (creator, other) = (caller(&[Scope::KeysWrite], Some(SOON)), caller(&[Scope::KeysWrite], None));
        let mut created = key(&[Scope::InstancesRead], None);
        created.created_by = Some(creator.key);

        assert_eq!(check_display(&creator, GENERAL, &created), Ok(()));
        assert_eq!(check_display(&other, GENERAL, &created), Err(GrantError::Scope(Scope::InstancesRead)));
    }
}
