//! Single passes of the transformer against the reference data.
#![allow(clippy::unwrap_used, reason = "test code")]

mod support;

use support::stream::{dit, dit_config, solo};
use support::{Golden, TOLERANCE, assert_close};
use tch::{Kind, Tensor};
use wan::dit::attention::SelfAttentionPass;
use wan::dit::{Attend, KvCacheSpec, Shard, embed, mask};
use wan::rope::Rope;
use wan::scheduler::FlowScheduler;

fn spec(tokens: i64) -> KvCacheSpec {
    KvCacheSpec { capacity: tokens, sink: 0, max_attention: tokens, evicts: false }
}

#[test]
fn golden_noncausal_forward() {
    let golden = Golden::open("single_forward_noncausal");
    let timestep = golden.get("timestep").double_value(&[0]);
    let mut dit = dit(Shard::WHOLE);
    let output =
        solo(|tp| dit.forward_noncausal(&golden.get("x"), timestep, &golden.get("prompt_embeds"), tp));
    let output = output.unwrap();
    assert_close("output", &output, &golden.get("output"), TOLERANCE);
    golden.check("output_diffusers", &output);
    assert_eq!(dit.forwards(), 1);
}

#[test]
fn golden_noncausal_intermediates() {
    let golden = Golden::open("single_forward_noncausal");
    let (dit, config) = (dit(Shard::WHOLE), dit_config());
    let timestep = golden.get("timestep").double_value(&[0]);
    let latents = golden.get("x").transpose(1, 2);
    let check = |key: &str, found: &Tensor| golden.check(&format!("intermediate.{key}"), found);

    let mut x = dit.embeddings().patches(&latents).unwrap();
    let (frames, per_frame, dim) = x.size3().unwrap();
    check("patch_tokens", &x.reshape([1, -1, dim]));
    check("time_sinusoid", &embed::time_sinusoid(&[timestep], config.freq_dim, support::device()).unwrap());
    let time = dit.embeddings().time(&[timestep]).unwrap();
    check("time_embedding", &time.e);
    check("time_projection", &time.e0);
    let text = dit.embeddings().text(&golden.get("prompt_embeds")).unwrap();
    check("text_tokens", &text);

    let size = latents.size();
    let (rows, columns) = (size[3] / config.patch_size[1], size[4] / config.patch_size[2]);
    let rotations =
        Rope::new(config.head_dim(), support::device()).rotations(0, frames, rows, columns).unwrap();
    let mut cache = dit.new_cache(spec(frames * per_frame)).unwrap();
    let plan = cache.plan(0, frames * per_frame).unwrap();
    let pass = SelfAttentionPass { rotations: &rotations, plan: &plan, mask: None };
    solo(|tp| {
        let text = dit.text_cache_of_tokens(&text, tp).unwrap();
        for (layer, block) in dit.blocks().iter().enumerate() {
            let time = block.modulations(&time.e0).unwrap();
            block.forward(&mut x, &time, &text.layers()[layer], &pass, &mut cache, tp).unwrap();
            check(&format!("block{layer}_out"), &x.reshape([1, -1, dim]));
        }
    });
}

#[test]
fn golden_block_causal_recompute_and_the_next_block() {
    let golden = Golden::open("causal_dit_blockcausal_recompute");
    let run = |key: &str, default: i64| golden.run(key).and_then(|v| v.as_i64()).unwrap_or(default);
    let block_frames = run("num_frame_per_block", 3);
    let context = golden.get("context_frames");
    let frames = context.size()[1];
    let size = context.size();
    let per_frame = dit_config().tokens_per_frame(size[3], size[4]);

    let mask =
        mask::block_causal(frames * per_frame, block_frames * per_frame, support::device()).unwrap().unwrap();
    assert!(mask.to_kind(Kind::Uint8).equal(&golden.get("mask")), "mask");

    let mut dit = dit(Shard::WHOLE);
    let mut cache = dit.new_cache(spec(run("local_attn_size", 9) * per_frame)).unwrap();
    solo(|tp| {
        let text = dit.text_cache(&golden.get("prompt_embeds"), tp).unwrap();
        let timesteps = vec![0.0; frames as usize];
        let attend = Attend::Recompute { block_frames };
        let flow = dit.forward(&context, &timesteps, attend, &mut cache, &text, tp).unwrap();
        golden.check("recompute.flow_pred", &flow);
        golden.check("kv.layer_last.k", &cache.held(dit.blocks().len() - 1).unwrap().0);

        let (noisy, timestep) = (golden.get("denoise.noisy"), golden.get("denoise.timestep"));
        let timesteps: Vec<f64> = timestep.to_kind(Kind::Double).flatten(0, -1).try_into().unwrap();
        let attend = Attend::Cached { start_frame: frames, bias: 1.0, block_frames };
        let flow = dit.forward(&noisy, &timesteps, attend, &mut cache, &text, tp).unwrap();
        assert!(golden.check("denoise.flow_pred", &flow));
        let clean = FlowScheduler::new(5.0).x0_from_flow(&flow, &noisy, timesteps[0]).unwrap();
        assert!(golden.check("denoise.x0_pred", &clean));
    });
}

#[test]
fn different_timesteps_for_each_frame_take_their_own_rows() {
    let golden = Golden::open("single_forward_noncausal");
    let mut dit = dit(Shard::WHOLE);
    let x = golden.get("x").transpose(1, 2).narrow(1, 0, 2).contiguous();
    let attend = Attend::Cached { start_frame: 0, bias: 1.0, block_frames: 2 };
    let mut forward = |timesteps: &[f64]| {
        let tokens = 2 * dit_config().tokens_per_frame(x.size()[3], x.size()[4]);
        let mut cache = dit.new_cache(spec(tokens)).unwrap();
        solo(|tp| {
            let text = dit.text_cache(&golden.get("prompt_embeds"), tp).unwrap();
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
    let mut dit = dit(Shard::WHOLE);
    let x = Tensor::zeros([1, 16, 1, 7, 8], (Kind::Float, support::device()));
    let prompt = Tensor::zeros([1, 1, dit_config().text_dim], (Kind::Float, support::device()));
    let error = solo(|tp| dit.forward_noncausal(&x, 500.0, &prompt, tp)).unwrap_err().to_string();
    assert!(error.contains("multiple of 2") && error.contains("[1, 1, 16, 7, 8]"), "{error}");
    let x = Tensor::zeros([1, 16, 1, 8, 8], (Kind::Float, support::device()));
    let prompt = Tensor::zeros([1, 1, 3], (Kind::Float, support::device()));
    let error = solo(|tp| dit.forward_noncausal(&x, 500.0, &prompt, tp)).unwrap_err().to_string();
    assert!(error.starts_with("conditioning") && error.contains("[1, 1, 3]"), "{error}");
}
