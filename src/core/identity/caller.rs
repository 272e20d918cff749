//! The caller of a request: which key of which tenant it used, and what that key may do.

use time::OffsetDateTime;

use super::limits::KeyLimits;
use crate::core::{
    id::{KeyId, TenantId},
    text_enum::{UnknownText, text_enum},
};

text_enum! {
    /// What a key may do. `Admin` includes all the others; `write` does not include `read`.
    pub enum Scope as Scope {
        /// List and show instances and their jobs.
        InstancesRead = "instances:read",
        /// Create, start, stop and delete instances.
        InstancesWrite = "instances:write",
        /// List and show networks.
        NetworksRead = "networks:read",
        /// Create and delete networks.
        NetworksWrite = "networks:write",
        /// List and show keys.
        KeysRead = "keys:read",
        /// Create, change, rotate and revoke keys.
        KeysWrite = "keys:write",
        /// Everything, for every tenant.
        Admin = "admin",
    }
}

impl Scope {
    /// Returns whether a key with these scopes has this one.
    pub fn is_held(self, scopes: &[Self]) -> bool {
        scopes.contains(&self) || scopes.contains(&Self::Admin)
    }

    /// Returns the scopes that this release knows, for a request that is being authenticated.
    ///
    /// During an update a newer release can give a key a scope that this one does not know. Such a scope grants nothing
    /// here, and refusing the whole key would make its client discard it. It is logged, and `KeyRecord` treats it as an
    /// error, so that this release never copies a scope that it cannot check.
    pub(super) fn known(key: KeyId, texts: &[String]) -> Vec<Self> {
        let log = |error: &UnknownText| {
            tracing::warn!(%key, %error, "a key has a scope that this release does not know; ignoring the scope");
        };
        texts.iter().filter_map(|text| text.parse().inspect_err(log).ok()).collect()
    }
}

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq)]
pub struct Caller {
    /// The key that was used.
    pub key: KeyId,
    /// The key's name.
    pub name: String,
    /// The tenant that owns the key.
    pub tenant: TenantId,
    /// The key's scopes.
    pub scopes: Vec<Scope>,
    /// When the key expires; `None`: never.
    pub expires_at: Option<OffsetDateTime>,
    /// How often the key may be used.
    pub limits: KeyLimits,
}

impl Caller {
    /// Returns whether the key has the scope.
    pub fn may(&self, scope: Scope) -> bool {
        scope.is_held(&self.scopes)
    }

    /// Returns the tenant whose keys the caller manages; `None`: an admin manages the keys of all tenants.
    pub fn managed_tenant(&self) -> Option<TenantId> {
        (!self.may(Scope::Admin)).then_some(self.tenant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(scope: Scope) -> Caller {
        Caller {
            key: KeyId::new(),
            name: String::new(),
            tenant: TenantId::new(),
            scopes: vec![scope],
            expires_at: None,
            limits: KeyLimits::GENERAL,
        }
    }

    #[test]
    fn write_does_not_include_read_and_admin_includes_all() {
        assert!(!caller(Scope::InstancesWrite).may(Scope::InstancesRead));
        assert!(Scope::ALL.iter().all(|scope| caller(Scope::Admin).may(*scope)));
    }

    #[test]
    fn unknown_scope_of_a_key_grants_nothing() {
        let texts = ["root", "keys:read", "Admin", "admin "].map(str::to_owned);

        assert_eq!(Scope::known(KeyId::new(), &texts), [Scope::KeysRead]);
    }
}
