//! The witness's memory: one small file of text, replaced as a whole.
//!
//! Must never give a content that is not the last one that was stored: a file that is damaged, or of another resource, or in use
//! by another program, is refused with a remedy. Called by the witness's program, and by `init`, `check` and `dump`.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::device::lock;
use super::format::Generation;
use crate::config::Resource;
use crate::wire::{Mask, ResourceId, SiteId};

/// The first line.
const MARK: &str = "hadm-nbd witness 1";

/// The newest content, and its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WitnessFile {
    path: PathBuf,
    resource: ResourceId,
    site: SiteId,
    /// The newest generation; an empty one before the first.
    pub current: Generation,
    /// The sites that had its data.
    pub holders: Mask,
}

impl WitnessFile {
    fn blank(path: &Path, resource: &Resource, site: SiteId) -> Self {
        let (path, resource) = (path.to_owned(), resource.id);
        WitnessFile { path, resource, site, current: Generation::NONE, holders: Mask(0) }
    }

    /// Reads the file, and makes it if there is none. No other program opens it as long as the second of the results is
    /// open.
    ///
    /// # Errors
    /// It cannot be read or made, is not this witness's, or is in use.
    pub fn open(path: &Path, resource: &Resource, site: SiteId) -> Result<(Self, File), String> {
        if is_missing(path) {
            return WitnessFile::make(path, resource, site);
        }
        let held = hold(path)?;
        Ok((WitnessFile::look(path, resource, site)?, held))
    }

    fn make(path: &Path, resource: &Resource, site: SiteId) -> Result<(Self, File), String> {
        let made = WitnessFile::blank(path, resource, site);
        let held = made.store().map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => in_use(path),
            _ => format!(
                "<witness> {} cannot be made: {error}; make its folder, or correct the path",
                path.display()
            ),
        })?;
        Ok((made, held))
    }

    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, or is not this witness's.
    pub fn look(path: &Path, resource: &Resource, site: SiteId) -> Result<Self, String> {
        let place = path.display();
        let text = fs::read_to_string(path).map_err(|error| {
            format!("<witness> {place} cannot be read: {error}; hadm-nbd init {} makes it", resource.name)
        })?;
        let file = WitnessFile::parse(path, &text).ok_or_else(|| {
            format!(
                "<witness> {place} is damaged, or no file of a witness: make it anew with `hadm-nbd init --force {}`; it votes \
                 again when a primary has had both sites in sync",
                resource.name
            )
        })?;
        if (file.resource, file.site) != (resource.id, site) {
            return Err(format!(
                "<witness> {place} is that of {} at {}, not of {} at {site}: correct the path",
                file.resource, file.site, resource.id
            ));
        }
        Ok(file)
    }

    fn text(&self) -> String {
        let body = format!(
            "{MARK}\nresource {}\nsite {}\ngeneration {:016x}\nholders {:08x}\n",
            self.resource.get(),
            self.site.get(),
            self.current.bits(),
            self.holders.0
        );
        format!("{body}check {}\n", blake3::hash(body.as_bytes()).to_hex())
    }

    fn parse(path: &Path, text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned);
        field("hadm-nbd").filter(|rest| rest == "witness 1")?;
        let id = |text: String| text.parse::<u32>().ok();
        let file = WitnessFile {
            path: path.to_owned(),
            resource: ResourceId::try_from(id(field("resource")?)?).ok()?,
            site: SiteId::try_from(id(field("site")?)?).ok()?,
            current: Generation::from_bits(u64::from_str_radix(&field("generation")?, 16).ok()?),
            holders: Mask(u32::from_str_radix(&field("holders")?, 16).ok()?),
        };
        (file.text() == text).then_some(file)
    }

    /// Makes the content durable: it is there as a whole after a crash, or the one before it is. The file is a new one: the
    /// one that is returned keeps other programs from it, and not the one before.
    ///
    /// # Errors
    /// The file cannot be written: the one before is unchanged, or may be either.
    pub fn store(&self) -> io::Result<File> {
        let mut new = self.path.clone().into_os_string();
        new.push(".new");
        // Cut off only once it is locked: another program may be about to put it in place.
        let mut file = File::options().write(true).create(true).truncate(false).open(&new)?;
        lock(&file, false)?;
        file.set_len(0)?;
        file.write_all(self.text().as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        File::open(
            self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")),
        )?
        .sync_all()?;
        Ok(file)
    }

    /// Describes the content for people.
    pub fn sentence(&self) -> String {
        match self.current.has_data() {
            true => format!("witness; generation {}, at sites {}", self.current, self.holders),
            false => {
                "witness; knows nothing yet: it votes when a primary has had both sites in sync".to_owned()
            }
        }
    }
}

