//! Text to ids.

use super::TextError;
use crate::weights::Weights;
use std::path::{Path, PathBuf};

/// Where the tokenizer comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerSource {
    /// UTF-8 bytes as ids 3 to 258, after padding 0, end 1 and unknown 2; for models without a vocabulary of their own.
    Bytes,
    /// A `tokenizer.json` of the Hugging Face tokenizers library, such as UMT5's.
    File(PathBuf),
}

impl TokenizerSource {
    /// What goes with weights: bytes with synthetic ones, the `tokenizer.json` in the folder of a checkpoint.
    pub fn beside(weights: &Weights) -> Self {
        match weights {
            Weights::Synthetic { .. } => Self::Bytes,
            Weights::Checkpoint { path } => {
                let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) };
                Self::File(folder.join("tokenizer.json"))
            }
        }
    }
}

/// Id of the mark that ends every prompt, in T5 vocabularies and in the byte one.
const END: i64 = 1;
/// Id of byte 0.
const FIRST_BYTE: i64 = 3;

#[derive(Debug)]
pub(super) enum Tokenizer {
    Bytes,
    Library(Box<tokenizers::Tokenizer>),
}

impl Tokenizer {
    pub(super) fn open(source: TokenizerSource) -> Result<Self, TextError> {
        match source {
            TokenizerSource::Bytes => Ok(Self::Bytes),
            TokenizerSource::File(path) => match tokenizers::Tokenizer::from_file(&path) {
                Ok(mut tokenizer) => {
                    // Length is this module's business: a file may ask for padding or for another limit.
                    tokenizer.with_padding(None);
                    if let Err(error) = tokenizer.with_truncation(None) {
                        return Err(TextError::Tokenizer { path, what: error.to_string() });
                    }
                    Ok(Self::Library(Box::new(tokenizer)))
                }
                Err(error) => Err(TextError::Tokenizer { path, what: error.to_string() }),
            },
        }
    }

    /// Ids of a prompt, at least one and at most `limit`, the last of them the end mark.
    pub(super) fn ids(&self, prompt: &str, limit: usize) -> Result<Vec<i64>, TextError> {
        let text = prompt.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut ids: Vec<i64> = match self {
            Self::Bytes => text.bytes().map(|byte| i64::from(byte) + FIRST_BYTE).collect(),
            Self::Library(tokenizer) => {
                let encoding = tokenizer
                    .encode(text, false)
                    .map_err(|error| TextError::Tokenize { what: error.to_string() })?;
                encoding.get_ids().iter().map(|id| i64::from(*id)).collect()
            }
        };
        ids.truncate(limit.saturating_sub(1));
        ids.push(END);
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_follow_the_special_ids_and_the_end_mark_closes() {
        let ids = Tokenizer::Bytes.ids("aä", 10).unwrap();
        assert_eq!(
            ids,
            [b'a'.into(), 0xc3, 0xa4].map(|b: i64| b + 3).into_iter().chain([1]).collect::<Vec<_>>()
        );
    }

    #[test]
    fn white_space_is_folded_and_an_empty_prompt_is_only_the_end_mark() {
        let ids = |text| Tokenizer::Bytes.ids(text, 10).unwrap();
        assert_eq!(ids(" a \n\t b "), ids("a b"));
        assert_eq!(ids("  "), [1]);
    }

    #[test]
    fn a_prompt_over_the_limit_keeps_its_start_and_the_end_mark() {
        let long = "x".repeat(50);
        let ids = Tokenizer::Bytes.ids(&long, 8).unwrap();
        assert_eq!(ids.len(), 8);
        assert_eq!(ids[7], 1);
        assert!(ids[..7].iter().all(|id| *id == i64::from(b'x') + 3));
    }

    #[test]
    fn a_missing_tokenizer_file_is_named() {
        let error = Tokenizer::open(TokenizerSource::File("no/such/tokenizer.json".into())).unwrap_err();
        assert!(error.to_string().contains("no/such/tokenizer.json"), "{error}");
    }

    #[test]
    fn a_library_tokenizer_is_read_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let json = r#"{
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "cat": 4},
                      "unk_token": "<unk>"}
        }"#;
        std::fs::write(&path, json).unwrap();
        let tokenizer = Tokenizer::open(TokenizerSource::File(path)).unwrap();
        assert_eq!(tokenizer.ids("a  cat sat", 10).unwrap(), [3, 4, 2, 1]);
    }
}
