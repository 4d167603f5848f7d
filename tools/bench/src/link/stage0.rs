//! stage 0's end of a link: a process of this program, told what to do line by line.

use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use contract::link::LinkDescriptor;
use contract::tensor::{TensorKey, TensorSpec};
use latents::{Condition, LatentLink};
use serde_json::{Value, json};
use tch::{Device, Tensor};
use wan::noise::block_noise;
use xtask::command;

use super::HOST;
use crate::machine;

/// What the process is told by the one that started it: the link, and the shape of what it carries.
const LINK: &str = "KINEMESH_BENCH_LINK";
const PAUSE: Duration = Duration::from_millis(5);
/// The process opens its device and the link within this time, and moves a tensor.
const WITHIN: Duration = Duration::from_secs(60);

/// What the process was started for.
pub(super) struct Task {
    link: LinkDescriptor,
    shape: [i64; 5],
}

/// The process, as the leader sees it.
pub(super) struct Stage0 {
    child: Child,
    orders: ChildStdin,
    answers: Answers,
}

/// What the process says, line by line.
struct Answers(Receiver<io::Result<String>>);

impl Stage0 {
    /// In the process itself.
    pub(super) fn asked_for() -> Option<Result<Task>> {
        let task = env::var(LINK).ok()?;
        Some(serde_json::from_str(&task).context(LINK).map(|(link, shape)| Task { link, shape }))
    }

    /// Starts it; both ends are open on return.
    pub(super) fn start(link: &LinkDescriptor, shape: &[i64]) -> Result<Self> {
        let mut child = Command::new(env::current_exe()?);
        child.args(env::args_os().skip(1)).env(LINK, serde_json::to_string(&(link, shape))?);
        if env::var_os(HOST).is_some() {
            child.env(HOST, "stage0");
        }
        command::die_with_parent(&mut child, libc::SIGKILL);
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let orders = child.stdin.take().context("no input of stage 0")?;
        let answers = Answers::of(child.stdout.take().context("no output of stage 0")?);
        let stage0 = Self { child, orders, answers };
        stage0.answers.next(WITHIN)?;
        Ok(stage0)
    }

    /// Milliseconds of the write, and what it wrote.
    pub(super) fn write(&mut self) -> Result<(f64, TensorSpec)> {
        let (ms, spec): (f64, TensorSpec) = serde_json::from_value(self.ask(&Value::Null)?)?;
        Ok((ms, spec))
    }

    /// Milliseconds until the tensor was on its device and the slot given back.
    pub(super) fn read(&mut self, spec: &TensorSpec) -> Result<f64> {
        Ok(serde_json::from_value(self.ask(&serde_json::to_value(spec)?)?)?)
    }

    fn ask(&mut self, order: &Value) -> Result<Value> {
        writeln!(self.orders, "{order}")?;
        self.answers.next(WITHIN)
    }
}

impl Answers {
    fn of(output: impl Read + Send + 'static) -> Self {
        let (said, answers) = sync_channel(1);
        thread::spawn(move || BufReader::new(output).lines().try_for_each(|line| said.send(line)));
        Self(answers)
    }

    fn next(&self, within: Duration) -> Result<Value> {
        match self.0.recv_timeout(within) {
            Ok(line) => Ok(serde_json::from_str(&line?)?),
            Err(RecvTimeoutError::Timeout) => bail!("stage 0's end has said nothing for {within:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("stage 0's end has ended"),
        }
    }
}

impl Drop for Stage0 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Milliseconds until the tensor is on the device and its slot given back.
pub(super) fn take(link: &mut dyn LatentLink, spec: &TensorSpec, device: Device) -> Result<(f64, Tensor)> {
    machine::ms(device, || {
        let read = link.read(spec)?.f_to_device(device)?;
        link.release(spec.slot, spec.generation)?;
        Ok(read)
    })
}

/// Writes and reads as it is told, until nobody tells it anything.
pub(super) fn serve(task: &Task, device: Device) -> Result<()> {
    let [_, frames, channels, rows, columns] = task.shape;
    let latents = block_noise(42, 0, frames, channels, rows, columns)?.f_to_device(device)?;
    let mut link = latents::open(&task.link, device)?;
    while link.condition() == Condition::Opening {
        thread::sleep(PAUSE);
    }
    if let Condition::Failed(error) = link.condition() {
        return Err(error).context("the link");
    }
    println!("{}", Value::Null);
    for order in io::stdin().lines() {
        let answer = match serde_json::from_str(&order?)? {
            Value::Null => {
                json!(machine::ms(device, || Ok(link.write(TensorKey::LatentsIn, &latents)?))?)
            }
            spec => {
                let (ms, read) = take(&mut *link, &serde_json::from_value(spec)?, device)?;
                ensure!(read.equal(&latents), "other latents came out of the link than went in");
                json!(ms)
            }
        };
        println!("{answer}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn nobody_waits_for_ever_for_an_end_that_says_nothing_or_is_gone() {
        let (mut end, ours) = UnixStream::pair().unwrap();
        let answers = Answers::of(ours);
        writeln!(end, "[1.5, null]").unwrap();
        assert_eq!(answers.next(WITHIN).unwrap(), json!([1.5, null]));
        let silent = answers.next(Duration::from_millis(20)).unwrap_err().to_string();
        assert_eq!(silent, "stage 0's end has said nothing for 20ms");
        drop(end);
        assert_eq!(answers.next(WITHIN).unwrap_err().to_string(), "stage 0's end has ended");
    }
}
