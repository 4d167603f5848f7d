//! What all ranks must agree on before one of them is given a rank.

use contract::tp::{ChosenPlan, JoinRequest, Parity};
use contract::{CONTRACT_VERSION, Error, Reason};

/// # Errors
/// The first mismatch, naming both values: `unsupported_version`, `tp_plan_mismatch`, `weights_mismatch` or
/// `build_mismatch`.
pub fn check(leader: &Parity, request: &JoinRequest) -> Result<(), Error> {
    if request.version != CONTRACT_VERSION {
        return Err(Error::new(
            Reason::UnsupportedVersion,
            format!("contract version: leader {CONTRACT_VERSION}, worker {}", request.version),
        ));
    }
    let worker = &request.parity;
    check_plan(leader.tp_plan.as_ref(), worker.tp_plan.as_ref())?;
    same(Reason::WeightsMismatch, "model fingerprint", &leader.model_fingerprint, &worker.model_fingerprint)?;
    same(Reason::BuildMismatch, "build", &leader.build, &worker.build)?;
    same(Reason::BuildMismatch, "dtype", leader.dtype.as_str(), worker.dtype.as_str())?;
    same(Reason::BuildMismatch, "device", &leader.device, &worker.device)?;
    same(Reason::BuildMismatch, "attention backend", &leader.attention_backend, &worker.attention_backend)
}

/// Compares only what two operators chose: a default is nobody's choice.
fn check_plan(leader: Option<&ChosenPlan>, worker: Option<&ChosenPlan>) -> Result<(), Error> {
    match (leader, worker) {
        (Some(leader), Some(worker)) if leader.plan != worker.plan => Err(Error::new(
            Reason::TpPlanMismatch,
            format!(
                "tp_plan: leader {} (set by {}), worker {} (set by {})",
                leader.plan.as_str(),
                leader.set_by,
                worker.plan.as_str(),
                worker.set_by
            ),
        )),
        _ => Ok(()),
    }
}

fn same(reason: Reason, what: &str, leader: &str, worker: &str) -> Result<(), Error> {
    if leader == worker {
        return Ok(());
    }
    Err(Error::new(reason, format!("{what}: leader {leader}, worker {worker}")))
}

#[cfg(test)]
mod tests {
    use contract::InstanceId;
    use contract::model::TpPlan;
    use contract::tensor::Dtype;

    use super::*;

    fn parity() -> Parity {
        Parity {
            build: "0.1.0".into(),
            model_fingerprint: "aa".into(),
            dtype: Dtype::F32,
            device: "cpu".into(),
            attention_backend: "eager".into(),
            tp_plan: None,
        }
    }

    fn request(change: impl FnOnce(&mut Parity)) -> JoinRequest {
        let mut parity = parity();
        change(&mut parity);
        JoinRequest { version: CONTRACT_VERSION, instance: InstanceId::random(), parity, holds: None }
    }

    fn chosen(plan: TpPlan, set_by: &str) -> Option<ChosenPlan> {
        Some(ChosenPlan { plan, set_by: set_by.into() })
    }

    #[test]
    fn two_chosen_plans_that_differ_are_refused_with_both_values_and_keys() {
        let leader = Parity { tp_plan: chosen(TpPlan::V1GeneratorOnly, "leader.toml"), ..parity() };
        let worker = request(|p| p.tp_plan = chosen(TpPlan::V0FullPipeline, "KINEMESH_MESH__TP_PLAN"));
        let error = check(&leader, &worker).unwrap_err();
        assert_eq!(error.reason, Reason::TpPlanMismatch);
        assert_eq!(
            error.message,
            "tp_plan: leader v1_generator_only (set by leader.toml), worker v0_full_pipeline (set by \
             KINEMESH_MESH__TP_PLAN)"
        );
    }

    #[test]
    fn a_default_is_never_compared_with_a_choice() {
        let worker = request(|p| p.tp_plan = chosen(TpPlan::V0FullPipeline, "KINEMESH_MESH__TP_PLAN"));
        check(&parity(), &worker).unwrap();
    }

    #[test]
    fn each_other_mismatch_names_both_values() {
        let cases: [(Reason, &str, JoinRequest); 5] = [
            (Reason::WeightsMismatch, "leader aa, worker bb", request(|p| p.model_fingerprint = "bb".into())),
            (Reason::BuildMismatch, "leader 0.1.0, worker 0.2.0", request(|p| p.build = "0.2.0".into())),
            (Reason::BuildMismatch, "leader f32, worker bf16", request(|p| p.dtype = Dtype::Bf16)),
            (Reason::BuildMismatch, "leader cpu, worker cuda", request(|p| p.device = "cuda".into())),
            (Reason::UnsupportedVersion, "leader 1, worker 9", JoinRequest { version: 9, ..request(|_| {}) }),
        ];
        for (reason, text, request) in cases {
            let error = check(&parity(), &request).unwrap_err();
            assert_eq!(error.reason, reason);
            assert!(error.message.contains(text), "{}", error.message);
        }
    }
}
