//! The canonical form of a state, so that two states with the same future count as one.
//!
//! What a machine prints of itself is its whole state: `Debug` is derived, so nothing is left out. In that text, instants
//! are taken relative to now, and what lies further back than any timer reaches is just "long ago"; counters that only
//! grow are replaced by their rank among all that are still about; identities by the order in which they appear; and
//! texts and figures for people by nothing, since no machine reads those.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

/// Of one machine or message, in its own numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Print {
    /// Hash of the text without its tokens.
    skeleton: u64,
    tokens: Vec<Token>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Token {
    /// Nanoseconds on the monotonic clock.
    Instant(i128),
    /// Which counter, and its value.
    Counter(u8, u64),
    /// Hash of an identity.
    Name(u64),
}

/// Counters that only grow and are only compared.
const COUNTERS: [&str; 5] = ["CallId", "PlanId", "MeshEpoch", "LeaseEpoch", "CacheEpoch"];

/// Identities that are only compared for equality.
const NAMES: [&str; 3] = ["InstanceId", "Ticket", "Life"];

/// What does not change while a world is explored, and what is only ever shown to people.
const LEFT_OUT: [&str; 9] =
    ["parity", "model", "timing", "timings", "last_fault", "last_error", "plan_us", "go_us", "started"];

thread_local! {
    /// Printing is what the search spends its time on.
    static TEXT: RefCell<String> = const { RefCell::new(String::new()) };
}

impl Print {
    pub(crate) fn of(what: &impl Debug) -> Self {
        TEXT.with_borrow_mut(|text| {
            text.clear();
            write!(text, "{what:?}").expect("a string takes everything");
            let mut reader =
                Reader { text: text.as_bytes(), at: 0, hash: DefaultHasher::new(), tokens: Vec::new() };
            reader.read();
            Self { skeleton: reader.hash.finish(), tokens: reader.tokens }
        })
    }
}

#[derive(PartialEq)]
enum Word {
    Plain,
    Token(Token),
    /// With the value that follows it.
    LeftOut,
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    hash: DefaultHasher,
    tokens: Vec<Token>,
}

impl<'a> Reader<'a> {
    fn read(&mut self) {
        let mut kept = 0;
        while self.at < self.text.len() {
            let start = self.at;
            match self.text[start] {
                b'"' => {
                    self.hash.write(&self.text[kept..start]);
                    self.string(start);
                    kept = self.at;
                }
                c if c.is_ascii_alphabetic() => {
                    let word = self.word();
                    if word != Word::Plain {
                        self.hash.write(&self.text[kept..start]);
                        kept = self.at;
                    }
                    if let Word::Token(token) = word {
                        self.hash.write_u8(b'#');
                        self.tokens.push(token);
                    }
                }
                _ => self.at += 1,
            }
        }
        self.hash.write(&self.text[kept..]);
    }

    fn string(&mut self, start: usize) {
        self.skip_string();
        let content = &self.text[start..self.at];
        if self.text[..start].ends_with(b"Digest(") {
            let mut hash = DefaultHasher::new();
            hash.write(content);
            self.tokens.push(Token::Name(hash.finish()));
            return;
        }
        self.hash.write_u8(b'"');
    }

    fn word(&mut self) -> Word {
        let start = self.at;
        while self.text.get(self.at).is_some_and(|c| c.is_ascii_alphanumeric() || *c == b'_') {
            self.at += 1;
        }
        let text: &'a [u8] = self.text;
        let word = &text[start..self.at];
        if self.text[self.at..].starts_with(b": ") && LEFT_OUT.iter().any(|name| name.as_bytes() == word) {
            self.skip_value();
            return Word::LeftOut;
        }
        self.token(start, word).map_or(Word::Plain, Word::Token)
    }

    fn token(&mut self, start: usize, word: &[u8]) -> Option<Token> {
        if word == b"Instant" {
            let seconds = self.number(b" { tv_sec: ")?;
            let nanos = self.number(b", tv_nsec: ")?;
            self.at += 2;
            return Some(Token::Instant(i128::from(seconds) * 1_000_000_000 + i128::from(nanos)));
        }
        if NAMES.iter().any(|name| name.as_bytes() == word) {
            let end = self.at + self.text[self.at..].iter().position(|c| *c == b')')?;
            let mut hash = DefaultHasher::new();
            hash.write(&self.text[start..end]);
            self.at = end;
            return Some(Token::Name(hash.finish()));
        }
        let which = COUNTERS.iter().position(|name| name.as_bytes() == word)?;
        let value = self.number(b"(")?;
        Some(Token::Counter(u8::try_from(which).ok()?, value))
    }

