//! The tensor-parallel plan against the reference data: what each rank contributes, and that the world size changes
//! nothing.
#![allow(clippy::unwrap_used, reason = "test code")]

mod support;

use support::stream::{Run, dit, dit_config, solo};
use support::{Golden, TOLERANCE, assert_close, device, ranks};
use tch::Tensor;
use wan::dit::attention::SelfAttentionPass;
use wan::dit::{CausalDit, KvCacheSpec, Residual, Shard, Tp};
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
        let (frames, start) = (golden.run_integer("frames"), golden.run_integer("start_frame"));
        let grid: Vec<i64> = serde_json::from_value(golden.run("grid").expect("a grid in the run")).unwrap();
        let mut rope = Rope::new(dit_config().head_dim(), device());
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

    /// `[1, n, dim]` after each of the block's three layers.
    fn block(&self, dit: &CausalDit, tp: &Tp) -> [Tensor; 3] {
        let x = self.golden.get("x");
        let tokens = x.copy().view([self.frames, -1, x.size()[2]]);
        let mut tokens = Residual::new(tokens, dit.ops());
        let e0 = self.golden.get("e0").squeeze_dim(0);
        let text = dit.text_cache_of_tokens(&self.golden.get("context"), tp).unwrap();
        let block = &dit.blocks()[0];
        let time = block.modulations(&e0).unwrap();
        self.with_pass(dit, |pass, cache| block.add_self_attn(&mut tokens, &time, pass, cache, tp).unwrap());
        let attended = tokens.tensor().unwrap().copy();
        block.add_cross_attn(&mut tokens, &text.layers()[0], tp).unwrap();
        let crossed = tokens.tensor().unwrap().copy();
        block.add_ffn(&mut tokens, &time, tp).unwrap();
        [attended, crossed, tokens.tensor().unwrap().copy()].map(|tokens| tokens.view_as(&x))
    }
}

/// Compares what the block comes to after each layer.
fn check_block(golden: &Golden, found: &[Tensor; 3]) {
    for (key, found) in ["after_self_attn", "after_cross_attn", "block_output"].into_iter().zip(found) {
        golden.check(key, found);
    }
}

#[test]
fn golden_unsharded_block_and_its_layers() {
    let setup = Setup::open();
    let (dit, golden) = (dit(Shard::WHOLE), &setup.golden);
    let block = &dit.blocks()[0];
    solo(|tp| {
        check_block(golden, &setup.block(&dit, tp));
        if let Some(input) = golden.find("self_attn.input") {
            let attended = setup
                .with_pass(&dit, |pass, cache| block.self_attn.forward(&input, pass, cache, tp).unwrap());
            golden.check("self_attn.output", &attended);
        }
        if let Some(input) = golden.find("cross_attn.input") {
            let text = dit.text_cache_of_tokens(&golden.get("context"), tp).unwrap();
            let crossed = block.cross_attn.forward(&input, &text.layers()[0], tp).unwrap();
            golden.check("cross_attn.output", &crossed);
        }
        if let Some(input) = golden.find("ffn.input") {
            golden.check("ffn.output", &block.ffn.forward(&input, tp).unwrap());
        }
    });
    golden.assert_compared();
}

