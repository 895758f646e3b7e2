//! Negotiation: fixed newstyle, from the greeting to the client's choice of an export.
//!
//! Must allocate nothing for a client's claims beyond [`OPTION_MAX`], and must end with its deadline. Runs on the
//! connection's reading thread.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::PAYLOAD_MAX;
use super::export::{Export, Exports};
use super::option::{
    self, ERR_INVALID, ERR_TOO_BIG, ERR_UNKNOWN, ERR_UNSUP, INFO_BLOCK_SIZE, INFO_EXPORT, INFO_NAME,
    Malformed, NAME_MAX, OPTION_MAX, Opt, REP_ACK, REP_INFO, REP_META_CONTEXT, REP_SERVER, push_name,
};
use super::request::Agreed;
use super::volume::Volume;
use super::wire::{Input, Wire, send_all};

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;

/// Fixed newstyle, and no zeroes after EXPORT_NAME: the server's flags, and the client's.
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

/// Flags of an export: there are flags, FLUSH, FUA, TRIM, WRITE_ZEROES, several connections, CACHE, FAST_ZERO.
const FLAGS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 11;
/// The flag of READs that may be wanted in one piece; only with structured replies.
const DF: u16 = 1 << 7;

/// Smallest block. Any range is served; some clients cannot read, modify and write.
const BLOCK_MIN: u32 = 1;
/// Preferred block in bytes: a page.
const BLOCK_PREFERRED: u32 = 4096;

/// The one context of block status.
const ALLOCATION: &str = "base:allocation";
/// The context's number on this server.
pub(super) const ALLOCATION_ID: u32 = 1;

/// The choice of a client.
pub(super) struct Choice {
    pub export: Arc<Export>,
    pub volume: Arc<dyn Volume>,
    pub agreed: Agreed,
    /// The message that lets the client begin; to be sent when everything is ready for it.
    pub last: Vec<u8>,
}

/// A client that has not chosen yet.
pub(super) struct Negotiation<'a> {
    wire: &'a dyn Wire,
    input: &'a mut Input,
    deadline: Option<Instant>,
    exports: &'a Exports,
    is_fixed: bool,
    no_zeroes: bool,
    structured: bool,
    /// The export that base:allocation was chosen for.
    allocation: Option<Arc<Export>>,
}

fn refuse(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Negotiates until the client's choice; `None` if the client ends the connection.
///
/// # Errors
/// The connection broke, the deadline is over, or the client does not keep to the protocol.
pub(super) fn negotiate(
    wire: &dyn Wire,
    input: &mut Input,
    deadline: Option<Instant>,
    exports: &Exports,
) -> io::Result<Option<Choice>> {
    let mut greeting = [MAGIC.to_be_bytes(), OPTION_MAGIC.to_be_bytes()].concat();
    greeting.extend_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    send_all(wire, deadline, &greeting)?;
    let flags = u32::from_be_bytes(input.take()?);
    if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
        return Err(refuse("it sent flags that are unknown"));
    }
    let has = |flag: u16| flags & u32::from(flag) != 0;
    let (is_fixed, no_zeroes) = (has(FIXED_NEWSTYLE), has(NO_ZEROES));
    let (structured, allocation) = (false, None);
    let mut negotiation =
        Negotiation { wire, input, deadline, exports, is_fixed, no_zeroes, structured, allocation };
    loop {
        if let ControlFlow::Break(choice) = negotiation.option()? {
            return Ok(choice);
        }
    }
}

type Step = ControlFlow<Option<Choice>>;

