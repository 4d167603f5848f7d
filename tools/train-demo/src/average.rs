//! The mean of weights that were trained from the same start: as good as the better of them, or a little better (model
//! soups, arXiv 2203.05482). So two GPUs can train at the same time without talking to each other.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tch::{Kind, Tensor};

const FILES: [&str; 2] = ["dit.safetensors", "text.safetensors"];

/// Writes the mean of the transformers and text encoders in `folders` to `out`, in f16.
///
/// # Errors
/// A file cannot be read or written, or the folders hold different networks.
pub fn run(folders: &[PathBuf], out: &Path) -> Result<()> {
    std::fs::create_dir_all(out)?;
    for file in FILES {
        let mut sums: Vec<(String, Tensor)> = Vec::new();
        for folder in folders {
            let path = folder.join(file);
            let read =
                Tensor::read_safetensors(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let read = read.into_iter().map(|(name, tensor)| (name, tensor.to_kind(Kind::Float)));
            if sums.is_empty() {
                sums = read.collect();
                continue;
            }
            let mut found: HashMap<String, Tensor> = read.collect();
            for (name, sum) in &mut sums {
                let other = found.remove(name).filter(|other| other.size() == sum.size());
                *sum += other.with_context(|| format!("{}: no {name} of that shape", path.display()))?;
            }
            ensure!(found.is_empty(), "{}: of another network", path.display());
        }
        let count = folders.len() as f64;
        let means: Vec<(&str, Tensor)> =
            sums.iter().map(|(name, sum)| (name.as_str(), (sum / count).to_kind(Kind::Half))).collect();
        let path = out.join(file);
        Tensor::write_safetensors(&means, &path)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(folder: &Path, name: &str, values: &[f32]) {
        std::fs::create_dir_all(folder).unwrap();
        for file in FILES {
            let tensor = Tensor::from_slice(values).to_kind(Kind::Half);
            Tensor::write_safetensors(&[(name, tensor)], folder.join(file)).unwrap();
        }
    }

    #[test]
    fn every_value_is_the_mean_and_other_networks_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b, c, out] = ["a", "b", "c", "out"].map(|name| folder.path().join(name));
        written(&a, "w", &[1.0, -2.0]);
        written(&b, "w", &[2.0, 4.0]);
        written(&c, "w", &[1.0]);
        run(&[a.clone(), b], &out).unwrap();
        let read = Tensor::read_safetensors(out.join("dit.safetensors")).unwrap();
        assert_eq!((read[0].0.as_str(), Vec::<f32>::try_from(&read[0].1).unwrap()), ("w", vec![1.5, 1.0]));
        let error = run(&[a, c], &out).unwrap_err().to_string();
        assert!(error.ends_with("no w of that shape"), "{error}");
    }
}
