//! A carrier for machines without a GPU: slots in the process's own memory, bytes over a socket. It is as strict as NCCL would be:
//! two transfers at a time, in whatever direction, are a failure.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use contract::{Error, Reason};
use latents::far::Carrier;
use tch::{Device, Tensor};

pub(crate) struct Socket {
    place: Place,
    slots: Vec<Mutex<Vec<u8>>>,
    stream: Mutex<Option<TcpStream>>,
    busy: AtomicBool,
    /// What goes wrong, and when.
    pub(crate) faults: Faults,
}

enum Place {
    Here(TcpListener),
    There(SocketAddr),
}

#[derive(Default)]
pub(crate) struct Faults {
    pub(crate) never_meets: bool,
    /// Transfers that go well before one does not.
    pub(crate) fails_after: Option<AtomicU32>,
    /// A send sends nothing until the link is over; told once it stands there.
    pub(crate) stalls: Option<SyncSender<()>>,
}

fn failed(error: &dyn ToString) -> Error {
    Error::new(Reason::CallAborted, "a tensor did not get through").detail(error.to_string())
}

impl Socket {
    /// The leader's, and what the other one is found by.
    pub(crate) fn leader(slots: u32, slot_bytes: u64, faults: Faults) -> (Arc<Self>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let rendezvous = listener.local_addr().unwrap().to_string().into_bytes();
        (Self::new(Place::Here(listener), slots, slot_bytes, faults), rendezvous)
    }

    pub(crate) fn stage0(rendezvous: &[u8], slots: u32, slot_bytes: u64, faults: Faults) -> Arc<Self> {
        let address = str::from_utf8(rendezvous).unwrap().parse().unwrap();
        Self::new(Place::There(address), slots, slot_bytes, faults)
    }

    fn new(place: Place, slots: u32, slot_bytes: u64, faults: Faults) -> Arc<Self> {
        let slots = (0..slots).map(|_| Mutex::new(vec![0; slot_bytes as usize])).collect();
        Arc::new(Self { place, slots, stream: Mutex::default(), busy: AtomicBool::new(false), faults })
    }

    fn transfer(
        &self,
        deadline: Instant,
        go: impl FnOnce(&mut TcpStream) -> std::io::Result<()>,
    ) -> Result<(), Error> {
        assert!(!self.busy.swap(true, Ordering::SeqCst), "two transfers at a time");
        let spent = |left: &AtomicU32| {
            left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err()
        };
        let result = if self.faults.fails_after.as_ref().is_some_and(spent) {
            Err(failed(&"it was made to fail"))
        } else {
            let mut stream = self.stream.lock().unwrap().as_ref().unwrap().try_clone().unwrap();
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            stream.set_read_timeout(Some(left)).and(stream.set_write_timeout(Some(left))).unwrap();
            go(&mut stream).map_err(|error| failed(&error))
        };
        self.busy.store(false, Ordering::SeqCst);
        result
    }
}

impl Carrier for Socket {
    fn device(&self) -> Device {
        Device::Cpu
    }

    fn source(&self, _: &Tensor) -> Device {
        Device::Cpu
    }

    fn put(&self, position: usize, tensor: &Tensor, len: usize) -> Result<(), Error> {
        let slot = &mut self.slots[position].lock().unwrap()[..len];
        if len > 0 {
            // SAFETY: `len` bytes of a dense tensor on the CPU, which lives until the end of this call.
            unsafe { tensor.data_ptr().cast::<u8>().copy_to_nonoverlapping(slot.as_mut_ptr(), len) };
        }
        Ok(())
    }

    fn meet(&self, deadline: Instant) -> Result<(), Error> {
        if self.faults.never_meets {
            return Err(failed(&"there is nobody"));
        }
        let stream = match &self.place {
            Place::There(address) => TcpStream::connect(address).map_err(|error| failed(&error))?,
            Place::Here(listener) => {
                listener.set_nonblocking(true).unwrap();
                loop {
                    match listener.accept() {
                        Ok((stream, _)) => break stream,
                        Err(error) if Instant::now() >= deadline => return Err(failed(&error)),
                        Err(_) => std::thread::sleep(Duration::from_millis(1)),
                    }
                }
            }
        };
        stream.set_nonblocking(false).unwrap();
        stream.set_nodelay(true).unwrap();
        *self.stream.lock().unwrap() = Some(stream);
        Ok(())
    }

    fn send(&self, position: usize, len: usize, deadline: Instant) -> Result<(), Error> {
        self.transfer(deadline, |stream| match &self.faults.stalls {
            Some(told) => {
                told.send(()).unwrap();
                // Ends with the connection.
                stream.read_exact(&mut [0])
            }
            None => stream.write_all(&self.slots[position].lock().unwrap()[..len]),
        })
    }

    fn receive(&self, tensor: &Tensor, len: usize, deadline: Instant) -> Result<(), Error> {
        let mut arrived = vec![0; len];
        self.transfer(deadline, |stream| stream.read_exact(&mut arrived))?;
        // SAFETY: as in `put`, the other way round.
        unsafe { arrived.as_ptr().copy_to_nonoverlapping(tensor.data_ptr().cast(), len) };
        Ok(())
    }

    fn end(&self, _: &str) {
        if let Some(stream) = &*self.stream.lock().unwrap() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
