//! The end of stage0 in a process of its own: this test binary again, told what to do line by line.

use std::env;
use std::io::{self, BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use contract::link::LinkDescriptor;
use contract::tensor::{TensorKey, TensorSpec};
use contract::{Error, Generation, LinkSlot};
use latents::{Condition, LatentLink};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

const DESCRIPTOR: &str = "LINK_TEST_REMOTE";
const DEVICE: &str = "LINK_TEST_DEVICE";
/// Before each answer on standard output, which the test harness writes to as well.
const ANSWER: &str = "answer ";

#[derive(Serialize, Deserialize)]
enum Order {
    Write(TensorKey, Values),
    Read(TensorSpec),
    Release(LinkSlot, Generation),
    Holds(LinkSlot, Generation),
    Quarantine(Vec<LinkSlot>),
    UnquarantineAll,
    FreeSlots,
    Failed,
}

/// A tensor as it goes between the processes; every value fits f32.
#[derive(Serialize, Deserialize)]
struct Values {
    kind: String,
    shape: Vec<i64>,
    values: Vec<f32>,
}

const KINDS: [(&str, Kind); 3] = [("f32", Kind::Float), ("bf16", Kind::BFloat16), ("i64", Kind::Int64)];

impl Values {
    fn of(tensor: &Tensor) -> Self {
        let (kind, _) = KINDS.into_iter().find(|(_, kind)| *kind == tensor.kind()).unwrap();
        let flat = tensor.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().flatten(0, -1);
        Self { kind: kind.to_owned(), shape: tensor.size(), values: flat.try_into().unwrap() }
    }

    fn tensor(&self, device: Device) -> Tensor {
        let (_, kind) = KINDS.into_iter().find(|(name, _)| *name == self.kind).unwrap();
        Tensor::from_slice(&self.values).view(self.shape.as_slice()).to_kind(kind).to_device(device)
    }
}

pub(crate) struct Remote(Mutex<Process>);

struct Process {
    child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Remote {
    /// `test`: the path of the test that calls [`serve`]. `device`: `cpu` or the number of a GPU.
    pub(crate) fn open(test: &str, descriptor: &LinkDescriptor, device: &str) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(DESCRIPTOR, serde_json::to_string(descriptor).unwrap())
            .env(DEVICE, device)
            // NCCL takes two ranks on one GPU only where each believes itself on a host of its own.
            .env("NCCL_HOSTID", "stage0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut process = Process { child, orders, answers };
        process.answer::<()>();
        Self(Mutex::new(process))
    }

    /// The process stands still, all of it on return.
    #[allow(dead_code, reason = "a link in shared memory waits for nobody")]
    pub(crate) fn stand_still(&self) {
        kill_process(self.pid(), Signal::STOP).unwrap();
        let (_, status) = waitpid(Some(self.pid()), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped());
    }

    #[allow(dead_code, reason = "as above")]
    pub(crate) fn go_on(&self) {
        kill_process(self.pid(), Signal::CONT).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.0.lock().unwrap_or_else(PoisonError::into_inner).child)
    }

    fn ask<T: DeserializeOwned>(&self, order: &Order) -> T {
        let mut process = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(process.orders, "{}", serde_json::to_string(order).unwrap()).unwrap();
        process.answer()
    }
}

impl Process {
    fn answer<T: DeserializeOwned>(&mut self) -> T {
        let answer = self.answers.find_map(|line| Some(line.unwrap().split_once(ANSWER)?.1.to_owned()));
        serde_json::from_str(&answer.expect("an answer of the other end")).unwrap()
    }
}

/// It is killed.
impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl LatentLink for Remote {
    fn write(&mut self, key: TensorKey, tensor: &Tensor) -> Result<TensorSpec, Error> {
        self.ask(&Order::Write(key, Values::of(tensor)))
    }

    fn read(&mut self, spec: &TensorSpec) -> Result<Tensor, Error> {
        let read: Result<Values, Error> = self.ask(&Order::Read(spec.clone()));
        read.map(|values| values.tensor(Device::Cpu))
    }

    fn release(&mut self, slot: LinkSlot, generation: Generation) -> Result<(), Error> {
        self.ask(&Order::Release(slot, generation))
    }

    fn holds(&self, slot: LinkSlot, generation: Generation) -> bool {
        self.ask(&Order::Holds(slot, generation))
    }

    fn quarantine(&mut self, slots: &[LinkSlot]) {
        self.ask(&Order::Quarantine(slots.to_vec()))
    }

    fn unquarantine_all(&mut self) {
        self.ask(&Order::UnquarantineAll)
    }

    fn free_slots(&self) -> usize {
        self.ask(&Order::FreeSlots)
    }

    fn condition(&self) -> Condition {
        self.ask::<Option<Error>>(&Order::Failed).map_or(Condition::Open, Condition::Failed)
    }
}

/// Until both ends have met, or will not.
pub(crate) fn settled(link: &dyn LatentLink) -> Condition {
    while link.condition() == Condition::Opening {
        thread::sleep(Duration::from_millis(5));
    }
    link.condition()
}

/// The other process: does what it is told until nobody tells it anything. Nothing in the tests' own process.
pub(crate) fn serve(open: impl Fn(&LinkDescriptor, Device) -> Result<Box<dyn LatentLink>, Error>) {
    let Ok(descriptor) = env::var(DESCRIPTOR) else { return };
    let device = match env::var(DEVICE).unwrap().as_str() {
        "cpu" => Device::Cpu,
        index => device::resolve(format!("cuda:{index}").parse().unwrap(), None).unwrap().device,
    };
    let descriptor: LinkDescriptor = serde_json::from_str(&descriptor).unwrap();
    let mut link = open(&descriptor, device).unwrap();
    settled(&*link);
    answer(&());
    for order in io::stdin().lines() {
        match serde_json::from_str(&order.unwrap()).unwrap() {
            Order::Write(key, values) => answer(&link.write(key, &values.tensor(device))),
            Order::Read(spec) => answer(&link.read(&spec).map(|tensor| Values::of(&tensor))),
            Order::Release(slot, generation) => answer(&link.release(slot, generation)),
            Order::Holds(slot, generation) => answer(&link.holds(slot, generation)),
            Order::Quarantine(slots) => answer(&link.quarantine(&slots)),
            Order::UnquarantineAll => answer(&link.unquarantine_all()),
            Order::FreeSlots => answer(&link.free_slots()),
            Order::Failed => answer(&match link.condition() {
                Condition::Failed(error) => Some(error),
                Condition::Opening | Condition::Open => None,
            }),
        }
    }
}

fn answer<T: Serialize>(value: &T) {
    println!("\n{ANSWER}{}", serde_json::to_string(value).unwrap());
}
