//! The codecs of a link: each run of packets is encoded into frames on one side, and each frame decoded on the other.
//! A link without a codec never comes here.
//!
//! Compression and encryption are codecs. Codecs are applied one after another: the first one is the inner one. A
//! decoder never trusts a frame: it refuses one that is too long by its length field alone, before anything is
//! allocated for it.

use std::fmt;
use std::io;
use std::net::TcpStream;

use bytes::{Buf, BytesMut};

use super::closed::{Closed, CodecError};
use super::framer::empty;
use crate::sys;

/// Least free space, in bytes, in the buffer that the socket is read into.
const WIRE_ROOM: usize = 64 * 1024;
/// Size in bytes of an empty buffer above which its memory is given back.
const KEEP_MAX: usize = 4 * WIRE_ROOM;

/// Makes space for `more` more bytes, or fails without the memory.
pub(super) fn make_room(buf: &mut BytesMut, more: usize) -> io::Result<()> {
    if buf.capacity().saturating_sub(buf.len()) < more && !buf.try_reclaim(more) {
        let mut next = empty(buf.len().saturating_add(more))?;
        next.extend_from_slice(buf);
        *buf = next;
    }
    Ok(())
}

/// The encoder of one direction: plain bytes to wire bytes.
pub trait Encode: Send {
    /// Appends `plain`, a run of whole packets, to `out` as frames. Encoded bytes must be sent, in order.
    ///
    /// # Errors
    /// `plain` cannot be encoded.
    fn encode(&mut self, plain: &[u8], out: &mut BytesMut) -> Result<(), CodecError>;
}

/// The decoder of the other direction: wire bytes to plain bytes.
pub trait Decode: Send {
    /// Takes one whole frame off the front of `wire` and appends its plain bytes to `out`. Returns false if the frame
    /// is not complete; nothing was taken then.
    ///
    /// # Errors
    /// The bytes are no frame, or one that may not be sent.
    fn decode(&mut self, wire: &mut BytesMut, out: &mut BytesMut) -> Result<bool, CodecError>;

    /// Returns the number of bytes that were taken and have not come out yet.
    fn pending(&self) -> usize {
        0
    }
}

/// Both directions of one link.
pub struct LinkCodec {
    /// The encoder of bytes that leave.
    pub encode: Box<dyn Encode>,
    /// The decoder of bytes that come in.
    pub decode: Box<dyn Decode>,
}

impl fmt::Debug for LinkCodec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkCodec")
    }
}

impl LinkCodec {
    /// Returns this codec over `inner`: bytes that leave go through `inner` first.
    pub fn over(self, inner: LinkCodec) -> LinkCodec {
        LinkCodec {
            encode: Box::new(Layers { outer: self.encode, inner: inner.encode, between: BytesMut::new() }),
            decode: Box::new(Layers { outer: self.decode, inner: inner.decode, between: BytesMut::new() }),
        }
    }
}

/// Two codecs of one direction.
struct Layers<T: ?Sized> {
    outer: Box<T>,
    inner: Box<T>,
    between: BytesMut,
}

impl Encode for Layers<dyn Encode> {
    fn encode(&mut self, plain: &[u8], out: &mut BytesMut) -> Result<(), CodecError> {
        self.inner.encode(plain, &mut self.between)?;
        self.outer.encode(&self.between, out)?;
        self.between.clear();
        shrink(&mut self.between);
        Ok(())
    }
}

impl Decode for Layers<dyn Decode> {
    fn decode(&mut self, wire: &mut BytesMut, out: &mut BytesMut) -> Result<bool, CodecError> {
        while !self.inner.decode(&mut self.between, out)? {
            if !self.outer.decode(wire, &mut self.between)? {
                return Ok(false);
            }
        }
        shrink(&mut self.between);
        Ok(true)
    }

    fn pending(&self) -> usize {
        [self.between.len(), self.inner.pending(), self.outer.pending()].iter().sum()
    }
}

/// A connection that has completed its handshake, and its codec from now on.
#[derive(Debug)]
pub struct Connection {
    /// The connection, blocking.
    pub stream: TcpStream,
    /// The codec; `None` if packets go as they are.
    pub codec: Option<LinkCodec>,
}

impl Connection {
    /// Adds `inner` as the innermost codec.
    pub fn wrap_inside(&mut self, inner: LinkCodec) {
        self.codec = Some(match self.codec.take() {
            Some(outer) => outer.over(inner),
            None => inner,
        });
    }
}

impl From<TcpStream> for Connection {
    fn from(stream: TcpStream) -> Self {
        Connection { stream, codec: None }
    }
}

