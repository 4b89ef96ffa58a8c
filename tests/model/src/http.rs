// SPDX-License-Identifier: Apache-2.0
//! As much of HTTP/1.1 as a model's server needs: one request in, one answer out, whole or in chunks.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::time::Duration;

use serde_json::Value;

/// Most bytes of a head.
const HEAD_MAX_BYTES: usize = 64 << 10;
/// Most bytes of a body.
const BODY_MAX_BYTES: usize = 64 << 20;
/// Most fields of a head.
const FIELDS_MAX_COUNT: usize = 100;

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub method: String,
    pub path: String,
    /// By their names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

/// Reads one request; `rest` is what was read beyond the one before. None at the end of the connection.
pub(crate) fn read(from: &mut dyn Read, rest: &mut Vec<u8>) -> io::Result<Option<Request>> {
    let head_bytes = loop {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX_COUNT];
        match httparse::Request::new(&mut fields).parse(rest).map_err(invalid)? {
            httparse::Status::Complete(bytes) => break bytes,
            httparse::Status::Partial if rest.len() > HEAD_MAX_BYTES => return Err(invalid("the head is too long")),
            httparse::Status::Partial => {
                if more(from, rest)? == 0 {
                    return if rest.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
                }
            }
        }
    };
    let body = rest.split_off(head_bytes);
    let head = std::mem::replace(rest, body);
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX_COUNT];
    let mut parsed = httparse::Request::new(&mut fields);
    parsed.parse(&head).map_err(invalid)?;
    let method = parsed.method.unwrap_or_default().to_owned();
    let path = parsed.path.unwrap_or_default().to_owned();
    let field = |field: &httparse::Header<'_>| {
        (field.name.to_ascii_lowercase(), String::from_utf8_lossy(field.value).trim().to_owned())
    };
    let headers: BTreeMap<String, String> = parsed.headers.iter().map(field).collect();
    let body = if headers.get("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        chunks(from, rest)?
    } else {
        let length = headers.get("content-length").map_or(Ok(0), |text| text.parse::<usize>()).map_err(invalid)?;
        exactly(from, rest, length)?
    };
    Ok(Some(Request { method, path, headers, body }))
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn more(from: &mut dyn Read, rest: &mut Vec<u8>) -> io::Result<usize> {
    let mut chunk = [0; 16 << 10];
    let count = from.read(&mut chunk)?;
    rest.extend_from_slice(chunk.get(..count).unwrap_or_default());
    Ok(count)
}

fn exactly(from: &mut dyn Read, rest: &mut Vec<u8>, length: usize) -> io::Result<Vec<u8>> {
    if length > BODY_MAX_BYTES {
        return Err(invalid("the body is too long"));
    }
    while rest.len() < length {
        if more(from, rest)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let after = rest.split_off(length);
    Ok(std::mem::replace(rest, after))
}

fn chunks(from: &mut dyn Read, rest: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let (start, size) = loop {
            match httparse::parse_chunk_size(rest).map_err(|_| invalid("a chunk has no size"))? {
                httparse::Status::Complete(found) => break found,
                httparse::Status::Partial => {
                    if more(from, rest)? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        };
        rest.drain(..start);
        let size = usize::try_from(size).map_err(invalid)?;
        body.extend(exactly(from, rest, size)?);
        exactly(from, rest, 2)?;
        if body.len() > BODY_MAX_BYTES {
            return Err(invalid("the body is too long"));
        }
        if size == 0 {
            return Ok(body);
        }
    }
}

/// Writes an answer that is JSON.
pub(crate) fn json(
    to: &mut dyn Write,
    status: u16,
    headers: &BTreeMap<String, String>,
    body: &Value,
) -> io::Result<()> {
    whole(to, status, headers, "application/json", body.to_string().as_bytes())
}

/// Writes an answer with its length.
pub(crate) fn whole(
    to: &mut dyn Write,
    status: u16,
    headers: &BTreeMap<String, String>,
    content_type: &str,
    body: &[u8],
) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} {}\r\ncontent-type: {content_type}\r\n", reason(status));
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    to.write_all(&[head.as_bytes(), body].concat())?;
    to.flush()
}

/// Writes the head of an answer that comes in chunks.
pub(crate) fn begin(to: &mut dyn Write, content_type: &str) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    to.write_all(head.as_bytes())?;
    to.flush()
}

/// Writes a chunk, in writes of `write_bytes` (0: at once) with `gap` between them.
pub(crate) fn chunk(to: &mut dyn Write, bytes: &[u8], write_bytes: usize, gap: Duration) -> io::Result<()> {
    let framed = [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
    for piece in framed.chunks(if write_bytes == 0 { framed.len() } else { write_bytes }) {
        to.write_all(piece)?;
        to.flush()?;
    }
    if !gap.is_zero() {
        std::thread::sleep(gap);
    }
    Ok(())
}

/// Writes the end of an answer in chunks.
pub(crate) fn end(to: &mut dyn Write) -> io::Result<()> {
    to.write_all(b"0\r\n\r\n")?;
    to.flush()
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        413 => "Payload Too Large",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        529 => "Overloaded",
        _ => "Status",
    }
}
