//! Session parameters as clients send them: validated once, here, for REST, offers and the data channel alike.
//!
//! Every field is optional; absent (or JSON `null`) means unchanged. What the running plan cannot do is refused with
//! the key's name, never dropped silently; a few keys that existing clients always send and that mean nothing here are
//! accepted without effect ([`WITHOUT_EFFECT`]).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Reason};
use crate::model::check_steps;

/// One prompt of a blend. Weights are relative; all zero means equal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Prompt {
    pub text: String,
    #[serde(default = "one")]
    pub weight: f64,
}

fn one() -> f64 {
    1.0
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Interpolation {
    #[default]
    Linear,
    Slerp,
}

/// Walks the embedding to `target_prompts` over `num_steps` chunks, then becomes the prompt. 0 steps: at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Transition {
    pub target_prompts: Vec<Prompt>,
    #[serde(default = "four")]
    pub num_steps: u32,
    #[serde(default)]
    pub temporal_interpolation_method: Interpolation,
}

fn four() -> u32 {
    4
}

/// A set of changes; merged with [`Parameters::merge`], last value wins.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Parameters {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompts: Option<Vec<Prompt>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_interpolation_method: Option<Interpolation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transition: Option<Transition>,
    /// Strictly descending, 1 to 1000. A change is a hard cut while `manage_cache` holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denoising_step_list: Option<Vec<u32>>,
    /// 0.01 to 1: how much past frames count; 1 switches the bias off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_cache_attention_bias: Option<f32>,
    /// Noise of a chunk is a function of this and the frame index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_seed: Option<u64>,
    /// Whether a change of the step list cuts the history by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manage_cache: Option<bool>,
    /// One-shot: the next chunk is the first of a new history.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reset_cache: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
}

/// Keys that existing clients always send and that mean nothing to a text-driven cell.
pub const WITHOUT_EFFECT: &[&str] = &[
    "_quantized",
    "beat_cache_reset_rate",
    "connection_id",
    "graph",
    "lookahead_ms",
    "node_id",
    "pipeline_ids",
    "produces_audio",
    "produces_video",
    "quantize_mode",
    "vace_context_scale",
    "vace_enabled",
    "vace_use_input_video",
];

/// Every key with an effect.
const KEYS: &[&str] = &[
    "prompts",
    "prompt_interpolation_method",
    "transition",
    "denoising_step_list",
    "kv_cache_attention_bias",
    "base_seed",
    "manage_cache",
    "reset_cache",
    "paused",
];
/// What keys begin with that other servers of this kind know and that is not built here.
const NOT_BUILT: &[&str] = &["vace_", "lora", "recording", "first_frame", "last_frame", "video"];

pub const MAX_PROMPTS: usize = 16;
pub const MAX_WEIGHT: f64 = 1e6;
pub const MAX_PROMPT_BYTES: usize = 4096;
pub const MAX_TRANSITION_STEPS: u32 = 1000;

impl Parameters {
    /// # Errors
    /// `invalid_argument` naming key, value and what is allowed; `unsupported_parameter` naming the key.
    pub fn from_json(value: &Value) -> Result<Self, Error> {
        let object = value.as_object().ok_or_else(|| {
            Error::new(Reason::Malformed, format!("parameters are {value}: an object is expected"))
        })?;
        let mut parameters = Self::default();
        for (key, value) in object.iter().filter(|(_, value)| !value.is_null()) {
            parameters.read_key(key, value)?;
        }
        parameters.validate()?;
        Ok(parameters)
    }

