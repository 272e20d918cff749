//! Finds the changes of the OpenAPI document that break a client which was written for the older one.
//!
//! References are resolved first, so that moving a schema or naming it differently is no change. What a client sends may not
//! be narrowed: no operation, parameter, field or enum value is removed, none becomes required, no type or bound gets
//! tighter. What a client receives may not be widened: no field is removed or becomes optional, no type is added. A new enum
//! value in a response is no breaking change: the contract allows additions.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Which side a schema constrains.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    /// The client sends it.
    Request,
    /// The client receives it.
    Response,
}

/// Lower bounds, which a request may not raise.
const MINIMA: [&str; 4] = ["minimum", "exclusiveMinimum", "minLength", "minItems"];
/// Upper bounds, which a request may not lower.
const MAXIMA: [&str; 4] = ["maximum", "exclusiveMaximum", "maxLength", "maxItems"];

/// Returns the breaking changes from `old` to `new`, each as one line for the changelog.
pub fn breaking_changes(old: &Value, new: &Value) -> Vec<String> {
    let mut comparison = Comparison { old, new, open: Vec::new(), found: Vec::new() };
    for (path, item) in old["paths"].as_object().into_iter().flatten() {
        for (method, operation) in item.as_object().into_iter().flatten() {
            let place = format!("{} {path}", method.to_uppercase());
            match new["paths"].get(path).and_then(|item| item.get(method)) {
                Some(present) => comparison.operation(&place, operation, present),
                None => comparison.found.push(format!("{place} is removed")),
            }
        }
    }
    comparison.found
}

struct Comparison<'a> {
    old: &'a Value,
    new: &'a Value,
    /// The pairs of references that are being compared: a schema may contain itself.
    open: Vec<(String, String)>,
    found: Vec<String>,
}

/// What a schema allows, with references resolved and `allOf` joined.
#[derive(Default)]
struct Shape {
    /// `None`: any type.
    types: Option<BTreeSet<String>>,
    values: Option<BTreeSet<String>>,
    properties: BTreeMap<String, Value>,
    required: BTreeSet<String>,
    items: Option<Value>,
    /// The schema of other properties; `false` when there may be none.
    others: Option<Value>,
    /// Bounds, format and pattern.
    rules: BTreeMap<String, Value>,
    /// More than one alternative beside null.
    alternatives: Option<Value>,
}

impl<'a> Comparison<'a> {
    fn operation(&mut self, place: &str, old: &'a Value, new: &'a Value) {
        if old["operationId"] != new["operationId"] {
            self.found.push(format!("{place}: the operation id {} is {}", old["operationId"], new["operationId"]));
        }
        let is_public = |operation: &Value| operation["security"] == serde_json::json!([{}]);
        if is_public(old) && !is_public(new) {
            self.found.push(format!("{place} requires a key"));
        }
        self.parameters(place, old, new);
        self.request_body(place, &old["requestBody"], &new["requestBody"]);
        for (status, response) in old["responses"].as_object().into_iter().flatten() {
            let place = format!("{place}, response {status}");
            match new["responses"].get(status) {
                Some(present) => self.contents(&place, response, present, Side::Response),
                None => self.found.push(format!("{place} is removed")),
            }
        }
    }

    fn parameters(&mut self, place: &str, old: &'a Value, new: &'a Value) {
        let by_name = |operation: &'a Value| -> BTreeMap<(&str, &str), &'a Value> {
            let all = operation["parameters"].as_array().into_iter().flatten();
            all.filter_map(|one| Some(((one["in"].as_str()?, one["name"].as_str()?), one))).collect()
        };
        let (before, after) = (by_name(old), by_name(new));
        for ((kind, name), parameter) in &before {
            let place = format!("{place}, {kind} parameter {name}");
            match after.get(&(*kind, *name)) {
                Some(present) => self.schema(&place, &parameter["schema"], &present["schema"], Side::Request),
                None => self.found.push(format!("{place} is removed")),
            }
        }
        for ((kind, name), parameter) in &after {
            let was_required = before.get(&(*kind, *name)).is_some_and(|before| before["required"] == true);
            if parameter["required"] == true && !was_required {
                self.found.push(format!("{place}, {kind} parameter {name} is required"));
            }
        }
    }

