//! What was measured, for the model card and for programs.

use std::fmt;

use demo_world::measure::{Score, Seen};
use demo_world::scene::Scene;
use serde_json::{Map, Value, json};

/// What is read off a clip, in the order of all tables.
pub const ATTRIBUTES: [&str; 4] = ["colour", "shape", "motion", "background"];

/// Which of the attributes are as the scene says.
#[must_use]
pub fn right(scene: &Scene, seen: &Seen) -> [bool; 4] {
    [
        seen.colour == Some(scene.colour),
        seen.shape == Some(scene.shape),
        seen.motion == Some(scene.motion),
        seen.background == scene.background,
    ]
}

/// A line of the card's table, in percent; `None` where nothing of the kind was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub what: String,
    pub clips: usize,
    pub percent: [Option<f64>; 4],
}

impl Row {
    #[must_use]
    pub fn of(what: &str, score: &Score) -> Self {
        let counts = [score.colour, score.shape, score.motion, score.background];
        let percent = counts.map(|count| (score.clips > 0).then(|| score.percent(count)));
        Self { what: what.to_owned(), clips: score.clips, percent }
    }

    /// How much more than another row, in points.
    #[must_use]
    pub fn minus(&self, other: &Self, what: &str) -> Self {
        let less = |n: usize| Some(self.percent[n]? - other.percent[n]?);
        Self { what: what.to_owned(), clips: self.clips, percent: std::array::from_fn(less) }
    }

    fn json(&self) -> Value {
        let rounded = |value: f64| (value * 10.0).round() / 10.0;
        let named = ATTRIBUTES.iter().zip(self.percent);
        let mut fields: Map<String, Value> =
            named.map(|(name, percent)| ((*name).to_owned(), json!(percent.map(rounded)))).collect();
        fields.insert("clips".to_owned(), json!(self.clips));
        Value::Object(fields)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "| {} | {} |", self.what, self.clips)?;
        for percent in self.percent {
            match percent {
                Some(percent) => write!(f, " {percent:.1} |")?,
                None => write!(f, " |")?,
            }
        }
        Ok(())
    }
}

/// All that was measured about one question.
#[derive(Clone, Debug, PartialEq)]
pub struct Section {
    pub name: &'static str,
    pub rows: Vec<Row>,
    /// What is no percentage of an attribute: a sentence for people, and its numbers.
    pub remark: Option<(String, Value)>,
}

impl Section {
    /// The head of the card's table.
    #[must_use]
    pub fn head() -> String {
        format!("| what, in % | clips | {} |\n| --- | --- | --- | --- | --- | --- |", ATTRIBUTES.join(" | "))
    }

    /// One object with all conditions.
    #[must_use]
    pub fn json(&self, conditions: &Value) -> Value {
        let rows: Map<String, Value> = self.rows.iter().map(|row| (row.what.clone(), row.json())).collect();
        let remark = self.remark.as_ref().map(|(_, numbers)| numbers);
        json!({"score": self.name, "conditions": conditions, "rows": rows, "more": remark})
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let rows: Vec<String> = self.rows.iter().map(Row::to_string).collect();
        write!(f, "{}", rows.join("\n"))?;
        match &self.remark {
            Some((text, _)) => write!(f, "{}{text}", if rows.is_empty() { "" } else { "\n\n" }),
            None => Ok(()),
        }
    }
}
