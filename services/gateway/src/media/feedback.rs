//! What the receiver says about the stream: keyframe requests, and how much the path carries. The stack keeps inbound
//! RTCP to itself, so an interceptor next to the wire listens in and passes everything on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rtc::interceptor::{
    BandwidthEstimator, EstimatorStats, Gcc, Interceptor, Packet, PacketReport, StreamInfo, TaggedPacket,
};
use rtc::rtcp::payload_feedbacks::full_intra_request::FullIntraRequest;
use rtc::rtcp::payload_feedbacks::picture_loss_indication::PictureLossIndication;
use rtc::rtcp::payload_feedbacks::receiver_estimated_maximum_bitrate::ReceiverEstimatedMaximumBitrate;
use rtc::sansio::Protocol;
use rtc::shared::error::Error;
use tokio::sync::Notify;

/// Shared between the connection's driver, which writes, and the session, which reads.
#[derive(Debug, Default)]
pub(crate) struct Feedback {
    /// Bits a second, as the bits of an f64; 0 while unknown.
    estimate: AtomicU64,
    keyframe_wanted: Notify,
}

impl Feedback {
    /// Bits a second that the path carries, once the receiver has said something about it.
    pub(crate) fn estimate(&self) -> Option<f64> {
        let estimate = f64::from_bits(self.estimate.load(Ordering::Relaxed));
        (estimate > 0.0).then_some(estimate)
    }

    /// Resolves when the receiver asked for a keyframe since the last time.
    pub(crate) async fn keyframe_wanted(&self) {
        self.keyframe_wanted.notified().await;
    }

    fn set_estimate(&self, bits_per_second: f64) {
        self.estimate.store(bits_per_second.to_bits(), Ordering::Relaxed);
    }
}

/// Reads PLI, FIR and REMB on their way past.
pub(crate) struct Listener {
    feedback: Arc<Feedback>,
    inbound: VecDeque<TaggedPacket>,
    outbound: VecDeque<TaggedPacket>,
}

impl Listener {
    pub(crate) fn new(feedback: Arc<Feedback>) -> Self {
        Self { feedback, inbound: VecDeque::new(), outbound: VecDeque::new() }
    }
}

impl Protocol<TaggedPacket, TaggedPacket, ()> for Listener {
    type Rout = TaggedPacket;
    type Wout = TaggedPacket;
    type Eout = ();
    type Error = Error;
    type Time = Instant;

    fn handle_read(&mut self, message: TaggedPacket) -> Result<(), Error> {
        if let Packet::Rtcp(packets) = &message.message.packet {
            for packet in packets {
                let packet = packet.as_any();
                if packet.is::<PictureLossIndication>() || packet.is::<FullIntraRequest>() {
                    self.feedback.keyframe_wanted.notify_one();
                } else if let Some(remb) = packet.downcast_ref::<ReceiverEstimatedMaximumBitrate>() {
                    self.feedback.set_estimate(f64::from(remb.bitrate));
                }
            }
        }
        self.inbound.push_back(message);
        Ok(())
    }

    fn poll_read(&mut self) -> Option<TaggedPacket> {
        self.inbound.pop_front()
    }

    fn handle_write(&mut self, message: TaggedPacket) -> Result<(), Error> {
        self.outbound.push_back(message);
        Ok(())
    }

    fn poll_write(&mut self) -> Option<TaggedPacket> {
        self.outbound.pop_front()
    }
}

impl Interceptor for Listener {
    fn bind_local_stream(&mut self, _info: &StreamInfo) {}
    fn unbind_local_stream(&mut self, _info: &StreamInfo) {}
    fn bind_remote_stream(&mut self, _info: &StreamInfo) {}
    fn unbind_remote_stream(&mut self, _info: &StreamInfo) {}
}

/// Google congestion control on transport-wide feedback, read by the session; no pacer follows it.
pub(crate) struct PublishedEstimate {
    estimator: Gcc,
    feedback: Arc<Feedback>,
}

impl PublishedEstimate {
    pub(crate) fn new(feedback: Arc<Feedback>, start: f64, low: f64, high: f64) -> Self {
        Self { estimator: Gcc::new(start, low, high), feedback }
    }
}

impl BandwidthEstimator for PublishedEstimate {
    fn on_reports(&mut self, now: Instant, reports: &[PacketReport]) {
        self.estimator.on_reports(now, reports);
        self.feedback.set_estimate(self.estimator.target_bitrate());
    }

    fn target_bitrate(&self) -> f64 {
        self.estimator.target_bitrate()
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.estimator.handle_timeout(now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.estimator.poll_timeout()
    }

    fn stats(&self) -> EstimatorStats {
        self.estimator.stats()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rtc::interceptor::AttributedPacket;
    use rtc::shared::{TransportContext, TransportMessage};

    use super::*;

    fn heard(packet: impl rtc::rtcp::Packet + 'static) -> Arc<Feedback> {
        let feedback = Arc::new(Feedback::default());
        let mut listener = Listener::new(Arc::clone(&feedback));
        let message = AttributedPacket::new(Packet::Rtcp(vec![Box::new(packet)]));
        let transport = TransportContext::default();
        listener.handle_read(TransportMessage { now: Instant::now(), transport, message }).unwrap();
        assert!(listener.poll_read().is_some(), "others still have to read it");
        feedback
    }

    #[tokio::test]
    async fn keyframe_requests_and_estimates_are_heard_and_passed_on() {
        let wait = Duration::from_secs(1);
        for feedback in [heard(PictureLossIndication::default()), heard(FullIntraRequest::default())] {
            tokio::time::timeout(wait, feedback.keyframe_wanted()).await.unwrap();
        }
        let remb = ReceiverEstimatedMaximumBitrate { bitrate: 750_000.0, ..Default::default() };
        assert_eq!(heard(remb).estimate(), Some(750_000.0));
        assert_eq!(heard(PictureLossIndication::default()).estimate(), None);
    }
}
