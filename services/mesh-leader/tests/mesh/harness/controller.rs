use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bus::{Bus, Endpoint, Service, ServiceInfo};
use contract::envelope::{Action, EnvelopeV1, HelloReply, Infer, MeshState, Reply, ResultV1};
use contract::model::ModelInfo;
use contract::status::Role;
use contract::tensor::{TensorKey, TensorSpec};
use contract::{
    Budget, CONTRACT_VERSION, CacheEpoch, CallId, CellId, ChunkIndex, Deadline, Digest, Error, InstanceId,
    LeaseEpoch, MeshEpoch, Reason, SessionId, SessionSlot, subjects,
};
use latents::LatentLink;
use tch::{Device, Kind, Tensor};

/// A controller in its simplest form: one call after the other, each envelope free to be spoilt by the test.
pub(crate) struct Controller {
    pub(crate) bus: Bus,
    pub(crate) instance: InstanceId,
    pub(crate) epoch: MeshEpoch,
    pub(crate) lease: LeaseEpoch,
    pub(crate) hello: HelloReply,
    pub(crate) next: u64,
    link: Box<dyn LatentLink>,
    session: SessionId,
}

/// One call before it is sent.
pub(crate) struct Call {
    pub(crate) envelope: EnvelopeV1,
    pub(crate) budget_ms: u64,
}

impl Call {
    pub(crate) fn infer(&mut self) -> &mut Infer {
        match &mut self.envelope.action {
            Action::Infer(infer) => infer,
            other => panic!("{} is no infer", other.as_str()),
        }
    }

    pub(crate) fn spec(&mut self, key: TensorKey) -> &mut TensorSpec {
        self.infer().tensors.iter_mut().find(|spec| spec.key == key).unwrap()
    }
}

impl Controller {
    /// HELLO to the mesh that status names.
    pub(crate) async fn attach(bus: &Bus) -> Result<Self, Error> {
        let status = super::status(bus, |status| status.role == Role::MeshLeader && status.ready).await;
        let epoch = status.mesh.unwrap().epoch.unwrap();
        let instance = InstanceId::random();
        let envelope = EnvelopeV1 {
            version: CONTRACT_VERSION,
            call_id: CallId(1),
            mesh_epoch: epoch,
            controller: instance,
            lease: None,
            action: Action::Hello,
        };
        let Reply::Hello(hello) = request(bus, &envelope, 5_000).await? else { panic!("no hello") };
        let link = latents::open(&hello.link, Device::Cpu)?;
        let (lease, session) = (hello.lease, SessionId::random());
        Ok(Self { bus: bus.clone(), instance, epoch, lease, hello: *hello, next: 2, link, session })
    }