impl Negotiation<'_> {
    fn option(&mut self) -> io::Result<Step> {
        if u64::from_be_bytes(self.input.take()?) != OPTION_MAGIC {
            return Err(refuse("it sent what is no option"));
        }
        let number = u32::from_be_bytes(self.input.take()?);
        let len = u32::from_be_bytes(self.input.take()?);
        let option = Opt::of(number);
        // Clients of before fixed newstyle have no reply for errors.
        if !self.is_fixed && option != Some(Opt::ExportName) {
            return Err(refuse("it sent an option without fixed newstyle"));
        }
        if option.is_none() || len > OPTION_MAX {
            self.input.skip(len.into())?;
            return match option {
                None => self.fail(number, ERR_UNSUP, "this option is not known here"),
                Some(Opt::ExportName) => Err(refuse("it asked for a name that is too long")),
                Some(_) => self.fail(number, ERR_TOO_BIG, "the option is too long"),
            };
        }
        // The length is at most OPTION_MAX.
        let data = self.input.take_bytes(len as usize)?;
        match option {
            Some(Opt::ExportName) => self.export_name(&data).map(|choice| ControlFlow::Break(Some(choice))),
            Some(Opt::Abort) => {
                // The client may have gone already.
                let _ = self.reply(number, REP_ACK, &[]);
                Ok(ControlFlow::Break(None))
            }
            Some(Opt::List | Opt::StartTls | Opt::StructuredReply) if !data.is_empty() => {
                self.fail(number, ERR_INVALID, "this option has no data")
            }
            Some(Opt::List) => self.list(number),
            Some(Opt::StructuredReply) => {
                self.structured = true;
                self.acknowledge(number)
            }
            Some(Opt::Info | Opt::Go) => self.info(number, option == Some(Opt::Go), &data),
            Some(Opt::ListMeta | Opt::SetMeta) => self.meta(number, option == Some(Opt::SetMeta), &data),
            Some(Opt::StartTls) => self.fail(number, ERR_UNSUP, "TLS is not spoken here"),
            None => Ok(ControlFlow::Continue(())),
        }
    }

    fn reply(&self, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        send_all(self.wire, self.deadline, &option::reply(option, kind, data))
    }

    fn acknowledge(&self, option: u32) -> io::Result<Step> {
        self.reply(option, REP_ACK, &[]).map(ControlFlow::Continue)
    }

    fn fail(&self, option: u32, error: u32, why: &str) -> io::Result<Step> {
        self.reply(option, error, why.as_bytes()).map(ControlFlow::Continue)
    }

    fn malformed(&self, option: u32, why: Malformed) -> io::Result<Step> {
        match why {
            Malformed::NameTooLong => self.fail(option, ERR_TOO_BIG, "a name has at most 4096 bytes"),
            Malformed::NotUtf8 => self.fail(option, ERR_INVALID, "names are UTF-8"),
            Malformed::Lengths => self.fail(option, ERR_INVALID, "the option's lengths do not fit together"),
        }
    }

    fn unknown(&self, option: u32, name: &str) -> io::Result<Step> {
        // A message has at most 4096 bytes, as a name has.
        let short: String = name.chars().take(256).collect();
        self.fail(option, ERR_UNKNOWN, &format!("no export '{short}' is served here at present"))
    }

    /// Returns the choice of this export, and its flags.
    fn choice(&self, export: Arc<Export>, volume: Arc<dyn Volume>) -> (Choice, u16) {
        let allocation = self.allocation.as_ref().is_some_and(|chosen| Arc::ptr_eq(chosen, &export));
        let agreed = Agreed { size: volume.size(), structured: self.structured, allocation };
        let flags = if self.structured { FLAGS | DF } else { FLAGS };
        (Choice { export, volume, agreed, last: Vec::new() }, flags)
    }

    fn export_name(&self, data: &Bytes) -> io::Result<Choice> {
        let name = std::str::from_utf8(data).ok().filter(|name| name.len() <= NAME_MAX);
        let (export, volume) = name
            .and_then(|name| self.exports.find(name))
            .ok_or_else(|| refuse("it asked for an export that is not served"))?;
        let (mut choice, flags) = self.choice(export, volume);
        choice.last.extend_from_slice(&choice.agreed.size.to_be_bytes());
        choice.last.extend_from_slice(&flags.to_be_bytes());
        if !self.no_zeroes {
            choice.last.extend_from_slice(&[0; 124]);
        }
        Ok(choice)
    }

    fn list(&self, option: u32) -> io::Result<Step> {
        for export in self.exports.served() {
            let mut data = Vec::new();
            push_name(&mut data, export.name());
            self.reply(option, REP_SERVER, &data)?;
        }
        self.acknowledge(option)
    }

    fn info(&self, option: u32, goes: bool, data: &[u8]) -> io::Result<Step> {
        let (name, wanted) = match option::info(data) {
            Ok(asked) => asked,
            Err(why) => return self.malformed(option, why),
        };
        let Some((export, volume)) = self.exports.find(name) else { return self.unknown(option, name) };
        let (mut choice, flags) = self.choice(export, volume);
        let numbers = [&choice.agreed.size.to_be_bytes()[..], &flags.to_be_bytes()].concat();
        let sizes = [BLOCK_MIN, BLOCK_PREFERRED, PAYLOAD_MAX].map(u32::to_be_bytes).concat();
        let infos = [
            (INFO_EXPORT, numbers.as_slice(), true),
            (INFO_NAME, choice.export.name().as_bytes(), wanted.contains(&INFO_NAME)),
            (INFO_BLOCK_SIZE, &sizes, wanted.contains(&INFO_BLOCK_SIZE)),
        ];
        let mut answer = Vec::new();
        for (kind, data, _) in infos.into_iter().filter(|&(_, _, is_sent)| is_sent) {
            answer.extend(option::reply(option, REP_INFO, &[&kind.to_be_bytes(), data].concat()));
        }
        answer.extend(option::reply(option, REP_ACK, &[]));
        if goes {
            choice.last = answer;
            return Ok(ControlFlow::Break(Some(choice)));
        }
        send_all(self.wire, self.deadline, &answer).map(ControlFlow::Continue)
    }

    fn meta(&mut self, option: u32, sets: bool, data: &[u8]) -> io::Result<Step> {
        if sets {
            // An earlier choice is gone even if this one fails.
            self.allocation = None;
        }
        if !self.structured {
            return self.fail(option, ERR_INVALID, "structured replies have to be agreed on first");
        }
        let (name, queries) = match option::meta(data) {
            Ok(asked) => asked,
            Err(why) => return self.malformed(option, why),
        };
        let Some((export, _)) = self.exports.find(name) else { return self.unknown(option, name) };
        let lists_all = |query: &&str| !sets && *query == "base:";
        let mut chosen = queries.iter().filter(|query| **query == ALLOCATION || lists_all(query));
        if chosen.next().is_some() || (!sets && queries.is_empty()) {
            let id = if sets { ALLOCATION_ID } else { 0 };
            let body = [&id.to_be_bytes(), ALLOCATION.as_bytes()].concat();
            self.reply(option, REP_META_CONTEXT, &body)?;
            if sets {
                self.allocation = Some(export);
            }
        }
        self.acknowledge(option)
    }
}
