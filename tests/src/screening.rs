//! A viewer who looks: what stage0 publishes, decoded, chunk by chunk.

use std::collections::VecDeque;
use std::time::Duration;

use bus::Bus;
use contract::event::{ChunkReport, Event};
use contract::session::CreateSession;
use contract::{CellId, ChunkIndex, Error};
use serde_json::Value;
use video::VideoDecoder;

use crate::{Viewer, wait};

/// How long a busy stage0 may refuse an update.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Screening {
    viewer: Viewer,
    decoder: Box<dyn VideoDecoder>,
    /// Reports that came while something else was waited for.
    waiting: VecDeque<ChunkReport>,
}

/// A chunk, and what is seen of it.
#[derive(Clone, Debug)]
pub struct Shown {
    pub report: ChunkReport,
    /// RGB bytes, row by row.
    pub frames: Vec<Vec<u8>>,
}

impl Screening {
    /// # Errors
    /// What stage0 answers.
    ///
    /// # Panics
    /// If there is no decoder.
    pub async fn open(bus: &Bus, cell: &CellId, request: CreateSession) -> Result<Self, Error> {
        let decoder = video::decoder(request.codec).expect("a decoder");
        let viewer = Viewer::create(bus, cell, request).await?;
        Ok(Self { viewer, decoder, waiting: VecDeque::new() })
    }

    /// The next chunk of the session's first history.
    ///
    /// # Panics
    /// If none comes, or a frame of it is missing.
    pub async fn chunk(&mut self) -> Shown {
        let report = match self.waiting.pop_front() {
            Some(report) => report,
            None => self.viewer.chunk().await,
        };
        let mut frames = Vec::new();
        for frame in 0..report.frames {
            let mut part = self.viewer.media().await;
            let mut unit = std::mem::take(&mut part.data);
            for _ in 1..part.parts {
                unit.extend(self.viewer.media().await.data);
            }
            let position = (part.chunk_index, u32::from(part.frame));
            assert_eq!(position, (report.chunk_index, frame), "the next frame of the stream");
            frames.push(self.decoder.decode(&unit).expect("a picture").to_rgb());
        }
        Shown { report, frames }
    }

    /// Chunks until `last`, with it.
    pub async fn until(&mut self, last: ChunkIndex) -> Vec<Shown> {
        let mut shown = Vec::new();
        while shown.last().is_none_or(|shown: &Shown| shown.report.chunk_index < last) {
            shown.push(self.chunk().await);
        }
        shown
    }

    /// Sends parameters, and hears at which chunk they take effect.
    ///
    /// # Panics
    /// If stage0 does not take them.
    pub async fn update(&mut self, json: &Value) -> ChunkIndex {
        let sent = wait::until("an update that is taken", PATIENCE, || async {
            match self.viewer.update(json).await {
                Err(error) if error.retryable() => None,
                taken => Some(taken.expect("valid parameters")),
            }
        })
        .await;
        let mut reports = Vec::new();
        let applied = |event: &Event| match event {
            Event::Applied { update, chunk_index, .. } if *update >= sent => Some(*chunk_index),
            _ => None,
        };
        let at = self.viewer.collecting(&mut reports, applied).await;
        self.waiting.extend(reports);
        at
    }

    /// Ends the session and hears that it ended.
    pub async fn end(self) {
        self.viewer.end().await;
    }
}
