use tch::{Device, Kind};
use wan::dit::Shard;

use crate::stream::Made;
use crate::{gpu, relative_error};

fn made(
    model: &'static str,
    size: (u32, u32),
    device: Device,
    kind: Kind,
    chunks: usize,
) -> Vec<tch::Tensor> {
    Made { model, family: None, size, device, kind, shard: Shard::WHOLE }.solo(chunks)
}

#[test]
fn tiny_in_float32_is_what_the_cpu_computes() {
    let device = gpu();
    let chunks = |device| made("tiny", (128, 128), device, Kind::Float, 3);
    for (chunk, (gpu, cpu)) in chunks(device).iter().zip(chunks(Device::Cpu)).enumerate() {
        let error = relative_error(gpu, &cpu);
        println!("tiny, float32, chunk {chunk}: {error:.2e} from the cpu");
        assert!(error < 1e-4, "chunk {chunk}: {error:e}");
    }
}

#[test]
fn bf16_stays_near_float32() {
    let device = gpu();
    for (model, size) in [("tiny", (128, 128)), ("wan-1.3b", (480, 832))] {
        let chunks = |kind| made(model, size, device, kind, 20);
        let (narrow, wide) = (chunks(Kind::BFloat16), chunks(Kind::Float));
        let error = |chunk: usize| relative_error(&narrow[chunk], &wide[chunk]);
        println!(
            "{model} {}x{}, bf16 against float32: {:.2e} after 1 chunk, {:.2e} after 20",
            size.0,
            size.1,
            error(0),
            error(19)
        );
        assert!(error(0) < 2e-2, "{model}: {:e}", error(0));
    }
}
