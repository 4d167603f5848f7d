//! Single passes of the transformer against the reference data.
#![allow(clippy::unwrap_used, reason = "test code")]

mod support;

use support::stream::{dit, dit_config, solo};
use support::{Golden, TOLERANCE, assert_close, device};
use tch::{Kind, Tensor};
use wan::dit::attention::SelfAttentionPass;
use wan::dit::{Attend, CausalDit, KvCacheSpec, Residual, Shard, embed, mask};
use wan::rope::Rope;
use wan::scheduler::FlowScheduler;

fn spec(tokens: i64) -> KvCacheSpec {
    KvCacheSpec { capacity: tokens, sink: 0, max_attention: tokens, evicts: false }
}

#[test]
fn golden_noncausal_forward_and_its_intermediates() {
    let golden = Golden::open("single_forward_noncausal");
    let (x, prompt) = (golden.get("x"), golden.get("prompt_embeds"));
    let timestep = golden.get("timestep").double_value(&[0]);
    let mut dit = dit(Shard::WHOLE);
    let output = solo(|tp| dit.forward_noncausal(&x, timestep, &prompt, tp)).unwrap();
    assert_eq!(dit.forwards().read().unwrap(), 1);
    golden.check("output", &output);
    golden.check("output_diffusers", &output);
    check_intermediates(&golden, &dit, timestep);
    golden.assert_compared();
}

fn check_intermediates(golden: &Golden, dit: &CausalDit, timestep: f64) {
    let config = dit_config();
    let latents = golden.get("x").transpose(1, 2);
    let check = |key: &str, found: &Tensor| golden.check(&format!("intermediate.{key}"), found);

    let x = dit.embeddings().patches(&latents).unwrap();
    let (frames, per_frame, dim) = x.size3().unwrap();
    check("patch_tokens", &x.reshape([1, -1, dim]));
    let mut x = Residual::new(x, dit.ops());
    check("time_sinusoid", &embed::time_sinusoid(&[timestep], config.freq_dim, device()).unwrap());
    let time = dit.embeddings().time(&[timestep]).unwrap();
    check("time_embedding", &time.e);
    check("time_projection", &time.e0);
    let text = dit.embeddings().text(&golden.get("prompt_embeds")).unwrap();
    check("text_tokens", &text);

    let size = latents.size();
    let (rows, columns) = (size[3] / config.patch_size[1], size[4] / config.patch_size[2]);
    let rotations = Rope::new(config.head_dim(), device()).rotations(0, frames, rows, columns).unwrap();
    let mut cache = dit.new_cache(spec(frames * per_frame)).unwrap();
    let plan = cache.plan(0, frames * per_frame).unwrap();
    let pass = SelfAttentionPass { rotations: &rotations, plan: &plan, mask: None };
    solo(|tp| {
        let text = dit.text_cache_of_tokens(&text, tp).unwrap();
        for (layer, block) in dit.blocks().iter().enumerate() {
            let time = block.modulations(&time.e0).unwrap();
            block.forward(&mut x, &time, &text.layers()[layer], &pass, &mut cache, tp).unwrap();
            check(&format!("block{layer}_out"), &x.tensor().unwrap().reshape([1, -1, dim]));
        }
    });
}

#[test]
fn golden_block_causal_recompute_and_the_next_block() {
    let golden = Golden::open("causal_dit_blockcausal_recompute");
    let block_frames = golden.run_integer("num_frame_per_block");
    let context = golden.get("context_frames");
    let size = context.size();
    let (frames, per_frame) = (size[1], dit_config().tokens_per_frame(size[3], size[4]));
    let tokens = frames * per_frame;

    let mask = mask::block_causal(tokens, block_frames * per_frame, device()).unwrap();
    let mask = mask.unwrap_or_else(|| Tensor::ones([tokens, tokens], (Kind::Bool, device())));
    golden.check_within("mask", &mask, 0.0);

    let mut dit = dit(Shard::WHOLE);
    let mut cache = dit.new_cache(spec(golden.run_integer("local_attn_size") * per_frame)).unwrap();
    solo(|tp| {
        let text = dit.text_cache(&golden.get("prompt_embeds"), tp).unwrap();
        let attend = Attend::Recompute { block_frames };
        let timesteps = vec![0.0; frames as usize];
        let flow = dit.forward(&context, &timesteps, attend, &mut cache, &text, tp).unwrap();
        golden.check("recompute.flow_pred", &flow);
        for (name, layer) in [("layer0", 0), ("layer_last", dit.blocks().len() - 1)] {
            let (k, v) = cache.held(layer).unwrap();
            golden.check(&format!("kv.{name}.k"), &k);
            golden.check(&format!("kv.{name}.v"), &v);
        }

        let (noisy, timestep) = (golden.get("denoise.noisy"), golden.get("denoise.timestep"));
        let timesteps: Vec<f64> = timestep.to_kind(Kind::Double).flatten(0, -1).try_into().unwrap();
        let attend = Attend::Cached { start_frame: frames, bias: 1.0, block_frames };
        let flow = dit.forward(&noisy, &timesteps, attend, &mut cache, &text, tp).unwrap();
        golden.check("denoise.flow_pred", &flow);
        let shift = golden.run("timestep_shift").and_then(|shift| shift.as_f64()).unwrap_or(5.0);
        let clean = FlowScheduler::new(shift).x0_from_flow(&flow, &noisy, timesteps[0]).unwrap();
        golden.check("denoise.x0_pred", &clean);
    });
    golden.assert_compared();
}

