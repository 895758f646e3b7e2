//! A file that is being received: under a temporary name beside its target until it is known to be complete.
//!
//! It must never leave a part of a file behind: dropped without [`Partial::keep`], the temporary
//! file is removed and the target is as before. Used by `recv`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The temporary file.
pub struct Partial {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    kept: bool,
}

/// Reports early a fault that would make [`Partial::create`] or [`Partial::keep`] fail.
pub fn check(target: &Path) -> Result<(), String> {
    if target.is_dir() || target.file_name().is_none() {
        return Err(format!("{} is a directory: give -o the name of a file", target.display()));
    }
    // The renamed file would replace a device, a pipe or a symbolic link itself.
    if fs::symlink_metadata(target).is_ok_and(|found| !found.is_file()) {
        return Err(format!("{} is there and is not a regular file: give -o another name", target.display()));
    }
    let directory = directory(target);
    if directory.is_dir() {
        Ok(())
    } else {
        Err(format!("cannot write {}: there is no directory {}", target.display(), directory.display()))
    }
}

fn directory(target: &Path) -> &Path {
    target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl Partial {
    /// Creates the temporary file in the target's directory, so that renaming it is one step.
    pub fn create(target: &Path) -> io::Result<Partial> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let name = format!(".{name}.{:08x}.part", fastrand::u32(..));
        let temporary = directory(target).join(name);
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        Ok(Partial { file, temporary, target: target.to_owned(), kept: false })
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Renames the file to the target, complete and on disk.
    pub fn keep(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.temporary, &self.target)?;
        self.kept = true;
        // The name as well; not every file system lets a directory be synced.
        let _ = File::open(directory(&self.target)).and_then(|d| d.sync_all());
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that is renamed to the target would replace a device or a link itself.
    #[test]
    fn only_regular_files_are_replaced() {
        assert!(check(Path::new("/dev/null")).is_err());
        let link = std::env::temp_dir().join(format!("hadm-probe-link-{}", std::process::id()));
        std::os::unix::fs::symlink("/nonexistent/target", &link).unwrap();
        let checked = check(&link);
        fs::remove_file(&link).unwrap();
        assert!(checked.is_err());
        assert!(check(&link).is_ok(), "a name that is free");
    }
}