/// The reading side's buffers of a link with a codec.
pub(super) struct Undressing {
    decode: Box<dyn Decode>,
    /// Bytes as they came: at most [`WIRE_ROOM`] bytes and an incomplete frame.
    wire: BytesMut,
    /// Decoded bytes that were not read yet: at most those of one frame.
    plain: BytesMut,
}

impl Undressing {
    pub(super) fn new(decode: Box<dyn Decode>) -> Self {
        Undressing { decode, wire: BytesMut::new(), plain: BytesMut::new() }
    }

    /// Reads like [`sys::receive`]: fills the free space of `room` as far as bytes are there, blocking for the first.
    pub(super) fn receive(&mut self, stream: &TcpStream, room: &mut BytesMut) -> Result<usize, Closed> {
        loop {
            let spare = room.capacity().saturating_sub(room.len());
            while self.plain.len() < spare && self.decode.decode(&mut self.wire, &mut self.plain)? {}
            if !self.plain.is_empty() {
                let n = spare.min(self.plain.len());
                room.extend_from_slice(self.plain.get(..n).unwrap_or_default());
                self.plain.advance(n);
                shrink(&mut self.plain);
                return Ok(n);
            }
            shrink(&mut self.wire);
            // Twice as much for a frame that does not fit: a long frame is not moved again and again.
            let more = self.wire.len().max(WIRE_ROOM);
            make_room(&mut self.wire, more).map_err(Closed::Broken)?;
            match sys::receive(stream, &mut self.wire, usize::MAX, false) {
                Ok(0) => return Ok(0),
                Ok(_) => {}
                Err(error) => return Err(Closed::Broken(error)),
            }
        }
    }

    /// Returns the number of bytes of an incomplete frame.
    pub(super) fn pending(&self) -> usize {
        [self.wire.len(), self.plain.len(), self.decode.pending()].iter().sum()
    }
}