    fn request_body(&mut self, place: &str, old: &'a Value, new: &'a Value) {
        let place = format!("{place}, request body");
        if new["required"] == true && old["required"] != true {
            self.found.push(format!("{place} is required"));
        }
        match (old.is_null(), new.is_null()) {
            (false, true) => self.found.push(format!("{place} is removed")),
            (false, false) => self.contents(&place, old, new, Side::Request),
            (true, _) => {}
        }
    }

    fn contents(&mut self, place: &str, old: &'a Value, new: &'a Value, side: Side) {
        for (media_type, content) in old["content"].as_object().into_iter().flatten() {
            match new["content"].get(media_type) {
                Some(present) => self.schema(place, &content["schema"], &present["schema"], side),
                None => self.found.push(format!("{place}: the media type {media_type} is removed")),
            }
        }
    }

    fn schema(&mut self, place: &str, old: &Value, new: &Value, side: Side) {
        let reference = |schema: &Value| schema["$ref"].as_str().map(ToOwned::to_owned);
        let pair = reference(old).zip(reference(new));
        if let Some(pair) = &pair {
            if self.open.contains(pair) {
                return;
            }
            self.open.push(pair.clone());
        }
        let (before, after) = (Shape::of(self.old, old), Shape::of(self.new, new));
        self.values(place, &before, &after, side);
        self.rules(place, &before, &after, side);
        self.fields(place, &before, &after, side);
        if pair.is_some() {
            self.open.pop();
        }
    }

    fn values(&mut self, place: &str, old: &Shape, new: &Shape, side: Side) {
        let (narrow, wide) = if side == Side::Request { (&new.types, &old.types) } else { (&old.types, &new.types) };
        let lacks = |kind: &String| {
            let narrow = narrow.as_ref();
            narrow.is_some_and(|types| !(types.contains(kind) || kind == "integer" && types.contains("number")))
        };
        let differs = match wide {
            Some(kinds) => kinds.iter().any(lacks),
            None => narrow.is_some(),
        };
        if differs {
            let list = |types: &Option<BTreeSet<String>>| {
                types
                    .as_ref()
                    .map_or_else(|| "any".to_owned(), |types| types.iter().cloned().collect::<Vec<_>>().join(" or "))
            };
            self.found.push(format!("{place}: the type {} is {}", list(&old.types), list(&new.types)));
        }
        match (&old.values, &new.values) {
            (Some(before), Some(after)) => {
                let removed = before.difference(after).map(|value| format!("{place}: the value {value} is removed"));
                self.found.extend(removed);
            }
            (None, Some(_)) if side == Side::Request => {
                self.found.push(format!("{place}: only listed values are allowed"))
            }
            (Some(_), None) if side == Side::Response => self.found.push(format!("{place}: the values are not listed")),
            _ => {}
        }
        if old.alternatives != new.alternatives {
            self.found.push(format!("{place}: the alternatives differ"));
        }
    }

    fn rules(&mut self, place: &str, old: &Shape, new: &Shape, side: Side) {
        for (rule, value) in &new.rules {
            let before = old.rules.get(rule);
            let bounds = before.and_then(Value::as_f64).zip(value.as_f64());
            let is_tighter = match bounds {
                Some((before, after)) if MINIMA.contains(&rule.as_str()) => after > before,
                Some((before, after)) if MAXIMA.contains(&rule.as_str()) => after < before,
                _ => before != Some(value),
            };
            // A response may keep a rule more strictly, but has another form when its format differs.
            if is_tighter && (side == Side::Request || rule == "format" && before.is_some()) {
                let before = before.map_or_else(|| "none".to_owned(), ToString::to_string);
                self.found.push(format!("{place}: {rule} {before} is {value}"));
            }
        }
    }

    fn fields(&mut self, place: &str, old: &Shape, new: &Shape, side: Side) {
        for (name, field) in &old.properties {
            let place = format!("{place}, field {name}");
            match new.properties.get(name) {
                Some(present) => self.schema(&place, field, present, side),
                None => self.found.push(format!("{place} is removed")),
            }
        }
        let (required, what) = match side {
            Side::Request => (new.required.difference(&old.required), "is required"),
            // One that is removed is reported already.
            Side::Response => (old.required.difference(&new.required), "may be absent"),
        };
        let required = required.filter(|name| new.properties.contains_key(*name));
        self.found.extend(required.map(|name| format!("{place}, field {name} {what}")));
        if let (Some(before), Some(after)) = (&old.items, &new.items) {
            self.schema(&format!("{place}, items"), before, after, side);
        }
        match (&old.others, &new.others) {
            (before, Some(Value::Bool(false))) if side == Side::Request && *before != Some(Value::Bool(false)) => {
                self.found.push(format!("{place}: other fields are refused"));
            }
            (Some(before @ Value::Object(_)), Some(after @ Value::Object(_))) => {
                self.schema(&format!("{place}, other fields"), before, after, side);
            }
            _ => {}
        }
    }
}

