//! The caller: which key of which tenant, and what it may do.

use time::OffsetDateTime;

use crate::core::{
    id::{KeyId, TenantId},
    text_enum::text_enum,
};

text_enum! {
    /// What a key may do. `Admin` includes all the others; `write` does not include `read`.
    pub enum Scope as Scope {
        InstancesRead = "instances:read",
        InstancesWrite = "instances:write",
        NetworksRead = "networks:read",
        NetworksWrite = "networks:write",
        KeysRead = "keys:read",
        KeysWrite = "keys:write",
        Admin = "admin",
    }
}

impl Scope {
    /// Returns whether a key with these scopes has this one.
    pub fn is_held(self, scopes: &[Self]) -> bool {
        scopes.contains(&self) || scopes.contains(&Self::Admin)
    }
}

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq)]
pub struct Caller {
    pub key: KeyId,
    pub name: String,
    pub tenant: TenantId,
    pub scopes: Vec<Scope>,
    pub expires_at: Option<OffsetDateTime>,
    /// What differs from the general limits: `{"rps","burst"}`.
    pub limits: serde_json::Value,
}

impl Caller {
    /// Whether the key holds the scope; `write` does not imply `read`.
    pub fn may(&self, scope: Scope) -> bool {
        scope.is_held(&self.scopes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_read_back_as_written() {
        for scope in Scope::ALL {
            assert_eq!(scope.as_str().parse(), Ok(*scope));
        }
        assert!("root".parse::<Scope>().is_err());
    }

    #[test]
    fn write_does_not_imply_read_and_admin_implies_all() {
        let caller = |scope| Caller {
            key: KeyId::new(),
            name: String::new(),
            tenant: TenantId::new(),
            scopes: vec![scope],
            expires_at: None,
            limits: serde_json::Value::Null,
        };
        assert!(!caller(Scope::InstancesWrite).may(Scope::InstancesRead));
        assert!(Scope::ALL.iter().all(|scope| caller(Scope::Admin).may(*scope)));
    }
}