#[test]
fn a_pass_for_the_cache_alone_leaves_the_same_keys_and_values_and_counts() {
    let config = dit_config();
    let mut dit = dit(Shard::WHOLE);
    let [_, ph, pw] = config.patch_size;
    let frames = |seed| support::noise(seed, &[1, 2, config.in_dim, 4 * ph, 4 * pw]);
    let (context, next) = (frames(1), frames(2));
    let prompt = support::noise(3, &[1, config.text_len, config.text_dim]);
    let passes = [
        (&context, Attend::Recompute { block_frames: 1 }),
        (&next, Attend::Cached { start_frame: 2, bias: 1.0, block_frames: 2 }),
    ];
    let [mut whole, mut filled] = [(); 2].map(|()| dit.new_cache(spec(4 * 16)).unwrap());
    solo(|tp| {
        let text = dit.text_cache(&prompt, tp).unwrap();
        for (n, (x, attend)) in (1..).zip(passes) {
            let _flow = dit.forward(x, &[0.0; 2], attend, &mut whole, &text, tp).unwrap();
            dit.fill_cache(x, &[0.0; 2], attend, &mut filled, &text, tp).unwrap();
            assert_eq!(dit.forwards().read().unwrap(), 2 * n);
            assert_eq!((filled.local_end(), filled.global_end()), (whole.local_end(), whole.global_end()));
            for layer in 0..dit.blocks().len() {
                let ((k, v), (filled_k, filled_v)) =
                    (whole.held(layer).unwrap(), filled.held(layer).unwrap());
                assert!(k.equal(&filled_k) && v.equal(&filled_v), "layer {layer} of pass {n}");
            }
        }
    });
}

#[test]
fn different_timesteps_for_each_frame_take_their_own_rows() {
    let config = dit_config();
    let mut dit = dit(Shard::WHOLE);
    let [_, ph, pw] = config.patch_size;
    let x = support::noise(1, &[1, 2, config.in_dim, 4 * ph, 4 * pw]);
    let prompt = support::noise(2, &[1, config.text_len, config.text_dim]);
    let attend = Attend::Cached { start_frame: 0, bias: 1.0, block_frames: 2 };
    let mut forward = |timesteps: &[f64]| {
        let mut cache = dit.new_cache(spec(2 * 16)).unwrap();
        solo(|tp| {
            let text = dit.text_cache(&prompt, tp).unwrap();
            dit.forward(&x, timesteps, attend, &mut cache, &text, tp).unwrap()
        })
    };
    let (same, other) = (forward(&[500.0, 500.0]), forward(&[500.0, 250.0]));
    assert!(support::difference(&same, &other) > 1e-3);
    // One row broadcast and two equal rows are the same numbers.
    let nearly = forward(&[500.0, 500.0 + 1e-9]);
    assert_close("broadcast", &same, &nearly, TOLERANCE);
}

#[test]
fn latents_that_do_not_fit_are_refused_with_both_shapes() {
    let (mut dit, config) = (dit(Shard::WHOLE), dit_config());
    let [_, ph, pw] = config.patch_size;
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, device()));
    let channels = config.in_dim;
    let (x, prompt) = (zeros(&[1, channels, 1, 4 * ph - 1, 4 * pw]), zeros(&[1, 1, config.text_dim]));
    let error = solo(|tp| dit.forward_noncausal(&x, 500.0, &prompt, tp)).unwrap_err().to_string();
    let (allowed, found) =
        (format!("multiple of {ph}"), format!("[1, 1, {channels}, {}, {}]", 4 * ph - 1, 4 * pw));
    assert!(error.contains(&allowed) && error.contains(&found), "{error}");
    let (x, prompt) = (zeros(&[1, channels, 1, 4 * ph, 4 * pw]), zeros(&[1, 1, config.text_dim + 1]));
    let error = solo(|tp| dit.forward_noncausal(&x, 500.0, &prompt, tp)).unwrap_err().to_string();
    let found = format!("[1, 1, {}]", config.text_dim + 1);
    assert!(error.starts_with("conditioning") && error.contains(&found), "{error}");
}
