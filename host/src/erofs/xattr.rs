// SPDX-License-Identifier: Apache-2.0
//! Extended attributes as they lie behind an inode: a header, then entries with their name space as a number.
//! All are stored inline, none shared; pure encoding, no system call.

use super::ErofsError;
use super::spec::{BLOCK_BYTES, INODE_BYTES, XATTR_HEADER_BYTES};

/// Bytes left for attributes: an inode, they and a small file's data share one block.
pub(crate) const XATTRS_MAX_BYTES: usize = BLOCK_BYTES - INODE_BYTES - super::builder::INLINE_MAX_BYTES;

/// One extended attribute, its name with the name space: `security.capability`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Xattr {
    /// Full name.
    pub name: Vec<u8>,
    /// Value, any bytes.
    pub value: Vec<u8>,
}

/// Name spaces and their `EROFS_XATTR_INDEX_*`. The ACLs are whole names: nothing is left of them.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Encodes header and entries, sorted by name; empty for no attributes.
///
/// # Errors
/// [`ErofsError::XattrName`] for a name outside the known spaces or out of range, [`ErofsError::Xattrs`] for too many bytes.
pub(crate) fn encode(of: &[u8], xattrs: &[Xattr]) -> Result<Vec<u8>, ErofsError> {
    if xattrs.is_empty() {
        return Ok(Vec::new());
    }
    let mut sorted: Vec<&Xattr> = xattrs.iter().collect();
    sorted.sort();
    let mut body = vec![0; XATTR_HEADER_BYTES]; // no name filter, no shared attributes
    for xattr in sorted {
        push_entry(&mut body, xattr)?;
    }
    if body.len() > XATTRS_MAX_BYTES {
        let name = String::from_utf8_lossy(of).into_owned();
        return Err(ErofsError::Xattrs { name, bytes: body.len(), max_bytes: XATTRS_MAX_BYTES });
    }
    Ok(body)
}

/// `i_xattr_icount` for an encoded body: the header counts as one, then one for every 4 bytes.
pub(crate) fn count(body: &[u8]) -> u16 {
    if body.is_empty() {
        return 0;
    }
    let units = 1 + (body.len() - XATTR_HEADER_BYTES) / 4;
    u16::try_from(units).expect("encode() keeps the body within a block")
}

/// `struct erofs_xattr_entry`: name length 0, name space 1, value length 2, then name and value, padded to 4.
fn push_entry(body: &mut Vec<u8>, xattr: &Xattr) -> Result<(), ErofsError> {
    let unknown = || ErofsError::XattrName { name: String::from_utf8_lossy(&xattr.name).into_owned() };
    let (space, rest) = PREFIXES
        .iter()
        .find_map(|(prefix, index)| Some((*index, xattr.name.strip_prefix(*prefix)?)))
        .ok_or_else(unknown)?;
    let acl = space == 2 || space == 3;
    if acl != rest.is_empty() {
        return Err(unknown());
    }
    body.push(u8::try_from(rest.len()).map_err(|_| unknown())?);
    body.push(space);
    body.extend(u16::try_from(xattr.value.len()).map_err(|_| unknown())?.to_le_bytes());
    body.extend_from_slice(rest);
    body.extend_from_slice(&xattr.value);
    body.resize(body.len().next_multiple_of(4), 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xattr(name: &str, value: &[u8]) -> Xattr {
        Xattr { name: name.into(), value: value.into() }
    }

    #[test]
    fn entries_are_sorted_and_padded_to_four_bytes() {
        let body = encode(b"f", &[xattr("user.b", b"22"), xattr("user.a", b"1")]).unwrap();
        assert_eq!(body.len(), 12 + 8 + 8);
        assert_eq!(&body[12..18], [1, 1, 1, 0, b'a', b'1']);
        assert_eq!(&body[20..27], [1, 1, 2, 0, b'b', b'2', b'2']);
        assert_eq!(count(&body), 1 + 4);
        assert_eq!(count(&[]), 0);
    }

    #[test]
    fn unknown_name_spaces_and_sizes_out_of_range_are_refused() {
        for name in ["system.nfs4_acl", "user.", "system.posix_acl_access.more", "lustre.x", ""] {
            let result = encode(b"f", &[xattr(name, b"")]);
            assert!(matches!(result, Err(ErofsError::XattrName { .. })), "{name}");
        }
        let fits = XATTRS_MAX_BYTES - 12 - 4 - 1;
        assert!(encode(b"f", &[xattr("user.a", &vec![0; fits])]).is_ok());
        let result = encode(b"f", &[xattr("user.a", &vec![0; fits + 1])]);
        assert!(matches!(result, Err(ErofsError::Xattrs { .. })), "one more byte");
    }
}
