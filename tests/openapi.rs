//! The OpenAPI document as a client generator reads it: valid by the meta-schema, every operation described, and the
//! closed sets of the contract as enums. Needs no services.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use app::{
    api::{Access, docs::Document, routes},
    core::{
        identity::Scope,
        instances::{ReasonCode, RestartPolicy, Status},
        invalid,
        queue::{
            job::{JobKind, JobStatus},
            step::{StepName, StepStatus},
        },
    },
    http::problem::Code,
};
use boon::{Compiler, SchemaIndex, Schemas};
use serde_json::Value;
use utoipa::OpenApi;

/// See `openapi/README.md`.
const META_SCHEMA: &str = include_str!("openapi/schema-2022-10-07.json");
const JSON_SCHEMA: &str = "https://json-schema.org/draft/2020-12/schema";

fn document() -> Value {
    serde_json::to_value(Document::openapi()).expect("serializes")
}

fn compiled(schema: &str, resource: Option<Value>) -> (Schemas, SchemaIndex) {
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    if let Some(resource) = resource {
        compiler.add_resource(schema, resource).expect("a schema");
    }
    let index = compiler.compile(schema, &mut schemas).unwrap_or_else(|error| panic!("{error:#}"));
    (schemas, index)
}

/// Every object of the document with its JSON pointer.
fn objects<'a>(value: &'a Value, pointer: &str, into: &mut Vec<(String, &'a Value)>) {
    match value {
        Value::Object(fields) => {
            into.push((pointer.to_owned(), value));
            for (name, field) in fields {
                objects(field, &format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1")), into);
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                objects(item, &format!("{pointer}/{at}"), into);
            }
        }
        _ => {}
    }
}

/// Every operation: its path, its method, itself.
fn operations(document: &Value) -> Vec<(&str, &str, &Value)> {
    let paths = document["paths"].as_object().expect("paths");
    let of = |(path, item)| {
        let item: &Value = item;
        let methods = item.as_object().expect("a path item").iter();
        methods.map(move |(method, operation)| (path, method.as_str(), operation))
    };
    paths.iter().map(|(path, item)| (path.as_str(), item)).flat_map(of).collect()
}

/// The values of an enum: behind references, in an array, or beside null.
fn values(document: &Value, schema: &Value) -> Option<BTreeSet<String>> {
    if let Some(reference) = schema["$ref"].as_str() {
        return values(document, document.pointer(reference.trim_start_matches('#'))?);
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().filter(|value| !value.is_null()).map(|value| Some(value.as_str()?.to_owned())).collect();
    }
    let inner = schema["oneOf"].as_array().and_then(|all| all.iter().find(|one| one["type"] != "null"));
    values(document, inner.or_else(|| schema.get("items"))?)
}

fn set<'a>(texts: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    texts.into_iter().map(ToOwned::to_owned).collect()
}

fn is_filled(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.trim().is_empty())
}

#[test]
fn document_is_valid_by_the_meta_schema_of_openapi_3_1() {
    let meta: Value = serde_json::from_str(META_SCHEMA).expect("JSON");
    let id = meta["$id"].as_str().expect("an id").to_owned();
    let (schemas, index) = compiled(&id, Some(meta));
    let document = document();

    schemas.validate(&document, index).unwrap_or_else(|error| panic!("{error:#}"));

    // What it must catch.
    for (pointer, field) in [("", "info"), ("/paths/~1jobs/get/responses/200", "description")] {
        let mut broken = document.clone();
        broken.pointer_mut(pointer).and_then(Value::as_object_mut).expect(pointer).remove(field).expect(field);
        assert!(schemas.validate(&broken, index).is_err(), "accepted without {field} in {pointer}");
    }
}

/// The meta-schema of OpenAPI leaves what is inside a `schema` to that of JSON Schema.
#[test]
fn schemas_in_the_document_are_valid_json_schemas() {
    let (schemas, index) = compiled(JSON_SCHEMA, None);
    let document = document();
    let mut all = Vec::new();
    objects(&document["paths"], "/paths", &mut all);
    let in_paths = all.iter().filter_map(|(pointer, object)| Some((pointer.clone(), object.get("schema")?)));
    let components = document["components"]["schemas"].as_object().expect("schemas");
    let named = components.iter().map(|(name, schema)| (name.clone(), schema));

    let checked: Vec<_> = in_paths.chain(named).collect();

    assert!(checked.len() > 40, "only {} schemas", checked.len());
    for (place, schema) in checked {
        schemas.validate(schema, index).unwrap_or_else(|error| panic!("{place}: {error:#}"));
    }
}

#[test]
fn references_lead_somewhere() {
    let document = document();
    let mut all = Vec::new();
    objects(&document, "", &mut all);

    let references: Vec<_> = all.iter().filter_map(|(place, object)| Some((place, object["$ref"].as_str()?))).collect();

    assert!(references.len() > 30, "only {} references", references.len());
    for (place, reference) in references {
        let target = reference.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
        assert!(target.is_some(), "{place}: {reference}");
    }
}

