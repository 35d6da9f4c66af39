//! Messages on a stream: a length as unsigned varint, then the bytes. The length is checked before anything is
//! allocated for it, and memory grows only with what has arrived.

use std::io;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;

use bytes::Buf;
use bytes::Bytes;
use bytes::BytesMut;
use libp2p::Stream;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::io::DuplexStream;
use tokio::io::ReadBuf;
use tokio::io::ReadHalf;
use tokio::io::WriteHalf;
use tokio_util::compat::Compat;
use tokio_util::compat::FuturesAsyncReadCompatExt;

use crate::ids::NetworkId;
use crate::mesh::error::StreamError;
use crate::mesh::substreams::Lent;

/// Room made for a read when nothing larger is expected (arbitrary; many streams are idle).
const READ_ROOM: usize = 4 << 10;

/// The most bytes handed to the connection at once, so that streams of different sessions share it fairly.
const PART: usize = 64 << 10;

/// The longest varint that a length may have: five groups of seven bits hold any `u32`.
const MAX_PREFIX: usize = 5;

/// A message that goes over a stream.
pub trait Message: Sized {
    /// What to call it in errors.
    const WHAT: &'static str;
    /// The most bytes that one may have.
    const MAX: usize;

    /// The bytes to send.
    fn encode(&self) -> Bytes;

    /// Checks and reads; signatures hold in one network only.
    fn decode(bytes: &[u8], network: NetworkId) -> Result<Self, String>;
}

/// The bytes between two peers, or within this process when it speaks to itself.
#[derive(Debug)]
pub(super) enum Pipe {
    /// A libp2p stream, with its place in the peer's allowance.
    Remote {
        /// The stream.
        stream: Compat<Stream>,
        /// Given back when the stream is dropped.
        _lent: Option<Lent>,
    },
    /// One end of a pipe in memory.
    Local(DuplexStream),
}

impl Pipe {
    /// Wraps a stream; `lent` is given back when the stream is dropped.
    pub(super) fn remote(stream: Stream, lent: Option<Lent>) -> Self {
        Self::Remote { stream: stream.compat(), _lent: lent }
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Remote { stream, .. } => Pin::new(stream).poll_read(cx, room),
            Self::Local(stream) => Pin::new(stream).poll_read(cx, room),
        }
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Remote { stream, .. } => Pin::new(stream).poll_write(cx, bytes),
            Self::Local(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Remote { stream, .. } => Pin::new(stream).poll_flush(cx),
            Self::Local(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Remote { stream, .. } => Pin::new(stream).poll_shutdown(cx),
            Self::Local(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Takes a stream apart into the half that reads and the half that writes.
pub(super) fn halves(pipe: Pipe, network: NetworkId) -> (FrameReader, FrameWriter) {
    let (read, write) = tokio::io::split(pipe);
    (FrameReader::new(read, network), FrameWriter::new(write))
}

/// Reads length-delimited messages. Cancel-safe: what has arrived stays in the buffer.
#[derive(Debug)]
pub(super) struct FrameReader<R = ReadHalf<Pipe>> {
    io: R,
    buffer: BytesMut,
    network: NetworkId,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(io: R, network: NetworkId) -> Self {
        Self { io, buffer: BytesMut::new(), network }
    }

    /// The next message, or `None` if the stream was closed after the last one.
    pub(super) async fn receive<M: Message>(&mut self) -> Result<Option<M>, StreamError> {
        let Some(bytes) = self.delimited(M::WHAT, M::MAX).await? else {
            return Ok(None);
        };
        M::decode(&bytes, self.network).map(Some).map_err(|reason| StreamError::Malformed { what: M::WHAT, reason })
    }

    /// Exactly `length` raw bytes; the caller has checked the length.
    pub(super) async fn raw(&mut self, what: &'static str, length: usize) -> Result<Bytes, StreamError> {
        while self.buffer.len() < length {
            if self.fill(what, length).await? == 0 {
                return Err(StreamError::Cut { what });
            }
        }
        Ok(self.buffer.split_to(length).freeze())
    }

    /// The bytes of the next message, or `None` if the stream was closed after the last one.
    pub(super) async fn delimited(&mut self, what: &'static str, limit: usize) -> Result<Option<Bytes>, StreamError> {
        loop {
            let mut wanted = 0;
            if let Some((length, prefix)) = prefix(&self.buffer, what)? {
                let within = usize::try_from(length).ok().filter(|&length| length <= limit);
                let length = within.ok_or(StreamError::TooLarge { what, limit, got: length })?;
                wanted = prefix + length;
                if self.buffer.len() >= wanted {
                    self.buffer.advance(prefix);
                    return Ok(Some(self.buffer.split_to(length).freeze()));
                }
            }
            if self.fill(what, wanted).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(StreamError::Cut { what }) };
            }
        }
    }

    /// Reads what is there, at least a byte; 0 at the stream's end. Makes room for what is wanted, but never for more
    /// than has arrived already, so that an announced length costs its sender as much as it costs us.
    async fn fill(&mut self, what: &'static str, wanted: usize) -> Result<usize, StreamError> {
        let missing = wanted.saturating_sub(self.buffer.len());
        let earned = self.buffer.len().max(PART);
        self.buffer.reserve(if missing == 0 { READ_ROOM } else { missing.min(earned) });
        match self.io.read_buf(&mut self.buffer).await {
            Ok(read) => Ok(read),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            Err(source) => Err(StreamError::Io { what, source }),
        }
    }
}

/// Reads a varint from the front: its value and its length, or `None` if it is not complete yet.
fn prefix(buffer: &[u8], what: &'static str) -> Result<Option<(u64, usize)>, StreamError> {
    let mut value = 0u64;
    for (index, &byte) in buffer.iter().enumerate().take(MAX_PREFIX) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((value, index + 1)));
        }
    }
    if buffer.len() < MAX_PREFIX {
        return Ok(None);
    }
    Err(StreamError::Malformed { what, reason: "its length is no number of 32 bits".to_owned() })
}

