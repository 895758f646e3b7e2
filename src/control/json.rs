//! Values of the program in JSON, for both directions.
//!
//! A field that is not known is skipped, so that a newer program can send more; one that is missing or of the wrong
//! kind is an error that names it. Used by the other files of this module only.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::wire::{Class, Compression, NodeId, ResourceId, SiteId};

/// The fields of an object.
pub(super) type Fields = Map<String, Value>;

/// A type that has a form in JSON.
pub trait Json: Sized {
    /// The value in JSON.
    fn json(&self) -> Value;

    /// Reads the value from JSON.
    ///
    /// # Errors
    /// The fault, beginning with the name of the field.
    fn read(value: &Value) -> Result<Self, String>;

    /// Writes the value as a field of an object; some types have no field, or several.
    fn put(&self, name: &str, fields: &mut Fields) {
        fields.insert(name.into(), self.json());
    }

    /// Reads the value of a field of an object.
    ///
    /// # Errors
    /// As [`Json::read`].
    fn take(name: &str, fields: &Fields) -> Result<Self, String> {
        Self::read(fields.get(name).unwrap_or(&Value::Null)).map_err(|why| format!("{name}: {why}"))
    }
}

/// Returns the error for a value of another kind than the one that belongs there.
pub(super) fn unexpected<T>(wanted: &str, found: &Value) -> Result<T, String> {
    Err(format!("expected {wanted}, found {found}"))
}

/// Returns the fields of an object.
pub(super) fn fields(value: &Value) -> Result<&Fields, String> {
    value.as_object().map_or_else(|| unexpected("an object", value), Ok)
}

macro_rules! simple {
    ($($type:ty: $wanted:literal, $write:expr, $read:expr;)*) => {$(
        impl Json for $type {
            fn json(&self) -> Value {
                let write: fn(&$type) -> Value = $write;
                write(self)
            }

            fn read(value: &Value) -> Result<Self, String> {
                let read: fn(&Value) -> Option<$type> = $read;
                read(value).map_or_else(|| unexpected($wanted, value), Ok)
            }
        }
    )*};
}

/// Returns a number that fits into the type.
fn number<T: TryFrom<u64>>(value: &Value) -> Option<T> {
    value.as_u64().and_then(|n| T::try_from(n).ok())
}

/// Returns a value of the type that a text is parsed to.
fn parsed<T: std::str::FromStr>(value: &Value) -> Option<T> {
    value.as_str().and_then(|text| text.parse().ok())
}

simple! {
    bool: "true or false", |v| (*v).into(), Value::as_bool;
    u8: "a number from 0 to 255", |v| (*v).into(), number;
    u32: "a number of 32 bits", |v| (*v).into(), number;
    u64: "a number of 64 bits", |v| (*v).into(), Value::as_u64;
    i32: "a number of 32 bits with sign", |v| (*v).into(), |v| v.as_i64().and_then(|n| n.try_into().ok());
    f64: "a number", |v| (*v).into(), Value::as_f64;
    String: "a text", |v| v.as_str().into(), |v| v.as_str().map(Into::into);
    IpAddr: "an address", |v| v.to_string().into(), parsed;
    SocketAddr: "an address with a port", |v| v.to_string().into(), parsed;
    NodeId: "the id of a node", |v| v.get().into(), |v| number::<u32>(v).and_then(|n| n.try_into().ok());
    SiteId: "the id of a site", |v| v.get().into(), |v| number::<u32>(v).and_then(|n| n.try_into().ok());
    ResourceId: "the id of a resource", |v| v.get().into(), |v| number::<u32>(v).and_then(|n| n.try_into().ok());
    Class: "data or meta", |v| v.name().into(),
        |v| Class::BOTH.into_iter().find(|class| v.as_str() == Some(class.name()));
    Compression: "a way to compress", |v| v.name().into(),
        |v| [Compression::Lz4].into_iter().find(|one| v.as_str() == Some(one.name()));
}

impl<T: Json> Json for Option<T> {
    fn json(&self) -> Value {
        self.as_ref().map_or(Value::Null, T::json)
    }

    fn read(value: &Value) -> Result<Self, String> {
        if value.is_null() { Ok(None) } else { T::read(value).map(Some) }
    }
}

impl<T: Json> Json for Vec<T> {
    fn json(&self) -> Value {
        self.iter().map(T::json).collect()
    }

    fn read(value: &Value) -> Result<Self, String> {
        let list = value.as_array().map_or_else(|| unexpected("a list", value), Ok)?;
        list.iter().map(T::read).collect()
    }
}

impl<T: Json> Json for Arc<T> {
    fn json(&self) -> Value {
        T::json(self)
    }

    fn read(value: &Value) -> Result<Self, String> {
        T::read(value).map(Arc::new)
    }
}

impl Json for BTreeMap<String, u64> {
    fn json(&self) -> Value {
        let mut map = Map::new();
        map.extend(self.iter().map(|(what, n)| (what.clone(), (*n).into())));
        map.into()
    }

    fn read(value: &Value) -> Result<Self, String> {
        fields(value)?.keys().map(|what| Ok((what.clone(), Json::take(what, fields(value)?)?))).collect()
    }
}

/// The name of a field in JSON: the field's own, unless another is given.
macro_rules! name {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $name:literal) => {
        $name
    };
}

/// Structs that are objects in JSON: a field in JSON for each field here.
macro_rules! objects {
    ($(
        $(#[$doc:meta])*
        $object:ident { $($(#[$about:meta])* $field:ident $($name:literal)?: $type:ty,)* }
    )*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $object {
            $($(#[$about])* pub $field: $type,)*
        }

        impl $crate::control::json::Json for $object {
            fn json(&self) -> serde_json::Value {
                let mut fields = $crate::control::json::Fields::new();
                $(self.$field.put($crate::control::json::name!($field $($name)?), &mut fields);)*
                fields.into()
            }

            fn read(value: &serde_json::Value) -> Result<Self, String> {
                let fields = $crate::control::json::fields(value)?;
                Ok($object {
                    $($field: $crate::control::json::Json::take(
                        $crate::control::json::name!($field $($name)?), fields,
                    )?,)*
                })
            }
        }
    )*};
}

pub(super) use {name, objects};
