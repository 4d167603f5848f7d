//! A link whose ends share no memory, so that they can be on two hosts.
//!
//! Each end has the ring that it writes: the words that say who holds a slot, which are those of every link (`crate::ring`), and
//! the slots' contents. The other end asks for what a reader may do, and the end that has the ring does it, so that there
//! is one word for a slot as in shared memory, and one order of what becomes of it. What is asked goes over TCP, a connection for
//! each end that asks; bytes go from memory to memory by a [`Carrier`], while the slot is held for its reader:
//!
//! ```text
//! reader                                   end that has the ring
//!   Read(spec)  ───────────────────────▶   holds the slot, if it is what was written there
//!               ◀───────────────────────   yes
//!   receives    ◀═══════ carrier ═══════   sends
//!   Took        ───────────────────────▶   the slot is read
//!               ◀───────────────────────   yes
//! ```
//!
//! **One transfer at a time**, whatever its direction, as a carrier needs it: the leader has the turn for the whole exchange above,
//! when it reads and when it is read from.
//!
//! **Nothing waits without a bound**: an answer and a transfer have [`TRANSFER`] in all, the way to an open link has [`OPENING`].
//! Whatever goes wrong on the way is the end of the link, at this end at once and at the other one when the connections close, or
//! when it next waits: then its slots are nobody's, every call is an error that says why ([`Condition::Failed`]), and who wants to go
//! on opens a new link. A peer that is killed is noticed at once; one that stands still, or whose host is gone, by the next call.

mod door;
mod end;
mod serve;
mod wire;

