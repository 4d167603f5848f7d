//! The lies, and how a worker is put together that tells one.

use std::str::FromStr;
use std::sync::Arc;

use contract::{Error, Reason};
use engine::settings::RankSettings;
use engine::{Engine, meet};
use wan::weights::Weights;

use crate::collective::{Forged, Forger};

/// `count:N` and `digest:N` lie from the N-th run on, so that a mesh forms and serves before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// One generator call more than were made.
    Count { after: u32 },
    /// Another output than was computed.
    Digest { after: u32 },
    /// The shard of another checkpoint under the fingerprint of the right one.
    Weights,
    /// It knows one size alone, and refuses plans of the others.
    Sizes,
}

impl Lie {
    pub(crate) fn tell(self, mut rank: RankSettings) -> Result<(Engine, RankSettings), Error> {
        let forged = match self {
            Self::Count { after } => Some((Forged::Count, after)),
            Self::Digest { after } => Some((Forged::Digest, after)),
            Self::Weights => {
                rank.engine.weights = Weights::Synthetic { seed: 43 };
                None
            }
            Self::Sizes => {
                rank.model.sizes.truncate(1);
                None
            }
        };
        let engine = match forged {
            None => Engine::spawn(rank.engine.clone())?,
            Some((forged, after)) => {
                let around = move |group, device| {
                    Ok(Arc::new(Forger::new(meet(group, device)?, forged, after)) as Arc<_>)
                };
                Engine::spawn_with(rank.engine.clone(), Box::new(around))?
            }
        };
        Ok((engine, rank))
    }
}

impl FromStr for Lie {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let after = |text: &str| text.parse::<u32>().ok();
        let lie = match text.split_once(':') {
            None if text == "weights" => Some(Self::Weights),
            None if text == "sizes" => Some(Self::Sizes),
            Some(("count", runs)) => after(runs).map(|after| Self::Count { after }),
            Some(("digest", runs)) => after(runs).map(|after| Self::Digest { after }),
            _ => None,
        };
        lie.ok_or_else(|| {
            let text = format!("lie {text:?}: count:RUNS, digest:RUNS, weights or sizes is allowed");
            Error::new(Reason::BadField, text)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lies_are_named_and_unknown_ones_refused_with_the_allowed() {
        assert_eq!("count:6".parse::<Lie>().unwrap(), Lie::Count { after: 6 });
        assert_eq!("weights".parse::<Lie>().unwrap(), Lie::Weights);
        assert!("count".parse::<Lie>().unwrap_err().message.contains("count:RUNS"));
    }
}
