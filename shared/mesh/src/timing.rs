use std::time::Duration;

/// Every duration of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The shell ticks the machines this often.
    pub tick: Duration,
    /// A lease that was not renewed for this long may be taken by another controller.
    pub lease_ttl: Duration,
    /// A controller whose lease another wants, and of which the broker knew nothing for this long, has lost it: twice the
    /// longest pause between two attempts to reconnect.
    pub absence: Duration,
    /// A liveness socket that is silent for this long means a stopped peer.
    pub beat_silence: Duration,
    /// A worker that did not hear its leader for this long drops the epoch.
    pub watchdog: Duration,
    /// A worker without any leader for this long ends.
    pub orphan_grace: Duration,
    /// Pause between two requests to join.
    pub join_retry: Duration,
    /// A worker that waits for its rank and does not ask again within this time is forgotten.
    pub join_forget: Duration,
    /// An assigned worker must open its liveness socket, and the ranks meet, within this time.
    pub connect: Duration,
    /// Plan, go and cancel are sent again after this long without an answer.
    pub resend: Duration,
    /// All ranks must have acknowledged a plan within this time.
    pub plan: Duration,
    /// Reading the weights and the first collective.
    pub load: Duration,
    /// One warm-up or canary run.
    pub warm_up: Duration,
    /// The engine must be idle this long after an abort.
    pub abort: Duration,
    /// A leader that is asked to stop gives its running call this long.
    pub drain: Duration,
    /// The controller sends a NOOP this long after its last message; half of it while it waits for a call.
    pub noop: Duration,
    /// Budget of every controller message that is no INFER.
    pub control: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(50),
            lease_ttl: Duration::from_secs(3),
            absence: Duration::from_millis(500),
            beat_silence: Duration::from_millis(800),
            watchdog: Duration::from_secs(5),
            orphan_grace: Duration::from_secs(120),
            join_retry: Duration::from_millis(250),
            join_forget: Duration::from_secs(2),
            connect: Duration::from_secs(10),
            resend: Duration::from_millis(250),
            plan: Duration::from_secs(2),
            load: Duration::from_secs(120),
            warm_up: Duration::from_secs(60),
            abort: Duration::from_secs(2),
            drain: Duration::from_secs(3),
            noop: Duration::from_secs(1),
            control: Duration::from_secs(1),
        }
    }
}
