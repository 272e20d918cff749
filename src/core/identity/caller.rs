//! The caller: which key of which tenant, and what it may do.

use std::{fmt, str::FromStr};

use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::core::id::{KeyId, TenantId};

macro_rules! scopes {
    ($($name:ident = $text:literal),* $(,)?) => {
        /// What a key may do. `Admin` holds all the others.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ToSchema)]
        pub enum Scope { $(#[schema(rename = $text)] $name),* }

        impl Scope {
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Whether who holds these scopes holds this one; `write` does not imply `read`.
            pub fn is_held(self, scopes: &[Self]) -> bool {
                scopes.contains(&self) || scopes.contains(&Self::Admin)
            }

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }

        impl FromStr for Scope {
            type Err = ();

            fn from_str(text: &str) -> Result<Self, ()> {
                match text { $($text => Ok(Self::$name),)* _ => Err(()) }
            }
        }
    };
}

scopes! {
    InstancesRead = "instances:read",
    InstancesWrite = "instances:write",
    NetworksRead = "networks:read",
    NetworksWrite = "networks:write",
    KeysRead = "keys:read",
    KeysWrite = "keys:write",
    Admin = "admin",
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
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
