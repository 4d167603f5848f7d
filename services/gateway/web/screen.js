// The picture and what lies over it: the curtain, and the last frame while there is no newer one.

import { sentence } from '/assets/texts.js';

const element = (id) => document.getElementById(id);

export class Screen {
  #video = element('video');
  #held = element('held');
  #curtain = element('curtain');

  constructor(onPicture) {
    const picture = () => {
      const { videoWidth: width, videoHeight: height } = this.#video;
      if (width === 0) return;
      element('screen').style.setProperty('--shape', `${width} / ${height}`);
      element('screen').classList.toggle('small', width <= 256);
      onPicture(width, height);
      this.lift();
    };
    this.#video.addEventListener('playing', picture);
    this.#video.addEventListener('resize', picture);
  }

  get empty() {
    return this.#video.videoWidth === 0;
  }

  /** `raw` is the server's own text. Over a picture the curtain lets it show through, dimmed. */
  cover({ title, text = '', raw = '', retry = false, busy = true }) {
    this.#hold();
    element('curtain-title').textContent = title;
    element('curtain-text').textContent = sentence(text);
    this.#curtain.title = raw;
    element('retry').hidden = !retry;
    element('pulse').hidden = !busy;
    this.#curtain.classList.remove('away');
  }

  /** The picture moves, or is meant to stand still. */
  lift() {
    this.#held.hidden = true;
    this.#curtain.classList.remove('over');
    this.#curtain.classList.add('away');
  }

  /** The next stream replaces the last frame only once it has one. */
  #hold() {
    if (this.empty || !this.#held.hidden) return;
    [this.#held.width, this.#held.height] = [this.#video.videoWidth, this.#video.videoHeight];
    this.#held.getContext('2d').drawImage(this.#video, 0, 0);
    this.#held.hidden = false;
    this.#curtain.classList.add('over');
  }
}