/// Writes length-delimited messages. Belongs to one task: a message that was cut short leaves the stream useless, and
/// every later one is refused.
#[derive(Debug)]
pub(super) struct FrameWriter<W = WriteHalf<Pipe>> {
    io: W,
    scratch: BytesMut,
    broken: bool,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    pub(super) fn new(io: W) -> Self {
        Self { io, scratch: BytesMut::new(), broken: false }
    }

    /// Sends a message and sees it off.
    pub(super) async fn send<M: Message>(&mut self, message: &M) -> Result<(), StreamError> {
        self.put(M::WHAT, M::MAX, &message.encode(), &[]).await
    }

    /// Sends the bytes of a message, and raw ones that belong to it, in parts.
    pub(super) async fn put(
        &mut self,
        what: &'static str,
        limit: usize,
        body: &[u8],
        payload: &[u8],
    ) -> Result<(), StreamError> {
        if body.len() > limit {
            return Err(StreamError::TooLarge { what, limit, got: body.len() as u64 });
        }
        if std::mem::replace(&mut self.broken, true) {
            return Err(StreamError::Broken { what });
        }
        self.scratch.clear();
        put_prefix(&mut self.scratch, body.len());
        self.scratch.extend_from_slice(body);
        self.write(payload).await.map_err(|source| StreamError::Io { what, source })?;
        self.broken = false;
        Ok(())
    }

    /// Tells the other side that nothing follows.
    pub(super) async fn close(&mut self) {
        self.broken = true;
        // A stream that cannot be closed is closed.
        let _ = self.io.shutdown().await;
    }

    async fn write(&mut self, payload: &[u8]) -> io::Result<()> {
        self.io.write_all(&self.scratch).await?;
        for part in payload.chunks(PART) {
            self.io.write_all(part).await?;
        }
        self.io.flush().await
    }
}

fn put_prefix(buffer: &mut BytesMut, mut value: usize) {
    while value >= 0x80 {
        buffer.extend_from_slice(&[(value & 0x7f) as u8 | 0x80]);
        value >>= 7;
    }
    buffer.extend_from_slice(&[value as u8]);
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETWORK: NetworkId = NetworkId::new([1; 32]);

    #[derive(Debug, PartialEq)]
    struct Note(Bytes);

    impl Message for Note {
        const WHAT: &'static str = "note";
        const MAX: usize = 1000;

        fn encode(&self) -> Bytes {
            self.0.clone()
        }

        fn decode(bytes: &[u8], _: NetworkId) -> Result<Self, String> {
            if bytes.starts_with(b"bad") {
                Err("it is bad".to_owned())
            } else {
                Ok(Self(Bytes::copy_from_slice(bytes)))
            }
        }
    }

    fn reader(bytes: &[u8]) -> FrameReader<&[u8]> {
        FrameReader::new(bytes, NETWORK)
    }

    #[tokio::test]
    async fn messages_come_out_as_they_went_in() {
        let mut written = FrameWriter::new(Vec::new());
        for length in [0, 1, 127, 128, 1000] {
            written.send(&Note(vec![7; length].into())).await.unwrap();
        }

        let mut reader = reader(&written.io);
        for length in [0, 1, 127, 128, 1000] {
            assert_eq!(reader.receive().await.unwrap(), Some(Note(vec![7; length].into())));
        }
        assert_eq!(reader.receive::<Note>().await.unwrap(), None);
    }

    #[tokio::test]
    async fn an_announced_length_over_the_limit_is_refused_before_anything_is_allocated() {
        let mut reader = reader(&[0xff, 0xff, 0xff, 0xff, 0x0f, 1, 2, 3]);

        let error = reader.receive::<Note>().await.unwrap_err();

        assert!(matches!(error, StreamError::TooLarge { limit: 1000, got: 0xffff_ffff, .. }), "{error}");
        assert!(reader.buffer.capacity() <= 2 * PART);
    }

    #[tokio::test]
    async fn a_message_cut_short_is_told_from_a_stream_that_ended() {
        assert!(matches!(reader(&[5, 1, 2]).receive::<Note>().await, Err(StreamError::Cut { .. })));
        assert!(matches!(reader(&[0x80]).receive::<Note>().await, Err(StreamError::Cut { .. })));
        assert!(matches!(reader(&[0x80; 5]).receive::<Note>().await, Err(StreamError::Malformed { .. })));
        assert!(matches!(reader(b"\x04bad!").receive::<Note>().await, Err(StreamError::Malformed { .. })));
        assert!(matches!(reader(&[1]).raw("payload", 2).await, Err(StreamError::Cut { .. })));
    }

    #[tokio::test]
    async fn a_read_given_up_loses_nothing() {
        let (mut far, near) = tokio::io::duplex(64);
        let mut reader = FrameReader::new(near, NETWORK);
        far.write_all(b"\x05he").await.unwrap();

        assert!(futures::FutureExt::now_or_never(reader.receive::<Note>()).is_none());
        far.write_all(b"llo").await.unwrap();

        assert_eq!(reader.receive().await.unwrap(), Some(Note(Bytes::from_static(b"hello"))));
    }

    #[tokio::test]
    async fn a_write_given_up_breaks_the_stream_visibly() {
        let (_far, near) = tokio::io::duplex(4);
        let mut writer = FrameWriter::new(near);

        assert!(futures::FutureExt::now_or_never(writer.send(&Note(vec![0; 100].into()))).is_none());

        assert!(matches!(writer.send(&Note(Bytes::new())).await, Err(StreamError::Broken { .. })));
    }
}
