// The live panel: what the stream reports about itself.

import { ms } from '/assets/texts.js';

const HISTORY = 60;
const element = (id) => document.getElementById(id);
const show = (id, text) => { element(id).textContent = text; };
const TIMES = ['never', 'once', 'twice'];

export class Panel {
  #rates = [];
  #line = document.querySelector('#spark polyline');
  #epoch = null;
  #restarts = 0;

  chunk(report) {
    show('live-fps', report.fps.toFixed(1));
    show('live-chunk', `${ms(report.timings.chunk_us)} · ${report.frames} frames`);
    show('live-dropped', String(report.dropped_frames));
    if (report.timings.parameter_to_packet_us > 0) show('live-prompt', ms(report.timings.parameter_to_packet_us));
    if (this.#epoch !== null && report.cache_epoch !== this.#epoch) this.#restarts += 1;
    this.#epoch = report.cache_epoch;
    show('live-cache-epoch', String(report.cache_epoch));
    show('live-restarts', TIMES[this.#restarts] ?? `${this.#restarts} times`);
    this.#rates.push(report.fps);
    if (this.#rates.length > HISTORY) this.#rates.shift();
    this.#draw();
  }

  /** What the gateway says about its cell; nothing while it says nothing. */
  cell(state) {
    if (!state) {
      for (const id of ['live-mesh', 'live-mesh-epoch']) show(id, '–');
      return;
    }
    const { mesh, model, sessions, max_sessions: limit } = state;
    show('live-mesh', mesh ? `${mesh.state} · ${mesh.world_size} ${mesh.world_size === 1 ? 'process' : 'processes'}` : 'not there');
    show('live-mesh-epoch', mesh?.epoch ?? '–');
    element('live-title').title = `${model?.name ?? 'model unknown'}, ${sessions} of ${limit} sessions`;
  }

  /** Whether numbers of the stream are of now. Old ones are greyed; a rate of nothing is none. */
  live(live, paused) {
    element('live').classList.toggle('stale', !live || paused);
    if (!live) {
      for (const id of ['live-fps', 'live-rtt']) show(id, '–');
    }
  }

  /** Another session counts from its own beginning. */
  begin() {
    [this.#epoch, this.#restarts] = [null, 0];
    for (const id of ['live-restarts', 'live-cache-epoch']) show(id, '–');
  }

  roundTrip(time) {
    show('live-rtt', time === null ? '–' : `${time < 10 ? time.toFixed(1) : Math.round(time)} ms`);
  }

  picture(width, height) {
    show('live-size', `${width} × ${height}`);
  }

  #draw() {
    const top = Math.max(...this.#rates, 1) * 1.1;
    const step = 240 / (HISTORY - 1);
    const start = 240 - (this.#rates.length - 1) * step;
    const points = this.#rates.map((rate, index) => `${(start + index * step).toFixed(1)},${(42 - (rate / top) * 40).toFixed(1)}`);
    this.#line.setAttribute('points', points.join(' '));
  }
}
