use safetensors::tensor::{Dtype, TensorView};
use tch::{Device, Tensor};
use wan::weights::{SafetensorsSource, SyntheticSource, TensorSource};

use crate::gpu;

#[test]
fn synthetic_values_are_those_of_the_cpu_bit_for_bit() {
    let device = gpu();
    let (cpu, gpu) = (SyntheticSource::new(42), SyntheticSource::new(42).on(device));
    for (name, shape) in
        [("a.weight", vec![300, 1537]), ("a.bias", vec![1537]), ("b.weight", vec![5, 3, 3, 3])]
    {
        for_each_slice(&shape, |dim, start, len| {
            let expected = cpu.narrow(name, &shape, dim, start, len).unwrap();
            assert_arrived(&gpu.narrow(name, &shape, dim, start, len).unwrap(), &expected);
        });
    }
}

#[test]
fn a_checkpoint_arrives_byte_for_byte_whatever_part_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    // The first is a few pieces of what is read at a time, none of them full.
    let shapes = [vec![3001_i64, 4099], vec![7], vec![5, 3, 3, 3]];
    let names = ["long", "short", "four"];
    let bytes = shapes.each_ref().map(|shape| {
        let elements = shape.iter().product::<i64>() as u32;
        (0..elements).flat_map(|i| (i as f32).to_le_bytes()).collect::<Vec<u8>>()
    });
    let views = names.iter().zip(&shapes).zip(&bytes).map(|((name, shape), bytes)| {
        let shape = shape.iter().map(|size| *size as usize).collect();
        (*name, TensorView::new(Dtype::F32, shape, bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &path).unwrap();
    let open = || SafetensorsSource::open(&path).unwrap();
    let (cpu, gpu) = (open(), open().on(gpu()));
    for (name, shape) in names.iter().zip(&shapes) {
        assert_arrived(&gpu.get(name, shape).unwrap(), &cpu.get(name, shape).unwrap());
        for_each_slice(shape, |dim, start, len| {
            let expected = cpu.get(name, shape).unwrap().narrow(dim as i64, start, len);
            assert_arrived(&gpu.narrow(name, shape, dim, start, len).unwrap(), &expected);
        });
    }
}

/// The upper half of each dimension.
fn for_each_slice(shape: &[i64], check: impl Fn(usize, i64, i64)) {
    for (dim, size) in shape.iter().enumerate() {
        check(dim, size / 2, size - size / 2);
    }
}

fn assert_arrived(found: &Tensor, expected: &Tensor) {
    assert_eq!(found.device(), gpu());
    assert!(found.to_device(Device::Cpu).equal(expected), "{:?}", expected.size());
}
