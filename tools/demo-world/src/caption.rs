//! Scenes in words.
//!
//! Every caption names colour, shape and motion, and the background unless it is plain black. A size is named unless it is
//! the middle one. Words of one meaning are drawn evenly, so that none is special.

use rand::Rng;
use rand::seq::IndexedRandom;

use crate::scene::{Background, Colour, Companion, Corner, Motion, Pattern, Scene, Shape, Size, Tone};

/// How freely a caption is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// One sentence form, the first word for everything.
    Plain,
    /// The sentence forms and all the words of training.
    Varied,
    /// Sentence forms that training never shows, with all the words.
    Rephrased,
}

fn colours(colour: Colour) -> &'static [&'static str] {
    match colour {
        Colour::Red => &["red", "crimson", "scarlet"],
        Colour::Orange => &["orange", "amber"],
        Colour::Yellow => &["yellow", "golden"],
        Colour::Green => &["green", "emerald"],
        Colour::Cyan => &["cyan", "turquoise", "aqua"],
        Colour::Blue => &["blue", "azure"],
        Colour::Purple => &["purple", "violet"],
        Colour::Pink => &["pink", "rose"],
        Colour::White => &["white", "snowy"],
    }
}

fn shapes(shape: Shape) -> &'static [&'static str] {
    match shape {
        Shape::Circle => &["circle", "disc", "ball", "dot"],
        Shape::Square => &["square", "box", "block"],
        Shape::Triangle => &["triangle", "pyramid"],
        Shape::Star => &["star"],
        Shape::Ring => &["ring", "hoop", "donut"],
        Shape::Cross => &["cross", "plus"],
    }
}

fn sizes(size: Size) -> &'static [&'static str] {
    match size {
        Size::Small => &["small", "little", "tiny"],
        Size::Medium => &["", "", "medium"],
        Size::Big => &["big", "large", "huge"],
    }
}

fn tones(tone: Tone) -> &'static [&'static str] {
    match tone {
        Tone::Black => &["black", "pitch black"],
        Tone::Navy => &["dark blue", "navy", "navy blue", "midnight blue"],
        Tone::Grey => &["grey", "gray"],
        Tone::Maroon => &["dark red", "maroon"],
        Tone::Forest => &["dark green", "forest green"],
    }
}

/// In the form that follows a noun.
fn motions(motion: Motion) -> &'static [&'static str] {
    match motion {
        Motion::Left => &[
            "moving left",
            "drifting to the left",
            "sliding left",
            "going left",
            "flying leftwards",
            "that moves left",
        ],
        Motion::Right => &[
            "moving right",
            "drifting to the right",
            "sliding right",
            "going right",
            "flying rightwards",
            "that moves right",
        ],
        Motion::Up => {
            &["moving up", "rising", "drifting upwards", "going up", "floating up", "that moves up"]
        }
        Motion::Down => {
            &["moving down", "falling", "drifting downwards", "going down", "sinking", "that moves down"]
        }
        Motion::Circling => {
            &["circling", "orbiting", "going round in circles", "moving in a circle", "that circles around"]
        }
        Motion::Bouncing => &["bouncing", "jumping up and down", "hopping", "that bounces"],
        Motion::Spinning => {
            &["spinning", "rotating", "turning around", "that spins", "that rotates in place"]
        }
        Motion::Growing => &["growing", "getting bigger", "expanding", "swelling", "that grows"],
        Motion::Still => &["standing still", "resting", "not moving", "staying still", "at rest", ""],
    }
}

/// In the form that follows an object; `{t}` stands for the tone.
fn grounds(pattern: Pattern) -> &'static [&'static str] {
    match pattern {
        Pattern::Plain => {
            &["on a {t} background", "on plain {t}", "on {t}", "in front of a {t} wall", "against {t}"]
        }
        Pattern::Gradient => &[
            "on a {t} gradient",
            "on a {t} gradient background",
            "over fading {t}",
            "on a {t} to light gradient",
        ],
        Pattern::Checker => &[
            "on a {t} checkerboard",
            "on a {t} chequered floor",
            "on {t} checks",
            "over {t} tiles",
            "on a {t} chessboard",
        ],
        Pattern::Stars => &[
            "on a {t} starry sky",
            "under a {t} sky with stars",
            "on a {t} night sky",
            "on a {t} sky",
            "in {t} outer space",
        ],
    }
}

fn corners(corner: Corner) -> &'static str {
    match corner {
        Corner::TopLeft => "top left",
        Corner::TopRight => "top right",
        Corner::BottomLeft => "bottom left",
        Corner::BottomRight => "bottom right",
    }
}

/// Draws words.
struct Words<'a, R> {
    rng: &'a mut R,
    plain: bool,
}

