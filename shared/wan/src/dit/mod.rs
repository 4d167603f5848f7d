//! The causal diffusion transformer, sharded over the ranks of a mesh (plan `v1_generator_only`).
//!
//! Each rank holds whole heads: q, k, v and ffn-up by rows, o and ffn-down by columns. A block makes one all-reduce after
//! each of its three row-parallel products, and one for each sum of squares under the q/k RMSNorm, which runs over the
//! full width (q and k of self-attention share it). Embeddings, modulation and head are replicated.
//!
//! Semantics follow sections 3, 4.2, 4.5 and 8 of the reference data. Activations have the dtype the model was loaded in;
//! norm statistics and rotations are f32, timestep sinusoid and rotary angles f64. A GPU in bf16 has kernels of its own for
//! what stands between the products ([`fused`]) and attention by cuDNN; [`Ops`] says which are in effect.

pub mod attention;
pub mod block;
pub mod cache;
mod count;
pub mod embed;
pub mod fused;
mod load;
pub mod mask;
mod model;
pub mod norm;
mod ops;
mod residual;
mod times;
mod tp;

pub use cache::{KvCache, KvCacheSpec, KvPlan, TextCache};
pub use count::ForwardCount;
pub use load::Shard;
pub use model::{Attend, CausalDit};
pub use ops::{Attention, Ops};
pub use residual::{Norm, Residual};
pub(crate) use times::KEPT as KEPT_TIMES;
pub use tp::Tp;

/// Why a forward pass failed. The KV cache it worked on is not to be used again.
#[derive(Debug, thiserror::Error)]
pub enum DitError {
    #[error("torch: {0}")]
    Torch(#[from] tch::TchError),
    #[error(transparent)]
    Collective(#[from] collectives::CollectiveError),
    #[error(transparent)]
    Extra(#[from] torch_extra::ExtraError),
    #[error(transparent)]
    Fused(#[from] fused::FusedError),
    #[error("{what}: expected {expected}, got {found}")]
    Input { what: &'static str, expected: String, found: String },
    #[error(
        "kv cache: {tokens} tokens at slot {start} do not fit into {capacity}, and this model evicts nothing"
    )]
    CacheFull { start: i64, tokens: i64, capacity: i64 },
    #[error(
        "kv cache: a pass from token {start} cannot follow token {end}; allowed: {end} or a repeat of the last pass"
    )]
    CacheOrder { start: i64, end: i64 },
}
