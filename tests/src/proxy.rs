//! A TCP proxy before the broker: what crosses it can be delayed, stopped and cut, and single messages lost or repeated,
//! for one process alone.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::frames::Splitter;
use crate::meddling::{Fate, Meddler};

/// Bytes read at a time, and how many such pieces may be under way in one direction.
const PIECE: usize = 16 * 1024;
const PIECES: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Road {
    delay: Duration,
    frozen: bool,
    closed: bool,
    /// Connections of an older one are cut.
    generation: u64,
}

/// Who decides what becomes of each message, if the bytes are messages.
type Post = Arc<Mutex<Meddler>>;

/// Forwards from its own port until dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    road: watch::Sender<Road>,
    open: Arc<AtomicUsize>,
    accepting: AbortHandle,
    post: Option<Post>,
}

impl Proxy {
    /// Listens on a free port of loopback and forwards to `target`, whatever bytes they are.
    ///
    /// # Errors
    /// If there is no port.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        Self::forward(target, 0, None).await
    }

    /// The same before a broker, on `port` (0: any that is free): it knows messages.
    ///
    /// # Errors
    /// If the port is not free.
    pub async fn of_broker(broker: SocketAddr, port: u16) -> io::Result<Self> {
        Self::forward(broker, port, Some(Arc::new(Mutex::new(Meddler::default())))).await
    }

    async fn forward(target: SocketAddr, port: u16, post: Option<Post>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let address = listener.local_addr()?;
        let road = Road { delay: Duration::ZERO, frozen: false, closed: false, generation: 0 };
        let road = watch::Sender::new(road);
        let open = Arc::new(AtomicUsize::new(0));
        let accepting =
            tokio::spawn(accept(listener, target, road.subscribe(), Arc::clone(&open), post.clone()));
        Ok(Self { address, road, open, accepting: accepting.abort_handle(), post })
    }

    /// From now on `meddler` decides what becomes of each message.
    ///
    /// # Panics
    /// If this proxy does not know messages.
    pub fn meddle(&self, meddler: Meddler) {
        let post = self.post.as_ref().expect("a proxy before a broker");
        *post.lock().unwrap_or_else(PoisonError::into_inner) = meddler;
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that are open through it.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Every byte takes this much longer from now on, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.road.send_modify(|road| road.delay = delay);
    }

    /// Nothing crosses any more; connections stay.
    pub fn freeze(&self) {
        self.road.send_modify(|road| road.frozen = true);
    }

    pub fn resume(&self) {
        self.road.send_modify(|road| road.frozen = false);
    }

    /// Cuts the connections that are open; new ones are taken.
    pub fn cut(&self) {
        self.road.send_modify(|road| road.generation += 1);
    }

    /// Cuts the connections that are open, and every new one until [`Proxy::reopen`].
    pub fn close(&self) {
        self.road.send_modify(|road| {
            road.closed = true;
            road.generation += 1;
        });
    }

    pub fn reopen(&self) {
        self.road.send_modify(|road| road.closed = false);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    road: watch::Receiver<Road>,
    open: Arc<AtomicUsize>,
    post: Option<Post>,
) {
    while let Ok((near, _)) = listener.accept().await {
        if !road.borrow().closed {
            let (road, open, post) = (road.clone(), Arc::clone(&open), post.clone());
            tokio::spawn(async move {
                open.fetch_add(1, Ordering::AcqRel);
                join(near, target, road, post).await;
                open.fetch_sub(1, Ordering::AcqRel);
            });
        }
    }
}

/// Until either side closes or the connection is cut.
async fn join(near: TcpStream, target: SocketAddr, mut road: watch::Receiver<Road>, post: Option<Post>) {
    let generation = road.borrow().generation;
    let Ok(far) = TcpStream::connect(target).await else { return };
    // A proxy that batches small messages would be a delay nobody asked for.
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::select! {
        () = forward(near_in, far_out, road.clone(), post.clone()) => {}
        () = forward(far_in, near_out, road.clone(), post) => {}
        _ = road.wait_for(|road| road.generation != generation) => {}
    }
}

async fn forward(
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    road: watch::Receiver<Road>,
    post: Option<Post>,
) {
    let (pieces, waiting) = mpsc::channel(PIECES);
    // Reading ends first; what was read is still delivered.
    tokio::join!(read(from, pieces, road.clone()), write(to, waiting, road, post));
}

type Piece = (Instant, Vec<u8>);

async fn read(mut from: impl AsyncRead + Unpin, pieces: mpsc::Sender<Piece>, road: watch::Receiver<Road>) {
    loop {
        let mut bytes = vec![0; PIECE];
        let Ok(count @ 1..) = from.read(&mut bytes).await else { return };
        bytes.truncate(count);
        let due = Instant::now() + road.borrow().delay;
        if pieces.send((due, bytes)).await.is_err() {
            return;
        }
    }
}

async fn write(
    mut to: impl AsyncWrite + Unpin,
    mut pieces: mpsc::Receiver<Piece>,
    mut road: watch::Receiver<Road>,
    post: Option<Post>,
) {
    let mut splitter = Splitter::default();
    while let Some((due, bytes)) = pieces.recv().await {
        tokio::time::sleep_until(due.into()).await;
        let bytes = match &post {
            Some(post) => sorted(post, &mut splitter, &bytes),
            None => bytes,
        };
        if road.wait_for(|road| !road.frozen).await.is_err() || to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// What is to cross of the messages that these bytes complete.
fn sorted(post: &Post, splitter: &mut Splitter, bytes: &[u8]) -> Vec<u8> {
    let mut meddler = post.lock().unwrap_or_else(PoisonError::into_inner);
    splitter.push(bytes);
    let mut crossing = Vec::new();
    while let Some(frame) = splitter.pop() {
        let fate = frame.message.as_ref().map_or(Fate::Passes, |message| meddler.fate(message));
        (0..fate.copies()).for_each(|_| crossing.extend_from_slice(&frame.bytes));
    }
    crossing
}