impl<R: Rng> Words<'_, R> {
    fn one(&mut self, of: &[&'static str]) -> &'static str {
        if self.plain {
            return of.first().copied().unwrap_or_default();
        }
        of.choose(self.rng).copied().unwrap_or_default()
    }

    fn object(&mut self, scene: &Scene) -> String {
        let (size, colour) = (self.one(sizes(scene.size)), self.one(colours(scene.colour)));
        format!("a {size} {colour} {}", self.one(shapes(scene.shape)))
    }

    fn ground(&mut self, background: Background) -> String {
        let plain_black = Background { pattern: Pattern::Plain, tone: Tone::Black };
        if background == plain_black && !self.plain && self.rng.random_bool(0.3) {
            return String::new();
        }
        let (ground, tone) = (self.one(grounds(background.pattern)), self.one(tones(background.tone)));
        ground.replace("{t}", tone)
    }

    fn companion(&mut self, companion: Option<Companion>) -> String {
        let Some(Companion { shape, colour, corner }) = companion else { return String::new() };
        let (colour, shape, corner) = (self.one(colours(colour)), self.one(shapes(shape)), corners(corner));
        let with = self.one(&["with", "and", "beside"]);
        let at = self.one(&["in the {c} corner", "at the {c}", "in the {c}"]).replace("{c}", corner);
        format!("{with} a {colour} {shape} {at}")
    }
}

/// A caption of the scene.
pub fn caption(scene: &Scene, style: Style, rng: &mut impl Rng) -> String {
    caption_and_main(scene, style, rng).0
}

/// A caption of the scene, and what is left of it without the second object.
pub fn caption_and_main(scene: &Scene, style: Style, rng: &mut impl Rng) -> (String, String) {
    let mut words = Words { rng, plain: style == Style::Plain };
    let (object, motion) = (words.object(scene), words.one(motions(scene.motion)));
    let (ground, second) = (words.ground(scene.background), words.companion(scene.companion));
    let form = match style {
        Style::Plain => 0,
        Style::Varied => words.rng.random_range(0..8),
        Style::Rephrased => words.rng.random_range(8..12),
    };
    let text = match form {
        0 | 1 => format!("{object} {motion} {ground} {second}"),
        2 => format!("{ground} {object} {motion} {second}"),
        3 => format!("{object} {ground} {motion}, {second}"),
        4 => format!("{motion}: {object} {ground}, {second}"),
        5 => format!("a video of {object} {motion} {ground}, {second}"),
        6 => {
            // Attributes after the noun.
            let (shape, colour) = (words.one(shapes(scene.shape)), words.one(colours(scene.colour)));
            let size = words.one(sizes(scene.size));
            let comma = if size.is_empty() { "" } else { ", " };
            format!("a {shape}, {colour}{comma}{size}, {motion} {ground}, {second}")
        }
        7 => format!("{second}, {object} {motion}, {ground}"),
        8 => format!("{ground}, {motion}: {object}, {second}"),
        9 => format!("there is {object}; it is {motion} {ground} {second}"),
        10 => format!("{ground} {second}, {motion} {object}"),
        _ => {
            let (shape, colour) = (words.one(shapes(scene.shape)), words.one(colours(scene.colour)));
            let size = words.one(sizes(scene.size));
            format!("{motion} {ground} {second}: a {shape}. its colour is {colour}. {size}")
        }
    };
    let main = if second.is_empty() { text.clone() } else { text.replace(&second, "") };
    (tidy(&text), tidy(&main))
}

/// Single spaces, and no punctuation without words around it.
fn tidy(text: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let mark = |c: char| matches!(c, ',' | ':' | ';' | '.');
        if word.chars().all(mark) {
            continue;
        }
        words.push(word.to_owned());
    }
    let text = words.join(" ");
    text.trim_matches(|c: char| matches!(c, ',' | ':' | ';' | ' ')).to_owned()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::scene::Split;

    #[test]
    fn the_main_part_is_the_caption_without_the_second_object() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for style in [Style::Plain, Style::Varied, Style::Rephrased] {
            for _ in 0..500 {
                let scene = Scene::draw_with(Split::Training, 0.5, &mut rng);
                let (text, main) = caption_and_main(&scene, style, &mut rng);
                assert!(!main.contains("in the top") && !main.contains("at the bottom"), "{main:?}");
                let mut words = text.split_whitespace();
                let in_order = main.split_whitespace().all(|word| {
                    words.any(|other| other.trim_end_matches([',', '.']) == word.trim_end_matches([',', '.']))
                });
                assert!(in_order, "{main:?} of {text:?}");
                assert_eq!(scene.companion.is_none(), text == main, "{text:?}");
            }
        }
    }

    #[test]
    fn a_caption_names_every_attribute_of_its_scene_in_any_style() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for style in [Style::Plain, Style::Varied, Style::Rephrased] {
            for _ in 0..2000 {
                let scene = Scene::draw(Split::Training, &mut rng);
                let text = caption(&scene, style, &mut rng);
                let names = |words: &[&str]| words.iter().any(|word| text.contains(word));
                assert!(names(colours(scene.colour)), "{text}: {scene:?}");
                assert!(names(shapes(scene.shape)), "{text}: {scene:?}");
                assert!(names(motions(scene.motion)), "{text}: {scene:?}");
                assert!(names(sizes(scene.size)), "{text}: {scene:?}");
                let black = scene.background.tone == Tone::Black;
                assert!(black || names(tones(scene.background.tone)), "{text}: {scene:?}");
                let second = scene.companion.is_none_or(|c| names(&[corners(c.corner)]));
                assert!(second && text.split_whitespace().count() < 30, "{text}: {scene:?}");
            }
        }
    }

    #[test]
    fn words_mean_one_thing() {
        let mut meanings = std::collections::HashMap::new();
        let mut note = |words: &'static [&'static str], meaning: String| {
            for word in words.iter().filter(|word| !word.is_empty() && **word != "medium") {
                let before = meanings.insert(*word, meaning.clone());
                assert!(before.is_none_or(|before| before == meaning), "{word} means {meaning} as well");
            }
        };
        Colour::ALL.iter().for_each(|value| note(colours(*value), format!("{value:?}")));
        Shape::ALL.iter().for_each(|value| note(shapes(*value), format!("{value:?}")));
        Motion::ALL.iter().for_each(|value| note(motions(*value), format!("{value:?}")));
        Size::ALL.iter().for_each(|value| note(sizes(*value), format!("{value:?}")));
    }
}
