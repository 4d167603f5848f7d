//! What a scene consists of, which combinations exist, and which of them training never shows.

use rand::Rng;
use rand::seq::IndexedRandom;

macro_rules! attribute {
    ($(#[$doc:meta])* $name:ident { $($value:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($value),+ }

        impl $name {
            /// All values, in the order of their indices.
            pub const ALL: &'static [Self] = &[$(Self::$value),+];

            pub fn index(self) -> usize {
                self as usize
            }

            /// Lower case, for people and tables.
            pub fn name(self) -> String {
                format!("{self:?}").to_lowercase()
            }

            fn any(rng: &mut impl Rng) -> Self {
                *Self::ALL.choose(rng).unwrap_or(&Self::ALL[0])
            }
        }
    };
}

attribute!(
    /// Outline of an object.
    Shape { Circle, Square, Triangle, Star, Ring, Cross }
);
attribute!(
    /// Colour of an object.
    Colour { Red, Orange, Yellow, Green, Cyan, Blue, Purple, Pink, White }
);
attribute!(Size { Small, Medium, Big });
attribute!(
    /// What the main object does, without end.
    Motion { Left, Right, Up, Down, Circling, Bouncing, Spinning, Growing, Still }
);
attribute!(
    /// Kind of background.
    Pattern { Plain, Gradient, Checker, Stars }
);
attribute!(
    /// Colour of the background, darker than any object.
    Tone { Black, Navy, Grey, Maroon, Forest }
);
attribute!(
    /// Where a second object rests.
    Corner { TopLeft, TopRight, BottomLeft, BottomRight }
);

impl Colour {
    /// RGB in 0..=255.
    pub fn rgb(self) -> [f32; 3] {
        match self {
            Self::Red => [225.0, 40.0, 40.0],
            Self::Orange => [245.0, 140.0, 25.0],
            Self::Yellow => [245.0, 225.0, 50.0],
            Self::Green => [50.0, 190.0, 70.0],
            Self::Cyan => [50.0, 215.0, 220.0],
            Self::Blue => [50.0, 90.0, 240.0],
            Self::Purple => [150.0, 60.0, 205.0],
            Self::Pink => [250.0, 130.0, 190.0],
            Self::White => [245.0, 245.0, 245.0],
        }
    }
}

impl Tone {
    /// RGB in 0..=255.
    pub fn rgb(self) -> [f32; 3] {
        match self {
            Self::Black => [12.0, 12.0, 16.0],
            Self::Navy => [18.0, 26.0, 88.0],
            Self::Grey => [100.0, 100.0, 104.0],
            Self::Maroon => [86.0, 20.0, 30.0],
            Self::Forest => [16.0, 66.0, 36.0],
        }
    }
}

impl Size {
    /// Radius in pixels of an object that does not grow.
    pub fn radius(self) -> f32 {
        match self {
            Self::Small => 17.0,
            Self::Medium => 24.0,
            Self::Big => 32.0,
        }
    }
}

impl Corner {
    /// Centre of what rests there, in pixels.
    pub fn position(self) -> (f32, f32) {
        let (near, far) = (22.0, crate::SIDE as f32 - 22.0);
        match self {
            Self::TopLeft => (near, near),
            Self::TopRight => (far, near),
            Self::BottomLeft => (near, far),
            Self::BottomRight => (far, far),
        }
    }
}

/// Radius of a second object, in pixels.
pub const COMPANION_RADIUS: f32 = 14.0;

/// A second object, which rests behind the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Companion {
    pub shape: Shape,
    pub colour: Colour,
    pub corner: Corner,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Background {
    pub pattern: Pattern,
    pub tone: Tone,
}

impl Background {
    pub const COUNT: usize = Pattern::ALL.len() * Tone::ALL.len();

    pub fn index(self) -> usize {
        self.pattern.index() * Tone::ALL.len() + self.tone.index()
    }

    /// All of them, in the order of their indices.
    pub fn all() -> impl Iterator<Item = Self> {
        Pattern::ALL
            .iter()
            .flat_map(|pattern| Tone::ALL.iter().map(|tone| Self { pattern: *pattern, tone: *tone }))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scene {
    pub shape: Shape,
    pub colour: Colour,
    pub size: Size,
    pub motion: Motion,
    pub background: Background,
    pub companion: Option<Companion>,
}

/// Which scenes to draw from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// What training shows.
    Training,
    /// Combinations that training never shows.
    HeldOut,
}

/// Pairs of shape and colour that training never shows, about one in seven.
fn colour_held_out(shape: Shape, colour: Colour) -> bool {
    (colour.index() + 3 * shape.index()) % 7 == 2
}

impl Scene {
    /// Share of scenes with a second object.
    pub const COMPANIONS: f64 = 0.15;

    /// Whether training never shows it: for its pair of shape and colour, or of shape and motion.
    pub fn held_out(&self) -> bool {
        colour_held_out(self.shape, self.colour) || (self.motion.index() + 2 * self.shape.index()) % 11 == 4
    }

    /// Whether it exists: of a round thing nobody can see that it spins.
    pub fn exists(&self) -> bool {
        self.motion != Motion::Spinning || !matches!(self.shape, Shape::Circle | Shape::Ring)
    }

    fn allowed(&self, split: Split) -> bool {
        self.exists() && self.held_out() == (split == Split::HeldOut)
    }

    /// A scene of the split, all attributes drawn evenly before those that do not belong to it are left out.
    pub fn draw(split: Split, rng: &mut impl Rng) -> Self {
        Self::draw_with(split, Self::COMPANIONS, rng)
    }

    /// [`draw`](Self::draw) with another share of second objects.
    pub fn draw_with(split: Split, companions: f64, rng: &mut impl Rng) -> Self {
        loop {
            let companion = rng.random_bool(companions).then(|| {
                loop {
                    let (shape, colour, corner) = (Shape::any(rng), Colour::any(rng), Corner::any(rng));
                    if !colour_held_out(shape, colour) {
                        break Companion { shape, colour, corner };
                    }
                }
            });
            let scene = Self {
                shape: Shape::any(rng),
                colour: Colour::any(rng),
                size: Size::any(rng),
                motion: Motion::any(rng),
                background: Background { pattern: Pattern::any(rng), tone: Tone::any(rng) },
                companion,
            };
            if scene.allowed(split) {
                return scene;
            }
        }
    }

    /// This scene with one attribute, or sometimes all of them, drawn anew.
    pub fn changed(&self, split: Split, rng: &mut impl Rng) -> Self {
        loop {
            let other = Self::draw(split, rng);
            let mut scene = *self;
            match rng.random_range(0..8) {
                0 | 1 => scene.colour = other.colour,
                2 | 3 => scene.shape = other.shape,
                4 => scene.motion = other.motion,
                5 => scene.background = other.background,
                6 => scene.size = other.size,
                _ => scene = other,
            }
            if scene != *self && scene.allowed(split) {
                return scene;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn training_never_shows_what_is_held_out_and_every_value_is_shown() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let scenes: Vec<_> = (0..5000).map(|_| Scene::draw(Split::Training, &mut rng)).collect();
        assert!(scenes.iter().all(|scene| !scene.held_out() && scene.exists()));
        assert!(Shape::ALL.iter().all(|value| scenes.iter().any(|scene| scene.shape == *value)));
        assert!(Colour::ALL.iter().all(|value| scenes.iter().any(|scene| scene.colour == *value)));
        assert!(Motion::ALL.iter().all(|value| scenes.iter().any(|scene| scene.motion == *value)));
        assert!(Background::all().all(|value| scenes.iter().any(|scene| scene.background == value)));
        let changed: Vec<_> = scenes.iter().map(|s| s.changed(Split::Training, &mut rng)).collect();
        assert!(changed.iter().zip(&scenes).all(|(new, old)| !new.held_out() && new != old));
    }

    #[test]
    fn about_a_quarter_of_the_combinations_is_held_out() {
        let mut held = 0;
        let mut all = 0;
        for shape in Shape::ALL {
            for colour in Colour::ALL {
                for motion in Motion::ALL {
                    let background = Background { pattern: Pattern::Plain, tone: Tone::Black };
                    let (shape, colour, motion) = (*shape, *colour, *motion);
                    let scene =
                        Scene { shape, colour, size: Size::Small, motion, background, companion: None };
                    all += usize::from(scene.exists());
                    held += usize::from(scene.exists() && scene.held_out());
                }
            }
        }
        assert!((10..35).contains(&(100 * held / all)), "{held} of {all}");
    }
}
