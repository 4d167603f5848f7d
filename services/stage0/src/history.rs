//! Where a session stands in its history: which chunk comes next, and what that chunk needs from those before it.
//!
//! Pure. A history is one continuous run of chunks from latent frame 0; a hard cut starts another one. A *cache epoch* is
//! shorter still: it also ends when a call failed and what the mesh holds is unknown.

use contract::ids::{CacheEpoch, ChunkIndex};
use contract::model::ModelInfo;

/// Video frames that each latent after the first of a history decodes to.
pub(crate) const FRAMES_PER_LATENT: u64 = 4;

/// What the head of the context frames is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// The first latent of the history: the window has not slid yet.
    FirstLatent,
    /// A decoded frame of the chunk before, encoded again: `frame` of those that its latent number `latent` decodes to.
    Reencoded { latent: usize, frame: usize },
}

/// The next chunk, as the history implies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub chunk_index: ChunkIndex,
    pub cache_epoch: CacheEpoch,
    /// Latent frames before this chunk.
    pub current_start_frame: u64,
    pub init_cache: bool,
    /// Whether the KV cache is rebuilt from context frames, and from which; `None` for the first chunk of a history and
    /// for models that keep their cache.
    pub context: Option<Head>,
}

#[derive(Clone, Debug)]
pub(crate) struct History {
    frames_per_chunk: u64,
    context_frames: u64,
    recompute: bool,
    cache_epoch: CacheEpoch,
    current_start_frame: u64,
    /// The mesh holds nothing that the next chunk could go on from.
    slot_unknown: bool,
}

impl History {
    pub(crate) fn new(model: &ModelInfo) -> Self {
        Self {
            frames_per_chunk: u64::from(model.frames_per_chunk),
            context_frames: u64::from(model.context_frames),
            recompute: model.recompute,
            cache_epoch: CacheEpoch(1),
            current_start_frame: 0,
            slot_unknown: true,
        }
    }

    /// Goes on with a history that another life of the session had brought to `current_start_frame`: the mesh's slot holds
    /// nothing of it, and whatever that life had under way must not be taken for ours.
    pub(crate) fn resume(model: &ModelInfo, cache_epoch: CacheEpoch, current_start_frame: u64) -> Self {
        Self { cache_epoch: cache_epoch.next(), current_start_frame, ..Self::new(model) }
    }

    pub(crate) fn next(&self) -> Position {
        Position {
            chunk_index: ChunkIndex(self.current_start_frame / self.frames_per_chunk),
            cache_epoch: self.cache_epoch,
            current_start_frame: self.current_start_frame,
            init_cache: self.slot_unknown || self.current_start_frame == 0,
            context: self.context(),
        }
    }

    fn context(&self) -> Option<Head> {
        if !self.recompute || self.current_start_frame == 0 {
            return None;
        }
        // The window holds the first latent until as many chunks' latents as the context has frames have followed it.
        if self.current_start_frame - self.frames_per_chunk < self.context_frames {
            return Some(Head::FirstLatent);
        }
        let offset = self.reencode_source_frame()
            - self.frames_before(self.current_start_frame - self.frames_per_chunk);
        let index = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Some(Head::Reencoded {
            latent: index(offset / FRAMES_PER_LATENT),
            frame: index(offset % FRAMES_PER_LATENT),
        })
    }

    /// Index, since the start of the history, of the oldest of the last decoded frames that the context spans:
    /// `1 + 4 (context_frames - 1)` of them.
    fn reencode_source_frame(&self) -> u64 {
        let span = 1 + FRAMES_PER_LATENT * (self.context_frames - 1);
        self.frames_before(self.current_start_frame) - span
    }

    /// Video frames that the first `latents` of a history decode to.
    fn frames_before(&self, latents: u64) -> u64 {
        (FRAMES_PER_LATENT * latents).saturating_sub(FRAMES_PER_LATENT - 1)
    }

    /// The chunk that [`next`](Self::next) described is done.
    pub(crate) fn completed(&mut self) {
        self.current_start_frame += self.frames_per_chunk;
        self.slot_unknown = false;
    }

    /// A hard cut: the next chunk is the first of a new history.
    pub(crate) fn restart(&mut self) {
        self.cache_epoch = self.cache_epoch.next();
        self.current_start_frame = 0;
        self.slot_unknown = true;
    }

