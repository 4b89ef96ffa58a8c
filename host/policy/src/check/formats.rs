// SPDX-License-Identifier: Apache-2.0
//! The schema's formats, each with the type that reads it.

use serde_json::Value;

use crate::address::Range;
use crate::glob::{FileGlob, Wildcard};
use crate::host::HostName;
use crate::names::{Endpoint, HeaderName, Name, ToolName};
use crate::pattern::{HostPattern, Method, PathPattern};
use crate::text::{Malformed, Text, check as read};
use crate::units::{Bytes, Money, Period, Rate};

/// A format's name and its type's check.
type Format = (&'static str, fn(&str) -> Result<(), Malformed>);

const fn format<T: Text>() -> Format {
    (T::FORMAT, read::<T>)
}

/// All of them.
pub(super) const FORMATS: [Format; 15] = [
    format::<Bytes>(),
    format::<Endpoint>(),
    format::<FileGlob>(),
    format::<HeaderName>(),
    format::<HostName>(),
    format::<HostPattern>(),
    format::<Method>(),
    format::<Money>(),
    format::<Name>(),
    format::<PathPattern>(),
    format::<Period>(),
    format::<Range>(),
    format::<Rate>(),
    format::<ToolName>(),
    format::<Wildcard>(),
];

/// Holds a text against the format of its node; without a format of ours, against nothing.
pub(super) fn check(node: &Value, text: &str) -> Result<(), String> {
    let format = node["format"].as_str().and_then(|name| FORMATS.iter().find(|(format, _)| *format == name));
    format.map_or(Ok(()), |(_, read)| read(text)).map_err(|malformed| malformed.0)
}