/// Gives back the memory of an empty buffer that a single long frame has made large.
fn shrink(buf: &mut BytesMut) {
    if buf.is_empty() && buf.capacity() > KEEP_MAX {
        *buf = BytesMut::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::link::{Item, LinkSender, Reading, Sink, read_link};
    use crate::daemon::queue::{Budget, Cost, PacketCounters};
    use crate::sys::Counter;
    use crate::wire::{Class, Header, PacketType};
    use bytes::{BufMut, Bytes};
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener};
    use std::sync::Arc;
    use std::time::Duration;

    const READING: Reading = Reading { max_packet: 1 << 20, busy_poll: Duration::ZERO, zero_copy: None };

    /// A codec of frames with a u32 length, whose bytes are mixed with a number that counts frames.
    struct Toy {
        count: u8,
        max: usize,
    }

    fn toy(max: usize) -> LinkCodec {
        LinkCodec { encode: Box::new(Toy { count: 0, max }), decode: Box::new(Toy { count: 0, max }) }
    }

    impl Toy {
        fn mix(&mut self, bytes: &[u8], out: &mut BytesMut) {
            self.count = self.count.wrapping_add(1);
            out.extend(bytes.iter().map(|byte| byte ^ self.count));
        }
    }

    impl Encode for Toy {
        fn encode(&mut self, plain: &[u8], out: &mut BytesMut) -> Result<(), CodecError> {
            for frame in plain.chunks(self.max) {
                out.put_u32_le(frame.len() as u32);
                self.mix(frame, out);
            }
            Ok(())
        }
    }

    impl Decode for Toy {
        fn decode(&mut self, wire: &mut BytesMut, out: &mut BytesMut) -> Result<bool, CodecError> {
            let Some(len) = wire.first_chunk().map(|len| u32::from_le_bytes(*len) as usize) else {
                return Ok(false);
            };
            if len > self.max {
                return Err(CodecError(format!("a frame of {len} bytes")));
            }
            if wire.len() < 4 + len {
                return Ok(false);
            }
            wire.advance(4);
            self.mix(&wire.split_to(len), out);
            Ok(true)
        }
    }

    struct Collect(Vec<u8>);

    impl Sink for &mut Collect {
        fn take(&mut self, item: Item) -> Result<(), Closed> {
            if let Item::Run(run) = item {
                self.0.extend_from_slice(&run.bytes);
            }
            Ok(())
        }
    }

    fn sockets() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let out = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (out, listener.accept().unwrap().0)
    }

    fn packet(n: u32, len: usize) -> Vec<u8> {
        let header = Header { len: len as u32, node_from: n, ..Header::new(PacketType(36)) };
        [&header.encode()[..], &vec![n as u8; len]].concat()
    }

    fn all_codecs() -> Vec<(&'static str, LinkCodec)> {
        // Inside frames larger and smaller than outside ones.
        vec![
            ("one", toy(1 << 20)),
            ("small over large", toy(100).over(toy(1 << 20))),
            ("large over small", toy(1 << 20).over(toy(100))),
        ]
    }

    #[test]
    fn what_an_outlet_dresses_a_reader_undresses() {
        for (name, codec) in all_codecs() {
            let (out, peer) = sockets();
            let counters = Arc::new(PacketCounters::default());
            let budget = Budget::new(1 << 20, Arc::clone(&counters));
            let LinkCodec { encode, decode } = codec;
            let sender = LinkSender::new(Class::Data, out, Some(encode), |error| panic!("{error}"));
            sender.start("test:data-tx").unwrap();
            let reader = std::thread::spawn(move || {
                let mut all = Collect(Vec::new());
                let closed = read_link(&peer, "test", None, READING, Some(decode), &mut &mut all);
                (all.0, closed)
            });
            let mut sent = Vec::new();
            for n in 0..200 {
                let packet = packet(n, [0, 50, 4096, 70_000][n as usize % 4]);
                sent.extend_from_slice(&packet);
                let cost = Cost::alone(1, packet.len());
                sender.put(Bytes::from(packet), budget.acquire(cost).unwrap());
            }
            assert!(budget.wait_idle(std::time::Instant::now() + std::time::Duration::from_secs(60)));
            sender.finish();
            let (got, closed) = reader.join().unwrap();
            assert!(got == sent, "{name}: {} of {} bytes", got.len(), sent.len());
            assert!(matches!(closed, Closed::Eof(0)), "{name}: {closed}");
            assert_eq!(counters.snapshot().forwarded, 200);
        }
    }

    /// A frame that is not sent any more must not have been counted by the encoder.
    #[test]
    fn void_packets_are_left_out_before_they_are_encoded() {
        let (out, mut peer) = sockets();
        let LinkCodec { encode, mut decode } = toy(100);
        let sender = LinkSender::new(Class::Data, out, Some(encode), |error| panic!("{error}"));
        let put = |void: bool, text: &'static str| {
            let budget = Budget::new(1000, Arc::default());
            let permit = budget.try_acquire(Cost::alone(1, text.len())).unwrap();
            if void {
                budget.void();
            }
            sender.put(Bytes::from_static(text.as_bytes()), permit);
        };
        put(false, "first");
        put(true, "void");
        put(false, "second");
        sender.finish();
        let mut wire = Vec::new();
        peer.read_to_end(&mut wire).unwrap();
        let (mut wire, mut plain) = (BytesMut::from(&wire[..]), BytesMut::new());
        while decode.decode(&mut wire, &mut plain).unwrap() {}
        assert_eq!(plain, "firstsecond");
    }

    /// Bytes that wait for the socket are encoded only when their turn has nearly come.
    #[test]
    fn little_is_encoded_before_the_socket_takes_it() {
        struct Counting(Arc<Counter>);
        impl Encode for Counting {
            fn encode(&mut self, plain: &[u8], out: &mut BytesMut) -> Result<(), CodecError> {
                self.0.add(plain.len() as u64);
                out.extend_from_slice(plain);
                Ok(())
            }
        }
        let (out, _peer) = sockets();
        let encoded = Arc::new(Counter::default());
        let sender =
            LinkSender::new(Class::Data, out, Some(Box::new(Counting(Arc::clone(&encoded)))), |error| {
                panic!("{error}")
            });
        let budget = Budget::new(1 << 30, Arc::default());
        let packets = Bytes::from(vec![0; 1 << 20]);
        for _ in 0..64 {
            let permit = budget.try_acquire(Cost::alone(1, packets.len())).unwrap();
            sender.put(packets.clone(), permit);
        }
        assert!(encoded.get() < 32 << 20, "{} bytes for sockets that take a few MiB", encoded.get());
        sender.close();
    }

    fn read_what(bytes: &[u8], codec: LinkCodec) -> Closed {
        let (mut out, peer) = sockets();
        out.write_all(bytes).unwrap();
        out.shutdown(Shutdown::Write).unwrap();
        read_link(&peer, "test", None, READING, Some(codec.decode), &mut &mut Collect(Vec::new()))
    }

    #[test]
    fn an_end_inside_a_frame_and_a_bad_frame_are_told() {
        for (name, mut codec) in all_codecs() {
            let mut wire = BytesMut::new();
            codec.encode.encode(&packet(1, 150), &mut wire).unwrap();
            for cut in 1..wire.len() {
                let closed =
                    read_what(&wire[..cut], all_codecs().into_iter().find(|(n, _)| *n == name).unwrap().1);
                assert!(matches!(closed, Closed::Eof(1..)), "{name}, cut at {cut}: {closed}");
            }
        }
        let closed = read_what(&[0xff; 4], toy(100));
        assert_eq!(closed.to_string(), "a frame of 4294967295 bytes");
        assert!(matches!(closed, Closed::Codec(_)));
    }
}