#[test]
fn golden_partials_of_each_rank() {
    let setup = Setup::open();
    let golden = &setup.golden;
    let world = u32::try_from(golden.run_integer("tp")).unwrap();
    let results = ranks::run(world, |rank, recorder| {
        let output = Setup::open().block(&dit(Shard { rank, world }), &recorder.tp());
        (output, recorder.take())
    });
    let weights = Golden::open("causal_dit_weights");
    let first = results[0].0.each_ref().map(Tensor::shallow_clone);
    for (rank, (output, sums)) in results.into_iter().enumerate() {
        check_block(golden, &output);
        assert_eq!(output, first, "ranks disagree");
        // One all-reduce for the text keys of all layers, then five for the block.
        let [text, qk, attended, cross_q, crossed, fed] = &sums[..] else {
            panic!("{} all-reduces", sums.len())
        };
        let check_sums =
            |layer: &str, part: &str, pick: &dyn Fn(&Tensor) -> Tensor, sums: &(Tensor, Tensor)| {
                let own = format!("{layer}.rank{rank}.{part}_sumsq");
                golden.check_within(&own, &pick(&sums.0), SUMS_TOLERANCE);
                let all = format!("{layer}.{part}_sumsq_allreduced");
                golden.check_within(&all, &pick(&sums.1), SUMS_TOLERANCE);
            };
        check_sums("self_attn", "q", &|t| t.narrow(2, 0, 1), qk);
        check_sums("self_attn", "k", &|t| t.narrow(2, 1, 1), qk);
        check_sums("cross_attn", "q", &Tensor::shallow_clone, cross_q);
        check_sums("cross_attn", "k", &|t| t.get(0), text);
        for (layer, product, input, (own, sum)) in [
            ("self_attn", "self_attn.o", "attn_out", attended),
            ("cross_attn", "cross_attn.o", "attn_out", crossed),
            ("ffn", "ffn.2", "hidden", fed),
        ] {
            let flat = |t: &Tensor| t.reshape(golden.get("x").size());
            golden.check(&format!("{layer}.rank{rank}.partial"), &flat(own));
            let bias = weights.get(&format!("blocks.0.{product}.bias"));
            golden.check(&format!("{layer}.output"), &(flat(sum) + bias));
            // What the reference multiplied with its columns of the product gives what we sent to the others.
            if let Some(input) = golden.find(&format!("{layer}.rank{rank}.{input}")) {
                let width = input.size()[2];
                let columns =
                    weights.get(&format!("blocks.0.{product}.weight")).narrow(1, rank as i64 * width, width);
                assert_close(layer, &flat(own), &input.matmul(&columns.tr()), TOLERANCE);
            }
        }
    }
    golden.assert_compared();
}

#[test]
fn golden_world_sizes_give_the_same_stream() {
    let run = || Run::krea("causal_dit_stream_krea_bias", "causal_dit_stream_krea_bias_nopad");
    let stream = |shard: Shard, tp: &Tp| {
        let run = run();
        let mut generator = Generator::new(&run.config, dit(shard), 1);
        let mut made: Vec<Tensor> = Vec::new();
        for index in run.chunks() {
            let latents = run.chunk(index, &made).generate(&mut generator, tp).unwrap().latents;
            made.push(latents);
        }
        made
    };
    let whole = solo(|tp| stream(Shard::WHOLE, tp));
    let config = dit_config();
    let worlds: Vec<u32> = config.valid_world_sizes().into_iter().filter(|w| (2..=4).contains(w)).collect();
    assert!(!worlds.is_empty(), "{} heads cannot be split over 2 to 4 ranks", config.num_heads);
    let run = run();
    for world in worlds {
        let sharded = ranks::run(world, |rank, recorder| stream(Shard { rank, world }, &recorder.tp()));
        for (rank, chunks) in sharded.iter().enumerate() {
            for (chunk, latents) in chunks.iter().enumerate() {
                let what = format!("world size {world}, rank {rank}, chunk {chunk}");
                assert_close(&what, latents, &whole[chunk], 1e-4);
                assert!(latents.equal(&sharded[0][chunk]), "{what}: not the same bytes as rank 0");
                run.check_latents(chunk, latents);
            }
        }
    }
    run.results.assert_compared();
}

#[test]
fn a_collective_of_another_world_is_refused() {
    let run = Run::krea("causal_dit_stream_krea", "causal_dit_stream_krea");
    let world = dit_config().valid_world_sizes()[1];
    let mut generator = Generator::new(&run.config, dit(Shard { rank: 1, world }), 1);
    let error = solo(|tp| run.chunk(0, &[]).generate(&mut generator, tp)).unwrap_err().to_string();
    assert_eq!(error, format!("world: the collective is rank 0 of 1, the weights rank 1 of {world}"));
}
