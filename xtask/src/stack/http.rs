//! One HTTP GET on loopback: enough to ask a service whether it is ready.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// An answer is small; more than this is not read.
const MAX_BYTES: usize = 64 * 1024;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

/// # Errors
/// If nobody answers within `timeout`, or what answers does not speak HTTP.
pub(super) fn get(port: u16, path: &str, timeout: Duration) -> std::io::Result<Answer> {
    let end = Instant::now() + timeout;
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), timeout)?;
    stream.set_write_timeout(Some(timeout))?;
    // HTTP/1.0: the body ends where the connection does. One write: a server may answer the first bytes and close.
    let request =
        format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nAccept: application/json\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer)? {
            0 => break,
            count => bytes.extend_from_slice(&buffer[..count]),
        }
        if bytes.len() > MAX_BYTES {
            break;
        }
    }
    parse(&String::from_utf8_lossy(&bytes)).ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut words = head.lines().next()?.split_ascii_whitespace();
    words.next()?.starts_with("HTTP/").then_some(())?;
    Some(Answer { status: words.next()?.parse().ok()?, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener};
    use std::time::Duration;

    use super::{Answer, get};

    const PATIENCE: Duration = Duration::from_secs(10);

    fn answer_once(bytes: &'static [u8]) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            stream.write_all(bytes).unwrap();
        });
        port
    }

    #[test]
    fn status_and_body_are_read() {
        let port = answer_once(b"HTTP/1.1 503 Service Unavailable\r\na: b\r\n\r\n{}");

        assert_eq!(get(port, "/ready", PATIENCE).unwrap(), Answer { status: 503, body: "{}".to_owned() });
    }

    #[test]
    fn something_else_than_http_is_an_error() {
        let port = answer_once(b"hello\r\n\r\n");

        assert!(get(port, "/ready", PATIENCE).is_err());
    }

    #[test]
    fn a_server_that_never_answers_is_given_up() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();

        assert!(get(port, "/ready", Duration::from_millis(50)).is_err());
    }
}
