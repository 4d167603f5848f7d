//! The client's data channel: parameter updates in, messages out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use contract::params::Parameters;
use contract::{Error, Reason};
use rtc::data_channel::RTCDataChannelMessage;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;
use webrtc::data_channel::{DataChannel, DataChannelEvent};

use super::Shared;
use super::line::Line;
use super::messages::ServerMessage;

/// Messages between the session and the channel, and before the channel is open.
const BACKLOG: usize = 128;
/// A client that takes nothing for this long is not reading.
const SEND_WAIT: Duration = Duration::from_secs(2);
/// How long the last message may take to be acknowledged.
const FLUSH_WAIT: Duration = Duration::from_millis(800);

/// What happened on the channel.
#[derive(Debug)]
pub(crate) enum ChannelEvent {
    Closed,
}

enum Outgoing {
    Message(String),
    /// Answered once everything before it is acknowledged, or cannot be.
    Flush(oneshot::Sender<()>),
}

/// The channel in use; the last one that a client opens wins.
pub(crate) struct Channel {
    shared: Arc<Shared>,
    line: Line,
    events: mpsc::Sender<ChannelEvent>,
    open: Option<Open>,
    /// Said before the channel was open.
    early: VecDeque<String>,
}

struct Open {
    outgoing: mpsc::Sender<Outgoing>,
    tasks: [AbortHandle; 2],
}

impl Drop for Open {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Channel {
    pub(crate) fn new(shared: Arc<Shared>, line: Line, events: mpsc::Sender<ChannelEvent>) -> Self {
        Self { shared, line, events, open: None, early: VecDeque::new() }
    }

    pub(crate) fn adopt(&mut self, channel: Arc<dyn DataChannel>) {
        let (outgoing, queue) = mpsc::channel(BACKLOG);
        for message in self.early.drain(..) {
            let _ = outgoing.try_send(Outgoing::Message(message));
        }
        let write = tokio::spawn(write(Arc::clone(&channel), queue)).abort_handle();
        let reader = Reader {
            channel,
            outgoing: outgoing.clone(),
            shared: Arc::clone(&self.shared),
            line: self.line.clone(),
            events: self.events.clone(),
        };
        let read = tokio::spawn(reader.run()).abort_handle();
        self.open = Some(Open { outgoing, tasks: [read, write] });
    }

    pub(crate) fn send(&mut self, message: &ServerMessage) {
        match &self.open {
            Some(open) => {
                if open.outgoing.try_send(Outgoing::Message(message.to_json())).is_err()
                    && !message.is_report()
                {
                    debug!("the client reads too slowly; a message was dropped");
                }
            }
            None => {
                if self.early.len() == BACKLOG {
                    self.early.pop_front();
                }
                self.early.push_back(message.to_json());
            }
        }
    }

    /// Waits, for a bounded time, until the client has what was sent.
    pub(crate) async fn flush(&mut self) {
        let Some(open) = &self.open else { return };
        let (done, flushed) = oneshot::channel();
        let sent = timeout(FLUSH_WAIT, open.outgoing.send(Outgoing::Flush(done))).await;
        if matches!(sent, Ok(Ok(()))) {
            let _ = timeout(FLUSH_WAIT, flushed).await;
        }
    }
}

async fn write(channel: Arc<dyn DataChannel>, mut queue: mpsc::Receiver<Outgoing>) {
    while let Some(outgoing) = queue.recv().await {
        match outgoing {
            Outgoing::Message(text) => match timeout(SEND_WAIT, channel.send_text(&text)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => debug!("the client takes no messages"),
            },
            Outgoing::Flush(done) => {
                let deadline = Instant::now() + FLUSH_WAIT;
                // The stack has no event for "all acknowledged"; its counter falls with each acknowledgement.
                while Instant::now() < deadline
                    && channel.outstanding_bytes().await.is_ok_and(|bytes| bytes > 0)
                {
                    sleep(Duration::from_millis(5)).await;
                }
                let _ = done.send(());
            }
        }
    }
}

struct Reader {
    channel: Arc<dyn DataChannel>,
    outgoing: mpsc::Sender<Outgoing>,
    shared: Arc<Shared>,
    line: Line,
    events: mpsc::Sender<ChannelEvent>,
}

impl Reader {
    async fn run(self) {
        while let Some(event) = self.channel.poll().await {
            match event {
                DataChannelEvent::OnMessage(message) => {
                    if let Some(answer) = self.handle(&message).await {
                        let _ =
                            timeout(SEND_WAIT, self.outgoing.send(Outgoing::Message(answer.to_json()))).await;
                    }
                }
                DataChannelEvent::OnClose | DataChannelEvent::OnClosing => break,
                _ => {}
            }
        }
        let _ = self.events.try_send(ChannelEvent::Closed);
    }

    /// `None` where there is nothing to say: an update without any effect.
    async fn handle(&self, message: &RTCDataChannelMessage) -> Option<ServerMessage> {
        let parameters = match read(&message.data) {
            Ok(parameters) if parameters.is_empty() => return None,
            Ok(parameters) => parameters,
            Err(error) => return Some(ServerMessage::refused(&error)),
        };
        Some(match self.line.update(parameters.clone()).await {
            Ok(accepted) => {
                self.shared.accepted(parameters, accepted.update);
                ServerMessage::ParametersAccepted { update: accepted.update }
            }
            Err(error) => ServerMessage::refused(&error),
        })
    }
}

fn read(bytes: &[u8]) -> Result<Parameters, Error> {
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|e| Error::new(Reason::Malformed, format!("the message is not JSON: {e}")))?;
    Parameters::from_json(&value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_a_json_object_of_parameters() {
        assert_eq!(read(b"{\"base_seed\": 7}").unwrap().base_seed, Some(7));
        assert!(read(b"{\"quantize_mode\":\"none\",\"lookahead_ms\":0}").unwrap().is_empty());
        assert_eq!(read(b"{").unwrap_err().reason, Reason::Malformed);
        assert_eq!(read(b"[1]").unwrap_err().reason, Reason::Malformed);
        assert_eq!(read(b"{\"noise_scale\": 2}").unwrap_err().reason, Reason::BadField);
    }
}
