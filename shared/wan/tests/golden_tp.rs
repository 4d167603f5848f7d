//! The tensor-parallel plan against the reference data: what each rank contributes, and that the world size changes
//! nothing.
#![allow(clippy::unwrap_used, reason = "test code")]

mod support;

use support::stream::{Run, dit, dit_config, solo};
use support::{Golden, TOLERANCE, assert_close, ranks};
use tch::{Device, Tensor};
use wan::dit::attention::SelfAttentionPass;
use wan::dit::{CausalDit, KvCacheSpec, Shard, Tp};
use wan::generator::Generator;
use wan::rope::Rope;

/// Sums of squares go up to a few hundred, where one unit in the last place of an f32 is 6e-5.
const SUMS_TOLERANCE: f64 = 1e-4;

/// The one block that the file describes, with its inputs.
struct Setup {
    golden: Golden,
    rotations: Tensor,
    frames: i64,
    tokens: i64,
}

impl Setup {
    fn open() -> Self {
        let golden = Golden::open("tp_partials");
        let run = |key: &str| golden.run(key).unwrap();
        let (frames, start) = (run("frames").as_i64().unwrap(), run("start_frame").as_i64().unwrap());
        let grid: Vec<i64> = serde_json::from_value(run("grid")).unwrap();
        let mut rope = Rope::new(dit_config().head_dim(), Device::Cpu);
        let rotations = rope.rotations(start, frames, grid[1], grid[2]).unwrap();
        let tokens = golden.get("x").size()[1];
        Self { golden, rotations, frames, tokens }
    }

    /// Runs `work` with the block's cache and pass.
    fn with_pass<T>(
        &self,
        dit: &CausalDit,
        work: impl FnOnce(&SelfAttentionPass, &mut wan::dit::KvCache) -> T,
    ) -> T {
        let spec = KvCacheSpec { capacity: self.tokens, sink: 0, max_attention: self.tokens, evicts: false };
        let mut cache = dit.new_cache(spec).unwrap();
        let plan = cache.plan(0, self.tokens).unwrap();
        work(&SelfAttentionPass { rotations: &self.rotations, plan: &plan, mask: None }, &mut cache)
    }

    /// Output `[1, n, dim]` of the whole block.
    fn block(&self, dit: &CausalDit, tp: &Tp) -> Tensor {
        let x = self.golden.get("x");
        let mut tokens = x.copy().view([self.frames, -1, x.size()[2]]);
        let e0 = self.golden.get("e0").squeeze_dim(0);
        let text = dit.text_cache_of_tokens(&self.golden.get("context"), tp).unwrap();
        self.with_pass(dit, |pass, cache| {
            let time = dit.blocks()[0].modulations(&e0).unwrap();
            dit.blocks()[0].forward(&mut tokens, &time, &text.layers()[0], pass, cache, tp).unwrap();
        });
        tokens.view_as(&x)
    }
}

#[test]
fn golden_unsharded_layers() {
    let setup = Setup::open();
    let (dit, golden) = (dit(Shard::WHOLE), &setup.golden);
    let block = &dit.blocks()[0];
    solo(|tp| {
        let attended = setup.with_pass(&dit, |pass, cache| {
            block.self_attn.forward(&golden.get("self_attn.input"), pass, cache, tp).unwrap()
        });
        golden.check("self_attn.output", &attended);
        let text = dit.text_cache_of_tokens(&golden.get("context"), tp).unwrap();
        let crossed =
            block.cross_attn.forward(&golden.get("cross_attn.input"), &text.layers()[0], tp).unwrap();
        golden.check("cross_attn.output", &crossed);
        golden.check("ffn.output", &block.ffn.forward(&golden.get("ffn.input"), tp).unwrap());
        assert!(golden.check("block_output", &setup.block(&dit, tp)));
    });
}

