//! Keys and values that outlive a pass: the rolling self-attention cache and the cached text.

use tch::{Device, Kind, TchError, Tensor};

use super::DitError;

/// Shape and rules of a KV cache; the same on every rank but for the number of heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCacheSpec {
    /// Tokens it can hold.
    pub capacity: i64,
    /// Leading tokens that eviction never touches.
    pub sink: i64,
    /// Newest tokens that a query attends to.
    pub max_attention: i64,
    /// Whether old tokens make room for new ones.
    pub evicts: bool,
}

/// Where one pass writes and what it attends to; the same in all layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvPlan {
    /// Tokens `[from, from + len)` move to `to` first.
    roll: Option<Roll>,
    write_at: i64,
    attend_from: i64,
    tokens: i64,
    local_end: i64,
    global_end: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Roll {
    from: i64,
    to: i64,
    len: i64,
}

impl KvPlan {
    /// Keys that a query of this pass sees.
    pub fn keys(&self) -> i64 {
        self.local_end - self.attend_from
    }

    /// The same for all passes that have the same places in the cache, wherever in the stream they are.
    pub(crate) fn in_any_stream(self) -> Self {
        Self { global_end: 0, ..self }
    }
}

/// Views of one layer's keys and values for one pass.
#[derive(Debug)]
pub(super) struct KvSlot {
    /// `[1, tokens, heads, d]`: for the pass to fill in. So are the new values.
    pub(super) new_keys: Tensor,
    pub(super) new_values: Tensor,
    /// `[1, keys, heads, d]`: all that the pass attends to, the new ones among them.
    pub(super) keys: Tensor,
    pub(super) values: Tensor,
}

impl KvSlot {
    /// Fills in new keys and values `[1, tokens, heads, d]`.
    pub(super) fn fill(&mut self, k: &Tensor, v: &Tensor) -> Result<(), TchError> {
        self.new_keys.f_copy_(k)?;
        self.new_values.f_copy_(v)
    }
}

/// Keys (normalised and rotated) and values of one stream, on one rank: `[1, capacity, heads, d]` each, for each layer.
#[derive(Debug)]
pub struct KvCache {
    spec: KvCacheSpec,
    layers: Vec<(Tensor, Tensor)>,
    global_end: i64,
    local_end: i64,
}

impl KvCache {
    /// An empty cache for `layers` layers of `heads` heads of width `head_dim`.
    ///
    /// # Errors
    /// The device has no memory for it.
    pub fn new(
        spec: KvCacheSpec,
        layers: i64,
        heads: i64,
        head_dim: i64,
        options: (Kind, Device),
    ) -> Result<Self, TchError> {
        let make = || Tensor::f_zeros([1, spec.capacity, heads, head_dim], options);
        let layers = (0..layers).map(|_| Ok((make()?, make()?))).collect::<Result<_, TchError>>()?;
        Ok(Self { spec, layers, global_end: 0, local_end: 0 })
    }

    pub fn spec(&self) -> KvCacheSpec {
        self.spec
    }

    /// Tokens of the stream that have passed through, including evicted ones.
    pub fn global_end(&self) -> i64 {
        self.global_end
    }

    /// Tokens that are held.
    pub fn local_end(&self) -> i64 {
        self.local_end
    }

    /// Keys and values of a layer, `[1, local_end, heads, d]` each.
    pub fn held(&self, layer: usize) -> Option<(Tensor, Tensor)> {
        let (k, v) = self.layers.get(layer)?;
        Some((k.narrow(1, 0, self.local_end), v.narrow(1, 0, self.local_end)))
    }

    /// Bytes that it occupies, used or not.
    pub fn bytes(&self) -> u64 {
        let of = |x: &Tensor| (x.numel() * x.kind().elt_size_in_bytes()) as u64;
        self.layers.iter().map(|(k, v)| of(k) + of(v)).sum()
    }

    /// Forgets everything; the memory stays.
    pub fn reset(&mut self) {
        self.global_end = 0;
        self.local_end = 0;
    }

    /// What a pass of `tokens` tokens from stream position `start` does to the cache. Nothing changes yet.
    ///
    /// # Errors
    /// The pass neither follows the last one nor repeats it, or does not fit.
    pub fn plan(&self, start: i64, tokens: i64) -> Result<KvPlan, DitError> {
        let end = start + tokens;
        if start != self.global_end && end != self.global_end {
            return Err(DitError::CacheOrder { start, end: self.global_end });
        }
        let spec = self.spec;
        let advanced = end - self.global_end;
        let evicted = if spec.evicts && advanced > 0 { self.local_end + tokens - spec.capacity } else { 0 };
        let evicted = evicted.max(0);
        let local_end = self.local_end + advanced - evicted;
        let write_at = local_end - tokens;
        // A sink that left no room for a pass would be evicted with it.
        if local_end > spec.capacity || write_at < 0 || (evicted > 0 && write_at < spec.sink) {
            return Err(DitError::CacheFull { start: write_at, tokens, capacity: spec.capacity });
        }
        let kept = self.local_end - evicted - spec.sink;
        let roll =
            (evicted > 0 && kept > 0).then_some(Roll { from: spec.sink + evicted, to: spec.sink, len: kept });
        let attend_from = (local_end - spec.max_attention).max(0);
        Ok(KvPlan { roll, write_at, attend_from, tokens, local_end, global_end: end })
    }