#[test]
fn operations_are_named_and_described() {
    let document = document();
    let public: BTreeSet<_> = routes().iter().filter(|r| r.access == Access::Public).map(|r| r.path).collect();
    let mut ids: BTreeMap<&str, String> = BTreeMap::new();
    for (path, method, operation) in operations(&document) {
        let place = format!("{method} {path}");
        let id = operation["operationId"].as_str().unwrap_or_default();
        let verb = id.split('_').next().unwrap_or_default();
        assert!(["create", "list", "get", "update", "delete", "rotate", "revoke"].contains(&verb), "{place}: {id}");
        assert_eq!(ids.insert(id, place.clone()), None, "two operations are {id}");

        let responses = operation["responses"].as_object().expect("responses");
        for (status, response) in responses {
            assert!(is_filled(&response["description"]), "{place} {status} has no description");
        }
        assert_eq!(responses.contains_key("default"), !public.contains(path), "{place}: how it fails");
        if let Some(failure) = responses.get("default") {
            let schema = &failure["content"]["application/problem+json"]["schema"];
            assert_eq!(schema["$ref"], "#/components/schemas/Problem", "{place}");
        }

        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let mut names = BTreeSet::new();
        for parameter in &parameters {
            let (name, kind) =
                (parameter["name"].as_str().expect("a name"), parameter["in"].as_str().expect("a place"));
            assert!(is_filled(&parameter["description"]), "{place}: {name} has no description");
            assert!(names.insert((kind, name)), "{place}: {name} is declared twice");
            assert_eq!(parameter["required"], Value::Bool(kind == "path"), "{place}: {name}");
        }
        let declared: BTreeSet<&str> =
            names.iter().filter(|(kind, _)| *kind == "path").map(|(_, name)| *name).collect();
        let in_path: BTreeSet<&str> =
            path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
        assert_eq!(declared, in_path, "{place}: parameters of the path");
        let repeatable = names.contains(&("header", "Idempotency-Key"));
        assert_eq!(repeatable, ["post", "patch", "delete"].contains(&method), "{place}: Idempotency-Key");
    }
    assert_eq!(ids.len(), routes().len());
}

#[test]
fn closed_sets_are_enums_of_the_same_values_as_in_the_code() {
    let document = document();
    let schemas = &document["components"]["schemas"];
    let expected = [
        ("Instance", "status", set(Status::ALL.iter().map(|status| status.as_str()))),
        ("Instance", "restart_policy", set(RestartPolicy::ALL.iter().map(|policy| policy.as_str()))),
        ("CreateInstance", "restart_policy", set(RestartPolicy::ALL.iter().map(|policy| policy.as_str()))),
        ("RawPort", "protocol", set(["tcp", "udp"])),
        ("Port", "protocol", set(["tcp", "udp"])),
        ("Job", "status", set(JobStatus::ALL.iter().map(|status| status.as_str()))),
        ("Step", "name", set(StepName::ALL.iter().map(|name| name.as_str()))),
        ("Step", "status", set(StepStatus::ALL.iter().map(|status| status.as_str()))),
        ("Job", "kind", set(JobKind::ALL.iter().map(|kind| kind.as_str()))),
        ("Key", "scopes", set(Scope::ALL.iter().map(|scope| scope.as_str()))),
        ("CreateKey", "scopes", set(Scope::ALL.iter().map(|scope| scope.as_str()))),
        ("PatchKey", "scopes", set(Scope::ALL.iter().map(|scope| scope.as_str()))),
        ("Problem", "code", set(Code::ALL.iter().map(|code| code.as_str()))),
        ("Invalid", "code", set(invalid::CODES)),
        ("Reason", "code", set(ReasonCode::ALL.iter().map(|code| code.as_str()))),
        ("Ready", "status", set(["ready", "degraded", "unavailable", "stopping"])),
        ("Live", "status", set(["live"])),
        ("Pending", "propagation", set(["pending"])),
    ];
    for (schema, field, expected) in expected {
        let property = &schemas[schema]["properties"][field];
        assert_eq!(values(&document, property).as_ref(), Some(&expected), "{schema}.{field}: {property}");
    }

    // No other field of these names is a free text.
    let mut all = Vec::new();
    objects(&document, "", &mut all);
    let names = ["status", "kind", "restart_policy", "protocol", "scopes", "code", "propagation"];
    let properties = all.iter().filter_map(|(place, object)| Some((place, object.get("properties")?.as_object()?)));
    for (place, properties) in properties {
        for (name, property) in properties.iter().filter(|(name, _)| names.contains(&name.as_str())) {
            let is_number = property["type"] == "integer";
            assert!(is_number || values(&document, property).is_some(), "{place}: {name} is no enum: {property}");
        }
    }
    for (path, method, operation) in operations(&document) {
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let name = parameter["name"].as_str().expect("a name");
            if names.contains(&name) || (path, name) == ("/instances/{id}", "wait") {
                assert!(values(&document, &parameter["schema"]).is_some(), "{method} {path}: {name}: {parameter}");
            }
        }
    }
}

/// A code that a statement wrote by itself could be one that `ReasonCode` does not have.
#[test]
fn statements_take_reason_codes_as_parameters() {
    let mut folders = vec![PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
    let (mut parameters, mut literals) = (0, Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("sources") {
            let path = entry.expect("a file").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a source");
            parameters += text.matches("'code', $").count();
            literals.extend(text.contains("'code', '").then_some(path));
        }
    }

    assert!(parameters > 0, "the statements were not found");
    assert_eq!(literals, Vec::<PathBuf>::new());
}
