//! The parent's side: one process for each rank, told what to do line by line.

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::rank::{RANK, WORLD};

struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    fn start(rank: u32, world: u32) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "rank::process", "--nocapture", "--test-threads=1"])
            .env(RANK, rank.to_string())
            .env(WORLD, world.to_string())
            .env("NCCL_HOSTID", format!("rank-{rank}"))
            .env("NCCL_SOCKET_IFNAME", "lo")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (tx, lines) = sync_channel(64);
        let output = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if tx.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) struct Ranks {
    processes: Vec<Process>,
    patience: Duration,
}

impl Ranks {
    pub(crate) fn start(world: u32, patience: Duration) -> Self {
        Self { processes: (0..world).map(|rank| Process::start(rank, world)).collect(), patience }
    }

    fn world(&self) -> usize {
        self.processes.len()
    }

    pub(crate) fn tell(&mut self, rank: usize, line: &str) {
        writeln!(self.processes[rank].child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// What a rank says after `prefix`, in the first line that has it.
    pub(crate) fn hear(&mut self, rank: usize, prefix: &str) -> String {
        let until = Instant::now() + self.patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self.processes[rank].lines.recv_timeout(left);
            let line = line.unwrap_or_else(|e| panic!("rank {rank} did not say {prefix:?}: {e}"));
            // libtest may have begun the line.
            if let Some(at) = line.find(prefix) {
                return line[at + prefix.len()..].to_owned();
            }
        }
    }

    /// A new group of all ranks: rank 0 makes the rendezvous.
    pub(crate) fn meet(&mut self) {
        self.tell(0, "make");
        let rendezvous = self.hear(0, "rendezvous ");
        for rank in 0..self.world() {
            self.tell(rank, &format!("meet {rendezvous}"));
        }
        for rank in 0..self.world() {
            self.hear(rank, "met");
        }
    }

    pub(crate) fn all_run(&mut self, scenario: &str) {
        for rank in 0..self.world() {
            self.tell(rank, scenario);
        }
        for rank in 0..self.world() {
            self.hear(rank, &format!("done {scenario}"));
        }
    }

    pub(crate) fn kill(&mut self, rank: usize) {
        self.processes[rank].child.kill().unwrap();
        self.processes[rank].child.wait().unwrap();
    }

    pub(crate) fn replace(&mut self, rank: usize) {
        let (number, world) = (u32::try_from(rank).unwrap(), u32::try_from(self.world()).unwrap());
        self.processes[rank] = Process::start(number, world);
    }

    /// Lets all processes go; each must end well.
    pub(crate) fn finish(mut self) {
        for process in &mut self.processes {
            drop(process.child.stdin.take());
            assert!(process.child.wait().unwrap().success());
        }
    }
}
