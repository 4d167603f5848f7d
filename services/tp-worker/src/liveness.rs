//! The connection to the leader's liveness socket: a thread of its own for each epoch, for beats and nothing else.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use contract::Error;
use contract::tp::Assignment;
use mesh::liveness::{BEAT_INTERVAL, BeatReader, encode_beat};
use mesh::worker::Input;
use tokio::sync::mpsc;
use tracing::debug;

use crate::board::Board;
use crate::driver::Event;

/// How long a read may block, so that beats leave in time.
const READ_WAIT: Duration = Duration::from_millis(50);
const WRITE_WAIT: Duration = Duration::from_millis(500);
const CONNECT_WAIT: Duration = Duration::from_secs(2);

/// # Errors
/// `internal` if the thread cannot be started.
pub(crate) fn start(
    assignment: Assignment,
    board: Arc<Board>,
    events: mpsc::Sender<Event>,
) -> Result<(), Error> {
    let beats = move || {
        let why = match beat(&assignment, &board, &events) {
            Ok(()) => return,
            Err(error) => error.to_string(),
        };
        debug!(why, "the liveness connection ended");
        // Ends with the process if the driver is gone.
        let gone = Input::LeaderGone { epoch: assignment.mesh_epoch, why };
        let _ = events.blocking_send(Event::Machine(gone));
    };
    match thread::Builder::new().name("km-beats".to_owned()).spawn(beats) {
        Ok(_) => Ok(()),
        Err(e) => Err(Error::new(contract::Reason::Internal, "the liveness thread cannot be started")
            .detail(e.to_string())),
    }
}

/// Beats both ways until the connection or the epoch ends.
fn beat(assignment: &Assignment, board: &Board, events: &mpsc::Sender<Event>) -> std::io::Result<()> {
    let mut stream = connect(&assignment.liveness)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(READ_WAIT))?;
    stream.set_write_timeout(Some(WRITE_WAIT))?;
    let mut sent: Option<Instant> = None;
    let (mut reader, mut buffer) = (BeatReader::default(), [0_u8; 4096]);
    loop {
        let now = Instant::now();
        let over = board.epoch() != Some(assignment.mesh_epoch);
        if over || sent.is_none_or(|sent| now - sent >= BEAT_INTERVAL) {
            let bytes = encode_beat(&board.beat(assignment, now)).map_err(std::io::Error::other)?;
            stream.write_all(&bytes)?;
            sent = Some(now);
        }
        if over {
            return Ok(());
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Err(std::io::Error::new(ErrorKind::UnexpectedEof, "connection closed")),
            Ok(n) => reader.extend(&buffer[..n]),
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            Err(e) => return Err(e),
        }
        while let Some(beat) = reader.next_beat().map_err(std::io::Error::other)? {
            // A full queue loses a beat, not the leader: the next one is 200 ms away.
            let _ = events.try_send(Event::Machine(Input::Beat(beat)));
        }
    }
}

fn connect(address: &str) -> std::io::Result<TcpStream> {
    let unresolved = || std::io::Error::other(format!("{address} is no address"));
    let address = address.to_socket_addrs()?.next().ok_or_else(unresolved)?;
    TcpStream::connect_timeout(&address, CONNECT_WAIT)
}
