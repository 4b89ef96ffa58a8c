// SPDX-License-Identifier: Apache-2.0
//! Header lines of a head that was accepted: looked up whatever their case, and rid of what is for one hop only.

/// Header lines in their order; names in the case they came in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers(Vec<(String, Vec<u8>)>);

impl Headers {
    /// As they were parsed.
    pub(super) fn of(lines: &[httparse::Header<'_>]) -> Self {
        Self(lines.iter().map(|line| (line.name.to_owned(), line.value.to_vec())).collect())
    }

    /// Values of `name`, whatever its case.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_slice())
    }

    /// The one value of `name`; `None` when there is none or more than one.
    pub(crate) fn one<'a>(&'a self, name: &'a str) -> Option<&'a [u8]> {
        let mut all = self.all(name);
        all.next().filter(|_| all.next().is_none())
    }

    /// Whether a list header has `token`, whatever its case.
    pub(crate) fn has_token(&self, name: &str, token: &str) -> bool {
        self.all(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    }

    /// Takes out every line called `name`.
    pub(crate) fn remove(&mut self, name: &str) {
        self.0.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
    }

    /// Puts `name: value` in place of whatever was called so.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<Vec<u8>>) {
        self.remove(name);
        self.0.push((name.to_owned(), value.into()));
    }

    /// Takes out what is for one hop only: the fixed list and what `Connection` names.
    pub(crate) fn strip_hop_by_hop(&mut self) {
        let named: Vec<String> = self
            .all("connection")
            .flat_map(|value| value.split(|byte| *byte == b','))
            .filter_map(|part| std::str::from_utf8(part.trim_ascii()).ok().map(str::to_ascii_lowercase))
            .collect();
        // A guest must not have the framing or the host of its request taken out by naming them.
        let kept = ["host", "content-length", "transfer-encoding"];
        self.0.retain(|(name, _)| {
            let name = name.to_ascii_lowercase();
            kept.contains(&name.as_str()) || !(is_hop_by_hop(&name) || named.contains(&name))
        });
    }

    /// The values, to be changed where they stand.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut Vec<u8>> {
        self.0.iter_mut().map(|(_, value)| value)
    }

    /// Writes the lines and the empty line.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        for (name, value) in &self.0 {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// Whether a header (name in lower case) is for one hop only, and so never passed on.
pub(crate) fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "proxy-connection"
            | "keep-alive"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "expect"
            | "proxy-authorization"
            | "proxy-authenticate"
            | "http2-settings"
    )
}
