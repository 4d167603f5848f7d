//! Reading weights, told while it happens: a bar on a terminal, elsewhere a line every few seconds.

use std::io::{IsTerminal, stderr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tch::{Device, Kind, Tensor};
use tracing::info;
use wan::memory::Gib;
use wan::weights::{TensorSource, WeightsError};

/// Between two lines.
const PAUSE: Duration = Duration::from_secs(3);

/// A source that counts what is read of it, as bytes of the model in its own dtype.
pub struct Reading {
    source: Box<dyn TensorSource>,
    kind: Kind,
    device: Device,
    told: Mutex<Told>,
    bar: Option<ProgressBar>,
}

impl Reading {
    /// `elements` will be read of `source`, for a model of dtype `kind` on `device`.
    pub fn begin(what: &str, source: Box<dyn TensorSource>, elements: i64, options: (Kind, Device)) -> Self {
        let (kind, device) = options;
        let total = elements.unsigned_abs() * kind.elt_size_in_bytes() as u64;
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total).with_message(what.to_owned());
            match ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}") {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        let told = Mutex::new(Told::new(what, total, Instant::now()));
        Self { source, kind, device, told, bar }
    }

    /// All of it is read: says how much it was and how fast.
    pub fn end(self) {
        if let Device::Cuda(index) = self.device {
            // What is still on its way counts.
            tch::Cuda::synchronize(index as i64);
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let told = self.told.into_inner().unwrap_or_else(PoisonError::into_inner);
        info!("{}", told.last(Instant::now()));
    }

    fn count(&self, tensor: Tensor) -> Tensor {
        let bytes = (tensor.numel() * self.kind.elt_size_in_bytes()) as u64;
        let line = self.told.lock().unwrap_or_else(PoisonError::into_inner).read(bytes, Instant::now());
        match (&self.bar, line) {
            (Some(bar), _) => bar.inc(bytes),
            (None, Some(line)) => info!("{line}"),
            (None, None) => {}
        }
        tensor
    }
}

impl TensorSource for Reading {
    fn get(&self, name: &str, shape: &[i64]) -> Result<Tensor, WeightsError> {
        Ok(self.count(self.source.get(name, shape)?))
    }

    fn narrow(
        &self,
        name: &str,
        shape: &[i64],
        dim: usize,
        start: i64,
        len: i64,
    ) -> Result<Tensor, WeightsError> {
        Ok(self.count(self.source.narrow(name, shape, dim, start, len)?))
    }

    fn fingerprint(&self) -> &str {
        self.source.fingerprint()
    }
}

/// How far it is, and when that was last said.
#[derive(Debug)]
struct Told {
    what: String,
    total: u64,
    read: u64,
    began: Instant,
    said: Instant,
}

impl Told {
    fn new(what: &str, total: u64, now: Instant) -> Self {
        Self { what: what.to_owned(), total, read: 0, began: now, said: now }
    }

    /// So many bytes more. A line, if one is due.
    fn read(&mut self, bytes: u64, now: Instant) -> Option<String> {
        self.read += bytes;
        if now.saturating_duration_since(self.said) < PAUSE {
            return None;
        }
        self.said = now;
        let percent = 100 * self.read / self.total.max(1);
        let (read, total) = (Gib(self.read), Gib(self.total));
        Some(format!("{}: {read} of {total}, {percent} %, {}/s", self.what, self.rate(now)))
    }

    fn last(&self, now: Instant) -> String {
        let took = now.saturating_duration_since(self.began).as_secs_f64();
        format!("{}: {} in {took:.2} s, {}/s", self.what, Gib(self.read), self.rate(now))
    }

    fn rate(&self, now: Instant) -> Gib {
        let took = now.saturating_duration_since(self.began).as_secs_f64().max(1e-3);
        Gib((self.read as f64 / took) as u64)
    }
}

#[cfg(test)]
mod tests {
    use wan::config::ModelConfig;
    use wan::dit::{CausalDit, Shard};
    use wan::weights::SyntheticSource;

    use super::*;

    #[test]
    fn a_line_comes_now_and_then_and_the_last_one_says_it_all() {
        let began = Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let mut told = Told::new("rank 0 of 2", 8 << 30, began);
        assert_eq!(told.read(1 << 30, at(1_000)), None);
        assert_eq!(told.read(1 << 30, at(2_999)), None);
        let line = told.read(1 << 30, at(3_000)).unwrap();
        assert_eq!(line, "rank 0 of 2: 3.00 GiB of 8.00 GiB, 37 %, 1.00 GiB/s");
        assert_eq!(told.read(1 << 30, at(5_000)), None);
        assert!(told.read(2 << 30, at(6_000)).is_some());
        told.read(2 << 30, at(8_000));
        assert_eq!(told.last(at(16_000)), "rank 0 of 2: 8.00 GiB in 16.00 s, 0.50 GiB/s");
    }

    #[test]
    fn what_is_announced_is_what_is_read() {
        let config = ModelConfig::named("tiny").unwrap().dit;
        let (rank, options) = (Shard { rank: 1, world: 2 }, (Kind::Float, Device::Cpu));
        let elements = wan::memory::shard(&config, 2);
        let reading = Reading::begin("a rank", Box::new(SyntheticSource::new(1)), elements, options);
        CausalDit::load(&config, &reading, rank, options.1, options.0).unwrap();
        let told = reading.told.lock().unwrap();
        assert_eq!((told.read, told.total), (4 * elements.unsigned_abs(), 4 * elements.unsigned_abs()));
    }
}
