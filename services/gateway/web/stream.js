// One viewer's connection, kept up: waits until the server is ready, connects, notices when nothing comes any more, and
// starts over when it ends.

import * as api from '/assets/api.js';

const POLL_MS = 500;
/** From the first retry on; a stream that played is retried at once. */
const RETRIES_MS = [50, 800, 1500, 3000, 5000, 8000];
/** A connection that is down this long is given up. */
const GONE_AFTER_MS = 6000;
const BEAT_MS = 400;
/** Without a picture for so long while the server is silent too, or for `STALLED_MS` (or some chunks) in any case. */
const QUIET_MS = 600;
const STALLED_MS = 2000;

const sleep = (ms) => new Promise((wake) => setTimeout(wake, ms));

/** Why a stream is over; `error` is what the server said. */
class Over extends Error {
  constructor(message, error) {
    super(message);
    this.error = error;
  }
}

/**
 * Tells `state` ({state, ...}), `open`, `closed` and `message`. States: `unreachable`, `waiting` {text}, `connecting`,
 * `live`, `interrupted` {silent}, `reconnecting` {error}, `failed` {error, status, retry}.
 */
export class Stream extends EventTarget {
  #video;
  #initial;
  #connection = null;
  #channel = null;
  #session = null;
  /** The right to go on with the session in another connection, for as long as it has not ended. */
  #resume = null;
  #wake = null;
  /** The gateway's life that this connection belongs to. */
  #instance = null;
  #end = null;
  #last = null;
  #silent = false;
  #interrupted = false;
  #bytes = 0;
  /** When media came last; null before the first. */
  #fed = null;
  #stallMs = STALLED_MS;
  #held = false;