    fn read_key(&mut self, key: &str, value: &Value) -> Result<(), Error> {
        match key {
            "prompts" => self.prompts = Some(prompts(key, value)?),
            "prompt_interpolation_method" => {
                self.prompt_interpolation_method = Some(interpolation(key, value)?)
            }
            "transition" => self.transition = Some(transition(key, value)?),
            "denoising_step_list" => self.denoising_step_list = Some(steps(key, value)?),
            "kv_cache_attention_bias" => {
                self.kv_cache_attention_bias = Some(number(key, value, 0.01, 1.0)? as f32)
            }
            "base_seed" => {
                let whole = || expected(key, value, "a whole number from 0 to 2^64 - 1");
                self.base_seed = Some(integer(key, value).map_err(|_| whole())?);
            }
            "manage_cache" => self.manage_cache = Some(boolean(key, value)?),
            "reset_cache" => self.reset_cache = Some(boolean(key, value)?),
            "paused" => self.paused = Some(boolean(key, value)?),
            "noise_scale" => {
                number(key, value, 0.0, 1.0)?;
                return Err(unsupported(key, "video input is not built"));
            }
            "input_mode" if value == "text" => {}
            "input_mode" => return Err(unsupported(key, "only \"text\" is served")),
            "recording" if value == &Value::Bool(false) => {}
            "height" | "width" => {
                let text = format!("{value}: a size is chosen by pipeline/load, for the sessions after it");
                return Err(unsupported(key, &text));
            }
            _ if WITHOUT_EFFECT.contains(&key) => {}
            // An empty list or object asks for nothing.
            _ if value.as_array().is_some_and(Vec::is_empty)
                || value.as_object().is_some_and(Map::is_empty) => {}
            _ if NOT_BUILT.iter().any(|prefix| key.starts_with(prefix)) => {
                return Err(unsupported(key, "this is not built"));
            }
            _ => {
                let text = format!("the running plan has no such parameter; there are {}", KEYS.join(", "));
                return Err(unsupported(key, &text));
            }
        }
        Ok(())
    }

