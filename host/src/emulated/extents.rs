// SPDX-License-Identifier: Apache-2.0
//! Sparse files over a stream: only what is not a hole goes across.
//!
//! A file is extents, each `u64` offset, `u32` length (little-endian) and that many bytes; the last has the file's
//! length as its offset and no bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{SeekFrom, seek};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::wire::EXTENT_MAX_BYTES;

/// Sends a file.
///
/// # Errors
/// Those of the file and of the stream.
pub(super) async fn send(to: &mut (impl AsyncWrite + Unpin), file: &File) -> io::Result<()> {
    let len = file.metadata()?.len();
    let mut at = 0;
    let mut buffer = vec![0; EXTENT_MAX_BYTES];
    while let Some(start) = next_data(file, at)? {
        let end = seek(file, SeekFrom::Hole(start))?;
        at = start;
        while at < end {
            let wanted = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            file.read_exact_at(&mut buffer[..wanted], at)?;
            to.write_u64_le(at).await?;
            to.write_u32_le(u32::try_from(wanted).map_err(io::Error::other)?).await?;
            to.write_all(&buffer[..wanted]).await?;
            at += wanted as u64;
        }
    }
    to.write_u64_le(len).await?;
    to.write_u32_le(0).await
}

/// Where data begin at or after `at`; `None` when only a hole is left.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(start) => Ok(Some(start)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Receives a file into a new one at `path`, and syncs it.
///
/// # Errors
/// Those of the file and of the stream; `InvalidData` for an extent that is too long or does not lie in order.
pub(super) async fn receive(from: &mut (impl AsyncRead + Unpin), path: &Path) -> io::Result<()> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    let mut buffer = vec![0; EXTENT_MAX_BYTES];
    let mut at = 0;
    loop {
        let offset = from.read_u64_le().await?;
        let len = usize::try_from(from.read_u32_le().await?).unwrap_or(usize::MAX);
        if offset < at || len > buffer.len() {
            let text = format!("an extent of {len} bytes at {offset}, behind {at}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        if len == 0 {
            file.set_len(offset)?;
            return file.sync_all();
        }
        from.read_exact(&mut buffer[..len]).await?;
        file.write_all_at(&buffer[..len], offset)?;
        at = offset + len as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[tokio::test]
    async fn a_sparse_file_arrives_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let source = tempfile::tempfile_in(dir.path()).unwrap();
        source.write_all_at(b"first", 4096).unwrap();
        source.write_all_at(&vec![7; EXTENT_MAX_BYTES + 5], 1 << 20).unwrap();
        source.set_len(8 << 20).unwrap();
        let (mut near, mut far) = tokio::io::duplex(1000);
        let path = dir.path().join("copy");
        let (sent, received) = tokio::join!(send(&mut near, &source), receive(&mut far, &path));
        sent.unwrap();
        received.unwrap();
        let copy = std::fs::read(&path).unwrap();
        let mut expected = vec![0; 8 << 20];
        source.read_exact_at(&mut expected, 0).unwrap();
        assert!(copy == expected);
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 4 << 20);
    }

    #[tokio::test]
    async fn extents_out_of_order_or_too_long_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (index, (offset, len)) in [(0_u64, u32::MAX), (0, (256 << 10) + 1)].into_iter().enumerate() {
            let bytes = [&offset.to_le_bytes()[..], &len.to_le_bytes()].concat();
            let error = receive(&mut &bytes[..], &dir.path().join(index.to_string())).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        let one =
            [&8_u64.to_le_bytes()[..], &1_u32.to_le_bytes(), b"x", &4_u64.to_le_bytes(), &1_u32.to_le_bytes(), b"y"];
        let error = receive(&mut &one.concat()[..], &dir.path().join("z")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
