// SPDX-License-Identifier: Apache-2.0
//! HTTP/1.1 as the door `egress` reads it: heads and body framing, both strict, so that no two readers of one message can
//! disagree where it ends. Knows nothing of policies; it never opens a connection.

mod conn;
mod framing;
mod head;
mod headers;
mod target;

pub(crate) use conn::{Conn, ReadError};
pub(crate) use framing::{Decoder, Framing, end_chunk, put_chunk};
pub(crate) use head::{BadHead, Head, ResponseHead};
pub(crate) use headers::is_hop_by_hop;
pub(crate) use target::{Target, split_authority};
