//! Identifiers: one type per noun, so that an id of one noun cannot be passed where another one is meant.
//!
//! All are UUIDs in text, in JSON and in Postgres. New ones are version 7, so they sort by the time of their creation.

use std::{error::Error, fmt, str::FromStr};

use bytes::BytesMut;
use serde::{Deserialize, Serialize};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use uuid::{Uuid, fmt::Hyphenated};

/// Reads a UUID in its usual form, in upper or lower case. The other forms (in braces, without hyphens, as a URN) are
/// refused, since one resource would have several paths.
///
/// # Errors
/// When the text is no UUID in that form.
pub fn parse_uuid(text: &str) -> Result<Uuid, uuid::Error> {
    text.parse::<Hyphenated>().map(Hyphenated::into_uuid)
}

/// Returns a name or an id as it is stored: an id in lower case.
pub fn name_or_id(text: String) -> String {
    parse_uuid(&text).map_or(text, |id| id.to_string())
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Returns a new id, which sorts after earlier ones.
            #[allow(clippy::new_without_default, reason = "a default id would be a random one")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// Returns the UUID itself.
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl ToSql for $name {
            fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
                self.0.to_sql(ty, out)
            }

            fn accepts(ty: &Type) -> bool {
                <Uuid as ToSql>::accepts(ty)
            }

            to_sql_checked!();
        }

        impl<'a> FromSql<'a> for $name {
            fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
                Uuid::from_sql(ty, raw).map(Self)
            }

            fn accepts(ty: &Type) -> bool {
                <Uuid as FromSql>::accepts(ty)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse_uuid(text).map(Self)
            }
        }
    )*};
}

ids! {
    /// A customer: the owner of keys, networks, instances and jobs.
    TenantId;
    /// An API key's row, never its secret.
    KeyId;
    /// A container with its network, as the tenant sees it.
    InstanceId;
    /// One piece of asynchronous work on an instance.
    JobId;
    /// A tenant's network.
    NetworkId;
    /// A provisioning host.
    HostId;
    /// One run of a worker process.
    BootId;
    /// One claim of one job: never reused, so that a restored database cannot confuse two claims.
    LeaseId;
    /// One cluster; everything it creates outside Postgres carries this id.
    ClusterId;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_in_any_case_and_in_one_form() {
        let id = InstanceId::new();
        let text = id.to_string();

        assert_eq!(text.to_uppercase().parse(), Ok(id));
        assert_eq!(name_or_id(text.to_uppercase()), text);
        assert_eq!(name_or_id("Web".into()), "Web");
        for other in [id.uuid().simple().to_string(), format!("{{{text}}}"), format!("urn:uuid:{text}"), String::new()]
        {
            assert!(other.parse::<InstanceId>().is_err(), "{other}");
        }
    }
}