    /// A call failed: late results of it must not be taken for those of the next one, and the mesh's slot holds nobody
    /// knows what. A model that rebuilds its cache goes on; any other starts again. Returns whether it goes on.
    pub(crate) fn interrupted(&mut self) -> bool {
        if !self.recompute {
            self.restart();
            return false;
        }
        self.cache_epoch = self.cache_epoch.next();
        self.slot_unknown = true;
        true
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use contract::model::Size;
    use contract::tensor::Dtype;

    use super::*;

    pub(crate) fn model() -> ModelInfo {
        ModelInfo {
            name: "tiny".to_owned(),
            fingerprint: "f".to_owned(),
            sizes: vec![Size { width: 64, height: 64 }],
            dtype: Dtype::F32,
            latent_channels: 16,
            spatial_stride: 8,
            frames_per_chunk: 3,
            context_frames: 3,
            text_len: 32,
            text_dim: 64,
            recompute: true,
            extra_calls: 0,
            default_steps: vec![1000, 750, 500, 250],
            default_attention_bias: 0.3,
            world_sizes: vec![contract::WorldSize::ONE],
            examples: Vec::new(),
        }
    }

    fn at(chunk: usize) -> History {
        let mut history = History::new(&model());
        (0..chunk).for_each(|_| history.completed());
        history
    }

    #[test]
    fn the_first_chunk_of_a_session_starts_a_history_and_needs_no_context() {
        let first = at(0).next();
        assert_eq!((first.chunk_index, first.current_start_frame), (ChunkIndex(0), 0));
        assert!(first.init_cache && first.context.is_none());
    }

    #[test]
    fn the_context_begins_with_the_first_latent_until_the_window_has_slid() {
        assert_eq!(at(1).next().context, Some(Head::FirstLatent));
        for chunk in 2..50 {
            let next = at(chunk).next();
            // The last of the frames that the first latent of the chunk before decodes to.
            assert_eq!(next.context, Some(Head::Reencoded { latent: 0, frame: 3 }), "chunk {chunk}");
            assert_eq!((next.chunk_index, next.init_cache), (ChunkIndex(chunk as u64), false));
        }
    }

    #[test]
    fn a_cut_restarts_the_history_in_a_new_cache_epoch() {
        let mut history = at(7);
        let before = history.next().cache_epoch;
        history.restart();
        let next = history.next();
        assert_eq!((next.chunk_index, next.current_start_frame), (ChunkIndex(0), 0));
        assert!(next.cache_epoch > before && next.init_cache && next.context.is_none());
    }

    #[test]
    fn after_a_failed_call_the_history_goes_on_in_a_new_cache_epoch() {
        let mut history = at(7);
        let before = history.next();
        assert!(history.interrupted());
        let next = history.next();
        assert_eq!((next.chunk_index, next.context), (before.chunk_index, before.context));
        assert!(next.cache_epoch > before.cache_epoch && next.init_cache);
        history.completed();
        assert!(!history.next().init_cache);
    }

    #[test]
    fn a_history_that_is_resumed_goes_on_where_it_was_in_a_new_cache_epoch() {
        for chunk in 1..9 {
            let before = at(chunk).next();
            let resumed = History::resume(&model(), before.cache_epoch, before.current_start_frame).next();
            let after_a_fault = {
                let mut history = at(chunk);
                history.interrupted();
                history.next()
            };
            assert_eq!(resumed, after_a_fault);
            assert_eq!((resumed.chunk_index, resumed.context), (before.chunk_index, before.context));
        }
    }

    #[test]
    fn a_model_that_keeps_its_cache_starts_again_after_a_failed_call() {
        let mut history = History::new(&ModelInfo { recompute: false, ..model() });
        history.completed();
        assert_eq!(history.next().context, None);
        assert!(!history.interrupted());
        assert_eq!(history.next().current_start_frame, 0);
    }

    #[test]
    fn golden_stream_has_this_history_and_these_contexts() {
        let golden = crate::context::tests::GoldenStream::open();
        let model = ModelInfo {
            frames_per_chunk: golden.number("num_frame_per_block"),
            context_frames: golden.number("kv_cache_num_frames"),
            ..model()
        };
        let mut history = History::new(&model);
        for chunk in 0..golden.number("chunks") as usize {
            let next = history.next();
            let integer = |key: &str| golden.find(chunk, key).map(|t| t.int64_value(&[0]) as u64);
            // Where the set does not dump them: blocks follow one another, each but the first with one recompute pass.
            let start = integer("current_start_frame").unwrap_or(chunk as u64 * history.frames_per_chunk);
            assert_eq!(next.current_start_frame, start, "chunk {chunk}");
            let calls = model.expected_calls(golden.steps(), next.context.is_some());
            let expected = (golden.steps() + usize::from(chunk > 0)) as u64;
            assert_eq!(u64::from(calls), integer("generator_calls").unwrap_or(expected), "chunk {chunk}");
            if let Some(source) = integer("reencode_source_frame_index") {
                assert_eq!(history.reencode_source_frame(), source, "chunk {chunk}");
                assert!(matches!(next.context, Some(Head::Reencoded { .. })), "chunk {chunk}");
            }
            if let Some(head) = next.context {
                golden.check_context(chunk, head);
            }
            history.completed();
        }
    }
}