use std::io::{self, ErrorKind};
use std::net::{TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use contract::link::{LinkDescriptor, LinkKind, LinkMeeting};
use contract::tensor::{TensorKey, TensorSpec};
use contract::{Error, Generation, LinkSlot, Reason};
use tch::{Device, Tensor};

use self::door::Wires;
use self::end::End;
use self::wire::Ask;
use crate::ring::{Layout, Reader, Shape, Side, Writer};
use crate::{Condition, LatentLink, NAME, Rings, tensor};

/// A tensor is at the other end within this time, or the link is over.
pub const TRANSFER: Duration = Duration::from_secs(2);
/// The two ends find one another, and their carriers meet, within this time.
pub const OPENING: Duration = Duration::from_secs(10);

/// A port that a closed link listened at is free within this time.
const LEAVING: Duration = Duration::from_millis(600);

/// The contents of the slots that one end writes, and what takes them to the other end.
///
/// [`Carrier::send`] at one end and [`Carrier::receive`] at the other are called in the same order with the same length, and never
/// two at a time. After an error of one of them, or of [`Carrier::meet`], nothing but [`Carrier::end`] is called.
pub trait Carrier: Send + Sync {
    /// Where tensors are that are received.
    fn device(&self) -> Device;

    /// Where a tensor has to be to be put into a slot.
    fn source(&self, tensor: &Tensor) -> Device;

    /// Copies `len` bytes of a dense tensor on [`Carrier::source`] into the slot at `position` of this end's ring, which is the
    /// caller's alone; all of it is there on return.
    ///
    /// # Errors
    /// `internal`; the link goes on.
    fn put(&self, position: usize, tensor: &Tensor, len: usize) -> Result<(), Error>;

    /// Finds the other end's carrier and makes sure that bytes go both ways. Called once, before any transfer, by a thread
    /// that may wait.
    ///
    /// # Errors
    /// Whatever is in the way, or that the deadline has passed.
    fn meet(&self, deadline: Instant) -> Result<(), Error>;

    /// Sends `len` bytes, at least 1, of the slot at `position`.
    ///
    /// # Errors
    /// As [`Carrier::meet`].
    fn send(&self, position: usize, len: usize, deadline: Instant) -> Result<(), Error>;

    /// Receives `len` bytes, at least 1, into a dense tensor on [`Carrier::device`].
    ///
    /// # Errors
    /// As [`Carrier::meet`].
    fn receive(&self, tensor: &Tensor, len: usize, deadline: Instant) -> Result<(), Error>;

    /// The link is over: a call that waits returns soon. From any thread, any number of times; never blocks.
    fn end(&self, reason: &str);
}

/// One end of the link. Dropped, it ends the link; what that takes is done by another thread.
pub struct FarLink {
    end: Arc<End>,
    writer: Writer,
    /// For what can be said of a spec before the other end is asked.
    other: Reader,
}

/// Ends a link while its end may be waiting in another thread, which then hears of it at once.
#[derive(Clone)]
pub struct Closer(Arc<End>);

impl Closer {
    /// Never blocks. The first reason stands.
    pub fn close(&self, why: &str) {
        self.0.end(why);
    }
}

/// Leader: the link, and what HELLO's reply says of it. `rendezvous` is what the other end's carrier is found by. The link is
/// open once stage0 has come.
///
/// # Errors
/// `bad_field` for a size or an address that is not allowed; `internal` when memory or a thread cannot be had.
pub fn create(
    carrier: Arc<dyn Carrier>,
    rendezvous: Vec<u8>,
    rings: &Rings,
) -> Result<(FarLink, LinkDescriptor), Error> {
    let Rings { prefix, slots_in, slots_out, slot_bytes, link_epoch, bind } = *rings;
    check_bind(bind)?;
    let shape = Shape::new(slots_in, slots_out, slot_bytes)?;
    let layout = Layout::private(LinkKind::Nccl, &format!("{prefix}-{NAME}"), shape, link_epoch)?;
    let listener = listen(bind).map_err(|error| cannot_bind(bind, &error.to_string()))?;
    let address = listener.local_addr().map_err(|error| cannot_bind(bind, &error.to_string()))?;
    let meeting = LinkMeeting { address: address.to_string(), rendezvous };
    let descriptor = LinkDescriptor { meeting: Some(meeting), ..layout.descriptor(link_epoch) };
    let name = descriptor.name.clone();
    let link = start(layout, Side::Leader, carrier, move |end, deadline| {
        door::let_in(&listener, &name, &|| end.is_over(), deadline)
    })?;
    Ok((link, descriptor))
}

/// stage0: the end on the link that the leader made. It is open once the leader has let it in.
///
/// # Errors
/// `bad_field` or `unsupported_parameter` for a descriptor that is not one of such a link; `internal` as for [`create`].
pub fn open(carrier: Arc<dyn Carrier>, descriptor: &LinkDescriptor) -> Result<FarLink, Error> {
    let address = meeting(descriptor)?.address.as_str();
    let address = address.parse().map_err(|_| {
        Error::new(
            Reason::BadField,
            format!("link meeting {address:?}: an IP address and a port are expected"),
        )
    })?;
    let shape = Shape::of(descriptor)?;
    // The leader's link epoch, so that generations are of this link alone on both sides.
    let layout = Layout::private(LinkKind::Nccl, NAME_AT_STAGE0, shape, descriptor.link_epoch)?;
    let name = descriptor.name.clone();
    start(layout, Side::Stage0, carrier, move |_, deadline| door::knock(address, &name, deadline))
}

const NAME_AT_STAGE0: &str = "kinemesh-stage0-link";

/// # Errors
/// As [`open`].
pub(crate) fn meeting(descriptor: &LinkDescriptor) -> Result<&LinkMeeting, Error> {
    if descriptor.kind != LinkKind::Nccl {
        let (kind, own) = (descriptor.kind.as_str(), LinkKind::Nccl.as_str());
        return Err(Error::new(
            Reason::UnsupportedParameter,
            format!("link kind is {kind}: this end opens {own}"),
        ));
    }
    let missing =
        || Error::new(Reason::BadField, format!("link {} does not say where it is", descriptor.name));
    descriptor.meeting.as_ref().ok_or_else(missing)
}

/// Whether stage0 on another host could be told this address.
///
/// # Errors
/// `bad_field` for one that is not `host:port`, or stands for all addresses of this host.
pub fn check_bind(bind: &str) -> Result<(), Error> {
    let mut addresses = bind.to_socket_addrs().map_err(|error| cannot_bind(bind, &error.to_string()))?;
    if addresses.any(|address| address.ip().is_unspecified()) {
        return Err(cannot_bind(bind, "one address of this host is needed, which stage0 is told"));
    }
    Ok(())
}

/// The link before this one may be about to leave the port.
fn listen(bind: &str) -> io::Result<TcpListener> {
    let until = Instant::now() + LEAVING;
    loop {
        match TcpListener::bind(bind) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < until => {
                thread::sleep(Duration::from_millis(5));
            }
            bound => return bound,
        }
    }
}