#[test]
fn golden_partials_of_each_rank() {
    let setup = Setup::open();
    let world = setup.golden.run("tp").and_then(|v| v.as_u64()).map_or(2, |w| w as u32);
    let results = ranks::run(world, |rank, recorder| {
        let setup = Setup::open();
        let dit = dit(Shard { rank, world });
        let output = setup.block(&dit, &recorder.tp());
        (output, recorder.take())
    });
    let golden = &setup.golden;
    let bias = |layer: &str| Golden::open("causal_dit_weights").get(&format!("blocks.0.{layer}.bias"));
    let first = results[0].0.shallow_clone();
    for (rank, (output, sums)) in results.into_iter().enumerate() {
        assert!(golden.check("block_output", &output));
        assert!(output.equal(&first), "ranks disagree");
        // One all-reduce for the text keys of all layers, then five for the block.
        let [text, qk, attended, cross_q, crossed, fed] = &sums[..] else {
            panic!("{} all-reduces", sums.len())
        };
        let check_sums = |layer: &str, part: &str, (own, sum): (Tensor, Tensor)| {
            for (key, found) in [
                (format!("{layer}.rank{rank}.{part}_sumsq"), own),
                (format!("{layer}.{part}_sumsq_allreduced"), sum),
            ] {
                if let Some(expected) = golden.find(&key) {
                    assert_close(&key, &found, &expected, SUMS_TOLERANCE);
                }
            }
        };
        let both = |pair: &(Tensor, Tensor), pick: &dyn Fn(&Tensor) -> Tensor| (pick(&pair.0), pick(&pair.1));
        check_sums("self_attn", "q", both(qk, &|t| t.narrow(2, 0, 1)));
        check_sums("self_attn", "k", both(qk, &|t| t.narrow(2, 1, 1)));
        check_sums("cross_attn", "q", both(cross_q, &Tensor::shallow_clone));
        check_sums("cross_attn", "k", both(text, &|t| t.get(0)));
        let layers = [
            ("self_attn", "self_attn.o", attended),
            ("cross_attn", "cross_attn.o", crossed),
            ("ffn", "ffn.2", fed),
        ];
        for (layer, weights, (own, sum)) in layers {
            let flat = |t: &Tensor| t.reshape(golden.get("x").size());
            golden.check(&format!("{layer}.rank{rank}.partial"), &flat(own));
            golden.check(&format!("{layer}.output"), &(flat(sum) + bias(weights)));
        }
    }
}

#[test]
fn golden_world_sizes_give_the_same_stream() {
    let run = || Run::krea("causal_dit_stream_krea_bias", "causal_dit_stream_krea_bias_nopad", 0.3);
    let stream = |shard: Shard, tp: &Tp| {
        let run = run();
        let mut generator = Generator::new(&run.config(), dit(shard), 1);
        let latents = |c: usize| run.chunk(c).generate(&mut generator, tp).unwrap().latents;
        run.chunks().into_iter().map(latents).collect::<Vec<_>>()
    };
    let whole = solo(|tp| stream(Shard::WHOLE, tp));
    for world in dit_config().valid_world_sizes().into_iter().filter(|w| [2, 4].contains(w)) {
        let sharded = ranks::run(world, |rank, recorder| stream(Shard { rank, world }, &recorder.tp()));
        for (rank, chunks) in sharded.iter().enumerate() {
            for (chunk, latents) in chunks.iter().enumerate() {
                let what = format!("world size {world}, rank {rank}, chunk {chunk}");
                assert_close(&what, latents, &whole[chunk], 1e-4);
                assert!(latents.equal(&sharded[0][chunk]), "{what}: not the same bytes as rank 0");
                assert_close(&what, latents, &run().results.get(&format!("chunk{chunk}.latents")), TOLERANCE);
            }
        }
    }
}

#[test]
fn golden_a_collective_of_another_world_is_refused() {
    let run = Run::krea("causal_dit_stream_krea", "causal_dit_stream_krea", 1.0);
    let mut generator = Generator::new(&run.config(), dit(Shard { rank: 1, world: 2 }), 1);
    let error = solo(|tp| run.chunk(0).generate(&mut generator, tp)).unwrap_err().to_string();
    assert_eq!(error, "world: the collective is rank 0 of 1, the weights rank 1 of 2");
}
