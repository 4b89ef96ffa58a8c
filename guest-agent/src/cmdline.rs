// SPDX-License-Identifier: Apache-2.0
//! What the host asks of the guest's start, from the kernel's command line. Pure.

use std::path::PathBuf;

/// File systems that may be mounted from a disk.
const FS_TYPES: [&str; 3] = ["erofs", "ext4", "squashfs"];

/// A disk and what is on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) device: PathBuf,
    pub(crate) fs_type: String,
}

/// The words that are ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Request {
    /// Read-only base of the root file system; without one the initramfs stays.
    pub(crate) root: Option<Disk>,
    /// Where changes go; without one they go to memory.
    pub(crate) scratch: Option<Disk>,
    /// Read-only base of the workspace.
    pub(crate) workspace: Option<Disk>,
}

/// A word of ours that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WordError {
    #[error("reading the kernel command line: `{word}` is none of midge.root, midge.scratch, midge.workspace")]
    Unknown { word: String },
    #[error(
        "reading the kernel command line: `{word}` must be NAME=/dev/DISK:TYPE with TYPE one of {}",
        FS_TYPES.join(", ")
    )]
    Disk { word: String },
    #[error("reading the kernel command line: `{word}` is the second of its name")]
    Twice { word: String },
}

/// Reads the words that begin with `midge.`; all others are the kernel's.
pub(crate) fn parse(line: &str) -> Result<Request, WordError> {
    let mut request = Request::default();
    for word in line.split_whitespace().filter(|word| word.starts_with("midge.")) {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let place = match name {
            "midge.root" => &mut request.root,
            "midge.scratch" => &mut request.scratch,
            "midge.workspace" => &mut request.workspace,
            _ => return Err(WordError::Unknown { word: word.to_owned() }),
        };
        if place.is_some() {
            return Err(WordError::Twice { word: word.to_owned() });
        }
        *place = Some(parse_disk(value).ok_or_else(|| WordError::Disk { word: word.to_owned() })?);
    }
    Ok(request)
}

fn parse_disk(value: &str) -> Option<Disk> {
    let (device, fs_type) = value.split_once(':')?;
    let name = device.strip_prefix("/dev/")?;
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let known = FS_TYPES.contains(&fs_type);
    (is_name && known).then(|| Disk { device: device.into(), fs_type: fs_type.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_words_are_found_among_the_kernels() {
        let line = "quiet midge.root=/dev/vda:erofs panic=-1 midge.scratch=/dev/vdb:ext4\n";
        let disk = |device: &str, fs_type: &str| Some(Disk { device: device.into(), fs_type: fs_type.into() });
        let expected = Request { root: disk("/dev/vda", "erofs"), scratch: disk("/dev/vdb", "ext4"), workspace: None };
        assert_eq!(parse(line), Ok(expected));
    }

    #[test]
    fn a_line_without_our_words_asks_for_nothing() {
        assert_eq!(parse("console=ttyS0 root=/dev/vda\n"), Ok(Request::default()));
        assert_eq!(parse(""), Ok(Request::default()));
    }

    #[test]
    fn words_that_make_no_sense_are_refused_by_name() {
        for word in [
            "midge.root",
            "midge.root=",
            "midge.root=/dev/vda",
            "midge.root=/dev/vda:ntfs",
            "midge.root=/dev/:erofs",
            "midge.root=/dev/../x:erofs",
            "midge.root=vda:erofs",
            "midge.other=1",
        ] {
            let error = parse(&format!("quiet {word} x=y")).unwrap_err();
            assert!(error.to_string().contains(&format!("`{word}`")), "{error}");
        }
    }

    #[test]
    fn a_word_given_twice_is_refused() {
        let line = "midge.root=/dev/vda:erofs midge.root=/dev/vdb:erofs";
        assert_eq!(parse(line), Err(WordError::Twice { word: "midge.root=/dev/vdb:erofs".into() }));
    }
}
