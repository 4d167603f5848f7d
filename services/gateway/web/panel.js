// The live panel: what the stream reports about itself.

const HISTORY = 60;
const show = (id, text) => { document.getElementById(id).textContent = text; };
const ms = (us) => (us >= 1e6 ? `${(us / 1e6).toFixed(2)} s` : `${Math.round(us / 1000)} ms`);

export class Panel {
  #rates = [];
  #line = document.querySelector('#spark polyline');
  #epochs = { mesh: null, cache: null };

  chunk(report) {
    show('live-fps', report.fps.toFixed(1));
    show('live-chunk', `${ms(report.timings.chunk_us)} · ${report.frames} frames`);
    show('live-dropped', String(report.dropped_frames));
    if (report.timings.parameter_to_packet_us > 0) show('live-prompt', ms(report.timings.parameter_to_packet_us));
    this.#epochs = { mesh: report.mesh_epoch, cache: report.cache_epoch };
    this.#showEpochs();
    this.#rates.push(report.fps);
    if (this.#rates.length > HISTORY) this.#rates.shift();
    this.#draw();
  }

  cell({ mesh, model, sessions, max_sessions: limit }) {
    if (mesh) {
      show('live-mesh', `${mesh.state} · ${mesh.world_size} ${mesh.world_size === 1 ? 'rank' : 'ranks'}`);
      this.#epochs.mesh = mesh.epoch ?? this.#epochs.mesh;
      this.#showEpochs();
    } else {
      show('live-mesh', 'no leader');
    }
    document.getElementById('live-title').title = `${model?.name ?? 'model unknown'}, ${sessions} of ${limit} sessions`;
  }

  roundTrip(time) {
    show('live-rtt', time === null ? '–' : `${time < 10 ? time.toFixed(1) : Math.round(time)} ms`);
  }

  picture(width, height) {
    show('live-size', `${width} × ${height}`);
  }

  #showEpochs() {
    show('live-epoch', `${this.#epochs.mesh ?? '–'} / ${this.#epochs.cache ?? '–'}`);
  }

  #draw() {
    const top = Math.max(...this.#rates, 1) * 1.1;
    const step = 240 / (HISTORY - 1);
    const start = 240 - (this.#rates.length - 1) * step;
    const points = this.#rates.map((rate, index) => `${(start + index * step).toFixed(1)},${(42 - (rate / top) * 40).toFixed(1)}`);
    this.#line.setAttribute('points', points.join(' '));
  }
}
