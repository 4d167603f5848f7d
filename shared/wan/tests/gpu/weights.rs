use tch::Device;
use wan::weights::{SyntheticSource, TensorSource};

use crate::gpu;

#[test]
fn synthetic_values_are_those_of_the_cpu_bit_for_bit() {
    let device = gpu();
    let (cpu, gpu) = (SyntheticSource::new(42), SyntheticSource::new(42).on(device));
    for (name, shape) in
        [("a.weight", vec![300, 1537]), ("a.bias", vec![1537]), ("b.weight", vec![5, 3, 3, 3])]
    {
        for dim in 0..shape.len() {
            let (start, len) = (shape[dim] / 2, shape[dim] - shape[dim] / 2);
            let expected = cpu.narrow(name, &shape, dim, start, len).unwrap();
            let made = gpu.narrow(name, &shape, dim, start, len).unwrap();
            assert_eq!(made.device(), device);
            assert!(made.to_device(Device::Cpu).equal(&expected), "{name}, dimension {dim}");
        }
    }
}