impl Shape {
    fn of(document: &Value, schema: &Value) -> Self {
        if let Some(reference) = schema["$ref"].as_str() {
            let target = document.pointer(reference.trim_start_matches('#')).unwrap_or_else(|| panic!("{reference}"));
            return Self::of(document, target);
        }
        let texts = |value: &Value| -> BTreeSet<String> {
            value.as_array().into_iter().flatten().map(|text| text.as_str().unwrap_or_default().to_owned()).collect()
        };
        let mut shape = Self {
            types: match &schema["type"] {
                Value::String(one) => Some(BTreeSet::from([one.clone()])),
                Value::Array(_) => Some(texts(&schema["type"])),
                _ => None,
            },
            values: schema["enum"].as_array().map(|values| {
                // Whether null is allowed is a matter of the type.
                values.iter().filter(|value| !value.is_null()).map(ToString::to_string).collect()
            }),
            required: texts(&schema["required"]),
            items: schema.get("items").cloned(),
            others: schema.get("additionalProperties").cloned(),
            ..Self::default()
        };
        let properties = schema["properties"].as_object().into_iter().flatten();
        shape.properties = properties.map(|(name, field)| (name.clone(), field.clone())).collect();
        let rules = MINIMA.iter().chain(&MAXIMA).chain(&["format", "pattern"]);
        shape.rules = rules.filter_map(|rule| Some(((*rule).to_owned(), schema.get(*rule)?.clone()))).collect();
        for part in schema["allOf"].as_array().into_iter().flatten() {
            shape.join(Self::of(document, part));
        }
        shape.choose(document, schema["oneOf"].as_array().or(schema["anyOf"].as_array()));
        shape
    }

    fn join(&mut self, other: Self) {
        self.types = self.types.take().or(other.types);
        self.values = self.values.take().or(other.values);
        self.properties.extend(other.properties);
        self.required.extend(other.required);
        self.items = self.items.take().or(other.items);
        self.others = self.others.take().or(other.others);
        self.rules.extend(other.rules);
        self.alternatives = self.alternatives.take().or(other.alternatives);
    }

