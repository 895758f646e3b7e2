//! The users of a block device or a file as a disk: mounts, swap, and devices made of it.
//!
//! Reads /proc and /sys and must change nothing; where these say nothing, no user is named. Called only for an error
//! message, to name the user of a disk that is busy.

use std::fs;
use std::path::Path;

/// Returns the user of a block device, in words.
pub(super) fn of_device(major: u32, minor: u32) -> Option<String> {
    let sys = format!("/sys/dev/block/{major}:{minor}");
    let named = |what: &str| Some(format!("{what} has it"));
    if let Some(place) = mounted_at(&format!("{major}:{minor}")) {
        return Some(format!("it is mounted at {place}"));
    }
    if let Some(holder) = names(&format!("{sys}/holders")).into_iter().next() {
        return named(&format!("/dev/{holder}"));
    }
    let own = fs::canonicalize(&sys).ok()?;
    let own = own.file_name()?.to_string_lossy().into_owned();
    if is_swap(Path::new(&format!("/dev/{own}"))) {
        return Some("it is swap space".to_owned());
    }
    // A whole disk is in use if a partition is.
    for part in names(&sys) {
        let number = fs::read_to_string(format!("{sys}/{part}/dev")).ok();
        let is_part = Path::new(&format!("{sys}/{part}/partition")).exists();
        let Some(number) = number.filter(|_| is_part) else { continue };
        let (major, minor) = number.trim().split_once(':')?;
        if let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) {
            if let Some(user) = of_device(major, minor) {
                return Some(format!("of its partition /dev/{part}, {user}"));
            }
        }
    }
    None
}

/// Returns the user of a file as a disk, in words.
pub(super) fn of_file(path: &Path) -> Option<String> {
    let path = fs::canonicalize(path).ok()?;
    if is_swap(&path) {
        return Some("it is swap space".to_owned());
    }
    for name in names("/sys/block").into_iter().filter(|name| name.starts_with("loop")) {
        let sys = format!("/sys/block/{name}");
        let backing = fs::read_to_string(format!("{sys}/loop/backing_file")).unwrap_or_default();
        if Path::new(backing.trim_end_matches('\n')) != path {
            continue;
        }
        let number = fs::read_to_string(format!("{sys}/dev")).unwrap_or_default();
        let mount = mounted_at(number.trim());
        let mount = mount.map(|place| format!(", which is mounted at {place}")).unwrap_or_default();
        return Some(format!("/dev/{name} is made of it{mount}"));
    }
    None
}

fn names(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn mounted_at(number: &str) -> Option<String> {
    mount_point(&fs::read_to_string("/proc/self/mountinfo").ok()?, number)
}

/// Returns the path at which the device with this number is mounted, by the text of /proc/self/mountinfo.
fn mount_point(mounts: &str, number: &str) -> Option<String> {
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(number))?;
    // White space is written as octal numbers.
    Some(line.split(' ').nth(4)?.replace("\\040", " ").replace("\\011", "\t"))
}

fn is_swap(path: &Path) -> bool {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut paths = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    paths.any(|swap| fs::canonicalize(swap).is_ok_and(|swap| swap == path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_the_devices_number() {
        let text = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 8:17 / /mnt/a\\040b rw - xfs /dev/sdb1 rw\n";
        assert_eq!(mount_point(text, "8:17").as_deref(), Some("/mnt/a b"));
        assert_eq!(mount_point(text, "8:1").as_deref(), Some("/"));
        assert_eq!(mount_point(text, "8:7"), None);
    }
}
