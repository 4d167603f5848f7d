//! The NATS client protocol as far as a proxy must read it: where one message ends and what it is. Pure.

/// One message between a client and the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Published by the client; otherwise delivered to it.
    pub published: bool,
    pub subject: String,
    pub reply: Option<String>,
    /// Header block, if it has one, and body.
    pub headers: Vec<u8>,
    pub body: Vec<u8>,
}

impl Message {
    /// The last token of its subject.
    #[must_use]
    pub fn verb(&self) -> &str {
        self.subject.rsplit('.').next().unwrap_or_default()
    }

    /// Whether its body has this text in it, as names of fields and variants are.
    #[must_use]
    pub fn mentions(&self, text: &str) -> bool {
        self.body.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

/// A piece of the stream that is not cut further, as it crosses the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub bytes: Vec<u8>,
    /// `None` for what carries no message: `PING`, `SUB`, `+OK` and the like.
    pub message: Option<Message>,
}

/// Cuts a stream into frames.
#[derive(Debug, Default)]
pub struct Splitter(Vec<u8>);

impl Splitter {
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next frame that is complete.
    pub fn pop(&mut self) -> Option<Frame> {
        let line_end = self.0.windows(2).position(|window| window == b"\r\n")?;
        let line = String::from_utf8_lossy(&self.0[..line_end]).into_owned();
        let start = line_end + 2;
        let Some(Head { message, headers, total }) = Head::of(&line) else {
            return Some(Frame { bytes: self.0.drain(..start).collect(), message: None });
        };
        let end = start + total + 2;
        if self.0.len() < end {
            return None;
        }
        let bytes: Vec<u8> = self.0.drain(..end).collect();
        let (headers, body) = bytes[start..start + total].split_at(headers.min(total));
        let message = Message { headers: headers.to_vec(), body: body.to_vec(), ..message };
        Some(Frame { bytes, message: Some(message) })
    }
}

struct Head {
    message: Message,
    headers: usize,
    total: usize,
}

impl Head {
    /// `PUB subject [reply] size`, `HPUB subject [reply] headers size`; `MSG` and `HMSG` have an id after the subject.
    fn of(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (published, with_headers) = match words.next()? {
            "PUB" => (true, false),
            "HPUB" => (true, true),
            "MSG" => (false, false),
            "HMSG" => (false, true),
            _ => return None,
        };
        let subject = words.next()?.to_owned();
        if !published {
            words.next()?;
        }
        let mut rest: Vec<&str> = words.collect();
        let total = rest.pop()?.parse().ok()?;
        let headers = if with_headers { rest.pop()?.parse().ok()? } else { 0 };
        let reply = rest.pop().map(str::to_owned);
        let message = Message { published, subject, reply, headers: Vec::new(), body: Vec::new() };
        Some(Self { message, headers, total })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] =
        b"CONNECT {\"verbose\":false}\r\nPUB km.v1.cell.c.e3.tp.1.go _INBOX.a.b 5\r\n\r\ngo\n\r\n\
        PING\r\nHMSG km.v1.cell.c.status 7 14 16\r\nNATS/1.0\r\nA:\r\nhi\r\nMSG x 1 0\r\n\r\nPONG\r\n";

    fn frames(pieces: usize) -> Vec<Frame> {
        let mut splitter = Splitter::default();
        let mut frames = Vec::new();
        for piece in STREAM.chunks(pieces) {
            splitter.push(piece);
            frames.extend(std::iter::from_fn(|| splitter.pop()));
        }
        frames
    }

    #[test]
    fn however_the_bytes_come_they_are_cut_alike_and_none_is_lost() {
        let whole = frames(STREAM.len());
        assert_eq!(whole.iter().flat_map(|frame| frame.bytes.clone()).collect::<Vec<_>>(), STREAM);
        for pieces in 1..20 {
            assert_eq!(frames(pieces), whole, "in pieces of {pieces}");
        }
    }

    #[test]
    fn a_message_is_told_from_the_rest_with_what_it_carries() {
        let messages: Vec<_> = frames(STREAM.len()).into_iter().filter_map(|frame| frame.message).collect();
        let [go, status, empty] = &messages[..] else { panic!("{messages:?}") };
        assert_eq!((go.verb(), go.reply.as_deref(), go.published), ("go", Some("_INBOX.a.b"), true));
        assert_eq!(
            (go.body.as_slice(), go.mentions("go"), go.mentions("no")),
            (&b"\r\ngo\n"[..], true, false)
        );
        assert_eq!((status.published, status.body.as_slice()), (false, &b"hi"[..]));
        assert_eq!(status.headers, b"NATS/1.0\r\nA:\r\n");
        assert_eq!((empty.reply.as_deref(), empty.body.len()), (None, 0));
    }
}
