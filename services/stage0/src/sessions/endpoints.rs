//! `session.{sid}.params` and `session.{sid}.control`, which come and go with their session.

use std::sync::Arc;
use std::time::Instant;

use contract::CONTRACT_VERSION;
use contract::error::{Error, Reason};
use contract::ids::SessionId;
use contract::session::{Control, ControlReply, ParametersAccepted, UpdateParameters};
use contract::subjects;
use video::I420;

use super::Sessions;
use crate::mailbox::Ending;
use crate::media::Tag;

/// Requests of one session that are handled at a time: updates keep their order.
const CONCURRENCY: usize = 1;

pub(super) async fn serve(sessions: &Sessions, session: SessionId) -> Result<(), Error> {
    let service = &sessions.0.making.service;
    let of = sessions.clone();
    let params = service
        .serve("session-params", &subjects::session_params(session), CONCURRENCY, move |request, update| {
            std::future::ready(self::update(&of, session, update, request.received))
        })
        .await?;
    let of = sessions.clone();
    let control = service
        .serve("session-control", &subjects::session_control(session), CONCURRENCY, move |request, wish| {
            control(of.clone(), session, wish, request.received)
        })
        .await?;
    // A session that ended meanwhile drops them at once.
    let _ = sessions.with(session, |live| live.endpoints = vec![params, control]);
    Ok(())
}

fn update(
    sessions: &Sessions,
    session: SessionId,
    update: UpdateParameters,
    received: Instant,
) -> Result<ParametersAccepted, Error> {
    if update.version != CONTRACT_VERSION {
        let text = format!("parameter update version {}: {CONTRACT_VERSION} is spoken here", update.version);
        return Err(Error::new(Reason::UnsupportedVersion, text));
    }
    update.parameters.validate()?;
    sessions.model().check_parameters(&update.parameters)?;
    sessions.with(session, |live| {
        if let Some(paused) = update.parameters.paused {
            live.output.pause(paused);
        }
        ParametersAccepted { update: live.mailbox.update(update.parameters, received) }
    })
}

enum Answer {
    Now(ControlReply),
    /// To be compressed first, at this quality.
    Picture(Option<(Arc<I420>, Tag)>, u8),
}

async fn control(
    sessions: Sessions,
    session: SessionId,
    wish: Control,
    received: Instant,
) -> Result<ControlReply, Error> {
    let config = &sessions.0.making.config;
    let (min, max) = (config.min_bitrate_kbps, config.max_bitrate_kbps);
    let answer = sessions.with(session, |live| {
        match wish {
            Control::Close { reason } => live.mailbox.end(Ending::Asked(reason)),
            Control::Reset => live.mailbox.reset(received),
            Control::Pause { paused } => {
                live.output.pause(paused);
                live.mailbox.pause(paused);
            }
            Control::Keyframe => live.output.keyframe(),
            Control::Bitrate { kbps } => live.output.bitrate(kbps.clamp(min, max)),
            Control::Viewer => {
                live.mailbox.viewer(received);
                let (incarnation, state) = (live.created.incarnation, live.shown.report().state);
                return Answer::Now(ControlReply::Watching { incarnation, state });
            }
            Control::Frame { quality } => return Answer::Picture(live.output.latest(), quality),
        }
        Answer::Now(ControlReply::Done)
    })?;
    let (latest, quality) = match answer {
        Answer::Now(reply) => return Ok(reply),
        Answer::Picture(latest, quality) => (latest, quality),
    };
    let none = || Error::new(Reason::NoSuchResource, "No frame available yet");
    let (picture, tag) = latest.ok_or_else(none)?;
    let compressed = tokio::task::spawn_blocking(move || video::jpeg(&picture, quality)).await;
    let failed = |e: String| Error::new(Reason::Internal, "the frame could not be compressed").detail(e);
    let jpeg = compressed.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))?;
    Ok(ControlReply::Frame { jpeg, chunk_index: tag.chunk_index })
}