fn is_missing(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

fn in_use(path: &Path) -> String {
    format!(
        "<witness> {} is in use by another hadm-nbd; stop that one, or correct the configuration if it names this file twice",
        path.display()
    )
}

/// Keeps other programs from the file as long as what it returns is open.
///
/// # Errors
/// It cannot be opened, or another program has it.
fn hold(path: &Path) -> Result<File, String> {
    let fail = |error: io::Error| match error.kind() {
        ErrorKind::WouldBlock => in_use(path),
        _ => format!(
            "<witness> {} cannot be opened: {error}; give it write access, or correct the path",
            path.display()
        ),
    };
    let file = File::options().read(true).write(true).open(path).map_err(fail)?;
    lock(&file, false).map_err(|error| fail(error.into()))?;
    let place = |about: fs::Metadata| (about.dev(), about.ino());
    // The one that had it has just put a new one in its place.
    let is_same = place(file.metadata().map_err(fail)?) == place(fs::metadata(path).map_err(fail)?);
    if is_same { Ok(file) } else { Err(in_use(path)) }
}

/// Makes the file, and returns a report of a line.
///
/// # Errors
/// It is there already and `force` is false, is in use, or cannot be written.
pub fn init(path: &Path, resource: &Resource, site: SiteId, force: bool) -> Result<String, String> {
    let is_new = is_missing(path);
    if !force && !is_new {
        return Err(format!(
            "<witness> {} is there: with --force it forgets, and votes for nobody until a primary has had both sites in sync",
            path.display()
        ));
    }
    let _held = if is_new { None } else { Some(hold(path)?) };
    let (made, _) = WitnessFile::make(path, resource, site)?;
    Ok(format!("{} ({}) at {site}: {}: {}", resource.id, resource.name, path.display(), made.sentence()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_program_alone_has_the_file() {
        let folder = std::env::temp_dir().join(format!("witness-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (path, site) = (folder.join("w"), SiteId::try_from(2).unwrap());
        let resource =
            Resource { id: ResourceId::try_from(3).unwrap(), name: "data".to_owned(), runsites: Vec::new() };
        let is_held = |result: Result<String, String>| {
            assert!(
                result.as_ref().is_err_and(|why| why.contains("is in use by another hadm-nbd")),
                "{result:?}"
            );
        };
        let open = || WitnessFile::open(&path, &resource, site).map(|(file, _)| file.sentence());
        let (file, first) = WitnessFile::open(&path, &resource, site).unwrap();
        is_held(open());
        let second = file.store().unwrap();
        drop(first);
        is_held(open());
        is_held(init(&path, &resource, site, true));
        assert!(WitnessFile::look(&path, &resource, site).is_ok());
        drop(second);
        let (_, third) = WitnessFile::open(&path, &resource, site).unwrap();
        // The file that another program is about to put in place is not touched.
        let new = File::create(folder.join("w.new")).unwrap();
        lock(&new, false).unwrap();
        fs::write(folder.join("w.new"), "its content").unwrap();
        assert!(file.store().is_err_and(|error| error.kind() == ErrorKind::WouldBlock));
        assert_eq!(fs::read_to_string(folder.join("w.new")).unwrap(), "its content");
        drop((third, new));
        assert!(init(&path, &resource, site, true).is_ok());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn its_text_comes_back_and_damage_is_seen() {
        let file = WitnessFile {
            path: "/w".into(),
            resource: ResourceId::try_from(3).unwrap(),
            site: SiteId::try_from(2).unwrap(),
            current: Generation::draw(0x1234_5678_9abc, true),
            holders: Mask(3),
        };
        let text = file.text();
        assert_eq!(WitnessFile::parse(Path::new("/w"), &text).as_ref(), Some(&file));
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let damaged = String::from_utf8(bytes).unwrap();
            assert_eq!(WitnessFile::parse(Path::new("/w"), &damaged), None, "byte {at}");
            assert_eq!(WitnessFile::parse(Path::new("/w"), &text[..at]), None, "cut at {at}");
        }
    }
}