    /// Reads `oneOf`: a schema or null is that schema with one more type; anything else is compared as a whole.
    fn choose(&mut self, document: &Value, alternatives: Option<&Vec<Value>>) {
        let Some(alternatives) = alternatives else { return };
        let (null, schemas): (Vec<&Value>, Vec<&Value>) = alternatives.iter().partition(|one| one["type"] == "null");
        if let [schema] = schemas[..] {
            self.join(Self::of(document, schema));
            if let Some(types) = self.types.as_mut().filter(|_| !null.is_empty()) {
                types.insert("null".to_owned());
            }
        } else {
            self.alternatives = Some(Value::Array(alternatives.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A document with one operation whose request and response both have the schema `Thing`.
    fn document(thing: &Value) -> Value {
        let content = json!({"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}});
        let limit = json!({"in": "query", "name": "limit", "required": false, "schema": {"type": "number"}});
        let operation = json!({
            "operationId": "create_thing", "security": [{}], "parameters": [limit],
            "requestBody": {"content": content}, "responses": {"200": {"content": content}, "404": {}},
        });
        let inner = json!({"type": "object", "properties": {"again": {"$ref": "#/components/schemas/Thing"}}});
        json!({"paths": {"/things": {"post": operation}}, "components": {"schemas": {"Thing": thing, "Inner": inner}}})
    }

    fn thing() -> Value {
        json!({
            "type": "object", "required": ["id"],
            "properties": {
                "id": {"type": "string"}, "size": {"type": ["integer", "null"], "minimum": 1, "maximum": 9},
                "status": {"type": "string", "enum": ["old", "new"]}, "tags": {"type": "array", "items": {"type": "string"}},
                "inner": {"oneOf": [{"type": "null"}, {"$ref": "#/components/schemas/Inner"}]},
            },
        })
    }

    #[test]
    fn breaking_changes_are_found_with_their_place() {
        let (body, answer) = ("POST /things, request body", "POST /things, response 200");
        for (pointer, value, expected) in [
            ("/paths", json!({}), vec!["POST /things is removed".to_owned()]),
            (
                "/paths/~1things/post/operationId",
                json!("make"),
                vec![r#"POST /things: the operation id "create_thing" is "make""#.into()],
            ),
            ("/paths/~1things/post/security", json!([{"key": []}]), vec!["POST /things requires a key".into()]),
            (
                "/paths/~1things/post/parameters",
                json!([]),
                vec!["POST /things, query parameter limit is removed".into()],
            ),
            (
                "/paths/~1things/post/parameters/0/required",
                json!(true),
                vec!["POST /things, query parameter limit is required".into()],
            ),
            (
                "/paths/~1things/post/parameters/0/schema/type",
                json!("integer"),
                vec!["POST /things, query parameter limit: the type number is integer".into()],
            ),
            ("/paths/~1things/post/requestBody", Value::Null, vec![format!("{body} is removed")]),
            ("/paths/~1things/post/responses/404", Value::Null, vec![]),
            (
                "/paths/~1things/post/responses/200/content",
                json!({}),
                vec![format!("{answer}: the media type application/json is removed")],
            ),
            (
                "/components/schemas/Thing/properties/status/enum",
                json!(["new"]),
                vec![
                    format!(r#"{body}, field status: the value "old" is removed"#),
                    format!(r#"{answer}, field status: the value "old" is removed"#),
                ],
            ),
            (
                "/components/schemas/Thing/required",
                json!(["id", "size"]),
                vec![format!("{body}, field size is required")],
            ),
            ("/components/schemas/Thing/required", json!([]), vec![format!("{answer}, field id may be absent")]),
            (
                "/components/schemas/Thing/properties/size/type",
                json!("integer"),
                vec![format!("{body}, field size: the type integer or null is integer")],
            ),
            (
                "/components/schemas/Thing/properties/id/type",
                json!(["string", "null"]),
                vec![format!("{answer}, field id: the type string is null or string")],
            ),
            (
                "/components/schemas/Thing/properties/size/minimum",
                json!(2),
                vec![format!("{body}, field size: minimum 1 is 2")],
            ),
            (
                "/components/schemas/Thing/properties/size/maximum",
                json!(8),
                vec![format!("{body}, field size: maximum 9 is 8")],
            ),
            (
                "/components/schemas/Thing/properties/tags/items/type",
                json!("integer"),
                vec![
                    format!("{body}, field tags, items: the type string is integer"),
                    format!("{answer}, field tags, items: the type string is integer"),
                ],
            ),
            (
                "/components/schemas/Inner/properties",
                json!({}),
                vec![
                    format!("{body}, field inner, field again is removed"),
                    format!("{answer}, field inner, field again is removed"),
                ],
            ),
        ] {
            let old = document(&thing());
            let mut new = old.clone();
            *new.pointer_mut(pointer).expect(pointer) = value;

            let found = breaking_changes(&old, &new);

            assert_eq!(found, expected, "{pointer}");
        }
    }

    #[test]
    fn additions_and_other_names_of_schemas_are_no_breaking_changes() {
        let old = document(&thing());
        let mut new = old.clone();
        for (pointer, name, value) in [
            ("/paths", "/others", json!({"get": {}})),
            ("/paths/~1things", "get", json!({})),
            ("/paths/~1things/post/responses", "409", json!({})),
            ("/components/schemas/Thing/properties", "colour", json!({"type": "string"})),
            ("/components/schemas/Thing/properties/status", "enum", json!(["old", "new", "newest"])),
            // The same, by a reference.
            ("/components/schemas", "Status", json!({"type": "string", "enum": ["old", "new"]})),
            ("/components/schemas/Thing/properties", "status", json!({"$ref": "#/components/schemas/Status"})),
        ] {
            new.pointer_mut(pointer).and_then(Value::as_object_mut).expect(pointer).insert(name.to_owned(), value);

            assert_eq!(breaking_changes(&old, &new), [""; 0], "{pointer} {name}");
        }
    }
}
