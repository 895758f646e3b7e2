//! `hadmctl keygen`: makes a key file, or puts a fresh key into one. Needs no daemon.
//!
//! An existing file is never damaged: a new file does not replace one, and a changed one takes its place as a whole.
//! No key is printed, only its id.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::config::keys::{KEY_LEN, Key, Keys};

/// Makes a key file with a fresh key; returns a sentence about it.
///
/// # Errors
/// A sentence for the operator, such as that there is a file already.
pub fn make(path: &Path) -> Result<String, String> {
    let place = path.display();
    let key = Key::fresh().map_err(|error| format!("cannot draw a key: {error}"))?;
    write(path, &[&key], None).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            format!("{place} is there already; option --rotate puts a fresh key into it")
        }
        _ => format!("cannot make {place}: {error}"),
    })?;
    Ok(format!(
        "made {place} with key {}; copy it to every node as it is, readable for the daemon's user alone",
        key.id
    ))
}

/// Puts a fresh key before the newest one of a key file, and removes an older one behind that.
///
/// # Errors
/// A sentence for the operator; the file is unchanged then.
pub fn rotate(path: &Path) -> Result<String, String> {
    // A link to the file stays one: the file behind it is replaced.
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let place = path.display();
    let keys = Keys::read_to_change(path).map_err(|error| format!("{place}: {error}"))?;
    let former = keys.newest().ok_or_else(|| format!("{place} has no key"))?;
    let key = Key::fresh().map_err(|error| format!("cannot draw a key: {error}"))?;
    let mut next = path.as_os_str().to_owned();
    next.push(".new");
    let next = PathBuf::from(next);
    let fail = |error: io::Error| {
        let remedy = match error.kind() {
            io::ErrorKind::AlreadyExists => "; remove the latter unless another keygen runs",
            _ => "",
        };
        format!("cannot replace {place} by {}: {error}{remedy}", next.display())
    };
    let replaced = fs::metadata(path)
        .and_then(|about| write(&next, &[&key, former], Some((about.uid(), about.gid()))))
        .and_then(|()| {
            fs::rename(&next, path).inspect_err(|_| drop(fs::remove_file(&next)))?;
            sync_folder(path)
        });
    replaced.map_err(fail)?;
    Ok(format!(
        "{place} has key {} now, and key {} second; copy it to every node and reload each, in any order",
        key.id, former.id
    ))
}

/// Writes a file that only its owner may read, and leaves none behind on a failure.
fn write(path: &Path, keys: &[&Key], owner: Option<(u32, u32)>) -> io::Result<()> {
    const HEAD: &str = "# Keys of the cluster's encrypted links, the newest first: the same on every node. Who reads \
                        them belongs to the cluster.\n";
    let mut text = Zeroizing::new(String::with_capacity(HEAD.len() + keys.len() * (2 * KEY_LEN + 1)));
    text.push_str(HEAD);
    keys.iter().for_each(|key| key.write_line(&mut text));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut fill = || {
        if let Some((user, group)) = owner {
            fchown(&file, Some(user), Some(group))?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        sync_folder(path)
    };
    fill().inspect_err(|_| drop(fs::remove_file(path)))
}

/// Syncs the folder, without which a new name in it may be lost.
fn sync_folder(file: &Path) -> io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
