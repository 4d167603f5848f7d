//! `collective`: each call that the ranks of a mesh make, at the sizes of a chunk: over shared memory between CPUs, NCCL
//! between GPUs.

use std::time::Instant;

use anyhow::Result;
use collectives::{Collective, CollectiveError, ReduceOp};
use serde_json::{Value, json};
use tch::{Kind, Tensor};
use xtask::outcome::Refused;

use crate::options::{self, ModelOptions, PrecisionOption, SizeOptions, Subject};
use crate::ranks::{self, GroupOptions, Member};
use crate::statistics::Summary;
use crate::{line, machine};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    size: SizeOptions,
    #[command(flatten)]
    precision: PrecisionOption,
    /// Ranks, a process each.
    #[arg(long, default_value_t = 2)]
    world_size: u32,
    #[command(flatten)]
    group: GroupOptions,
    /// Calls of each operation and size measured.
    #[arg(long, default_value = "200", value_parser = clap::value_parser!(u32).range(1..))]
    calls: u32,
    /// Calls before the measurement, not counted.
    #[arg(long, default_value_t = 20)]
    warm_up: u32,
}

/// One operation at one size.
struct Operation {
    name: &'static str,
    /// What the generator makes this call for.
    of: &'static str,
    shape: Vec<i64>,
    kind: Kind,
    call: fn(&dyn Collective, &mut Tensor, Instant) -> Result<(), CollectiveError>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let subject = options.model.at(options.size)?;
    options::check_world_size(&subject.config, options.world_size)?;
    if options.world_size == 1 {
        return Err(
            Refused("--world-size 1: one rank calls nobody, 2 and more are allowed".to_owned()).into()
        );
    }
    ranks::run(options.world_size, options.model.device, options.group, |member| {
        let operations = operations(&subject, options.precision.on(member.device));
        let rows = operations.iter().map(|operation| measure(options, operation, member));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        if member.is_first() {
            println!("{}", report(options, &subject, member, &rows)?);
        }
        Ok(())
    })
}

fn operations(subject: &Subject, kind: Kind) -> [Operation; 6] {
    let (config, latents) = (&subject.config, subject.latents());
    let dit = &config.dit;
    let tokens = dit.tokens_per_frame(latents[3], latents[4]) * config.num_frame_per_block;
    let sum = |collective: &dyn Collective, tensor: &mut Tensor, by| {
        collective.all_reduce(tensor, ReduceOp::Sum, by)
    };
    let broadcast =
        |collective: &dyn Collective, tensor: &mut Tensor, by| collective.broadcast(tensor, 0, by);
    let operation =
        |name, of, shape: &[i64], kind, call| Operation { name, of, shape: shape.to_vec(), kind, call };
    [
        operation("all_reduce", "a layer's output", &[1, tokens, dit.dim], kind, sum),
        operation("all_reduce", "sums of squares of q and k", &[1, tokens, 2], Kind::Float, sum),
        operation("all_reduce", "forwards and digest", &[4], Kind::Int64, |collective, tensor, by| {
            collective.all_reduce(tensor, ReduceOp::Min, by)
        }),
        operation("broadcast", "latents", &latents, Kind::Float, broadcast),
        operation(
            "broadcast",
            "an embedded prompt",
            &[1, dit.text_len, dit.text_dim],
            Kind::Float,
            broadcast,
        ),
        operation("barrier", "loading", &[0], Kind::Float, |collective, _, by| collective.barrier(by)),
    ]
}

fn measure(options: &Options, operation: &Operation, member: &Member) -> Result<Value> {
    // Sums of zeros stay what they are.
    let mut tensor = Tensor::f_zeros(&operation.shape, (operation.kind, member.device))?;
    let mut times = Vec::new();
    for number in 0..options.warm_up + options.calls {
        let by = Instant::now() + ranks::CALL;
        let (ms, ()) =
            machine::ms(member.device, || Ok((operation.call)(&*member.collective, &mut tensor, by)?))?;
        if number >= options.warm_up {
            times.push(ms * 1e3);
        }
    }
    Ok(json!({
        "operation": operation.name, "of": operation.of, "shape": operation.shape,
        "bytes": tensor.numel() * operation.kind.elt_size_in_bytes(), "us": Summary::of(times).json(),
    }))
}

fn report(options: &Options, subject: &Subject, member: &Member, rows: &[Value]) -> Result<Value> {
    let transport = if member.device.is_cuda() { "nccl" } else { "loopback" };
    Ok(line::join([
        json!({"bench": "collective", "transport": transport}),
        machine::conditions(member.device)?,
        subject.conditions(),
        json!({
            "precision": options::name(options.precision.on(member.device)), "world_size": options.world_size, "ranks_share_a_gpu": options.group.share_gpu, "calls": options.calls,
            "warm_up_calls_excluded": options.warm_up, "operations": rows,
        }),
        machine::memory(member.device)?,
    ]))
}
