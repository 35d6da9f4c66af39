//! Streams between the node and the mesh: one task each, with a bounded queue in both directions.

use std::collections::BTreeMap;

use tokio::sync::mpsc;

use crate::ids::PeerKey;
use crate::ids::StreamId;
use crate::mesh::ControlServer;
use crate::mesh::Fault;
use crate::mesh::HopReader;
use crate::mesh::HopServer;
use crate::mesh::HopWriter;
use crate::mesh::Mesh;
use crate::mesh::MessageReader;
use crate::mesh::MessageWriter;
use crate::mesh::OpenError;
use crate::mesh::StreamError;
use crate::node::io::CloseCause;
use crate::node::io::Input;
use crate::node::io::OpenFailure;
use crate::node::io::Outgoing;
use crate::node::io::StreamInput;
use crate::wire::control::FromStage;
use crate::wire::control::ToStage;
use crate::wire::hop::HopBack;
use crate::wire::hop::HopForward;
use crate::wire::hop::HopOpen;

/// Messages of one stream waiting to be written. The node's flow-control window keeps hops far below it; a control
/// stream that reaches it belongs to a peer that has stopped reading.
const OUTGOING_CAPACITY: usize = 64;

/// The streams that are open or opening.
pub(super) struct Streams {
    mesh: Mesh,
    inputs: mpsc::Sender<Input>,
    queues: BTreeMap<StreamId, mpsc::Sender<Outgoing>>,
    arrivals: u64,
    payload_bytes: u64,
}

impl Streams {
    pub(super) fn new(mesh: Mesh, inputs: mpsc::Sender<Input>) -> Self {
        Self { mesh, inputs, queues: BTreeMap::new(), arrivals: 0, payload_bytes: 0 }
    }

    /// Opens a control stream under the node's id.
    pub(super) fn open_control(&mut self, id: StreamId, peer: PeerKey) {
        let (mesh, carrier) = (self.mesh.clone(), self.carrier(id));
        tokio::spawn(async move {
            match mesh.open_control(peer).await {
                Ok(client) => carrier.opened(client.reader, client.writer, StreamInput::FromStage, to_stage).await,
                Err(error) => carrier.failed(&error).await,
            }
        });
    }

    /// Opens a hop under the node's id and names it to the other side.
    pub(super) fn open_hop(&mut self, id: StreamId, peer: PeerKey, open: HopOpen) {
        let (mesh, carrier) = (self.mesh.clone(), self.carrier(id));
        tokio::spawn(async move {
            match mesh.open_hop(peer, open).await {
                Ok(client) => carrier.opened(client.reader, client.writer, StreamInput::Back, forward).await,
                Err(error) => carrier.failed(&error).await,
            }
        });
    }

    /// Takes in a control stream that a requester opened; returns what to tell the node before anything on it.
    pub(super) fn control_arrived(&mut self, server: ControlServer) -> Input {
        let id = self.arrival();
        let carrier = self.carrier(id);
        tokio::spawn(carrier.carry(server.reader, server.writer, StreamInput::ToStage, from_stage));
        Input::Stream(id, StreamInput::ControlArrived(server.peer))
    }

    /// Takes in a hop that an upstream stage opened; returns what to tell the node before anything on it.
    pub(super) fn hop_arrived(&mut self, server: HopServer) -> Input {
        let id = self.arrival();
        let carrier = self.carrier(id);
        tokio::spawn(carrier.carry(server.reader, server.writer, StreamInput::Forward, back));
        Input::Stream(id, StreamInput::HopArrived(server.peer, server.open))
    }

    /// Queues a message. A full queue ends the stream, and what to tell the node is returned.
    pub(super) fn send(&mut self, id: StreamId, message: Outgoing) -> Option<Input> {
        let queue = self.queues.get(&id)?;
        if let Outgoing::Forward(HopForward::Frame(frame)) = &message {
            self.payload_bytes += frame.payload.len() as u64;
        }
        match queue.try_send(message) {
            Ok(()) => None,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.queues.remove(&id);
                Some(Input::Stream(id, StreamInput::Closed(CloseCause::Overflow)))
            }
            // Its task has ended and says so itself.
            Err(mpsc::error::TrySendError::Closed(_)) => None,
        }
    }

    /// Ends a stream once what is queued has been written.
    pub(super) fn close(&mut self, id: StreamId) {
        self.queues.remove(&id);
    }

    /// Connects to a peer if there is no connection; what comes of it is heard as any connection is.
    pub(super) fn dial(&self, peer: PeerKey) {
        let mesh = self.mesh.clone();
        tokio::spawn(async move { mesh.connect(peer).await });
    }

    /// Bytes of tensor payload sent down hops since the start.
    pub(super) const fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    fn arrival(&mut self) -> StreamId {
        let id = StreamId(2 * self.arrivals + 1);
        self.arrivals += 1;
        id
    }

    fn carrier(&mut self, id: StreamId) -> Carrier {
        let (queue, outgoing) = mpsc::channel(OUTGOING_CAPACITY);
        self.queues.insert(id, queue);
        Carrier { id, outgoing, inputs: self.inputs.clone() }
    }
}

