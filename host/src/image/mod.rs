// SPDX-License-Identifier: Apache-2.0
//! Base images: the read-only file system below a sandbox's root.
//!
//! Flow: what the user named ([`resolve`]) is the name of an image of ours, which is built when it is not there
//! (`recipe`, `build`), or a directory, which is packed as erofs, or a file, whose file system is told by its superblock
//! (`superblock`). No image needs anything of ours in it: the agent comes from the initramfs.

mod build;
#[cfg(fuzzing)]
pub(crate) mod fuzz;
mod recipe;
mod superblock;

pub use build::check_host;

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cache::{Cache, CacheError, Key};
use crate::erofs;
use crate::progress::Watch;

pub use superblock::FileSystem;

/// The image that a sandbox gets when nobody names one.
pub const DEFAULT_NAME: &str = "base";

/// An image that exists and whose file system the guest kernel knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedImage {
    /// The file.
    pub path: PathBuf,
    /// What is in it.
    pub file_system: FileSystem,
}

/// What is known of a built image; `image.json` beside it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Its name.
    pub name: String,
    /// The distribution and release it is made of, such as `debian bookworm`.
    pub release: String,
    /// The packages that were asked for.
    pub packages: Vec<String>,
    /// Hash of everything it was asked to be.
    pub key: String,
    /// Size of the image.
    pub bytes: u64,
    /// How long it took.
    pub build_s: u64,
    /// When it was finished, in seconds since 1970.
    pub built_at_unix_s: u64,
}

/// An image in the cache.
#[derive(Debug, Clone, Serialize)]
pub struct BuiltImage {
    /// The file.
    pub path: PathBuf,
    /// What is known of it.
    #[serde(flatten)]
    pub record: ImageRecord,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Neither a name of ours nor a path.
    #[error("looking for image {spec:?}: there is no such file or directory, and the images that can be built are: {}", recipe::NAMES.join(", "))]
    NotFound {
        /// What the user wrote.
        spec: String,
    },
    /// A name that there is no recipe for.
    #[error("building image {name:?}: there is no recipe of that name; known: {}", recipe::NAMES.join(", "))]
    NoRecipe {
        /// The name.
        name: String,
    },
    /// A file that is no image.
    #[error(
        "using {path} as an image: {problem}; expected a directory, or a file with an erofs, ext4 or squashfs file system"
    )]
    NotAnImage {
        /// The file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// A directory that could not be packed.
    #[error("packing the directory {path} as an image")]
    Pack {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: erofs::ErofsError,
    },
    /// Programs that the build runs are not there.
    #[error("building an image: not installed: {}; install with `apt-get install {}`", missing.join(", "), packages.join(" "))]
    MissingTools {
        /// Programs that were looked for.
        missing: Vec<String>,
        /// Debian packages that have them.
        packages: Vec<String>,
    },
    /// No subordinate ids, and not root.
    #[error(
        "building an image as user {user}: needs root, or user namespaces with subordinate ids; run as root, or \
         `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}`"
    )]
    NoSubordinateIds {
        /// The user's name.
        user: String,
    },
    /// apt has no usable source.
    #[error(
        "building an image: apt has no source configured for this machine's release {release:?}; see `apt-get indextargets`"
    )]
    NoSources {
        /// The release that sources were looked for.
        release: String,
    },
    /// A step of the build failed.
    #[error("building image {name:?}: it ended with {status}; whole log in {log}; its end:\n{tail}")]
    Step {
        /// The image.
        name: String,
        /// How it ended.
        status: String,
        /// Everything it printed.
        log: PathBuf,
        /// The last lines of that.
        tail: String,
    },
    /// The operating system refused something.
    #[error("{doing} {path}")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// The refusal.
        source: std::io::Error,
    },
}

impl ImageError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}

/// Finds what the user named: `None` is the default image. Named images are built when they are not there yet
/// (minutes), directories are packed when they changed.
///
/// # Errors
/// [`ImageError`]: nothing there, no known file system, a build or a packing that fails.
pub fn resolve(cache: &Cache, spec: Option<&str>, watch: &dyn Watch) -> Result<ResolvedImage, ImageError> {
    let spec = spec.unwrap_or(DEFAULT_NAME);
    if recipe::NAMES.contains(&spec) {
        let path = match find(cache, spec)? {
            Some(found) => found.path,
            None => build(cache, spec, false, watch)?.path,
        };
        return Ok(ResolvedImage { path, file_system: FileSystem::Erofs });
    }
    let path = Path::new(spec);
    let Ok(meta) = fs::metadata(path) else {
        return Err(ImageError::NotFound { spec: spec.to_owned() });
    };
    let path = path.canonicalize().map_err(ImageError::io("finding", path))?;
    if meta.is_dir() {
        let packed = pack(cache, &path, watch)?;
        return Ok(ResolvedImage { path: packed, file_system: FileSystem::Erofs });
    }
    let file_system = identify(&path, &meta)?;
    Ok(ResolvedImage { path, file_system })
}

