// SPDX-License-Identifier: Apache-2.0
//! What a client says first in TLS (RFC 8446 §4.1.2, RFC 6066 §3), read without answering: which name it asks for. Its bytes may
//! come in any number of records.

/// Most bytes of a hello's records that are waited for.
pub(crate) const HELLO_MAX_BYTES: usize = 64 << 10;
/// Most payload of a record (RFC 8446 §5.1).
const RECORD_MAX_BYTES: usize = 1 << 14;

const RECORD_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ECH: u16 = 0xfe0d;
const EXTENSION_ESNI: u16 = 0xffce;
const NAME_IS_HOST: u8 = 0;

/// What matters of a hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The name in clear.
    pub(crate) sni: Option<String>,
    /// Whether there is an encrypted hello in it: the name in clear may not be the one that is meant.
    pub(crate) encrypted: bool,
}

/// What the first bytes of a connection are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sniff {
    /// Not enough to say.
    Need,
    /// A whole hello.
    Tls(Hello),
    /// Not TLS.
    NotTls,
    /// TLS that is malformed, and how.
    Bad(&'static str),
}

/// Reads the beginning of a connection.
pub(crate) fn sniff(bytes: &[u8]) -> Sniff {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        if rest.first().is_some_and(|kind| *kind != RECORD_HANDSHAKE) || rest.get(1).is_some_and(|major| *major != 3) {
            return if message.is_empty() {
                Sniff::NotTls
            } else {
                Sniff::Bad("a record that does not continue the hello")
            };
        }
        let Some((header, after)) = rest.split_at_checked(5) else { break };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if length == 0 || length > RECORD_MAX_BYTES {
            return Sniff::Bad("a record with a length that cannot be");
        }
        let part = &after[..length.min(after.len())];
        message.extend_from_slice(part);
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Sniff::Bad("a first message that is no hello");
        }
        if let Some(header) = message.get(..4) {
            let length = usize::from(header[1]) << 16 | usize::from(header[2]) << 8 | usize::from(header[3]);
            if length > HELLO_MAX_BYTES {
                return Sniff::Bad("a hello that is too long");
            }
            if let Some(body) = message.get(4..4 + length) {
                return read(&mut Cut(body)).map_or(Sniff::Bad("a hello with fields that cannot be"), Sniff::Tls);
            }
        }
        if part.len() < length {
            break;
        }
        rest = &after[length..];
    }
    if bytes.len() >= HELLO_MAX_BYTES { Sniff::Bad("a hello that is too long") } else { Sniff::Need }
}

/// Fields are cut from the front.
struct Cut<'a>(&'a [u8]);

impl<'a> Cut<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector_u8(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(usize::from(length))
    }

    fn vector_u16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }
}

fn read(cut: &mut Cut<'_>) -> Option<Hello> {
    cut.take(2 + 32)?;
    cut.vector_u8()?;
    cut.vector_u16()?;
    cut.vector_u8()?;
    let mut hello = Hello { sni: None, encrypted: false };
    if cut.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = Cut(cut.vector_u16()?);
    if !cut.0.is_empty() {
        return None;
    }
    let mut named = false;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vector_u16()?;
        match kind {
            EXTENSION_SERVER_NAME => {
                if std::mem::replace(&mut named, true) {
                    return None;
                }
                hello.sni = Some(server_name(data)?);
            }
            EXTENSION_ECH | EXTENSION_ESNI => hello.encrypted = true,
            _ => {}
        }
    }
    Some(hello)
}

/// Exactly one name, in ASCII.
fn server_name(data: &[u8]) -> Option<String> {
    let mut outer = Cut(data);
    let mut list = Cut(outer.vector_u16()?);
    let kind = list.u8()?;
    let name = list.vector_u16()?;
    let alone = outer.0.is_empty() && list.0.is_empty() && kind == NAME_IS_HOST;
    let plain = !name.is_empty() && name.len() <= 255 && name.iter().all(u8::is_ascii_graphic);
    let name = std::str::from_utf8(name).ok()?;
    (alone && plain).then(|| name.to_owned())
}

#[cfg(test)]
mod tests;