    /// Up to the comma or bracket that ends the value of a field.
    fn skip_value(&mut self) {
        let mut depth = 0_u32;
        while let Some(c) = self.text.get(self.at) {
            match c {
                b'"' => {
                    self.skip_string();
                    continue;
                }
                b'(' | b'[' | b'{' => depth += 1,
                b')' | b']' | b'}' | b',' if depth == 0 => return,
                b')' | b']' | b'}' => depth -= 1,
                _ => {}
            }
            self.at += 1;
        }
    }

    fn skip_string(&mut self) {
        self.at += 1;
        while self.text[self.at] != b'"' {
            self.at += if self.text[self.at] == b'\\' { 2 } else { 1 };
        }
        self.at += 1;
    }

    /// The number after `before`, if that is what follows.
    fn number(&mut self, before: &[u8]) -> Option<u64> {
        let rest = self.text[self.at..].strip_prefix(before)?;
        let digits = rest.iter().take_while(|c| c.is_ascii_digit()).count();
        let value = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
        self.at += before.len() + digits;
        Some(value)
    }
}

/// What is left of a counter or instant when only its place matters.
type Place = (u8, i64);

/// One number for a state: its ordered parts, then heaps of parts whose order means nothing.
pub(crate) fn seal(now: Instant, horizon: Duration, ordered: &[&Print], loose: &[(u8, &Print)]) -> u64 {
    let all = ordered.iter().copied().chain(loose.iter().map(|(_, print)| *print));
    let places = Places::new(now, horizon, all);
    let mut hash = DefaultHasher::new();
    let mut names = BTreeMap::new();
    let mut write = |hash: &mut DefaultHasher, print: &Print, own: &[Place]| {
        print.skeleton.hash(hash);
        own.hash(hash);
        for token in &print.tokens {
            if let Token::Name(name) = token {
                let next = names.len();
                names.entry(*name).or_insert(next).hash(hash);
            }
        }
    };
    for print in ordered {
        write(&mut hash, print, &places.of(print));
    }
    let mut loose: Vec<(u8, u64, Vec<Place>, &Print)> =
        loose.iter().map(|(heap, print)| (*heap, print.skeleton, places.of(print), *print)).collect();
    loose.sort_by(|a, b| (a.0, a.1, &a.2).cmp(&(b.0, b.1, &b.2)));
    for (heap, _, own, print) in &loose {
        heap.hash(&mut hash);
        write(&mut hash, print, own);
    }
    hash.finish()
}

struct Places {
    now: i128,
    horizon: i128,
    counters: [Vec<u64>; COUNTERS.len()],
}

impl Places {
    fn new<'a>(now: Instant, horizon: Duration, prints: impl Iterator<Item = &'a Print>) -> Self {
        let mut counters: [Vec<u64>; COUNTERS.len()] = Default::default();
        for token in prints.flat_map(|print| &print.tokens) {
            if let Token::Counter(which, value) = token {
                counters[usize::from(*which)].push(*value);
            }
        }
        for values in &mut counters {
            values.sort_unstable();
            values.dedup();
        }
        let Print { tokens, .. } = Print::of(&now);
        let [Token::Instant(now)] = tokens[..] else { panic!("an instant prints as {now:?}") };
        Self { now, horizon: horizon.as_nanos() as i128, counters }
    }

    fn of(&self, print: &Print) -> Vec<Place> {
        let place = |token: &Token| match token {
            Token::Instant(at) => Some((u8::MAX, ((self.now - at).min(self.horizon) / 1_000_000) as i64)),
            Token::Counter(which, value) => {
                let values = &self.counters[usize::from(*which)];
                let place = values.binary_search(value).unwrap_or_default();
                // Zero is where counters begin, and means so.
                Some((*which, place as i64 + i64::from(values.first() != Some(&0))))
            }
            Token::Name(_) => None,
        };
        print.tokens.iter().filter_map(place).collect()
    }
}
