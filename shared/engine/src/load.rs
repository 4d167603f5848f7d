//! A new epoch: meet the other ranks, have the shard, agree that all have theirs.

use std::sync::Arc;
use std::time::Instant;

use collectives::nccl::ABORT;
use collectives::{Collective, CollectiveError, ReduceOp, Solo};
use contract::{Error, Rank, Reason, WorldSize};
use mesh::leader::LoadFailure;
use tch::{Device, Kind, Tensor};
use tracing::info;
use wan::dit::{CausalDit, Shard};
use wan::generator::Generator;
use wan::weights::{Component, WeightsError};

use crate::executor::Executor;
use crate::{EngineConfig, Group, Reading, When, failure};

impl Executor {
    pub(crate) fn load(&mut self, group: Group, deadline: Instant) -> Result<(), LoadFailure> {
        let (rank, world) = (group.rank, group.world_size);
        self.let_go()?;
        self.conditionings.clear();
        self.prompts.fill(None);
        let collective = (self.meet)(group, self.config.device)
            .map_err(|e| LoadFailure::Group(failure::collective(&e)))?;
        self.monitor.adopt(Arc::clone(&collective));
        let own = self.have_shard(rank, world);
        let agreed = agree(&*collective, rank, own.is_ok(), self.config.device, deadline);
        self.collective = Some(collective);
        own?;
        match agreed {
            Ok(None) => Ok(()),
            Ok(Some(failed)) => {
                let text = format!("rank {failed} could not load its weights");
                Err(LoadFailure::Peer(Error::new(Reason::RankLost, text)))
            }
            Err(error) => Err(LoadFailure::Group(failure::collective(&error))),
        }
    }

    /// Ends the collective of the epoch before. What it holds of the device must be free before the next one can run.
    fn let_go(&mut self) -> Result<(), LoadFailure> {
        let stuck = |text: String| Err(LoadFailure::Stuck(Error::new(Reason::Internal, text)));
        // NCCL frees a group once no graph has work of it.
        if let Some((_, _, generator)) = &mut self.loaded {
            generator.drop_graphs();
        }
        let Some(old) = self.collective.take() else { return Ok(()) };
        old.abort("the epoch is over");
        if !old.freed(Instant::now() + ABORT) {
            return stuck(format!(
                "the collective of the last epoch could not be freed within {} s",
                ABORT.as_secs()
            ));
        }
        // A fault of a GPU stays with the process: whatever comes after it fails too.
        match Tensor::f_ones([1], (Kind::Int64, self.config.device)).and_then(|one| one.f_int64_value(&[0])) {
            Ok(_) => Ok(()),
            Err(error) => stuck(format!("{:?} does not answer any more: {error}", self.config.device)),
        }
    }

    fn have_shard(&mut self, rank: Rank, world: WorldSize) -> Result<(), LoadFailure> {
        if let Some((held_rank, held_world, generator)) = &mut self.loaded
            && (*held_rank, *held_world) == (rank, world)
        {
            (0..self.config.slots).for_each(|slot| generator.clear_slot(slot));
            return Ok(());
        }
        let refused = |text: String| Error::new(Reason::BadField, format!("rank {rank}: {text}"));
        // Another shard leaves room for this one, which a GPU does not show: libtorch keeps what it had.
        if self.loaded.is_none() {
            let fits = self.config.check_memory(world, When::BesideOthers);
            info!("{}", fits.map_err(|e| LoadFailure::NoRoom(refused(e.message)))?);
        }
        // The old shard goes first: two may not fit.
        self.loaded = None;
        let dit = self.read_shard(rank, world);
        let dit = dit.map_err(|e| LoadFailure::Own(refused(format!("the weights cannot be loaded: {e}"))))?;
        let mut generator = Generator::new(&self.config.model, dit, self.config.slots);
        if !self.config.graphs {
            generator.without_graphs("mesh.cuda_graphs is false");
        }
        self.loaded = Some((rank, world, generator));
        Ok(())
    }

    fn read_shard(&self, rank: Rank, world: WorldSize) -> Result<CausalDit, WeightsError> {
        let EngineConfig { model, weights, device, .. } = &self.config;
        let (kind, shard) = (self.config.kind(), Shard { rank: rank.0, world: world.get() });
        let source = weights.open(Component::Dit, *device)?;
        let elements = wan::memory::shard(&model.dit, i64::from(shard.world));
        let what = format!("weights of rank {rank} of {world}");
        let reading = Reading::begin(&what, source, elements, (kind, *device));
        let dit = CausalDit::load(&model.dit, &reading, shard, *device, kind)?;
        reading.end();
        Ok(dit)
    }
}

/// The collective of the device, over the group's rendezvous.
///
/// # Errors
/// What [`collectives::Rendezvous::connect`] says.
pub fn meet(group: Group, device: Device) -> Result<Arc<dyn Collective>, CollectiveError> {
    match group.rendezvous {
        None => Ok(Arc::new(Solo::new())),
        Some(rendezvous) => {
            let (rank, world) = (group.rank.0, group.world_size.get());
            rendezvous.connect(device, rank, world, group.meet_by)
        }
    }
}

/// The lowest rank that failed, if one did; the same answer on every rank.
fn agree(
    collective: &dyn Collective,
    rank: Rank,
    ok: bool,
    device: Device,
    deadline: Instant,
) -> Result<Option<Rank>, CollectiveError> {
    let world = i64::from(collective.world_size());
    let mut load_ok = Tensor::from_slice(&[if ok { world } else { i64::from(rank.0) }]).to_device(device);
    collective.all_reduce(&mut load_ok, ReduceOp::Min, deadline)?;
    collective.barrier(deadline)?;
    let lowest = load_ok.int64_value(&[0]);
    Ok((lowest < world).then(|| Rank(u32::try_from(lowest).unwrap_or(u32::MAX))))
}