    /// Checks values that arrived typed, over the broker.
    ///
    /// # Errors
    /// As [`Parameters::from_json`].
    pub fn validate(&self) -> Result<(), Error> {
        if let Some(prompts) = &self.prompts {
            check_prompts("prompts", prompts)?;
        }
        if let Some(transition) = &self.transition {
            check_prompts("transition.target_prompts", &transition.target_prompts)?;
            if transition.num_steps > MAX_TRANSITION_STEPS {
                let steps = transition.num_steps;
                return Err(bad(&format!(
                    "transition.num_steps is {steps}: 0 to {MAX_TRANSITION_STEPS} is allowed"
                )));
            }
        }
        if let Some(steps) = &self.denoising_step_list {
            check_steps(steps)?;
        }
        if let Some(bias) = self.kv_cache_attention_bias
            && !(0.01..=1.0).contains(&bias)
        {
            return Err(bad(&format!("kv_cache_attention_bias is {bias}: 0.01 to 1 is allowed")));
        }
        Ok(())
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes over everything `newer` sets. New prompts cancel a transition that has not started, unless they bring one;
    /// a reset asked for once stays asked for.
    pub fn merge(&mut self, newer: Self) {
        if newer.prompts.is_some() {
            self.transition = None;
        }
        let reset = self.reset_cache == Some(true) || newer.reset_cache == Some(true);
        macro_rules! take {
            ($($field:ident)*) => { $(if newer.$field.is_some() { self.$field = newer.$field; })* };
        }
        take!(prompts prompt_interpolation_method transition denoising_step_list kv_cache_attention_bias base_seed
            manage_cache reset_cache paused);
        if reset {
            self.reset_cache = Some(true);
        }
    }
}

fn bad(text: &str) -> Error {
    Error::new(Reason::BadField, text)
}

fn unsupported(key: &str, why: &str) -> Error {
    Error::new(Reason::UnsupportedParameter, format!("{key}: {why}"))
}

fn expected(key: &str, value: &Value, what: &str) -> Error {
    let mut text = value.to_string();
    if text.len() > 120 {
        text = format!("{}…", text.chars().take(100).collect::<String>());
    }
    bad(&format!("{key} is {text}: {what} is expected"))
}

fn boolean(key: &str, value: &Value) -> Result<bool, Error> {
    value.as_bool().ok_or_else(|| expected(key, value, "true or false"))
}

/// Clients send 700.0 for 700; 700.5 is an error.
fn integer(key: &str, value: &Value) -> Result<u64, Error> {
    let exact = |x: f64| (x.fract() == 0.0 && (0.0..9.0e15).contains(&x)).then_some(x as u64);
    value
        .as_u64()
        .or_else(|| value.as_f64().and_then(exact))
        .ok_or_else(|| expected(key, value, "an integer of at least 0"))
}

fn number(key: &str, value: &Value, low: f64, high: f64) -> Result<f64, Error> {
    value
        .as_f64()
        .filter(|x| (low..=high).contains(x))
        .ok_or_else(|| expected(key, value, &format!("a number from {low} to {high}")))
}

fn steps(key: &str, value: &Value) -> Result<Vec<u32>, Error> {
    let list = value.as_array().ok_or_else(|| expected(key, value, "a list of integers"))?;
    let step = |item| u32::try_from(integer(key, item)?).map_err(|_| expected(key, item, "1 to 1000"));
    list.iter().map(step).collect()
}

fn interpolation(key: &str, value: &Value) -> Result<Interpolation, Error> {
    serde_json::from_value(value.clone()).map_err(|_| expected(key, value, "\"linear\" or \"slerp\""))
}

/// # Errors
/// An object has a key that means nothing there: a slip of the pen would otherwise be a default.
fn only(key: &str, object: &Map<String, Value>, allowed: &[&str]) -> Result<(), Error> {
    match object.keys().find(|found| !allowed.contains(&found.as_str())) {
        Some(found) => Err(bad(&format!("{key} has the key {found:?}: allowed are {}", allowed.join(", ")))),
        None => Ok(()),
    }
}

fn prompts(key: &str, value: &Value) -> Result<Vec<Prompt>, Error> {
    let list = value.as_array().ok_or_else(|| expected(key, value, "a list of {\"text\", \"weight\"}"))?;
    list.iter().enumerate().map(|(at, item)| prompt(&format!("{key}[{at}]"), item)).collect()
}

fn prompt(key: &str, value: &Value) -> Result<Prompt, Error> {
    let object =
        value.as_object().ok_or_else(|| expected(key, value, "{\"text\": string, \"weight\": number}"))?;
    only(key, object, &["text", "weight"])?;
    let text = object.get("text").ok_or_else(|| bad(&format!("{key}.text is missing")))?;
    let text = text.as_str().ok_or_else(|| expected(&format!("{key}.text"), text, "a string"))?;
    let weight = object
        .get("weight")
        .map(|weight| weight.as_f64().ok_or_else(|| expected(&format!("{key}.weight"), weight, "a number")));
    Ok(Prompt { text: text.to_owned(), weight: weight.transpose()?.unwrap_or_else(one) })
}

fn transition(key: &str, value: &Value) -> Result<Transition, Error> {
    let object = value.as_object().ok_or_else(|| expected(key, value, "an object with target_prompts"))?;
    only(key, object, &["target_prompts", "num_steps", "temporal_interpolation_method"])?;
    let target = object.get("target_prompts").ok_or_else(|| bad("transition.target_prompts is missing"))?;
    let method = object.get("temporal_interpolation_method").filter(|method| !method.is_null());
    let count = object.get("num_steps").filter(|count| !count.is_null());
    Ok(Transition {
        target_prompts: prompts("transition.target_prompts", target)?,
        num_steps: count.map_or(Ok(four()), |n| {
            integer("transition.num_steps", n).map(|n| u32::try_from(n).unwrap_or(u32::MAX))
        })?,
        temporal_interpolation_method: method.map_or(Ok(Interpolation::Linear), |m| {
            interpolation("transition.temporal_interpolation_method", m)
        })?,
    })
}

fn check_prompts(key: &str, prompts: &[Prompt]) -> Result<(), Error> {
    if prompts.is_empty() || prompts.len() > MAX_PROMPTS {
        return Err(bad(&format!("{key} has {} entries: 1 to {MAX_PROMPTS} are allowed", prompts.len())));
    }
    for (at, Prompt { text, weight }) in prompts.iter().enumerate() {
        if text.len() > MAX_PROMPT_BYTES {
            let bytes = text.len();
            let text = format!("{key}[{at}].text has {bytes} bytes: {MAX_PROMPT_BYTES} are allowed");
            return Err(bad(&text));
        }
        if !(0.0..=MAX_WEIGHT).contains(weight) {
            return Err(bad(&format!("{key}[{at}].weight is {weight}: 0 to {MAX_WEIGHT} is allowed")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(value: &Value) -> String {
        Parameters::from_json(value).unwrap_err().to_string()
    }

    #[test]
    fn a_refusal_names_the_key_the_value_and_what_is_allowed() {
        assert_eq!(
            refusal(&json!({"noise_scale": 2})),
            "invalid_argument: bad_field: noise_scale is 2: a number from 0 to 1 is expected"
        );
        assert!(
            refusal(&json!({"prompts": ["a fox"]}))
                .starts_with("invalid_argument: bad_field: prompts[0] is \"a fox\"")
        );
        let second = |prompt: Value| refusal(&json!({"prompts": [{"text": "a fox"}, prompt]}));
        assert!(second(json!({"text": 5})).ends_with("prompts[1].text is 5: a string is expected"));
        assert!(second(json!({"weight": 1})).ends_with("prompts[1].text is missing"));
        assert!(second(json!({"text": "", "weight": "1"})).contains("prompts[1].weight is \"1\": a number"));
        assert!(refusal(&json!({"prompts": "a fox"})).contains("a list of"));
        assert!(refusal(&json!({"denoising_step_list": [500, 750]})).contains("bad_steps"));
        assert!(refusal(&json!({"denoising_step_list": [700.5]})).contains("700.5"));
        assert!(refusal(&json!({"prompts": []})).contains("1 to 16"));
        assert!(
            refusal(&json!({"base_seed": -1}))
                .ends_with("base_seed is -1: a whole number from 0 to 2^64 - 1 is expected")
        );
        assert!(refusal(&json!({"prompts": [{"text": "a", "weight": 1e308}]})).contains("0 to 1000000"));
        assert!(refusal(&json!({"no_such_key": 1})).contains("there are prompts, "));
    }

    #[test]
    fn a_slip_of_the_pen_inside_a_parameter_is_not_taken_for_a_default() {
        let prompt = json!({"text": "a fox", "wieght": 3});
        let refused = refusal(&json!({"prompts": [prompt]}));
        assert!(
            refused.ends_with("prompts[0] has the key \"wieght\": allowed are text, weight"),
            "{refused}"
        );
        let transition = json!({"target_prompts": [{"text": "a fox"}], "num_stpes": 2});
        assert!(refusal(&json!({"transition": transition})).contains("num_stpes"));
    }

    #[test]
    fn what_the_plan_cannot_do_is_unsupported_by_name() {
        for value in [
            json!({"vace_ref_images": ["a.png"]}),
            json!({"noise_scale": 0.5}),
            json!({"input_mode": "video"}),
            json!({"recording": true}),
            json!({"height": 320}),
            json!({"no_such_key": 1}),
        ] {
            let key = value.as_object().unwrap().keys().next().unwrap().clone();
            assert!(refusal(&value).starts_with(&format!("unsupported: unsupported_parameter: {key}:")));
        }
        let size = refusal(&json!({"height": 320}));
        assert!(size.contains("320") && size.contains("pipeline/load"), "{size}");
    }

    #[test]
    fn what_existing_clients_always_send_is_accepted() {
        let parsed = Parameters::from_json(&json!({
            "input_mode": "text", "prompts": [{"text": "a fox", "weight": 100}], "denoising_step_list": [1000.0, 750],
            "vace_enabled": false, "vace_context_scale": 1.0, "recording": false, "quantize_mode": "none",
            "lookahead_ms": 0, "lora_scales": [], "noise_scale": null, "graph": {"nodes": []},
        }))
        .unwrap();
        assert_eq!(parsed.prompts.unwrap()[0].weight, 100.0);
        assert_eq!(parsed.denoising_step_list.unwrap(), [1000, 750]);
    }

    #[test]
    fn merging_keeps_the_last_value_and_every_one_shot() {
        let p = |value| Parameters::from_json(&value).unwrap();
        let mut merged = p(json!({"base_seed": 1, "reset_cache": true,
            "transition": {"target_prompts": [{"text": "b"}], "num_steps": 3}}));
        merged.merge(p(json!({"base_seed": 2, "reset_cache": false, "prompts": [{"text": "c"}]})));
        assert_eq!(merged.base_seed, Some(2));
        assert_eq!(merged.reset_cache, Some(true));
        assert_eq!(merged.transition, None);
    }
}
