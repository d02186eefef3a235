//! Which file a connection has open: the one at its path may be another by now.
//!
//! SQLite goes on writing to a file that was deleted, or that another one has replaced, and says nothing: what it calls
//! committed is gone when the last connection is closed.

use std::path::{Path, PathBuf};

/// The file that was at a path.
#[derive(Debug)]
pub(crate) struct Identity {
    path: PathBuf,
    id: Option<Id>,
}

impl Identity {
    pub(crate) fn of(path: &Path) -> Self {
        Self { path: path.to_owned(), id: id(path) }
    }

    /// Whether another file is at the path, or none. One look at the directory: about a microsecond.
    pub(crate) fn has_moved(&self) -> bool {
        self.id != id(&self.path)
    }
}

#[cfg(unix)]
type Id = (u64, u64);

#[cfg(unix)]
fn id(path: &Path) -> Option<Id> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Elsewhere a file that is open cannot be deleted.
#[cfg(not(unix))]
type Id = ();

#[cfg(not(unix))]
fn id(_path: &Path) -> Option<Id> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_deleted_or_replaced_has_moved_and_one_that_is_written_has_not() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("a"), directory.path().join("b"));
        std::fs::write(&path, "a").unwrap();
        let identity = Identity::of(&path);
        std::fs::write(&path, "written").unwrap();
        assert!(!identity.has_moved());
        std::fs::write(&other, "b").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert!(identity.has_moved());
        let identity = Identity::of(&path);
        std::fs::remove_file(&path).unwrap();
        assert!(identity.has_moved());
    }
}
