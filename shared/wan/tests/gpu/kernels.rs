//! Each kernel, and attention by cuDNN, against the tensor operations in f32: within 1e-2, and no worse than these
//! operations are in bf16. What they write was poisoned before, and so was what is beside it.

mod vae;

use tch::{Device, IndexOp, Kind, Tensor};
use wan::config::ModelConfig;
use wan::dit::fused::{AddNorm, Fused, NormRotate};
use wan::dit::mask::{self, Mask};
use wan::dit::{Attention, Ops};
use wan::rope::{Rope, rotate};

use crate::{gpu, relative_error};

const EPS: f64 = 1e-6;
const TOLERANCE: f64 = 1e-2;
/// Noise of the comparison between two errors of the same kind; attentions also round different weights.
const NO_WORSE: f64 = 1.02;
const NO_WORSE_ATTENTION: f64 = 1.25;
/// Three attentions are rounded before they are put together, and the result is once more.
const NO_WORSE_MERGED: f64 = 1.5;

/// Opens the GPU first: libtorch looks for it on the first call that could be for one.
fn seed(seed: i64) {
    let _ = gpu();
    tch::manual_seed(seed);
}

fn random(shape: &[i64], scale: f64, shift: f64) -> Tensor {
    let wide = Tensor::randn(shape, (Kind::Float, gpu())) * scale + shift;
    wide.to_kind(Kind::BFloat16)
}

fn poisoned(shape: &[i64]) -> Tensor {
    Tensor::full(shape, f64::NAN, (Kind::BFloat16, gpu()))
}

fn wide(x: &Tensor) -> Tensor {
    x.to_kind(Kind::Float)
}

fn is_nan(x: &Tensor) -> bool {
    x.isnan().all().int64_value(&[]) == 1
}

/// A value that was not written is none, and no comparison holds for it.
fn check(what: &str, found: &Tensor, unfused: &Tensor, expected: &Tensor) {
    check_within(NO_WORSE, what, found, unfused, expected);
}

fn check_within(no_worse: f64, what: &str, found: &Tensor, unfused: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let (error, before) = (relative_error(found, expected), relative_error(unfused, expected));
    println!("{what}: {error:.2e} from float32, tensor operations in bf16 {before:.2e}");
    assert!(error < TOLERANCE, "{what}: {error:e}");
    assert!(error <= no_worse * before, "{what}: {error:e}, tensor operations {before:e}");
}

fn rms_norm(x: &Tensor, weight: &Tensor) -> Tensor {
    x.rms_norm([weight.size()[0]], None::<Tensor>, EPS) * weight
}

#[test]
fn norm_rotation_and_the_copies_into_a_cache() {
    seed(1);
    let fused = Fused::on(gpu()).unwrap();
    // Heads, width, and a grid of tokens.
    for (heads, width, [frames, rows, columns]) in
        [(4, 32, [3, 5, 7]), (12, 128, [1, 13, 17]), (40, 128, [3, 20, 36]), (40, 128, [3, 30, 52])]
    {
        let (tokens, channels) = (frames * rows * columns, heads * width);
        let what = format!("{tokens} tokens of {heads} heads of {width}");
        let rotations = Rope::new(width, gpu()).rotations(3, frames, rows, columns).unwrap();
        let (qkv, weight) = (random(&[1, tokens, 3 * channels], 2.0, 0.1), random(&[2, channels], 0.2, 1.0));
        let (q, cache) =
            (poisoned(&[1, tokens, heads, width]), [0, 1].map(|_| poisoned(&[1, tokens + 8, heads, width])));
        let [k, v] = cache.each_ref().map(|held| held.narrow(1, 5, tokens));
        let work = NormRotate {
            input: &qkv,
            weight: &weight,
            sums: None,
            dim: channels,
            eps: EPS,
            rotations: Some(&rotations),
            outputs: &[&q, &k, &v],
        };
        fused.norm_rotate(work).unwrap();

        let part = |part: i64| qkv.narrow(2, part * channels, channels);
        let by_head = |x: Tensor| x.contiguous().view([1, tokens, heads, width]);
        for (name, at, found) in [("q", 0, &q), ("k", 1, &k)] {
            let expected = by_head(rms_norm(&wide(&part(at)), &wide(&weight.get(at))));
            let unfused = by_head(rms_norm(&part(at), &weight.get(at)));
            let turned = |x: &Tensor| rotate(x, &rotations).unwrap();
            check(&format!("{name}, {what}"), found, &turned(&unfused), &turned(&expected));
        }
        assert!(v.equal(&by_head(part(2))), "v, {what}");
        for held in &cache {
            assert!(
                is_nan(&held.narrow(1, 0, 5)) && is_nan(&held.narrow(1, tokens + 5, 3)),
                "beside, {what}"
            );
        }
    }
}

