//! Typed streams: what each side of a control, hop or fetch stream may send and expects to receive.

use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use libp2p::StreamProtocol;
use tokio::time::timeout;

use crate::ids::NetworkId;
use crate::ids::PeerKey;
use crate::mesh::error::OpenError;
use crate::mesh::error::StreamError;
use crate::mesh::framing::FrameReader;
use crate::mesh::framing::FrameWriter;
use crate::mesh::framing::Message;
use crate::mesh::framing::Pipe;
use crate::mesh::framing::halves;
use crate::wire::control::FromStage;
use crate::wire::control::ToStage;
use crate::wire::fetch::FetchAnswer;
use crate::wire::fetch::FetchRequest;
use crate::wire::hello::Hello;
use crate::wire::hop::HopBack;
use crate::wire::hop::HopOpen;

/// How long the other side has for its `Hello` (and a hop's opener for naming the hop).
pub(super) const HELLO_LIMIT: std::time::Duration = std::time::Duration::from_secs(5);

/// The protocols that run over streams of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Protocol {
    /// Requester to stage.
    Control,
    /// Stage to stage.
    Hop,
    /// Blobs by hash.
    Fetch,
}

impl Protocol {
    /// Every one.
    pub(super) const ALL: [Self; 3] = [Self::Control, Self::Hop, Self::Fetch];

    /// The name in a network.
    pub(super) fn name(self, network: NetworkId) -> StreamProtocol {
        protocol_name(
            network,
            match self {
                Self::Control => "control",
                Self::Hop => "hop",
                Self::Fetch => "fetch",
            },
        )
    }
}

/// `/brigade/<network>/<protocol>/<major>`.
pub(super) fn protocol_name(network: NetworkId, protocol: &str) -> StreamProtocol {
    StreamProtocol::try_from_owned(format!("/brigade/{network}/{protocol}/1")).expect("the name begins with a slash")
}

/// The reading half of a stream: receives one kind of message.
pub struct MessageReader<T> {
    frames: FrameReader,
    kind: PhantomData<fn() -> T>,
}

/// The writing half of a stream: sends one kind of message. Belongs to one task: a `send` that is dropped half-way
/// leaves the stream useless, and every later one fails.
pub struct MessageWriter<T> {
    frames: FrameWriter,
    kind: PhantomData<fn(T)>,
}

impl<T> fmt::Debug for MessageReader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageReader").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for MessageWriter<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageWriter").finish_non_exhaustive()
    }
}

impl<T: Message> MessageReader<T> {
    pub(super) fn new(frames: FrameReader) -> Self {
        Self { frames, kind: PhantomData }
    }

    /// The next message, or `None` once the other side has closed the stream. Cancel-safe.
    ///
    /// # Errors
    /// [`StreamError`]; nothing can be received after one.
    pub async fn receive(&mut self) -> Result<Option<T>, StreamError> {
        self.frames.receive().await
    }
}

impl<T: Message> MessageWriter<T> {
    pub(super) fn new(frames: FrameWriter) -> Self {
        Self { frames, kind: PhantomData }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// [`StreamError::TooLarge`] if it exceeds its limit, and if the stream is gone.
    pub async fn send(&mut self, message: &T) -> Result<(), StreamError> {
        self.frames.send(message).await
    }

    /// Tells the other side that nothing follows. Its own messages still come.
    pub async fn close(&mut self) {
        self.frames.close().await;
    }
}

/// Both halves after the first messages.
#[derive(Debug)]
pub(super) struct Greeted {
    pub(super) reader: FrameReader,
    pub(super) writer: FrameWriter,
}

/// Says hello and hears the other side's. Both sides speak at once, so this takes one trip and not two.
pub(super) async fn greet(
    pipe: Pipe,
    peer: PeerKey,
    protocol: Protocol,
    network: NetworkId,
    ours: &Hello,
) -> Result<Greeted, OpenError> {
    let (mut reader, mut writer) = halves(pipe, network);
    let both = async { tokio::try_join!(writer.send(ours), reader.receive::<Hello>()) };
    let silent = |_| OpenError::Silent { peer, limit: HELLO_LIMIT };
    let ((), theirs) = timeout(HELLO_LIMIT, both).await.map_err(silent)??;
    let theirs = theirs.ok_or(OpenError::Lost { peer })?;
    let protocol = || protocol.name(network).to_string();
    ours.agree(&theirs).map_err(|source| OpenError::NoCommonVersion { protocol: protocol(), peer, source })?;
    Ok(Greeted { reader, writer })
}

/// Lets messages with plain doors go over streams.
macro_rules! messages {
    ($($message:ident $what:literal)*) => {$(
        impl Message for $message {
            const WHAT: &'static str = $what;
            const MAX: usize = $message::MAX;

            fn encode(&self) -> Bytes {
                $message::encode(self)
            }

            fn decode(bytes: &[u8], _: NetworkId) -> Result<Self, String> {
                $message::decode(bytes).map_err(|error| error.to_string())
            }
        }
    )*};
}

messages! {
    Hello "hello"
    HopOpen "hop opening"
    HopBack "hop acknowledgement"
    FetchRequest "fetch request"
    FetchAnswer "fetch answer"
}

/// Lets messages that may carry signatures go over streams.
macro_rules! signed_messages {
    ($($message:ident $what:literal)*) => {$(
        impl Message for $message {
            const WHAT: &'static str = $what;
            const MAX: usize = $message::MAX;

            fn encode(&self) -> Bytes {
                $message::encode(self)
            }

            fn decode(bytes: &[u8], network: NetworkId) -> Result<Self, String> {
                $message::decode(bytes, network).map_err(|error| error.to_string())
            }
        }
    )*};
}

signed_messages! {
    ToStage "control message"
    FromStage "control message"
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETWORK: NetworkId = NetworkId::new([1; 32]);

    async fn meet(ours: Hello, theirs: Hello) -> Result<Greeted, OpenError> {
        let (near, far) = tokio::io::duplex(1024);
        let peer = PeerKey::new([2; 32]);
        let both = tokio::join!(
            greet(Pipe::Local(near), peer, Protocol::Control, NETWORK, &ours),
            greet(Pipe::Local(far), peer, Protocol::Control, NETWORK, &theirs)
        );
        both.0
    }

    #[tokio::test]
    async fn peers_without_a_common_version_part_and_say_why() {
        let hello = |min, max| Hello { min, max, ..Hello::current("brigade") };

        assert!(meet(hello(1, 2), hello(2, 3)).await.is_ok());
        let error = meet(hello(1, 2), hello(3, 4)).await.unwrap_err();

        let text = error.to_string();
        assert!(matches!(error, OpenError::NoCommonVersion { .. }));
        assert!(text.contains("1 to 2") && text.contains("3 to 4") && text.contains("/control/1"), "{text}");
    }

    #[tokio::test]
    async fn a_peer_that_says_nothing_is_given_up() {
        let (near, _far) = tokio::io::duplex(1024);
        let hello = Hello::current("brigade");

        let error = greet(Pipe::Local(near), PeerKey::new([2; 32]), Protocol::Hop, NETWORK, &hello).await.unwrap_err();

        assert!(matches!(error, OpenError::Silent { limit, .. } if limit == HELLO_LIMIT), "{error}");
    }
}