/// What one stream's task works with.
struct Carrier {
    id: StreamId,
    outgoing: mpsc::Receiver<Outgoing>,
    inputs: mpsc::Sender<Input>,
}

impl Carrier {
    async fn opened<R: Reading, W: Writing>(
        self,
        reader: R,
        writer: W,
        wrap: fn(R::Message) -> StreamInput,
        unwrap: fn(Outgoing) -> Option<W::Message>,
    ) {
        self.tell(StreamInput::Opened).await;
        self.carry(reader, writer, wrap, unwrap).await;
    }

    async fn failed(&self, error: &OpenError) {
        let failure = match error {
            OpenError::NoCommonVersion { .. } | OpenError::Unsupported { .. } => OpenFailure::Unsupported,
            OpenError::Dial(_) | OpenError::Silent { .. } | OpenError::Lost { .. } | OpenError::Stream(_) => {
                if error.fault() == Fault::Local { OpenFailure::LocalLimit } else { OpenFailure::Unreachable }
            }
        };
        tracing::debug!(%error, "a stream could not be opened");
        self.tell(StreamInput::OpenFailed(failure)).await;
    }

    /// Moves messages both ways until either side has ended the stream.
    async fn carry<R: Reading, W: Writing>(
        mut self,
        mut reader: R,
        mut writer: W,
        wrap: fn(R::Message) -> StreamInput,
        unwrap: fn(Outgoing) -> Option<W::Message>,
    ) {
        let (id, inputs) = (self.id, self.inputs.clone());
        let read = async {
            loop {
                let message = match reader.receive().await {
                    Ok(Some(message)) => message,
                    Ok(None) => return CloseCause::Finished,
                    Err(error) => return cause(&error),
                };
                if inputs.send(Input::Stream(id, wrap(message))).await.is_err() {
                    // The daemon has stopped.
                    return CloseCause::Lost;
                }
            }
        };
        let write = async {
            while let Some(message) = self.outgoing.recv().await {
                let Some(message) = unwrap(message) else { continue };
                if let Err(error) = writer.send(&message).await {
                    return Some(cause(&error));
                }
            }
            writer.close().await;
            None
        };
        let ended = tokio::select! {
            cause = read => Some(cause),
            ended = write => ended,
        };
        if let Some(cause) = ended {
            // The node may have closed it at the same moment; it ignores what it no longer knows.
            let _ = inputs.send(Input::Stream(id, StreamInput::Closed(cause))).await;
        }
    }

    async fn tell(&self, what: StreamInput) {
        // Fails only when the daemon stops, and then nobody asks.
        let _ = self.inputs.send(Input::Stream(self.id, what)).await;
    }
}

fn cause(error: &StreamError) -> CloseCause {
    match error.fault() {
        Fault::Peer => CloseCause::Malformed,
        Fault::Network | Fault::Local => CloseCause::Lost,
    }
}

/// The reading half of a stream, of whichever kind.
trait Reading: Send + 'static {
    type Message: Send;

    fn receive(&mut self) -> impl Future<Output = Result<Option<Self::Message>, StreamError>> + Send;
}

/// The writing half of a stream, of whichever kind.
trait Writing: Send + 'static {
    type Message: Send + Sync;

    fn send(&mut self, message: &Self::Message) -> impl Future<Output = Result<(), StreamError>> + Send;

    fn close(&mut self) -> impl Future<Output = ()> + Send;
}

macro_rules! halves {
    ($(read $reader:ty => $got:ty;)* $(write $writer:ty => $sent:ty;)*) => {
        $(impl Reading for $reader {
            type Message = $got;

            async fn receive(&mut self) -> Result<Option<$got>, StreamError> {
                <$reader>::receive(self).await
            }
        })*
        $(impl Writing for $writer {
            type Message = $sent;

            async fn send(&mut self, message: &$sent) -> Result<(), StreamError> {
                <$writer>::send(self, message).await
            }

            async fn close(&mut self) {
                <$writer>::close(self).await;
            }
        })*
    };
}

halves! {
    read MessageReader<FromStage> => FromStage;
    read MessageReader<ToStage> => ToStage;
    read MessageReader<HopBack> => HopBack;
    read HopReader => HopForward;
    write MessageWriter<FromStage> => FromStage;
    write MessageWriter<ToStage> => ToStage;
    write MessageWriter<HopBack> => HopBack;
    write HopWriter => HopForward;
}

macro_rules! unwrappers {
    ($($name:ident => $variant:ident($message:ty);)*) => {
        $(fn $name(message: Outgoing) -> Option<$message> {
            if let Outgoing::$variant(message) = message { Some(message) } else { None }
        })*
    };
}

unwrappers! {
    to_stage => ToStage(ToStage);
    from_stage => FromStage(FromStage);
    forward => Forward(HopForward);
    back => Back(HopBack);
}
