//! The check whether the kernel module is loaded: the daemon serves it, and ends when it is unloaded.
//!
//! Reads the module list and nothing else; may block. Called at the start, and then by a thread of its own.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Name of the kernel module, as the module list has it.
pub const MODULE: &str = "hadm_kmod";
/// The kernel's list of loaded modules.
pub const MODULE_LIST: &str = "/proc/modules";

/// The reason why there is no kernel module to serve.
#[derive(Debug)]
pub enum Missing {
    /// The list does not have it.
    NotLoaded,
    /// There is no list to look at.
    NoList(PathBuf, io::Error),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Missing::NotLoaded => write!(f, "kernel module {MODULE} is not loaded: load it first"),
            Missing::NoList(list, error) => write!(
                f,
                "cannot look whether kernel module {MODULE} is loaded: {}: {error}; a kernel without a \
                 module list needs --no-kmod-check",
                list.display()
            ),
        }
    }
}

/// Looks for the module. Its name is the whole first word of a line.
///
/// # Errors
/// It is not in the list, or the list cannot be read.
pub fn check(list: &Path) -> Result<(), Missing> {
    let regular = |file: fs::Metadata| match file.is_file() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file")),
    };
    let text = fs::metadata(list).and_then(regular).and_then(|()| fs::read_to_string(list));
    let text = text.map_err(|error| Missing::NoList(list.into(), error))?;
    if text.lines().any(|line| line.split_whitespace().next() == Some(MODULE)) {
        Ok(())
    } else {
        Err(Missing::NotLoaded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(text: &str) -> Result<(), Missing> {
        let file = std::env::temp_dir().join(format!("modules-{}-{}", std::process::id(), text.len()));
        fs::write(&file, text).unwrap();
        let found = check(&file);
        fs::remove_file(&file).unwrap();
        found
    }

    /// Failure mode 30: a name that only begins like the module's is another module.
    #[test]
    fn fm30_the_name_counts_as_a_whole() {
        assert!(look("nbd 1 0\nhadm_kmod 16384 0 - Live 0x0\n").is_ok());
        assert!(matches!(look("hadm_kmod_old 1 0 - Live 0x0\n"), Err(Missing::NotLoaded)));
        assert!(matches!(look("x 1 1 hadm_kmod, Live 0x0\n"), Err(Missing::NotLoaded)));
    }

    /// Failure mode 33: a missing list is not a loaded module.
    #[test]
    fn fm33_a_missing_list_is_an_error_that_names_the_remedy() {
        let missing = check(Path::new("/nonexistent/modules")).unwrap_err();
        assert!(matches!(missing, Missing::NoList(..)));
        assert!(missing.to_string().contains("--no-kmod-check"));
        assert!(missing.to_string().contains("/nonexistent/modules"));
    }
}
