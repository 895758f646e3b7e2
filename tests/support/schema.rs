//! A checker of JSON against `etc/schema/hadmctl.json`: the part of JSON Schema that the file uses, and no more. A keyword that
//! it does not know is an error, so that nothing in the schema goes unchecked; and so is a field that the schema does not have.

use serde_json::{Map, Value};

/// The schema.
pub fn schema() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/etc/schema/hadmctl.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Holds a value against a definition of the schema.
#[track_caller]
pub fn assert_fits(definition: &str, value: &Value) {
    let schema = schema();
    let found = &schema["$defs"][definition];
    assert!(found.is_object(), "the schema has no {definition}");
    if let Err(why) = fits(&schema, found, value) {
        panic!("{definition}: {why}\nin {value}");
    }
}

/// Checks a value; the error names the place in it.
pub fn fits(root: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let empty = Map::new();
    for (word, given) in schema.as_object().ok_or("a schema that is no object")? {
        match word.as_str() {
            "description" | "required" | "properties" | "additionalProperties" => {}
            "$ref" => {
                let name =
                    given.as_str().and_then(|name| name.strip_prefix("#/$defs/")).ok_or("an unknown $ref")?;
                fits(root, root["$defs"].get(name).ok_or(format!("no definition {name}"))?, value)?;
            }
            "anyOf" => {
                let tried: Vec<_> =
                    given.as_array().unwrap().iter().map(|one| fits(root, one, value)).collect();
                if tried.iter().all(Result::is_err) {
                    return Err(format!("none of: {tried:?}"));
                }
            }
            "type" => {
                let kinds: Vec<&str> = match given {
                    Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
                    kind => kind.as_str().into_iter().collect(),
                };
                if !kinds.iter().any(|kind| is(kind, value)) {
                    return Err(format!("{value} is no {}", kinds.join(" or ")));
                }
            }
            "enum" if given.as_array().unwrap().contains(value) => {}
            "enum" => return Err(format!("{value} is none of {given}")),
            "minimum" | "maximum" => {
                let (limit, number) = (given.as_f64().unwrap(), value.as_f64());
                let is_off = |number: f64| if word == "minimum" { number < limit } else { number > limit };
                if number.is_some_and(is_off) {
                    return Err(format!("{value} is beyond {word} {limit}"));
                }
            }
            "items" => {
                for (at, item) in value.as_array().into_iter().flatten().enumerate() {
                    fits(root, given, item).map_err(|why| format!("[{at}]: {why}"))?;
                }
            }
            other => return Err(format!("the checker does not know the keyword {other}")),
        }
    }
    let Some(fields) = value.as_object().filter(|_| schema.get("type").is_some_and(|kind| kind == "object"))
    else {
        return Ok(());
    };
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
        if !fields.contains_key(name.as_str().unwrap()) {
            return Err(format!("the field {name} is missing"));
        }
    }
    let known = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    for (name, field) in fields {
        let of = known.get(name).or(schema.get("additionalProperties"));
        let of = of.ok_or(format!("the field {name} is not in the schema"))?;
        fits(root, of, field).map_err(|why| format!("{name}: {why}"))?;
    }
    Ok(())
}

fn is(kind: &str, value: &Value) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("the checker does not know the type {other}"),
    }
}