#[test]
fn norm_alone_and_by_sums_that_came_from_all_ranks() {
    seed(2);
    let fused = Fused::on(gpu()).unwrap();
    for (tokens, heads, width) in [(1, 4, 32), (333, 40, 128)] {
        let channels = heads * width;
        let (x, weight) = (random(&[1, tokens, channels], 3.0, 0.0), random(&[1, channels], 0.2, 1.0));
        let found = poisoned(&[1, tokens, heads, width]);
        let outputs = [&found];
        let work = |sums, dim| NormRotate {
            input: &x,
            weight: &weight,
            sums,
            dim,
            eps: EPS,
            rotations: None,
            outputs: &outputs,
        };
        let flat = || found.view([1, tokens, channels]);
        fused.norm_rotate(work(None, channels)).unwrap();
        let expected = rms_norm(&wide(&x), &wide(&weight.get(0)));
        let unfused = rms_norm(&x, &weight.get(0));
        check(&format!("norm of {tokens} tokens, {channels} channels"), &flat(), &unfused, &expected);

        // As if the other rank's share were the same: twice the sum over twice the width.
        let sums = wide(&x).square().sum_dim_intlist([-1_i64].as_slice(), true, Kind::Float) * 2.0;
        let _ = found.shallow_clone().fill_(f64::NAN);
        fused.norm_rotate(work(Some(&sums), 2 * channels)).unwrap();
        check("the same by sums", &flat(), &unfused, &expected);
    }
}

