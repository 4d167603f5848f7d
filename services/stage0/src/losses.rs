//! Access units that could not be published, told once for each time that it goes wrong. Pure.

/// What is worth telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Began,
    /// With the number that was lost meanwhile.
    Ended(u64),
}

#[derive(Debug, Default)]
pub(crate) struct Losses(u64);

impl Losses {
    /// Another access unit went out, or did not.
    pub(crate) fn note(&mut self, lost: bool) -> Option<Told> {
        match (lost, self.0) {
            (true, before) => {
                self.0 += 1;
                (before == 0).then_some(Told::Began)
            }
            (false, 0) => None,
            (false, count) => {
                self.0 = 0;
                Some(Told::Ended(count))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_told_when_it_begins_and_with_its_cost_when_it_ends() {
        let mut losses = Losses::default();
        let told = [false, true, true, true, false, false, true, false].map(|lost| losses.note(lost));
        let began = Some(Told::Began);
        assert_eq!(told, [None, began, None, None, Some(Told::Ended(3)), None, began, Some(Told::Ended(1))]);
    }
}