    /// Makes room for the keys and values of one layer.
    ///
    /// # Errors
    /// The device has no memory for what moves.
    pub(super) fn open(&mut self, layer: usize, plan: &KvPlan) -> Result<KvSlot, TchError> {
        let views = |held: &Tensor| {
            if let Some(Roll { from, to, len }) = plan.roll {
                // Source and destination overlap, hence the copy.
                let moved = held.f_narrow_copy(1, from, len)?;
                held.f_narrow(1, to, len)?.f_copy_(&moved)?;
            }
            let new = held.f_narrow(1, plan.write_at, plan.tokens)?;
            Ok::<_, TchError>((new, held.f_narrow(1, plan.attend_from, plan.keys())?))
        };
        let (keys, values) = &self.layers[layer];
        let ((new_keys, keys), (new_values, values)) = (views(keys)?, views(values)?);
        Ok(KvSlot { new_keys, new_values, keys, values })
    }

    /// Where the held tokens and the stream end.
    pub(crate) fn ends(&self) -> (i64, i64) {
        (self.local_end, self.global_end)
    }

    /// Takes over the ends of a call whose passes wrote to it without asking: a graph's.
    pub(crate) fn set_ends(&mut self, (local_end, global_end): (i64, i64)) {
        (self.local_end, self.global_end) = (local_end, global_end);
    }

    /// Takes over the indices of a pass that went through all layers.
    pub(super) fn commit(&mut self, plan: &KvPlan) {
        self.global_end = plan.global_end;
        self.local_end = plan.local_end;
    }
}

/// Keys and values of the text tokens, `[1, text_len, heads, d]` each, for each layer; computed once per prompt.
#[derive(Debug)]
pub struct TextCache {
    pub(super) layers: Vec<(Tensor, Tensor)>,
}

impl TextCache {
    /// Takes over the values of another prompt, in the same places: graphs read there.
    pub(crate) fn overwrite(&mut self, other: &Self) -> Result<(), TchError> {
        for ((k, v), (new_k, new_v)) in self.layers.iter_mut().zip(&other.layers) {
            k.f_copy_(new_k)?;
            v.f_copy_(new_v)?;
        }
        Ok(())
    }

    /// Keys and values of each layer.
    pub fn layers(&self) -> &[(Tensor, Tensor)] {
        &self.layers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(evicts: bool, sink: i64) -> KvCache {
        let spec = KvCacheSpec { capacity: 6, sink, max_attention: 6, evicts };
        KvCache::new(spec, 1, 1, 2, (Kind::Float, Device::Cpu)).unwrap()
    }

    /// Runs a pass whose keys are their own stream positions.
    fn pass(cache: &mut KvCache, start: i64) -> Vec<f32> {
        let plan = cache.plan(start, 3).unwrap();
        let k = Tensor::arange_start(start, start + 3, (Kind::Float, Device::Cpu)).view([1, 3, 1, 1]);
        let k = k.expand([1, 3, 1, 2], false);
        let mut slot = cache.open(0, &plan).unwrap();
        slot.fill(&k, &k).unwrap();
        cache.commit(&plan);
        Vec::try_from(slot.keys.select(3, 0).flatten(0, -1)).unwrap()
    }

    #[test]
    fn once_the_window_is_full_every_chunk_has_the_same_places() {
        for sink in [0, 2] {
            let mut cache = cache(true, sink);
            let plans: Vec<KvPlan> = (0..5)
                .map(|chunk| {
                    let plan = cache.plan(3 * chunk, 3).unwrap();
                    cache.commit(&plan);
                    plan
                })
                .collect();
            let places: Vec<KvPlan> = plans.iter().cloned().map(KvPlan::in_any_stream).collect();
            assert!(places[1] != places[2] && places[2] == places[3] && places[3] == places[4], "{places:?}");
            assert_ne!(plans[3], plans[4]);
        }
    }

    #[test]
    fn a_repeat_overwrites_its_own_slots() {
        let mut cache = cache(true, 0);
        pass(&mut cache, 0);
        assert_eq!(pass(&mut cache, 3), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(pass(&mut cache, 3), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!((cache.global_end(), cache.local_end()), (6, 6));
    }

    #[test]
    fn eviction_keeps_the_sink() {
        for (sink, expected) in [(0, [3.0, 4.0, 5.0, 6.0, 7.0, 8.0]), (1, [0.0, 4.0, 5.0, 6.0, 7.0, 8.0])] {
            let mut cache = cache(true, sink);
            pass(&mut cache, 0);
            pass(&mut cache, 3);
            assert_eq!(pass(&mut cache, 6), expected);
            assert_eq!((cache.global_end(), cache.local_end()), (9, 6));
        }
    }

    #[test]
    fn without_eviction_a_full_cache_refuses() {
        let mut cache = cache(false, 0);
        pass(&mut cache, 0);
        pass(&mut cache, 3);
        let error = cache.plan(6, 3).unwrap_err().to_string();
        assert!(error.contains("evicts nothing"), "{error}");
    }

    #[test]
    fn a_gap_in_the_stream_is_refused() {
        let mut cache = cache(true, 0);
        pass(&mut cache, 0);
        let error = cache.plan(6, 3).unwrap_err().to_string();
        assert!(error.contains("from token 6 cannot follow token 3"), "{error}");
        cache.reset();
        assert_eq!(pass(&mut cache, 0), [0.0, 1.0, 2.0]);
    }
}