#[test]
fn gated_addition_and_the_norm_after_it() {
    seed(3);
    let fused = Fused::on(gpu()).unwrap();
    for (frames, per_frame, channels) in [(3, 64, 128), (3, 221, 1536), (3, 720, 5120), (1, 1, 5120)] {
        for rows in [1, frames] {
            // As in the model: views of six rows for each time.
            let modulation = random(&[rows, 6, channels], 0.5, 0.2);
            let row = |at: i64| modulation.narrow(1, at, 1);
            let affine = |at: i64| modulation.i((0, at));
            for (name, y, gate, scale, shift) in [
                ("gate", true, Some(row(2)), row(1), row(0)),
                ("no gate", true, None, row(1), row(0)),
                ("no addition", false, None, row(1), row(0)),
                ("affine", true, Some(row(2)), affine(3), affine(4)),
            ] {
                let shape = [frames, per_frame, channels];
                let (mut x, y) = (random(&shape, 3.0, 0.5), y.then(|| random(&shape, 1.0, 0.0)));
                let (before, normed) = (x.copy(), poisoned(&shape));
                let added = y.as_ref().map(|y| (y, gate.as_ref()));
                let work = AddNorm { x: &x, added, scale: &scale, shift: &shift, eps: EPS, normed: &normed };
                fused.add_norm(work).unwrap();

                let one = Tensor::ones([1], (Kind::Float, gpu()));
                let sum = |kind: Kind| match &y {
                    None => before.to_kind(kind),
                    Some(y) => {
                        let gate = gate.as_ref().unwrap_or(&one).to_kind(kind);
                        before.to_kind(kind).addcmul(&y.to_kind(kind), &gate)
                    }
                };
                let norm = |kind: Kind| {
                    let normed = sum(kind).layer_norm([channels], None::<Tensor>, None::<Tensor>, EPS, true);
                    shift.to_kind(kind).addcmul(&normed, &scale.to_kind(kind))
                };
                let (narrow, wide) = (Kind::BFloat16, Kind::Float);
                let what = format!("{name}, {shape:?}, {rows} rows");
                if y.is_some() {
                    check(&format!("x, {what}"), &x, &sum(narrow), &sum(wide));
                } else {
                    assert!(x.equal(&before), "x, {what}");
                }
                check(&format!("normed, {what}"), &normed, &norm(narrow), &norm(wide));
                let _ = x.zero_();
            }
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let fused = Fused::on(gpu()).unwrap();
    let (x, row) = (random(&[3, 5, 128], 1.0, 0.0), random(&[2, 1, 128], 1.0, 0.0));
    let refused = |x: &Tensor, scale: &Tensor, normed: &Tensor| {
        let work = AddNorm { x, added: None, scale, shift: scale, eps: EPS, normed };
        fused.add_norm(work).unwrap_err().to_string()
    };
    let error = refused(&x, &row, &x.empty_like());
    assert!(error.contains("2 for 15"), "{error}");
    let error = refused(&x, &row.i(..1), &wide(&x));
    assert!(error.contains("normed: expected BFloat16"), "{error}");
    let error = refused(&x.transpose(0, 1), &row.i(..1), &x.empty_like());
    assert!(error.contains("contiguous"), "{error}");
    let host = x.to_device(Device::Cpu);
    let error = refused(&x, &row.i(..1), &host);
    assert!(error.contains("Cpu"), "{error}");
}

#[test]
fn attention_by_cudnn_and_its_log_sum_exp() {
    seed(4);
    for (heads, width, queries, keys) in
        [(4, 32, 67, 131), (12, 128, 221, 333), (40, 128, 2160, 4320), (40, 128, 2160, 512)]
    {
        let by_head = |tokens| random(&[1, tokens, heads, width], 1.0, 0.0).transpose(1, 2);
        // Keys and values are a window into a cache.
        let window = |x: Tensor| x.narrow(2, 3, keys);
        let (q, k, v) = (by_head(queries), window(by_head(keys + 7)), window(by_head(keys + 7)));
        let (found, lse) = torch_extra::cudnn_attention_with_lse(&q, &k, &v).unwrap();
        let scores = wide(&q).matmul(&wide(&k).transpose(2, 3)) / (width as f64).sqrt();
        let expected = scores.softmax(-1, Kind::Float).matmul(&wide(&v));
        let unfused =
            Tensor::scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, false, None, false);
        let what = format!("{heads} heads of {width}, {queries} queries, {keys} keys");
        check_within(NO_WORSE_ATTENTION, &format!("cudnn, {what}"), &found, &unfused, &expected);
        let lse = relative_error(&lse.squeeze_dim(-1), &scores.logsumexp(-1, false));
        println!("log-sum-exp, {what}: {lse:.2e} from float32");
        assert!(lse < 1e-3, "{what}: {lse:e}");
        let alone = torch_extra::cudnn_attention(&q, &k, &v).unwrap();
        assert!(relative_error(&alone, &found) < 1e-3, "{what}");
        assert!(alone.transpose(1, 2).is_contiguous(), "{what}: laid out as its queries");
    }
}

#[test]
fn a_bias_on_past_keys_in_three_attentions() {
    seed(6);
    let config = ModelConfig::named("wan-14b").unwrap().dit;
    let ops = Ops::choose(&config, gpu(), Kind::BFloat16);
    for (tokens_per_frame, heads, width) in [(13, 4, 32), (720, 40, 128)] {
        let (queries, keys) = (3 * tokens_per_frame, 6 * tokens_per_frame);
        let tokens = |n: i64| random(&[1, n, heads, width], 1.0, 0.0);
        let (q, k, v) = (tokens(queries), tokens(keys), tokens(keys));
        let biased = mask::biased_keys(keys, tokens_per_frame, 3);
        for bias in [0.3_f64, 1e-3] {
            let row = Tensor::zeros([1, 1, 1, keys], (Kind::BFloat16, gpu()));
            let _ = row.narrow(3, biased.start, biased.end - biased.start).fill_(bias.ln());
            let scores = row.expand([1, 1, queries, keys], false);
            let by_head = |x: &Tensor| x.transpose(1, 2);
            let products = wide(&by_head(&q)).matmul(&wide(&by_head(&k)).transpose(2, 3));
            let exact = Tensor::zeros([1, 1, 1, keys], (Kind::Float, gpu()));
            let _ = exact.narrow(3, biased.start, biased.end - biased.start).fill_(bias.ln());
            let weights = (products / (width as f64).sqrt() + exact).softmax(-1, Kind::Float);
            let expected = by_head(&weights.matmul(&wide(&by_head(&v)))).flatten(2, 3);
            let mask = Mask::Bias { keys: biased.clone(), ln_bias: bias.ln(), scores };
            let found = ops.attend(&q, &k, &v, Some(&mask)).unwrap();
            let unfused = Ops::TENSOR.attend(&q, &k, &v, Some(&mask)).unwrap();
            let what = format!("bias {bias}, {heads} heads of {width}, {queries} queries");
            check_within(NO_WORSE_MERGED, &what, &found, &unfused, &expected);
        }
    }
}

#[test]
fn gelu_in_the_product_is_its_tanh_form() {
    seed(5);
    for (tokens, inputs, outputs) in [(67, 128, 512), (2160, 5120, 13824)] {
        let x = random(&[tokens, inputs], 1.0, 0.0);
        let (weight, bias) =
            (random(&[outputs, inputs], 1.0 / (inputs as f64).sqrt(), 0.0), random(&[outputs], 0.5, 0.0));
        let found = torch_extra::linear_gelu(&x, &weight, &bias).unwrap();
        let unfused = x.linear(&weight, Some(&bias)).gelu("tanh");
        let expected = wide(&x).linear(&wide(&weight), Some(&wide(&bias))).gelu("tanh");
        check(&format!("gelu, {tokens} tokens, {outputs} channels"), &found, &unfused, &expected);
    }
}

#[test]
fn this_gpu_has_all_of_them() {
    for name in ["tiny", "wan-1.3b", "wan-14b"] {
        let config = ModelConfig::named(name).unwrap();
        let ops = Ops::choose(&config.dit, gpu(), Kind::BFloat16);
        assert_eq!(ops.missing(), [""; 0], "{name}");
        assert_eq!((ops.attention(), ops.fused().is_some()), (Attention::Cudnn, true), "{name}");
        let wide = Ops::choose(&config.dit, gpu(), Kind::Float);
        assert_eq!((wide.attention(), wide.fused().is_some()), (Attention::Torch, false), "{name}");
    }
}
