//! A link between two GPUs, of one host or of two, over a communicator of NCCL with two ranks: the leader is rank 0. Who holds a slot is
//! as [`crate::far`] says; this is what carries the bytes.
//!
//! Each end has the slots that it writes, and a place where what it reads arrives, in memory of its own GPU. A tensor is copied into
//! its slot, sent from there to the other end's place and copied out of it: every tensor of a call is there at once, however the
//! transfers follow one another, and no place is torch's.
//!
//! The communicator is a non-blocking one with a stream of its own ([`collectives::nccl::Pair`]), so that a transfer neither waits for
//! a decode of stage0 nor lets it wait, and an abort ends it. What of NCCL has to be known to read on:
//!
//! * A send waits on the device until the other end receives, and takes a bit of the GPU meanwhile. So nothing is sent before its
//!   reader says that it will receive it.
//! * NCCL makes the connection of two ranks with their first transfer in a direction, which both have to take part in. So one goes each
//!   way before the link is open, and what a transfer takes afterwards is the transfer.
//! * Two communicators that work on one GPU at a time can stand in each other's way. The leader's other one works while a call
//!   runs: the tensors of a call are read before it and its result after it. After a fault the two may meet; deadlines end that.
//! * An abort frees memory, which waits for what other kernels do: a transfer that stands still would keep the abort of the mesh. So
//!   whoever closes the link ends its transfers first ([`far::Closer`]).
//! * Two ranks on one GPU are refused, unless `NCCL_HOSTID` makes each believe itself on a host of its own: for tests.
//!
//! Which network NCCL takes is its own choice, or `NCCL_SOCKET_IFNAME`'s.

use std::mem::ManuallyDrop;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use collectives::CollectiveError;
use collectives::nccl::{Pair, Rendezvous};
use contract::link::LinkDescriptor;
use contract::{Error, Reason};
use tch::{Device, Tensor};

use crate::Rings;
use crate::device_memory::DeviceMemory;
use crate::far::{self, Carrier, FarLink};
use crate::ring::{Shape, Side};

/// A thread of its own waits so long for an abort, at nobody's cost: what other kernels still compute may keep it.
const RELEASE: Duration = Duration::from_secs(60);
/// Bytes that go each way before the link is open.
const FIRST: usize = 1;

/// Leader: memory on the GPU `index` and a new communicator, and what HELLO's reply says of it.
///
/// # Errors
/// `bad_field` for a size or an address that is not allowed; `internal` when the memory cannot be had, or NCCL.
pub fn create(index: usize, rings: &Rings) -> Result<(FarLink, LinkDescriptor), Error> {
    far::check_bind(rings.bind)?;
    let shape = Shape::new(rings.slots_in, rings.slots_out, rings.slot_bytes)?;
    let rendezvous = Rendezvous::create(2).map_err(|error| {
        Error::new(Reason::Internal, "no communicator for the link").detail(error.to_string())
    })?;
    let bytes = rendezvous.to_bytes();
    let carrier = NcclCarrier::new(index, Side::Leader, shape, rendezvous)?;
    far::create(Arc::new(carrier), bytes, rings)
}

/// stage0: its end, with memory on its GPU `index`. Returns before the two ends have met.
///
/// # Errors
/// `bad_field` or `unsupported_parameter` for a descriptor that is not one of nccl; `internal` when the memory cannot be had.
pub fn open(index: usize, descriptor: &LinkDescriptor) -> Result<FarLink, Error> {
    let rendezvous = Rendezvous::from_bytes(&far::meeting(descriptor)?.rendezvous);
    let rendezvous = rendezvous.ok().filter(|rendezvous| rendezvous.world_size() == 2).ok_or_else(|| {
        let text = format!("link {}: its rendezvous is not one of two NCCL ranks", descriptor.name);
        Error::new(Reason::BadField, text)
    })?;
    let carrier = NcclCarrier::new(index, Side::Stage0, Shape::of(descriptor)?, rendezvous)?;
    far::open(Arc::new(carrier), descriptor)
}

struct NcclCarrier {
    side: Side,
    index: usize,
    rendezvous: Rendezvous,
    /// The slots of this end's ring, and behind them the place of what arrives.
    memory: ManuallyDrop<DeviceMemory>,
    slots: usize,
    stride: usize,
    pair: OnceLock<Pair>,
}

