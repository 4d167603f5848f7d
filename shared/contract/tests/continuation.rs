//! The stored state of a session: what is read is what was written, and nothing else is taken for one.

use contract::continuation::{
    CONTINUATION_VERSION, ContinuationV1, MAX_BYTES, StoredConditioning, StoredFrames, StoredTensor,
    StoredTransition,
};
use contract::model::Size;
use contract::params::{Interpolation, Parameters, Prompt};
use contract::tensor::Dtype;
use contract::{CacheEpoch, Incarnation, Reason, SessionId};

fn tensor(shape: &[i64]) -> StoredTensor {
    let bytes = shape.iter().product::<i64>() as usize * Dtype::F32.bytes();
    StoredTensor {
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        data: (0..bytes).map(|n| (n % 251) as u8).collect(),
    }
}

fn state() -> ContinuationV1 {
    ContinuationV1 {
        version: CONTINUATION_VERSION,
        session: SessionId::random(),
        incarnation: Incarnation(3),
        model: "f".into(),
        size: Size { width: 128, height: 128 },
        cache_epoch: CacheEpoch(4),
        current_start_frame: 21,
        update: 7,
        settings: Parameters { base_seed: Some(7), manage_cache: Some(true), ..Parameters::default() },
        conditioning: StoredConditioning {
            prompts: vec![Prompt { text: "a fox".into(), weight: 1.0 }],
            interpolation: Interpolation::Slerp,
            transition: Some(StoredTransition {
                source: tensor(&[1, 4, 8]),
                steps: 5,
                taken: 2,
                interpolation: Interpolation::Linear,
            }),
        },
        frames: Some(StoredFrames { head: tensor(&[1, 1, 16, 4, 4]), latents: tensor(&[1, 3, 16, 4, 4]) }),
    }
}

#[test]
fn a_state_is_read_as_it_was_written() {
    let state = state();
    assert_eq!(ContinuationV1::decode(&state.encode().unwrap()).unwrap(), state);
}

#[test]
fn a_state_of_another_version_is_refused_by_name_whatever_else_is_in_it() {
    let newer = ContinuationV1 { version: CONTINUATION_VERSION + 1, ..state() };
    let error = ContinuationV1::decode(&newer.encode().unwrap()).unwrap_err();
    assert_eq!(error.reason, Reason::UnsupportedVersion);
    assert!(error.message.contains(&(CONTINUATION_VERSION + 1).to_string()), "{error}");
}

#[test]
fn a_tensor_that_is_cut_short_and_bytes_that_are_no_state_are_refused() {
    let mut short = state();
    short.frames.as_mut().unwrap().latents.data.pop();
    let refused = |bytes: &[u8]| ContinuationV1::decode(bytes).unwrap_err().reason;
    assert_eq!(refused(&short.encode().unwrap()), Reason::BadShape);
    assert_eq!(refused(b"\xc1"), Reason::Malformed);
    let whole = state().encode().unwrap();
    assert_eq!(refused(&whole[..whole.len() / 2]), Reason::Malformed);
    assert_eq!(refused(&vec![0; MAX_BYTES + 1]), Reason::PayloadTooLarge);
}

#[test]
fn a_shape_that_overflows_is_refused() {
    for shape in [vec![i64::MAX, i64::MAX], vec![-1, 4]] {
        let tensor = StoredTensor { dtype: Dtype::F32, shape, data: Vec::new() };
        assert_eq!(tensor.check().unwrap_err().reason, Reason::BadShape);
    }
}
