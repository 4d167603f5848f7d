//! The parameters in force, and what a merged update changes about them. Prompts are in [`crate::prompt`].

use contract::model::ModelInfo;
use contract::params::Parameters;

/// Seed of a session that asks for none.
const DEFAULT_SEED: u64 = 42;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    pub steps: Vec<u32>,
    pub bias: f32,
    pub seed: u64,
    manage_cache: bool,
}

/// What an update did.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Changes {
    /// Only what is now different, and one-shots.
    pub changed: Parameters,
    /// The next chunk is the first of a new history.
    pub cut: bool,
}

impl Settings {
    pub(crate) fn new(model: &ModelInfo) -> Self {
        Self {
            steps: model.default_steps.clone(),
            bias: model.default_attention_bias,
            seed: DEFAULT_SEED,
            manage_cache: true,
        }
    }

    /// Everything in force, so that [`apply`](Self::apply) to new settings gives these again.
    pub(crate) fn stored(&self) -> Parameters {
        Parameters {
            denoising_step_list: Some(self.steps.clone()),
            kv_cache_attention_bias: Some(self.bias),
            base_seed: Some(self.seed),
            manage_cache: Some(self.manage_cache),
            ..Parameters::default()
        }
    }

    /// Takes over what `update` sets. A change of the step list cuts while `manage_cache` holds, its value in the same
    /// update included; bias and seed never do.
    pub(crate) fn apply(&mut self, update: &Parameters) -> Changes {
        let mut changes = Changes::default();
        let changed = &mut changes.changed;
        changed.manage_cache = replace(&mut self.manage_cache, update.manage_cache.as_ref());
        changed.denoising_step_list = replace(&mut self.steps, update.denoising_step_list.as_ref());
        changed.kv_cache_attention_bias = replace(&mut self.bias, update.kv_cache_attention_bias.as_ref());
        changed.base_seed = replace(&mut self.seed, update.base_seed.as_ref());
        let reset = update.reset_cache == Some(true);
        changed.reset_cache = reset.then_some(true);
        changes.cut = reset || (changes.changed.denoising_step_list.is_some() && self.manage_cache);
        changes
    }
}

/// The new value, if it differs.
fn replace<T: Clone + PartialEq>(current: &mut T, new: Option<&T>) -> Option<T> {
    let new = new.filter(|new| *new != current)?;
    *current = new.clone();
    Some(new.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::tests::model;

    fn update(change: impl FnOnce(&mut Parameters)) -> Parameters {
        let mut update = Parameters::default();
        change(&mut update);
        update
    }

    #[test]
    fn what_is_in_force_already_changes_nothing() {
        let mut settings = Settings::new(&model());
        let same = update(|p| {
            p.denoising_step_list = Some(vec![1000, 750, 500, 250]);
            p.base_seed = Some(DEFAULT_SEED);
            p.manage_cache = Some(true);
        });
        assert_eq!(settings.apply(&same), Changes::default());
    }

    #[test]
    fn stored_settings_are_the_settings() {
        let mut settings = Settings::new(&model());
        settings.apply(&update(|p| {
            p.base_seed = Some(7);
            p.manage_cache = Some(false);
            p.denoising_step_list = Some(vec![900, 10]);
            p.kv_cache_attention_bias = Some(0.5);
        }));
        let mut restored = Settings::new(&model());
        restored.apply(&settings.stored());
        assert_eq!(restored, settings);
    }

    #[test]
    fn another_step_list_cuts_unless_the_client_manages_its_cache() {
        let steps = |list: &[u32]| update(|p| p.denoising_step_list = Some(list.to_vec()));
        let mut settings = Settings::new(&model());
        assert!(settings.apply(&steps(&[1000, 500])).cut);
        settings.apply(&update(|p| p.manage_cache = Some(false)));
        let changes = settings.apply(&steps(&[1000, 250]));
        assert!(!changes.cut && changes.changed.denoising_step_list == Some(vec![1000, 250]));
    }

    #[test]
    fn bias_and_seed_never_cut_and_a_reset_always_does() {
        let mut settings = Settings::new(&model());
        let changes = settings.apply(&update(|p| {
            p.base_seed = Some(7);
            p.kv_cache_attention_bias = Some(1.0);
        }));
        assert!(!changes.cut && (settings.seed, settings.bias) == (7, 1.0));
        let reset = update(|p| p.reset_cache = Some(true));
        assert!(settings.apply(&reset).cut && settings.apply(&reset).cut);
    }
}