    /// It says so whenever it is asked, until what this returns is dropped. The number of questions is told.
    pub(crate) async fn is_there(&self) -> ((Service, Endpoint), Arc<AtomicUsize>) {
        let info = ServiceInfo { name: "stage0".into(), version: "0.1.0".into(), ..ServiceInfo::default() };
        let service = self.bus.service(info).await.unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let here = move |_, (): ()| {
            count.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Ok(()))
        };
        let subject = subjects::presence(&CellId::default(), self.instance);
        let endpoint = service.serve("presence", &subject, 1, here).await.unwrap();
        ((service, endpoint), asked)
    }

    pub(crate) fn model(&self) -> &ModelInfo {
        &self.hello.model
    }

    pub(crate) fn envelope(&mut self, action: Action) -> EnvelopeV1 {
        let call_id = CallId(self.next);
        self.next += 1;
        EnvelopeV1 {
            version: CONTRACT_VERSION,
            call_id,
            mesh_epoch: self.epoch,
            controller: self.instance,
            lease: Some(self.lease),
            action,
        }
    }

    /// Chunk `index` of a history on slot 0 whose tensors are functions of their place alone. Every chunk brings its
    /// conditioning.
    pub(crate) fn chunk(&mut self, cache_epoch: u64, index: u64) -> Call {
        let model = self.model().clone();
        let size = model.default_size().unwrap();
        let shape = model.latent_shape(size, model.frames_per_chunk);
        let recompute = model.recompute && index > 0;
        let mut tensors = vec![
            self.write(TensorKey::LatentsIn, &pattern(&shape, index)),
            self.write(TensorKey::ConditioningEmbeds, &pattern(&model.conditioning_shape(), 100)),
        ];
        if recompute {
            let context = model.latent_shape(size, model.context_frames);
            tensors.push(self.write(TensorKey::ContextFrames, &pattern(&context, 200 + index)));
        }
        let steps = model.default_steps.clone();
        let infer = Infer {
            session: self.session,
            session_slot: SessionSlot(0),
            chunk_index: ChunkIndex(index),
            cache_epoch: CacheEpoch(cache_epoch),
            size,
            current_start_frame: index * u64::from(model.frames_per_chunk),
            num_latent_frames: model.frames_per_chunk,
            do_kv_recompute: recompute,
            init_cache: index == 0,
            reset_kv_cache: false,
            reset_crossattn_cache: false,
            base_seed: 11,
            kv_cache_attention_bias: model.default_attention_bias,
            noise_scale: None,
            tp_plan: None,
            expected_generator_calls: model.expected_calls(steps.len(), recompute),
            denoising_steps: steps,
            conditioning: Digest::of(&[b"a prompt"]),
            tensors,
        };
        Call { envelope: self.envelope(Action::Infer(Box::new(infer))), budget_ms: 20_000 }
    }

    /// The same chunk for a mesh that holds nothing of its history: its slot is cleared first.
    pub(crate) fn hard_cut(&mut self, cache_epoch: u64, index: u64) -> Call {
        let mut call = self.chunk(cache_epoch, index);
        call.infer().init_cache = true;
        call
    }

    pub(crate) fn write(&mut self, key: TensorKey, tensor: &Tensor) -> TensorSpec {
        self.link.write(key, tensor).unwrap()
    }

    /// Takes the slots of a refused call back.
    pub(crate) fn take_back(&mut self, call: &mut Call) {
        for spec in &call.infer().tensors {
            // Slots the leader has read and given back are free already.
            let _ = self.link.release(spec.slot, spec.generation);
        }
    }

    pub(crate) async fn send(&self, call: &Call) -> Result<Box<ResultV1>, Error> {
        match request(&self.bus, &call.envelope, call.budget_ms).await? {
            Reply::Infer(result) => Ok(result),
            other => panic!("{other:?} for an infer"),
        }
    }

    /// Sends a call that must be refused, and takes its slots back.
    pub(crate) async fn refused(&mut self, mut call: Call) -> Error {
        let error = self.send(&call).await.expect_err("a refusal");
        self.take_back(&mut call);
        error
    }

    /// The latents of a call that must succeed, as bytes.
    pub(crate) async fn latents(&mut self, call: &Call) -> (Box<ResultV1>, Vec<f32>) {
        let result = self.send(call).await.unwrap();
        let spec = &result.latents_out;
        let tensor = self.link.read(spec).unwrap();
        self.link.release(spec.slot, spec.generation).unwrap();
        let mut values = vec![0_f32; tensor.numel()];
        tensor.copy_data(&mut values, tensor.numel());
        (result, values)
    }

    pub(crate) async fn noop(&mut self) -> Result<MeshState, Error> {
        let envelope = self.envelope(Action::Noop);
        match request(&self.bus, &envelope, 2_000).await? {
            Reply::Noop(state) => Ok(state),
            other => panic!("{other:?} for a noop"),
        }
    }

    pub(crate) async fn ask(&mut self, action: Action) -> Result<Reply, Error> {
        let envelope = self.envelope(action);
        request(&self.bus, &envelope, 2_000).await
    }

    /// Three chunks of one history.
    pub(crate) async fn three_chunks(&mut self, cache_epoch: u64) -> Vec<Vec<f32>> {
        let mut chunks = Vec::new();
        for index in 0..3 {
            let call = self.chunk(cache_epoch, index);
            chunks.push(self.latents(&call).await.1);
        }
        chunks
    }
}

/// Asks until it is heard: a leader that a busy machine kept waiting discards what came meanwhile, and says so.
pub(crate) async fn request(bus: &Bus, envelope: &EnvelopeV1, budget_ms: u64) -> Result<Reply, Error> {
    let subject = subjects::mesh_call(&CellId::default(), envelope.mesh_epoch);
    let deadline = Deadline::after(Instant::now(), Budget::from_millis(budget_ms));
    loop {
        match bus.request(&subject, envelope, deadline).await {
            Err(error) if error.reason == Reason::BrokerUnavailable => {}
            answer => return answer,
        }
    }
}

/// Smooth values of about unit size that depend on the place and `seed` alone.
pub(crate) fn pattern(shape: &[i64], seed: u64) -> Tensor {
    let numel = shape.iter().product::<i64>();
    let places = Tensor::arange(numel, (Kind::Double, Device::Cpu));
    ((places * 0.7311 + seed as f64 * 1.37).sin() * 1.3).to_kind(Kind::Float).view(shape)
}