fn cannot_bind(bind: &str, why: &str) -> Error {
    Error::new(Reason::BadField, format!("link address {bind:?}: {why}"))
}

/// The end, and the thread that opens it and then answers the other end.
fn start(
    layout: Layout,
    side: Side,
    carrier: Arc<dyn Carrier>,
    meet: impl FnOnce(&End, Instant) -> Result<Wires, String> + Send + 'static,
) -> Result<FarLink, Error> {
    let layout = Arc::new(layout);
    let end = Arc::new(End::new(Arc::clone(&layout), side, carrier));
    let link = FarLink {
        end: Arc::clone(&end),
        writer: Writer::new(Arc::clone(&layout), side),
        other: Reader::new(layout, side.other()),
    };
    let thread = thread::Builder::new().name("km-link".to_owned());
    thread
        .spawn(move || {
            let deadline = Instant::now() + OPENING;
            let why = match meet(&end, deadline).and_then(|wires| end.open(wires, deadline)) {
                Ok(served) => serve::serve(&end, served),
                Err(why) => why,
            };
            end.end(&why);
        })
        .map_err(|error| Error::new(Reason::Internal, "no thread for the link").detail(error.to_string()))?;
    Ok(link)
}

impl LatentLink for FarLink {
    fn write(&mut self, key: TensorKey, tensor: &Tensor) -> Result<TensorSpec, Error> {
        self.end.check_other()?;
        let carrier = self.end.carrier();
        let put = |slot: LinkSlot, tensor: &Tensor, len| carrier.put(self.end.position(slot), tensor, len);
        self.writer.write(key, tensor, |tensor| carrier.source(tensor), put)
    }

    fn read(&mut self, spec: &TensorSpec) -> Result<Tensor, Error> {
        let deadline = Instant::now() + TRANSFER;
        let len = self.other.check(spec)?;
        let tensor = tensor::empty(&spec.shape, spec.dtype, self.end.carrier().device())?;
        let _turn = self.end.turn(deadline)?;
        self.end.ask(&Ask::Read(spec.clone()), deadline)?;
        self.end.receive(&tensor, len, deadline)?;
        self.end.ask(&Ask::Took, deadline)?;
        Ok(tensor)
    }

    fn release(&mut self, slot: LinkSlot, generation: Generation) -> Result<(), Error> {
        if self.writer.has(slot) {
            return self.writer.release(slot, generation);
        }
        self.end.ask(&Ask::Release(slot, generation), Instant::now() + TRANSFER).map(|_| ())
    }

    /// Not where the other end does not say so.
    fn holds(&self, slot: LinkSlot, generation: Generation) -> bool {
        if self.writer.has(slot) {
            return self.writer.holds(slot, generation);
        }
        self.end.ask(&Ask::Holds(slot, generation), Instant::now() + TRANSFER).unwrap_or(false)
    }

    fn quarantine(&mut self, slots: &[LinkSlot]) {
        self.writer.quarantine(slots);
    }

    fn unquarantine_all(&mut self) {
        self.writer.unquarantine_all();
    }

    fn free_slots(&self) -> usize {
        self.writer.free_slots()
    }

    fn condition(&self) -> Condition {
        self.end.condition()
    }

    fn closer(&self) -> Option<Closer> {
        Some(Closer(Arc::clone(&self.end)))
    }
}

impl Drop for FarLink {
    fn drop(&mut self) {
        self.end.end("it was closed here");
    }
}
