//! Enums whose values are texts in JSON, in Postgres and in metrics: one list of names, and everything derived from it.
//!
//! `text_enum!` derives `ALL`, `as_str`, `FromStr`, `Display`, serde, `ToSql` and `FromSql` (for `text`, `varchar` and
//! unconstrained literals) and the OpenAPI schema. A text that is not in the list is an error everywhere it is read: an
//! unknown value in a row is never replaced by a default.

use thiserror::Error;

/// A text that is none of the enum's values.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("unknown {name}: {text:?}")]
pub struct UnknownText {
    /// The enum's name.
    pub name: &'static str,
    /// The text, cut after 64 characters.
    pub text: String,
}

impl UnknownText {
    /// Describes a text that is no value of the enum `name`.
    pub fn new(name: &'static str, text: &str) -> Self {
        Self { name, text: text.chars().take(64).collect() }
    }
}

/// Declares an enum with the text of each value: `pub enum Status as InstanceStatus { Pending = "pending", … }`. The name
/// after `as` is that of its OpenAPI schema.
macro_rules! text_enum {
    (
        $(#[$meta:meta])*
        pub enum $name:ident as $schema:ident { $($(#[$variant_meta:meta])* $variant:ident = $text:literal),* $(,)? }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, utoipa::ToSchema)]
        #[schema(as = $schema)]
        pub enum $name { $($(#[$variant_meta])* #[schema(rename = $text)] $variant),* }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Returns the text that stands for the value in JSON, SQL and metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::core::text_enum::UnknownText;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    _ => Err($crate::core::text_enum::UnknownText::new(stringify!($name), text)),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl tokio_postgres::types::ToSql for $name {
            fn to_sql(
                &self,
                ty: &tokio_postgres::types::Type,
                out: &mut bytes::BytesMut,
            ) -> Result<tokio_postgres::types::IsNull, Box<dyn std::error::Error + Sync + Send>> {
                tokio_postgres::types::ToSql::to_sql(&self.as_str(), ty, out)
            }

            fn accepts(ty: &tokio_postgres::types::Type) -> bool {
                <&str as tokio_postgres::types::ToSql>::accepts(ty)
            }

            tokio_postgres::types::to_sql_checked!();
        }

        impl<'a> tokio_postgres::types::FromSql<'a> for $name {
            fn from_sql(
                ty: &tokio_postgres::types::Type,
                raw: &'a [u8],
            ) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
                Ok(<&str as tokio_postgres::types::FromSql>::from_sql(ty, raw)?.parse::<Self>()?)
            }

            fn accepts(ty: &tokio_postgres::types::Type) -> bool {
                <&str as tokio_postgres::types::FromSql>::accepts(ty)
            }
        }
    };
}

pub(crate) use text_enum;

#[cfg(test)]
mod tests {
    use super::UnknownText;

    text_enum! {
        /// For the tests.
        pub enum Colour as Colour { Red = "red", DarkBlue = "dark:blue" }
    }

    #[test]
    fn each_value_is_read_back_from_its_text() {
        for colour in Colour::ALL {
            assert_eq!(colour.as_str().parse(), Ok(*colour));
            let json = serde_json::to_string(colour).expect("a text");
            assert_eq!(serde_json::from_str::<Colour>(&json).expect("its own text"), *colour);
        }
    }

    #[test]
    fn unknown_text_is_an_error_that_names_the_enum() {
        let error = "green".parse::<Colour>().expect_err("not in the list");

        assert_eq!(error, UnknownText { name: "Colour", text: "green".into() });
        assert_eq!(error.to_string(), "unknown Colour: \"green\"");
        assert!(serde_json::from_str::<Colour>("\"green\"").is_err());
    }
}
