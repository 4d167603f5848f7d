//! A job's tensors on their way through the link.

use std::time::{Duration, Instant};

use contract::envelope::ResultV1;
use contract::error::{Error, Reason};
use contract::ids::LinkSlot;
use contract::tensor::{TensorKey, TensorSpec};
use latents::LatentLink;
use tch::Tensor;

use super::Job;

/// A job whose tensors lie in the link.
pub(super) struct Placed {
    pub job: Job,
    specs: Vec<TensorSpec>,
    /// Time spent on the link so far.
    pub took: Duration,
}

impl Placed {
    /// Writes the tensors and names them in the call. The conditioning goes along only `with_conditioning`.
    ///
    /// # Errors
    /// What the link says; nothing stays in it then. The job comes back.
    pub(crate) fn write(
        mut job: Job,
        link: &mut dyn LatentLink,
        with_conditioning: bool,
    ) -> Result<Self, Box<(Job, Error)>> {
        let started = Instant::now();
        let mut specs = Vec::new();
        for (key, tensor) in &job.tensors {
            if *key == TensorKey::ConditioningEmbeds && !with_conditioning {
                continue;
            }
            match link.write(*key, tensor) {
                Ok(spec) => specs.push(spec),
                Err(error) => {
                    give_back(link, &specs);
                    return Err(Box::new((job, error)));
                }
            }
        }
        job.infer.tensors.clone_from(&specs);
        Ok(Self { job, specs, took: started.elapsed() })
    }

    pub(crate) fn slots(&self) -> Vec<LinkSlot> {
        self.specs.iter().map(|spec| spec.slot).collect()
    }

    /// Reads the result out and gives its slot back.
    ///
    /// # Errors
    /// The result has another shape than the noise had, or its slot does not hold it.
    pub(crate) fn read(&mut self, link: &mut dyn LatentLink, result: &ResultV1) -> Result<Tensor, Error> {
        let started = Instant::now();
        let spec = &result.latents_out;
        let expected = self.specs.iter().find(|spec| spec.key == TensorKey::LatentsIn);
        let expected = expected.ok_or_else(|| Error::new(Reason::Internal, "a call without latents_in"))?;
        if spec.key != TensorKey::LatentsOut {
            let key = spec.key.as_str();
            return Err(Error::new(
                Reason::BadField,
                format!("the result names {key}: latents_out is expected"),
            ));
        }
        spec.expect(expected.dtype, &expected.shape)?;
        let latents = link.read(spec)?;
        link.release(spec.slot, spec.generation)?;
        self.took += started.elapsed();
        Ok(latents)
    }

    /// Takes back what the leader has not read: after a refusal nobody else gives it back.
    pub(crate) fn give_back(&self, link: &mut dyn LatentLink) {
        give_back(link, &self.specs);
    }
}

fn give_back(link: &mut dyn LatentLink, specs: &[TensorSpec]) {
    for spec in specs {
        // A slot that the leader has read is given back by the leader.
        let _ = link.release(spec.slot, spec.generation);
    }
}
