//! What the two ends say to one another, and the connection it goes over: each message is a length and MessagePack.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use contract::codec::{self, MAX_PAYLOAD};
use contract::tensor::TensorSpec;
use contract::{Error, Generation, LinkSlot};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// How often whoever waits for a question looks whether the link is over.
const LOOK: Duration = Duration::from_millis(200);
/// A message that has begun is there in this time.
const MESSAGE: Duration = Duration::from_secs(1);

/// Who asks on a connection. The other end answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Asker {
    Leader,
    Stage0,
}

/// The first message on a connection, from stage0.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Introduction {
    /// Of the link: nobody else knows it.
    pub(super) name: String,
    pub(super) asker: Asker,
}

/// What a reader asks of the end that has the ring. Each is answered once; after a yes to `Read` the bytes follow, and then `Took`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ask {
    Read(TensorSpec),
    /// The bytes of what was read are here.
    Took,
    Release(LinkSlot, Generation),
    Holds(LinkSlot, Generation),
}

/// An error is one of the ring: the link goes on.
pub(super) type Answer = Result<bool, Error>;

/// One connection. After an error it is of no further use: how much of a message went is not known.
#[derive(Debug)]
pub(super) struct Wire(TcpStream);

impl Wire {
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    /// To shut it down while another thread waits on it.
    pub(super) fn handle(&self) -> io::Result<TcpStream> {
        self.0.try_clone()
    }

    pub(super) fn send<T: Serialize>(&mut self, message: &T, deadline: Instant) -> io::Result<()> {
        let body = codec::encode(message).map_err(io::Error::other)?;
        let mut frame = (body.len() as u32).to_le_bytes().to_vec();
        frame.extend(body);
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            self.0.set_write_timeout(Some(left(deadline)?))?;
            match self.0.write(rest) {
                Ok(0) => return Err(closed()),
                Ok(written) => rest = &rest[written..],
                Err(error) if is_pause(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn receive<T: DeserializeOwned>(&mut self, deadline: Instant) -> io::Result<T> {
        let mut length = [0; 4];
        self.fill(&mut length, deadline)?;
        self.body(length, deadline)
    }

    /// The next message, however long it takes to begin; `None` once the link `is_over`.
    pub(super) fn next<T: DeserializeOwned>(&mut self, is_over: impl Fn() -> bool) -> io::Result<Option<T>> {
        let mut length = [0; 4];
        loop {
            if is_over() {
                return Ok(None);
            }
            self.0.set_read_timeout(Some(LOOK))?;
            match self.0.read(&mut length[..1]) {
                Ok(0) => return Err(closed()),
                Ok(_) => break,
                Err(error) if is_pause(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let deadline = Instant::now() + MESSAGE;
        self.fill(&mut length[1..], deadline)?;
        self.body(length, deadline).map(Some)
    }

    /// Whether the other end has closed it. Only where no answer is waited for.
    pub(super) fn is_closed(&self) -> bool {
        let peeked = self.0.set_nonblocking(true).and_then(|()| self.0.peek(&mut [0]));
        let open = peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        // What came unasked is as bad as an end.
        !open || self.0.set_nonblocking(false).is_err()
    }

    fn body<T: DeserializeOwned>(&mut self, length: [u8; 4], deadline: Instant) -> io::Result<T> {
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_PAYLOAD {
            let text = format!("a message of {length} bytes: {MAX_PAYLOAD} are allowed");
            return Err(io::Error::new(ErrorKind::InvalidData, text));
        }
        let mut body = vec![0; length];
        self.fill(&mut body, deadline)?;
        codec::decode(&body).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
    }

    fn fill(&mut self, buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            self.0.set_read_timeout(Some(left(deadline)?))?;
            match self.0.read(&mut buffer[filled..]) {
                Ok(0) => return Err(closed()),
                Ok(read) => filled += read,
                Err(error) if is_pause(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Time to the deadline, which a socket takes only above zero.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::Error::new(ErrorKind::TimedOut, "the other end did not answer in time"));
    }
    Ok(left.max(Duration::from_millis(1)))
}

fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn closed() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "the other end has closed it or is gone")
}
