//! `watch`: what a viewer receives over WebRTC. All services, a real broker, one viewer.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Result, anyhow, ensure};
use contract::media::VideoCodec;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use webrtc_viewer::{Viewer, Wish};

use crate::cell::{self, CellOptions};
use crate::options::SizeOptions;
use crate::statistics::Summary;
use crate::{line, machine};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long, default_value_t = 1)]
    world_size: u16,
    #[command(flatten)]
    cell: CellOptions,
    #[command(flatten)]
    size: SizeOptions,
    /// `h264` or `vp8`.
    #[arg(long, default_value = "h264", value_parser = parse_codec)]
    codec: VideoCodec,
    /// Frames until the viewer has seen enough.
    #[arg(long, default_value = "120", value_parser = clap::value_parser!(u32).range(2..))]
    frames: u32,
}

fn parse_codec(text: &str) -> Result<VideoCodec, String> {
    match text {
        "h264" => Ok(VideoCodec::H264),
        "vp8" => Ok(VideoCodec::Vp8),
        _ => Err("h264 or vp8 is allowed".to_owned()),
    }
}

/// What has come.
#[derive(Default)]
struct Received {
    packets: u64,
    bytes: u64,
    sequences: BTreeSet<u16>,
    first_frame_ms: f64,
    /// Milliseconds between frames.
    intervals: Vec<f64>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let config = options.cell.config(options.world_size)?;
    let size = options.size.served(&config)?;
    let device = options.cell.device(options.world_size)?;
    let (received, memory) = Runtime::new()?.block_on(async {
        let cell = options.cell.cell(device, options.world_size).ready().await;
        let size = json!({"height": size.height, "width": size.width});
        let load = json!({"pipeline_ids": [config.name], "load_params": size});
        let answer = cell.http().post("/api/v1/pipeline/load", &load).await;
        ensure!(answer.status == 200, "the size was answered {}: {}", answer.status, answer.text);
        let parameters = json!({"prompts": [{"text": "a red fox"}]});
        let wish = Wish { codecs: vec![options.codec], parameters, ..Wish::default() };
        let received = receive(&cell.url(), wish, options.frames).await?;
        anyhow::Ok((received, cell::peak_mib(&cell)))
    })?;
    println!(
        "{}",
        line::join([
            json!({"bench": "watch"}),
            machine::conditions(device)?,
            options.cell.conditions(&config, device, options.world_size),
            json!({
                "height": size.height, "width": size.width, "codec": options.codec, "frames": options.frames,
            }),
            received.json(),
            json!({"host_peak_mib": memory}),
        ])
    );
    Ok(())
}

/// Every packet until `frames` frames are complete, the first of them after the offer was sent.
async fn receive(url: &str, wish: Wish, frames: u32) -> Result<Received> {
    let offered = Instant::now();
    let mut viewer = Viewer::connect(url, wish)
        .await
        .map_err(|(status, answer)| anyhow!("the offer was answered {status}: {answer}"))?;
    let (mut received, mut complete, mut last) = (Received::default(), 0, None);
    while complete < frames {
        let packet = viewer.packet().await;
        received.packets += 1;
        received.bytes += packet.payload.len() as u64;
        received.sequences.insert(packet.header.sequence_number);
        if packet.header.marker {
            let now = Instant::now();
            match last.replace(now) {
                None => received.first_frame_ms = ms(offered, now),
                Some(before) => received.intervals.push(ms(before, now)),
            }
            complete += 1;
        }
    }
    viewer.connection.close().await?;
    Ok(received)
}

impl Received {
    fn json(&self) -> Value {
        let seconds = self.intervals.iter().sum::<f64>() / 1000.0;
        json!({
            "first_frame_ms": self.first_frame_ms,
            "frames_per_second": self.intervals.len() as f64 / seconds.max(1e-6),
            "between_frames_ms": Summary::of(self.intervals.iter().copied()).json(),
            "packets": self.packets, "payload_bytes": self.bytes, "packets_missing": self.missing(),
        })
    }

    /// Sequence numbers that never came between the first and the last, which may have begun again at 0.
    fn missing(&self) -> usize {
        let numbers: Vec<u16> = self.sequences.iter().copied().collect();
        let gaps = numbers.windows(2).map(|pair| usize::from(pair[1] - pair[0]) - 1);
        let (first, last) = (numbers.first().copied().unwrap_or(0), numbers.last().copied().unwrap_or(0));
        let around = usize::from(first.wrapping_sub(last).wrapping_sub(1));
        // The widest gap is the outside of what came.
        gaps.clone().sum::<usize>() + around - gaps.chain([around]).max().unwrap_or(0)
    }
}

fn ms(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_counted_also_where_numbers_begin_again() {
        for (came, missing) in [
            (vec![5, 6, 7], 0),
            (vec![5, 7, 10], 3),
            (vec![65534, 65535, 0, 1], 0),
            (vec![65533, 65535, 0, 2], 2),
        ] {
            let received = Received { sequences: came.iter().copied().collect(), ..Received::default() };
            assert_eq!(received.missing(), missing, "{came:?}");
        }
    }
}
