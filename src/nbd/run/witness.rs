//! A witness at work: it stores what a site with a disk asks it to, and answers with what it has.
//!
//! Must never answer with a content that is not durable. Called by the attached links and the control socket.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use log::{error, info};
use serde_json::{Value, json};

use super::link::Link;
use crate::config::Resource;
use crate::nbd::core::encode_header;
use crate::nbd::disk::witness::WitnessFile;
use crate::nbd::mirror::promotion::Witness as Content;
use crate::nbd::mirror::witness::{Answer, Ask};
use crate::wire::{Class, HEADER_LEN, Header, Mask, PacketType, ResourceId, SiteId};

struct State {
    file: WitnessFile,
    /// Keeps other programs from the file.
    held: File,
    linked: Mask,
    /// The file could not be written: nobody knows what it has.
    has_failed: bool,
}

/// The witness of a resource.
pub struct Witness {
    pub(super) id: ResourceId,
    pub(super) name: String,
    site: SiteId,
    sites: Vec<SiteId>,
    /// Held while the file is written. The link's locks are taken under it.
    state: Mutex<State>,
    link: Arc<Link>,
}

impl Witness {
    /// Opens the witness of a resource; `None` if the resource has a disk at this site.
    ///
    /// # Errors
    /// Its file cannot be used: a sentence with the remedy.
    pub fn open(resource: &Resource, site: SiteId, link: &Arc<Link>) -> Result<Option<Arc<Self>>, String> {
        let Some(path) = resource.runsite(site).and_then(|at| at.witness.as_deref()) else { return Ok(None) };
        let (file, held) = WitnessFile::open(path, resource, site)?;
        Ok(Some(Arc::new(Witness {
            id: resource.id,
            name: resource.name.clone(),
            site,
            sites: resource.others(site).collect(),
            state: Mutex::new(State { file, held, linked: Mask(0), has_failed: false }),
            link: Arc::clone(link),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns true if this is the resource's name or id.
    pub fn is_called(&self, wanted: &str) -> bool {
        self.name == wanted || self.id.get().to_string() == wanted
    }

    /// The daemon has sent the connected sites.
    pub fn set_linked(&self, sites: Mask) {
        self.lock().linked = sites;
    }

    /// Handles a packet of a site.
    pub fn handle(&self, header: &[u8; HEADER_LEN], payload: &[u8]) {
        let header = Header::decode(header);
        let from = SiteId::try_from(header.node_from).ok().filter(|from| self.sites.contains(from));
        let asks = header.kind == PacketType::SC_PRI_PRO;
        let Some((from, ask)) = from.filter(|_| asks).zip(Ask::decode(payload)) else { return };
        let mut state = self.lock();
        if state.has_failed {
            return;
        }
        let content = Content { current: state.file.current, holders: state.file.holders };
        if let Some(fresh) = ask.change(content) {
            let mut file = state.file.clone();
            (file.current, file.holders) = (fresh.current, fresh.holders);
            match file.store() {
                Ok(held) => state.held = held,
                Err(why) => {
                    state.has_failed = true;
                    return error!(
                        "{}: the witness's file cannot be written: {why}: it votes for nobody until hadm-nbd is started anew",
                        self.name
                    );
                }
            }
            info!("{}: {from} has generation {}, at sites {}", self.name, fresh.current, fresh.holders);
            state.file = file;
        }
        let content = Content { current: state.file.current, holders: state.file.holders };
        let payload = Bytes::from(Answer { number: ask.number, content }.encode());
        let header = encode_header(PacketType::SC_PRI_PRO_ACK, self.id, (self.site, from), payload.len());
        self.link.push(Class::Meta, header, payload);
        drop(state);
        self.link.flush();
    }

    /// Returns what it knows, in words, and true if it can store what it is asked to.
    pub fn knowledge(&self) -> (String, bool) {
        let state = self.lock();
        match state.has_failed {
            true => ("witness; its file cannot be written: it votes for nobody".to_owned(), false),
            false => (state.file.sentence(), true),
        }
    }

    /// Returns the sites with disks, each with true if it is connected.
    pub fn sites(&self) -> Vec<(SiteId, bool)> {
        let linked = self.lock().linked;
        self.sites.iter().map(|site| (*site, linked.contains(site.get()))).collect()
    }

    /// The state for programs.
    pub fn status(&self) -> Value {
        let ((mut sentence, is_well), sites) = (self.knowledge(), self.sites());
        for (site, is_linked) in &sites {
            let linked = if *is_linked { "connected" } else { "not connected" };
            sentence += &format!("; {site} {linked}");
        }
        let state = self.lock();
        json!({
            "id": self.id.get(),
            "name": self.name,
            "site": self.site.get(),
            "generation": format!("{:016x}", state.file.current.bits()),
            "holders": state.file.holders.ids().collect::<Vec<_>>(),
            "linked": sites.iter().filter(|(_, is_linked)| *is_linked).map(|(site, _)| site.get()).collect::<Vec<_>>(),
            "failed": !is_well,
            "sentence": sentence,
        })
    }
}
