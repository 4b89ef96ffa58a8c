// SPDX-License-Identifier: Apache-2.0
//! A stopped VM into files, and the state back out of one.
//!
//! The files are opened, empty, by somebody else and are only written here: sparse, so that a page
//! of zeros costs nothing, and synced before a success is told. Nothing is ever read from them.
//! All of it by calls that a disk's worker may make too.

use std::fs::File;
use std::io::{self, IoSlice, Read};

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::VmState;
use super::format::{self, FormatError, STATE_MAX_BYTES};
use crate::disk::page_map::{PAGE_BYTES, PageState};
use crate::disk::{Layer, PageMap, Pages};
use crate::memory::GuestRam;

/// Bytes that are looked at together.
const CHUNK_BYTES: usize = 256 << 10;
/// Bytes of a page.
const PAGE_LEN: usize = 4096;
const _: () = assert!(PAGE_LEN as u64 == PAGE_BYTES && CHUNK_BYTES.is_multiple_of(PAGE_LEN));

/// Why a state could not be read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file could not be read.
    #[error("reading the state of the VM")]
    Read(#[source] io::Error),
    /// Its content cannot be used.
    #[error("reading the state of the VM")]
    Format(#[from] FormatError),
}

/// The state in `file`.
///
/// # Errors
/// [`StateError`].
pub fn read_state(file: &File) -> Result<VmState, StateError> {
    let mut bytes = Vec::new();
    file.take(STATE_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(StateError::Read)?;
    if bytes.len() as u64 > STATE_MAX_BYTES {
        let text = format!("it has more than {STATE_MAX_BYTES} bytes");
        return Err(StateError::Read(io::Error::new(io::ErrorKind::FileTooLarge, text)));
    }
    Ok(format::decode(&bytes)?)
}

/// Writes state, memory and layers, in the order of `files`: state, memory, one for each disk
/// with changed pages. Returns the bytes of memory that were not zero.
///
/// # Errors
/// The kernel's, with what was being written; `InvalidInput` for another number of files.
pub fn write(state: &VmState, ram: &GuestRam, layers: &[Layer<'_>], files: &[File]) -> io::Result<u64> {
    let changed: Vec<_> = layers.iter().filter_map(|layer| layer.changed).collect();
    let [state_file, memory_file, layer_files @ ..] = files else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no files for state and memory"));
    };
    if layer_files.len() != changed.len() {
        let text = format!("{} files for {} layers", layer_files.len(), changed.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let memory_bytes = write_memory(ram, memory_file).map_err(|error| within("memory", &error))?;
    for ((map, pages), file) in changed.iter().zip(layer_files) {
        write_layer(map, *pages, file).map_err(|error| within("a disk's layer", &error))?;
    }
    let maps: Vec<Option<&PageMap>> = layers.iter().map(|layer| layer.changed.map(|(map, _)| map)).collect();
    let bytes = format::encode(state, &maps)?;
    let write_state = || {
        write_all_at(state_file, &bytes, 0)?;
        state_file.sync_data()
    };
    write_state().map_err(|error| within("the state", &error))?;
    Ok(memory_bytes)
}

fn within(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("writing {what}: {error}"))
}

fn write_memory(ram: &GuestRam, file: &File) -> io::Result<u64> {
    stretch(file, ram.iter().map(|region| region.len()).sum())?;
    let mut written = 0;
    let mut at = 0;
    let mut chunk = vec![0; CHUNK_BYTES];
    for region in ram.iter() {
        let mut offset = 0;
        while offset < region.len() {
            let len = chunk.len().min(usize::try_from(region.len() - offset).unwrap_or(usize::MAX));
            let place = region.get_slice(MemoryRegionAddress(offset), len).map_err(io::Error::other)?;
            place.copy_to(&mut chunk[..len]);
            written += write_sparse(file, at, &chunk[..len])?;
            offset += len as u64;
            at += len as u64;
        }
    }
    file.sync_data()?;
    Ok(written)
}

fn write_layer(map: &PageMap, pages: &dyn Pages, file: &File) -> io::Result<()> {
    stretch(file, map.pages() * PAGE_BYTES)?;
    let mut page_bytes = [0; PAGE_LEN];
    let mut page = 0;
    while page < map.pages() {
        let (state, end) = map.run(page..map.pages());
        if state == PageState::Data {
            for page in page..end {
                pages.read_page(page * PAGE_BYTES, &mut page_bytes).map_err(io::Error::other)?;
                write_sparse(file, page * PAGE_BYTES, &page_bytes)?;
            }
        }
        page = end;
    }
    file.sync_data()
}

/// Gives an empty file its length, by its last byte: what is written into it later may end in zeros.
fn stretch(file: &File, len_bytes: u64) -> io::Result<()> {
    len_bytes.checked_sub(1).map_or(Ok(()), |last| write_all_at(file, &[0], last))
}

fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while let rest @ [_, ..] = &bytes[done..] {
        match rustix::io::pwritev(file, &[IoSlice::new(rest)], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Writes the pages of `bytes` that are not all zeros, neighbours together; returns how many bytes.
fn write_sparse(file: &File, at: u64, bytes: &[u8]) -> io::Result<u64> {
    let is_zero = |page: &[u8]| page.iter().all(|byte| *byte == 0);
    let pages: Vec<&[u8]> = bytes.chunks(PAGE_LEN).collect();
    let mut written = 0;
    let mut first = 0;
    for run in pages.chunk_by(|one, other| is_zero(one) == is_zero(other)) {
        let len: usize = run.iter().map(|page| page.len()).sum();
        if run.first().is_some_and(|page| !is_zero(page)) {
            write_all_at(file, &bytes[first..first + len], at + first as u64)?;
            written += len as u64;
        }
        first += len;
    }
    Ok(written)
}

#[cfg(test)]
mod tests;