impl NcclCarrier {
    fn new(index: usize, side: Side, shape: Shape, rendezvous: Rendezvous) -> Result<Self, Error> {
        let (slots, stride) = (shape.slots_of(side), shape.stride());
        let memory = ManuallyDrop::new(DeviceMemory::allocate(index, (slots + 1) * stride)?);
        Ok(Self { side, index, rendezvous, memory, slots, stride, pair: OnceLock::new() })
    }

    fn slot(&self, position: usize) -> usize {
        assert!(position < self.slots, "slot {position} of {}", self.slots);
        position * self.stride
    }

    /// Where what is received arrives.
    fn place(&self) -> usize {
        self.slots * self.stride
    }

    fn pair(&self) -> Result<&Pair, Error> {
        self.pair.get().ok_or_else(|| Error::new(Reason::Internal, "the ends of the link have not met"))
    }

    fn send_from(&self, offset: usize, len: usize, deadline: Instant) -> Result<(), Error> {
        // SAFETY: inside our memory, in a slot that is held for its reader, and not freed before the group is.
        let sent = unsafe { self.pair()?.send(self.memory.at(offset, len), len, deadline) };
        sent.map_err(|error| failed(&error))
    }

    /// To the place.
    fn receive_there(&self, len: usize, deadline: Instant) -> Result<(), Error> {
        // SAFETY: inside our memory, at a place that one transfer has at a time, and not freed before the group is.
        let received = unsafe { self.pair()?.receive(self.memory.at(self.place(), len), len, deadline) };
        received.map_err(|error| failed(&error))
    }
}

impl Carrier for NcclCarrier {
    /// On the leader's GPU; stage0, whose stream decodes the chunk before at that time, takes them to the CPU rather than wait.
    fn device(&self) -> Device {
        match self.side {
            Side::Leader => Device::Cuda(self.index),
            Side::Stage0 => Device::Cpu,
        }
    }

    fn source(&self, tensor: &Tensor) -> Device {
        tensor.device()
    }

    fn put(&self, position: usize, tensor: &Tensor, len: usize) -> Result<(), Error> {
        assert!(len <= self.stride, "{len} bytes do not fit a slot");
        self.memory.put(self.slot(position), tensor, len)
    }

    fn meet(&self, deadline: Instant) -> Result<(), Error> {
        let rank = match self.side {
            Side::Leader => 0,
            Side::Stage0 => 1,
        };
        let pair =
            Pair::connect(&self.rendezvous, self.index, rank, deadline).map_err(|error| failed(&error))?;
        // From here on an end of the link ends the pair.
        let _ = self.pair.set(pair);
        match self.side {
            Side::Leader => {
                self.send_from(self.slot(0), FIRST, deadline)?;
                self.receive_there(FIRST, deadline)
            }
            Side::Stage0 => {
                self.receive_there(FIRST, deadline)?;
                self.send_from(self.slot(0), FIRST, deadline)
            }
        }
    }

    fn send(&self, position: usize, len: usize, deadline: Instant) -> Result<(), Error> {
        self.send_from(self.slot(position), len, deadline)
    }

    fn receive(&self, tensor: &Tensor, len: usize, deadline: Instant) -> Result<(), Error> {
        self.receive_there(len, deadline)?;
        self.memory.get(self.place(), tensor, len)
    }

    fn end(&self, reason: &str) {
        if let Some(pair) = self.pair.get() {
            pair.abort(reason);
        }
    }
}

impl Drop for NcclCarrier {
    /// The memory goes once no transfer can touch it. Freeing it would wait for one that stands still, so a thread waits for the
    /// abort instead; memory of one that does not end is left to the end of the process.
    fn drop(&mut self) {
        // SAFETY: taken once, here.
        let memory = ManuallyDrop::new(unsafe { ManuallyDrop::take(&mut self.memory) });
        let Some(pair) = self.pair.take() else {
            // No transfer was ever begun.
            return drop(ManuallyDrop::into_inner(memory));
        };
        pair.abort("the link is closed");
        let thread = thread::Builder::new().name("km-link-free".to_owned());
        // Without a thread the memory is left as well.
        let _ = thread.spawn(move || {
            if pair.freed(Instant::now() + RELEASE) {
                drop(ManuallyDrop::into_inner(memory));
            }
        });
    }
}

fn failed(error: &CollectiveError) -> Error {
    Error::new(Reason::CallAborted, "a tensor did not get through").detail(error.to_string())
}