  /** `initial()` gives, or promises, the parameters that a new session starts with. */
  constructor(video, initial) {
    super();
    this.#video = video;
    this.#initial = initial;
    // A closed tab says so, rather than leaving the server to find out.
    addEventListener('pagehide', () => this.#close());
  }

  get session() {
    return this.#session;
  }

  get open() {
    return this.#channel?.readyState === 'open';
  }

  get live() {
    return this.open && this.#connection?.connectionState === 'connected' && !this.#interrupted;
  }

  /** No pictures are to be expected: paused, or the server has said why. */
  set held(held) {
    // What was missed meanwhile is not missed.
    if (this.#held && !held && this.#fed !== null) this.#fed = performance.now();
    this.#held = held;
  }

  send(parameters) {
    if (!this.open) return false;
    this.#channel.send(JSON.stringify(parameters));
    return true;
  }

  /** Milliseconds to the gateway and back, as the connection measures it. */
  async roundTrip() {
    const stats = await this.#connection?.getStats();
    for (const entry of stats?.values() ?? []) {
      if (entry.type === 'candidate-pair' && entry.nominated && entry.currentRoundTripTime !== undefined) {
        return entry.currentRoundTripTime * 1000;
      }
    }
    return null;
  }

  retryNow() {
    this.#wake?.();
  }

  /** A chunk takes this long: pauses between pictures may be as long. */
  chunkTook(ms) {
    this.#stallMs = Math.max(STALLED_MS, 2.5 * ms);
  }

  /** The server answers requests: this life of it, if it told. */
  answered(instance) {
    this.#silent = false;
    if (instance && this.#instance && instance !== this.#instance) this.#end?.(new Over('the server started anew'));
  }

  silent() {
    this.#silent = true;
    this.#beat();
  }

  async run() {
    setInterval(() => this.#beat(), BEAT_MS);
    let attempt = 0;
    for (;;) {
      let played = false;
      let pause = RETRIES_MS[Math.min(attempt, RETRIES_MS.length - 1)];
      attempt += 1;
      try {
        await this.#untilReady();
        this.#tell('state', { state: 'connecting' });
        await this.#play(() => { played = true; });
      } catch (reason) {
        if (played) [attempt, pause] = [1, RETRIES_MS[0]];
        else pause = Math.max(pause, reason.retryAfterMs ?? RETRIES_MS[1]);
        const { error = { message: reason.message } } = reason;
        // The next try begins a session of its own.
        const lapsed = this.#resume !== null && error.reason === 'bad_token';
        if (lapsed) this.#resume = null;
        const status = lapsed ? undefined : reason.status;
        this.#tell('state', { state: played ? 'reconnecting' : 'failed', error, status, retry: pause });
      }
      this.#close();
      await this.#nap(pause);
    }
  }

  async #untilReady() {
    for (let silent = 0; ;) {
      try {
        const answer = await api.ready();
        if (answer.ready) break;
        this.#tell('state', { state: 'waiting', text: answer.waiting_for ?? 'starting' });
      } catch (error) {
        if (error.status !== 0) throw error;
        this.#tell('state', { state: 'unreachable' });
        silent += 1;
      }
      await this.#nap(silent > 120 ? 4 * POLL_MS : POLL_MS);
    }
    this.#instance = (await api.cell()).instance;
  }

  /** Resolves never: it ends by an error that says why the stream is over. */
  async #play(onLive) {
    const { iceServers } = await api.iceServers();
    const connection = new RTCPeerConnection({ iceServers });
    this.#connection = connection;
    [this.#bytes, this.#fed, this.#interrupted, this.#silent, this.#last] = [0, null, false, false, null];
    const early = [];
    connection.addEventListener('icecandidate', ({ candidate }) => {
      if (!candidate?.candidate) return;
      if (this.#session) this.#trickle([candidate]);
      else early.push(candidate);
    });
    connection.addEventListener('track', ({ streams: [stream], track }) => {
      this.#video.srcObject = stream ?? new MediaStream([track]);
      this.#video.play().catch(() => {});
    });
    const over = new Promise((_, end) => {
      this.#end = end;
      this.#watch(connection, end, onLive);
    });
    over.catch(() => {});
    connection.addTransceiver('video', { direction: 'recvonly' });
    await connection.setLocalDescription();
    const { sdp, type } = connection.localDescription;
    const resume = this.#resume ? { resumeToken: this.#resume } : {};
    const answer = await api.offer({ sdp, type, initialParameters: await this.#initial(), ...resume });
    this.#session = answer.sessionId;
    this.#resume = answer.resumeToken;
    await connection.setRemoteDescription({ type: answer.type, sdp: answer.sdp });
    if (early.length) this.#trickle(early);
    await over;
  }

  #watch(connection, end, onLive) {
    let gone = null;
    const channel = connection.createDataChannel('parameters', { ordered: true });
    this.#channel = channel;
    // Not before it can be steered: a press of a button would be lost.
    const lively = () => {
      if (connection.connectionState !== 'connected' || channel.readyState !== 'open') return;
      onLive();
      this.#interrupted = false;
      this.#tell('state', { state: 'live' });
    };
    connection.addEventListener('connectionstatechange', () => {
      clearTimeout(gone);
      const state = connection.connectionState;
      if (state === 'connected') {
        lively();
      } else if (state === 'disconnected') {
        this.#interrupt();
        gone = setTimeout(() => end(new Over('the connection was lost')), GONE_AFTER_MS);
      } else if (state === 'failed' || state === 'closed') {
        end(this.#last ?? new Over('the connection was lost'));
      }
    });
    channel.addEventListener('open', () => {
      this.#tell('open', {});
      lively();
    });
    channel.addEventListener('close', () => end(this.#last ?? new Over('the server closed the stream')));
    channel.addEventListener('message', ({ data }) => {
      const message = JSON.parse(data);
      if (message.type === 'stream_stopped') {
        this.#last = new Over(message.error_message ?? 'the stream ended', message.error);
        this.#resume = null;
        end(this.#last);
        return;
      }
      this.#tell('message', message);
    });
  }

  /** Looks whether media still comes. */
  async #beat() {
    const connection = this.#connection;
    if (connection?.connectionState !== 'connected' || !this.open) return;
    let bytes = 0;
    for (const entry of (await connection.getStats()).values()) {
      if (entry.type === 'inbound-rtp' && entry.kind === 'video') bytes = entry.bytesReceived;
    }
    if (connection !== this.#connection) return;
    const now = performance.now();
    if (bytes !== this.#bytes) [this.#bytes, this.#fed] = [bytes, now];
    // A session that began paused has no picture to miss.
    const quiet = this.#fed === null ? (this.#held ? Infinity : 0) : now - this.#fed;
    const interrupted = (this.#silent && quiet > QUIET_MS) || (!this.#held && quiet > this.#stallMs);
    if (interrupted) this.#interrupt();
    else if (this.#interrupted) {
      this.#interrupted = false;
      this.#tell('state', { state: 'live' });
    }
  }

  #interrupt() {
    if (this.#interrupted) return;
    this.#interrupted = true;
    this.#tell('state', { state: 'interrupted', silent: this.#silent });
  }

  #trickle(list) {
    const session = this.#session;
    api.candidates(session, list.map((candidate) => candidate.toJSON())).catch((error) => console.warn('candidate', error.message));
  }

  #nap(ms) {
    return Promise.race([sleep(ms), new Promise((wake) => { this.#wake = wake; })]);
  }

  #close() {
    const connection = this.#connection;
    this.#connection = null;
    this.#channel = null;
    this.#session = null;
    this.#instance = null;
    this.#end = null;
    if (connection) this.#tell('closed', {});
    connection?.close();
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
