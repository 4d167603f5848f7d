//! A pipeline's schema, built from what the cell says about its model.

use contract::model::ModelInfo;
use serde_json::{Value, json};

/// `{id: schema}` in the form that existing pages read.
pub(super) fn pipelines(model: &ModelInfo) -> Value {
    json!({ &model.name: pipeline(model) })
}

fn pipeline(model: &ModelInfo) -> Value {
    let sizes: Vec<String> = model.sizes.iter().map(ToString::to_string).collect();
    json!({
        "id": model.name,
        "name": model.name,
        "description": format!("causal video diffusion, served at {}", sizes.join(", ")),
        "version": "1.0.0",
        "supported_modes": ["text"],
        "default_mode": "text",
        "supports_prompts": true,
        "default_temporal_interpolation_method": "linear",
        "default_temporal_interpolation_steps": 4,
        "default_spatial_interpolation_method": "linear",
        "docs_url": null,
        "estimated_vram_gb": null,
        "requires_models": false,
        "supports_lora": false,
        "supports_vace": false,
        "supports_cache_management": true,
        "supports_kv_cache_bias": model.recompute,
        "supports_quantization": false,
        "min_dimension": model.spatial_stride * 2,
        "recommended_quantization_vram_threshold": null,
        "modified": true,
        "produces_video": true,
        "produces_audio": false,
        "usage": [],
        "inputs": [],
        "outputs": ["video"],
        "config_schema": config_schema(model),
        "plugin_name": null,
    })
}

fn config_schema(model: &ModelInfo) -> Value {
    let default = model.default_size();
    let side = |pick: fn(&contract::model::Size) -> u32| {
        let mut sides: Vec<u32> = model.sizes.iter().map(pick).collect();
        sides.sort_unstable();
        sides.dedup();
        json!({"type": "integer", "default": default.as_ref().map(pick), "enum": sides, "minimum": 1,
            "ui": ui(4, "resolution", true)})
    };
    json!({
        "type": "object",
        "title": model.name,
        "additionalProperties": false,
        "$defs": {},
        "properties": {
            "height": side(|size| size.height),
            "width": side(|size| size.width),
            "manage_cache": {"type": "boolean", "default": true, "ui": ui(5, "cache", true)},
            "base_seed": {"type": "integer", "default": 42, "minimum": 0,
                "ui": {"category": "configuration", "order": 5, "is_load_param": true, "label": "Seed"}},
            "denoising_steps": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 1000},
                "default": model.default_steps, "ui": ui(6, "denoising_steps", true)},
        },
    })
}

fn ui(order: u32, component: &str, is_load_param: bool) -> Value {
    json!({"category": "configuration", "order": order, "component": component, "is_load_param": is_load_param})
}
