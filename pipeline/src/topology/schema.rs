//! The JSON Schema of a topology, for editors: draft-07, because that is what yaml-language-server
//! reads. It comes from the types that the loader itself reads, and from the registries.
//!
//! It says what a key may hold; what keys mean together (names, wiring, shares) is `check`'s.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use tidings_schemas::units::Rate;

use super::config::VERSION;
use super::kinds::{OperatorKinds, ProviderKinds};
use super::raw;

/// The schema for topologies with these kinds.
#[must_use]
pub fn schema(operators: &OperatorKinds, providers: &ProviderKinds) -> Value {
    let mut generator = SchemaSettings::draft07().into_generator();
    let mut properties = Map::new();
    properties.insert("$schema".to_owned(), json!({ "type": "string", "description": "This schema." }));
    let version = json!({ "const": VERSION, "description": "The version of the language." });
    properties.insert("version".to_owned(), version);
    section::<raw::Topics>(&mut properties, &mut generator, "topics", "The topics between stages.");
    section::<raw::Log>(&mut properties, &mut generator, "log", "The durable log.");
    section::<raw::Checkpoints>(&mut properties, &mut generator, "checkpoints", "Where checkpoints go.");
    section::<raw::Store>(&mut properties, &mut generator, "ledger", "The delivery ledger.");
    section::<raw::Store>(&mut properties, &mut generator, "directory", "The view of addresses.");
    section::<raw::Record>(&mut properties, &mut generator, "record", "Where rows go.");
    section::<std::collections::BTreeMap<String, raw::Source>>(
        &mut properties,
        &mut generator,
        "sources",
        "Where records come from, by name.",
    );
    properties.insert("operators".to_owned(), operator_list(&mut generator, operators));
    let channels: Map<String, Value> = tidings_schemas::channel::Channel::ALL
        .iter()
        .map(|channel| (channel.to_string(), generator.subschema_for::<raw::Sink>().to_value()))
        .collect();
    properties.insert(
        "sinks".to_owned(),
        json!({ "type": "object", "description": "Where legs go, by channel.", "properties": channels, "additionalProperties": false }),
    );
    properties.insert("providers".to_owned(), provider_map(&mut generator, providers));
    section::<raw::Policies>(&mut properties, &mut generator, "policies", "The rules.");
    section::<Vec<raw::Test>>(&mut properties, &mut generator, "tests", "Tests in virtual time: `tidings test`.");
    let definitions = generator.take_definitions(true);
    let mut whole = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "tidings topology",
        "description": "Decides whether, when, on which channel and together with what a person is told.",
        "type": "object",
        "properties": properties,
        "required": ["version", "log", "sources", "operators", "sinks"],
        "additionalProperties": false,
        "definitions": definitions,
    });
    allow_interpolation(&mut whole);
    whole
}

fn section<T: JsonSchema>(
    properties: &mut Map<String, Value>,
    generator: &mut SchemaGenerator,
    name: &str,
    description: &str,
) {
    let schema = generator.subschema_for::<T>().to_value();
    // Beside a `$ref` draft-07 reads nothing else: the description needs a level of its own.
    properties.insert(name.to_owned(), json!({ "description": description, "allOf": [schema] }));
}

/// The schema of a kind's parameters, with the keys that every one has.
fn with_common_keys(mut params: Value, common: &Value, required: &[&str]) -> Value {
    if let (Some(properties), Some(common)) =
        (params.as_object_mut().map(|map| map.entry("properties").or_insert_with(|| json!({}))), common.as_object())
        && let Some(properties) = properties.as_object_mut()
    {
        properties.extend(common.clone());
    }
    if let Some(map) = params.as_object_mut() {
        let own = map.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
        let all: Vec<Value> = required.iter().map(|key| json!(key)).chain(own).collect();
        map.insert("required".to_owned(), Value::Array(all));
        map.insert("additionalProperties".to_owned(), json!(false));
        map.remove("title");
        map.remove("$schema");
    }
    params
}

fn operator_list(generator: &mut SchemaGenerator, kinds: &OperatorKinds) -> Value {
    let one_or_many = generator.subschema_for::<raw::OneOrManyTexts>().to_value();
    let kinds: Vec<Value> = kinds
        .0
        .iter()
        .map(|(name, kind)| {
            let common = json!({
                "id": { "type": "string", "description": "For ever: state hangs on it." },
                "kind": { "const": name },
                "input": { "description": "Sources or operators, in the order of their ports.", "allOf": [one_or_many] },
                "when": { "type": "string", "description": "The condition under which it takes an item." },
            });
            let params: Schema = (kind.schema)(generator);
            with_common_keys(params.to_value(), &common, &["id", "kind", "input"])
        })
        .collect();
    json!({ "type": "array", "description": "What decides, in any order.", "items": { "anyOf": kinds } })
}

fn provider_map(generator: &mut SchemaGenerator, kinds: &ProviderKinds) -> Value {
    let rate = generator.subschema_for::<Rate>().to_value();
    let rate = json!({ "description": "At most so many deliveries, in each process that delivers; what exceeds it waits in the lane, critical ones do not.", "allOf": [rate] });
    let (mut named, mut any) = (Map::new(), Vec::new());
    for (name, kind) in &kinds.0 {
        let params: Value = (kind.schema)(generator).to_value();
        let common = json!({ "kind": { "const": name }, "rate": rate });
        named.insert((*name).to_owned(), with_common_keys(params.clone(), &common, &[]));
        any.push(with_common_keys(params, &common, &["kind"]));
    }
    json!({
        "type": "object",
        "description": "Who carries, by name. A name is its kind, unless `kind` says otherwise.",
        "properties": named,
        "additionalProperties": { "anyOf": any },
    })
}

/// Numbers, switches and quantities may come from the environment.
fn allow_interpolation(schema: &mut Value) {
    const VARIABLE: &str = r"\$\{";
    match schema {
        Value::Array(items) => items.iter_mut().for_each(allow_interpolation),
        Value::Object(map) => {
            if let Some(Value::String(pattern)) = map.get_mut("pattern") {
                *pattern = format!("{pattern}|{VARIABLE}");
            } else if let Some(kind @ ("integer" | "number" | "boolean")) = map.get("type").and_then(Value::as_str) {
                let kinds = json!([kind, "string"]);
                map.insert("type".to_owned(), kinds);
                map.insert("pattern".to_owned(), json!(VARIABLE));
                map.remove("format");
            }
            map.values_mut().for_each(allow_interpolation);
        }
        _ => {}
    }
}
