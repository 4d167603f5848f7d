// One viewer's connection, kept up: waits until the server is ready, connects, and starts over when it ends.

import * as api from '/assets/api.js';

const POLL_MS = 700;
const FIRST_RETRY_MS = 800;
const LAST_RETRY_MS = 8000;
const GONE_AFTER_MS = 6000;

const sleep = (ms) => new Promise((wake) => setTimeout(wake, ms));

export class Stream extends EventTarget {
  #video;
  #initial;
  #connection = null;
  #channel = null;
  #session = null;
  #wake = null;
  #last = null;

  /** `initial()` gives the parameters that a new session starts with. */
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

  async run() {
    let pause = FIRST_RETRY_MS;
    for (;;) {
      try {
        await this.#untilReady();
        this.#tell('state', { state: 'connecting', text: 'connecting' });
        await this.#play(() => { pause = FIRST_RETRY_MS; });
      } catch (error) {
        const status = error instanceof api.ApiError ? error.status : null;
        this.#tell('state', { state: 'failed', text: error.message, status, retry: pause });
      }
      this.#close();
      await Promise.race([sleep(pause), new Promise((wake) => { this.#wake = wake; })]);
      pause = Math.min(pause * 1.7, LAST_RETRY_MS);
    }
  }

  async #untilReady() {
    for (;;) {
      const answer = await api.ready();
      if (answer.ready) return;
      this.#tell('state', { state: 'waiting', text: answer.waiting_for ?? 'starting' });
      await sleep(POLL_MS);
    }
  }

  /** Resolves never: it ends by an error that says why the stream is over. */
  async #play(onLive) {
    const { iceServers } = await api.iceServers();
    const connection = new RTCPeerConnection({ iceServers });
    this.#connection = connection;
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
    const over = new Promise((_, end) => this.#watch(connection, end, onLive));
    over.catch(() => {});
    connection.addTransceiver('video', { direction: 'recvonly' });
    await connection.setLocalDescription();
    const { sdp, type } = connection.localDescription;
    const answer = await api.offer({ sdp, type, initialParameters: this.#initial() });
    this.#session = answer.sessionId;
    await connection.setRemoteDescription({ type: answer.type, sdp: answer.sdp });
    if (early.length) this.#trickle(early);
    await over;
  }

  #watch(connection, end, onLive) {
    let gone = null;
    connection.addEventListener('connectionstatechange', () => {
      clearTimeout(gone);
      const state = connection.connectionState;
      if (state === 'connected') {
        onLive();
        this.#tell('state', { state: 'live', text: 'live' });
      } else if (state === 'disconnected') {
        this.#tell('state', { state: 'connecting', text: 'the connection is interrupted' });
        gone = setTimeout(() => end(new Error('the connection was lost')), GONE_AFTER_MS);
      } else if (state === 'failed' || state === 'closed') {
        end(new Error(this.#last ?? 'the connection failed'));
      }
    });
    this.#last = null;
    const channel = connection.createDataChannel('parameters', { ordered: true });
    this.#channel = channel;
    channel.addEventListener('open', () => this.#tell('open', {}));
    channel.addEventListener('close', () => end(new Error(this.#last ?? 'the server closed the stream')));
    channel.addEventListener('message', ({ data }) => {
      const message = JSON.parse(data);
      if (message.type === 'stream_stopped') {
        this.#last = message.error_message ?? 'the stream ended';
        end(new Error(this.#last));
        return;
      }
      this.#tell('message', message);
    });
  }

  #trickle(list) {
    const session = this.#session;
    api.candidates(session, list.map((candidate) => candidate.toJSON())).catch((error) => console.warn('candidate', error.message));
  }

  #close() {
    const connection = this.#connection;
    this.#connection = null;
    this.#channel = null;
    this.#session = null;
    connection?.close();
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