/// The newest image of that name, whatever recipe it was built from.
///
/// # Errors
/// [`ImageError`] when the cache cannot be read.
pub fn find(cache: &Cache, name: &str) -> Result<Option<BuiltImage>, ImageError> {
    let images = list(cache)?.into_iter().filter(|image| image.record.name == name);
    Ok(images.max_by_key(|image| image.record.built_at_unix_s))
}

/// Builds the image `name`, or finds the one that was built from the very same recipe; `again` builds it anyway, with
/// whatever package versions the distribution has now.
///
/// # Errors
/// [`ImageError`]: no such recipe, missing tools, no sources, a failing build.
pub fn build(cache: &Cache, name: &str, again: bool, watch: &dyn Watch) -> Result<BuiltImage, ImageError> {
    let recipe = recipe::named(name)?;
    build::check_host()?;
    watch.begin("waiting for other image builds", 0);
    let _turn = cache.lock("image-build")?;
    watch.end("");
    let key = recipe.key();
    let images = cache.dir("images")?;
    let same = list(cache)?.into_iter().filter(|image| image.record.key == key);
    if let (Some(image), false) = (same.max_by_key(|image| image.record.built_at_unix_s), again) {
        watch.end(&format!("image {name} is already built: {}", image.path.display()));
        return Ok(image);
    }
    let into = unused(&images, &format!("{name}-{key}"));
    build::run(cache, &recipe, &into, watch)?;
    read(&into).ok_or_else(|| ImageError::Io {
        doing: "reading the record of the image just built in",
        path: into,
        source: std::io::ErrorKind::NotFound.into(),
    })
}

/// Every image in the cache, by name and age.
///
/// # Errors
/// [`ImageError`] when the cache cannot be read.
pub fn list(cache: &Cache) -> Result<Vec<BuiltImage>, ImageError> {
    let dir = cache.dir("images")?;
    let entries = fs::read_dir(&dir).map_err(ImageError::io("listing", &dir))?;
    let mut images: Vec<BuiltImage> = entries.flatten().filter_map(|entry| read(&entry.path())).collect();
    images.sort_by_key(|image| (image.record.name.clone(), image.record.built_at_unix_s));
    Ok(images)
}

/// The names that [`build`] knows.
pub fn names() -> &'static [&'static str] {
    &recipe::NAMES
}

fn read(dir: &Path) -> Option<BuiltImage> {
    let record = serde_json::from_slice(&fs::read(dir.join("image.json")).ok()?).ok()?;
    let path = dir.join("image.erofs");
    path.is_file().then_some(BuiltImage { path, record })
}

/// `dir/name`, or `dir/name.2` and so on when that is taken: a running sandbox may have the older one open.
fn unused(dir: &Path, name: &str) -> PathBuf {
    let later = (2_u32..).map(|number| dir.join(format!("{name}.{number}")));
    std::iter::once(dir.join(name)).chain(later).find(|path| !path.exists()).unwrap_or_else(|| dir.join(name))
}

/// What is in a file that the user named.
fn identify(path: &Path, meta: &fs::Metadata) -> Result<FileSystem, ImageError> {
    let not = |problem: String| ImageError::NotAnImage { path: path.to_owned(), problem };
    if !meta.is_file() {
        return Err(not("neither a regular file nor a directory".into()));
    }
    if meta.len() == 0 {
        return Err(not("the file is empty".into()));
    }
    let mut head = Vec::with_capacity(superblock::HEAD_BYTES);
    let file = File::open(path).map_err(ImageError::io("opening", path))?;
    file.take(superblock::HEAD_BYTES as u64).read_to_end(&mut head).map_err(ImageError::io("reading", path))?;
    superblock::identify(&head, meta.len()).map_err(|problem| not(problem.to_string()))
}

/// A directory as an erofs image, made again when anything in it changed.
fn pack(cache: &Cache, dir: &Path, watch: &dyn Watch) -> Result<PathBuf, ImageError> {
    let packed = cache.dir("packed-images")?;
    let mut entries = Vec::new();
    survey(dir, &mut entries)?;
    entries.sort();
    let key =
        Key::new().part("path", dir.as_os_str().as_encoded_bytes()).part("entries", entries.join("\n").as_bytes());
    let into = packed.join(format!("{}.erofs", key.finish()));
    if !into.exists() {
        watch.begin(&format!("packing {}", dir.display()), 0);
        let result = erofs::pack_directory(dir, &into);
        watch.end("");
        result.map_err(|source| ImageError::Pack { path: dir.to_owned(), source })?;
    }
    Ok(into)
}

/// One line for each entry, with what changes when the entry changes.
fn survey(dir: &Path, lines: &mut Vec<String>) -> Result<(), ImageError> {
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).map_err(ImageError::io("listing", &dir))? {
            let entry = entry.map_err(ImageError::io("listing", &dir))?;
            let path = entry.path();
            let meta = entry.metadata().map_err(ImageError::io("reading", &path))?;
            let (mode, size) = (meta.mode(), if meta.is_dir() { 0 } else { meta.size() });
            lines.push(format!(
                "{path:?} {mode:o} {} {} {size} {} {}",
                meta.uid(),
                meta.gid(),
                meta.ctime(),
                meta.ctime_nsec()
            ));
            if meta.is_dir() {
                pending.push(path);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
