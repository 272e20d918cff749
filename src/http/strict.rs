//! Reads JSON more strictly than serde does: an object may not have a name twice, an object may not be written as the list
//! of its values, and a document has at most `VALUES_MAX` values.
//!
//! A name that is given twice is refused because readers differ in which value counts: a proxy that checked the first one
//! would pass on what the last one says.

use std::{cell::Cell, fmt};

use serde::{
    Deserializer,
    de::{
        DeserializeSeed, Error, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor,
        value::{MapDeserializer, SeqDeserializer},
    },
};
use serde_json::{Map, Number, Value};

/// Number of values in a document, nested ones included. A body of 1 MiB may hold half a million, which take a hundred times
/// as much memory as their text; no request needs a tenth of this limit.
pub const VALUES_MAX: usize = 10_000;

/// Why a document was not read.
#[derive(Debug)]
pub enum Unreadable {
    /// It is not JSON, or an object has a name twice.
    Malformed {
        /// Continues "the body …".
        reason: &'static str,
        /// The line where reading ended, from 1.
        line: usize,
        /// The column where reading ended, from 1; 0 before the first character of a line.
        column: usize,
    },
    /// It has more than `VALUES_MAX` values; what follows was not read.
    TooManyValues,
}

/// Reads a document.
///
/// # Errors
/// `Malformed` when it is not one JSON document, or an object has a name twice; `TooManyValues`.
pub fn read(bytes: &[u8]) -> Result<Value, Unreadable> {
    let left = Cell::new(Some(VALUES_MAX));
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = AnyValue { left: &left }.deserialize(&mut deserializer);
    value.and_then(|value| deserializer.end().map(|()| value)).map_err(|error| match left.get() {
        None => Unreadable::TooManyValues,
        Some(_) => Unreadable::Malformed {
            reason: if error.is_data() { "has a name twice in one object" } else { "is not JSON" },
            line: error.line(),
            column: error.column(),
        },
    })
}

#[derive(Clone, Copy)]
struct AnyValue<'a> {
    /// How many further values are allowed; `None` when there was one too many.
    left: &'a Cell<Option<usize>>,
}

impl<'de> DeserializeSeed<'de> for AnyValue<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.left.set(self.left.get().and_then(|left| left.checked_sub(1)));
        if self.left.get().is_none() {
            return Err(D::Error::custom("too many values"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnyValue<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            let value = fields.next_value_seed(self)?;
            if values.insert(name, value).is_some() {
                return Err(A::Error::custom("duplicate name"));
            }
        }
        Ok(Value::Object(values))
    }
}

/// A deserializer that reads structs from objects only. A derived `Deserialize` also accepts the list of a struct's values.
#[derive(Clone, Copy)]
pub struct Objects<'de>(pub &'de Value);

impl<'de> Deserializer<'de> for Objects<'de> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Array(items) => visitor.visit_seq(SeqDeserializer::new(items.iter().map(Objects))),
            Value::Object(fields) => visitor
                .visit_map(MapDeserializer::new(fields.iter().map(|(name, value)| (name.as_str(), Objects(value))))),
            scalar => scalar.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        if self.0.is_array() {
            return Err(Error::invalid_type(Unexpected::Seq, &"an object"));
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, serde_json::Error> for Objects<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Any document of at most some hundred values.
    fn documents() -> impl Strategy<Value = Value> {
        let scalar = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::String),
        ];
        scalar.prop_recursive(4, 64, 8, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..8).prop_map(Value::Array),
                proptest::collection::btree_map(any::<String>(), inner, 0..8)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn document_without_duplicates_is_read_as_by_serde_json(document in documents(), pretty in any::<bool>()) {
            let text = if pretty { format!("{document:#}") } else { document.to_string() };

            let value = read(text.as_bytes()).expect("valid");

            prop_assert_eq!(value, serde_json::from_str::<Value>(&text).expect("valid"));
        }

        #[test]
        fn any_bytes_are_read_or_refused_as_by_serde_json(
            bytes in any::<Vec<u8>>(),
            text in r#"[\[\]{}:,"a0-9eE.+ \\-]{0,24}"#,
        ) {
            for bytes in [bytes, text.into_bytes()] {
                match (read(&bytes), serde_json::from_slice::<Value>(&bytes)) {
                    (Ok(value), expected) => prop_assert_eq!(value, expected.expect("valid")),
                    (Err(Unreadable::Malformed { reason: "is not JSON", .. }), expected) => {
                        prop_assert!(expected.is_err(), "{:?}", bytes);
                    }
                    (Err(Unreadable::Malformed { .. }), _) => prop_assert!(bytes.contains(&b'{'), "no object"),
                    (Err(error), _) => prop_assert!(false, "{error:?}"),
                }
            }
        }

        #[test]
        fn duplicate_name_is_found_at_any_depth(
            name in any::<String>(),
            values in (documents(), documents()),
            depth in 0..20_usize,
        ) {
            let name = Value::String(name);
            let object = format!("{{{name}:{},\"other\":0,{name}:{}}}", values.0, values.1);
            let text = format!("{}{object}{}", "[".repeat(depth), "]".repeat(depth));

            let error = read(text.as_bytes());

            let is_refused = matches!(error, Err(Unreadable::Malformed { reason: "has a name twice in one object", .. }));
            prop_assert!(is_refused, "{error:?}: {text}");
        }
    }

    #[test]
    fn document_with_too_many_values_is_refused() {
        // The array itself is one.
        let array = |items: usize| format!("[{}]", vec!["0"; items].join(","));
        assert!(read(array(VALUES_MAX - 1).as_bytes()).is_ok());
        for text in [array(VALUES_MAX), format!("{{\"a\":{}}}", array(VALUES_MAX - 1))] {
            assert!(matches!(read(text.as_bytes()), Err(Unreadable::TooManyValues)));
        }
        assert!(matches!(read(b"[1,2,]"), Err(Unreadable::Malformed { reason: "is not JSON", line: 1, column: 6 })));
        assert!(matches!(read(b"[] []"), Err(Unreadable::Malformed { reason: "is not JSON", .. })));
    }
}
