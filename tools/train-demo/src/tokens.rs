//! The tokenizer of the captions: whole words in lower case, punctuation apart.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use demo_world::caption::{Style, caption};
use demo_world::scene::{Scene, Split};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tch::Tensor;
use tokenizers::Tokenizer;

/// Captions that the words are counted in.
const CAPTIONS: usize = 60_000;
const END: i64 = 1;
pub const UNKNOWN: i64 = 2;

/// Counts the words of captions and writes a `tokenizer.json` of at most `vocabulary` entries.
///
/// # Errors
/// The captions have more words, or the file cannot be written.
pub fn train(seed: u64, vocabulary: usize, path: &Path) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for n in 0..CAPTIONS {
        let scene = Scene::draw(Split::Training, &mut rng);
        let style = if n % 2 == 0 { Style::Varied } else { Style::Rephrased };
        for word in caption(&scene, style, &mut rng).to_lowercase().split_whitespace() {
            let (word, mark) = match word.char_indices().last() {
                Some((at, mark)) if mark.is_ascii_punctuation() => (&word[..at], Some(mark)),
                _ => (word, None),
            };
            *counts.entry(word.to_owned()).or_default() += 1;
            if let Some(mark) = mark {
                *counts.entry(mark.to_string()).or_default() += 1;
            }
        }
    }
    let mut words: Vec<_> = counts.into_iter().collect();
    words.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    ensure!(
        words.len() + 3 <= vocabulary,
        "{} words do not fit into a vocabulary of {vocabulary}",
        words.len()
    );
    let special = ["<pad>", "</s>", "<unk>"].map(str::to_owned);
    let vocab: serde_json::Map<String, serde_json::Value> = special
        .into_iter()
        .chain(words.into_iter().map(|(word, _)| word))
        .enumerate()
        .map(|(id, word)| (word, json!(id)))
        .collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    });
    std::fs::write(path, serde_json::to_string_pretty(&file)? + "\n")
        .with_context(|| path.display().to_string())
}

/// Captions to ids, as the server's encoder makes them.
#[derive(Debug)]
pub struct Captions {
    tokenizer: Tokenizer,
    length: usize,
}

impl Captions {
    /// # Errors
    /// The file cannot be read.
    pub fn open(path: &Path, length: i64) -> Result<Self> {
        let tokenizer = Tokenizer::from_file(path).map_err(|e| anyhow!("{}: {e}", path.display()))?;
        Ok(Self { tokenizer, length: usize::try_from(length)? })
    }

    /// Ids of one text, the end mark last, then zeros.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn ids(&self, text: &str) -> Result<Vec<i64>> {
        let encoding = self.tokenizer.encode(text, false).map_err(|e| anyhow!("{e}"))?;
        let mut ids: Vec<i64> = encoding.get_ids().iter().map(|id| i64::from(*id)).collect();
        ids.truncate(self.length - 1);
        ids.push(END);
        ids.resize(self.length, 0);
        Ok(ids)
    }

    /// `[B, L]` int64, on the CPU.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn batch(&self, texts: &[String]) -> Result<Tensor> {
        let ids = texts.iter().map(|text| self.ids(text)).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::from_slice(&ids.concat()).view([texts.len() as i64, -1]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage_vae::read_config;

    #[test]
    fn the_examples_that_the_model_offers_are_of_words_that_it_knows() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
        let config = read_config(&folder.join("config.json")).unwrap();
        let captions = Captions::open(&folder.join("tokenizer.json"), config.text.text_len).unwrap();
        assert!(config.examples.len() > 3, "{:?}", config.examples);
        for example in &config.examples {
            let ids = captions.ids(example).unwrap();
            assert!(!ids.contains(&UNKNOWN) && ids.contains(&END), "{example}: {ids:?}");
        }
    }
}
