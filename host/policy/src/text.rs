// SPDX-License-Identifier: Apache-2.0
//! Values that a policy file writes as text: one trait, and what serde and the schema make of it.

use std::fmt;
use std::str::FromStr;

/// Why a text is not a value of its type: in words, for whoever wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

impl Malformed {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

/// A value that is written as text in the file.
pub(crate) trait Text: FromStr<Err = Malformed> + fmt::Display {
    /// The schema's `format`.
    const FORMAT: &'static str;
    /// What is accepted, in words.
    const ACCEPTED: &'static str;
}

/// Holds `text` against a type, for checks that know the type by its format only.
pub(crate) fn check<T: Text>(text: &str) -> Result<(), Malformed> {
    text.parse::<T>().map(|_| ())
}

/// The schema of a type where it is the key of a table.
pub(crate) fn key_schema<T: Text>() -> serde_json::Value {
    serde_json::json!({ "type": "string", "format": T::FORMAT, "x-accepted": T::ACCEPTED })
}

/// serde, the schema and [`Text`] of a type that has `FromStr` and `Display`.
macro_rules! text_type {
    ($name:ident, $format:literal, $accepted:literal) => {
        impl crate::text::Text for $name {
            const FORMAT: &'static str = $format;
            const ACCEPTED: &'static str = $accepted;
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "format": $format, "x-accepted": $accepted })
            }
        }
    };
}
pub(crate) use text_type;
