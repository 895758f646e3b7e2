//! The witness's memory: one small file of text, replaced as a whole.
//!
//! Must never give a content that is not the last one that was stored: a file that is damaged, or of another resource, is
//! refused with a remedy. Called by the witness's program, and by `init`, `check` and `dump`.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

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

    /// Reads the file, and makes it if there is none.
    ///
    /// # Errors
    /// It cannot be read or made, or is not this witness's.
    pub fn open(path: &Path, resource: &Resource, site: SiteId) -> Result<Self, String> {
        if fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            let made = WitnessFile::blank(path, resource, site);
            made.store().map_err(|error| {
                format!(
                    "<witness> {} cannot be made: {error}; make its folder, or correct the path",
                    path.display()
                )
            })?;
            return Ok(made);
        }
        WitnessFile::look(path, resource, site)
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

    /// Makes the content durable: it is there as a whole after a crash, or the one before it is.
    ///
    /// # Errors
    /// The file cannot be written: the one before is unchanged, or may be either.
    pub fn store(&self) -> io::Result<()> {
        let mut new = self.path.clone().into_os_string();
        new.push(".new");
        let mut file = File::create(&new)?;
        file.write_all(self.text().as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        File::open(
            self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")),
        )?
        .sync_all()
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

/// Makes the file, and returns a report of a line.
///
/// # Errors
/// It is there already and `force` is false, or it cannot be written.
pub fn init(path: &Path, resource: &Resource, site: SiteId, force: bool) -> Result<String, String> {
    if !force && fs::symlink_metadata(path).is_ok() {
        return Err(format!(
            "<witness> {} is there: with --force it forgets, and votes for nobody until a primary has had both sites in sync",
            path.display()
        ));
    }
    let made = WitnessFile::blank(path, resource, site);
    made.store().map_err(|error| {
        format!("<witness> {} cannot be made: {error}; make its folder, or correct the path", path.display())
    })?;
    Ok(format!("{} ({}) at {site}: {}: {}", resource.id, resource.name, path.display(), made.sentence()))
}

#[cfg(test)]
mod tests {
    use super::*;

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
