//! What becomes of many measurements.

use serde_json::{Value, json};

/// Median and 95th percentile by nearest rank; zeros where nothing was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Summary {
    pub(crate) count: usize,
    pub(crate) median: f64,
    pub(crate) p95: f64,
}

impl Summary {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let Some(last) = values.len().checked_sub(1) else { return Self::default() };
        let at = |quantile: f64| values[(last as f64 * quantile).round() as usize];
        Self { count: values.len(), median: at(0.5), p95: at(0.95) }
    }

    pub(crate) fn json(self) -> Value {
        json!({"count": self.count, "median": self.median, "p95": self.p95})
    }
}

#[cfg(test)]
mod tests {
    use super::Summary;

    #[test]
    fn the_median_is_in_the_middle_and_the_95th_percentile_near_the_end() {
        let hundred = Summary::of((0..=100).rev().map(f64::from));
        assert_eq!(hundred, Summary { count: 101, median: 50.0, p95: 95.0 });
        assert_eq!(Summary::of([7.0]), Summary { count: 1, median: 7.0, p95: 7.0 });
        assert_eq!(Summary::of([]), Summary::default());
    }
}
