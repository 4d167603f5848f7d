// What became of what was sent: taken, at work, in the picture.

import { ms } from '/assets/texts.js';

/** Chunks after its last one that a transition may take to be reported as ended. */
const GRACE = 3;
const SHOWN_MS = 6000;

const show = (id, text) => { document.getElementById(id).textContent = text; };
const wording = {
  base_seed: (seed) => `seed ${seed}`,
  denoising_step_list: (steps) => `${steps.length} denoising ${steps.length === 1 ? 'step' : 'steps'}`,
  kv_cache_attention_bias: (bias) => `hold ${bias.toFixed(2)}`,
};

export class Receipts {
  /** In the order sent: not answered, then not applied. */
  #unanswered = [];
  #accepted = [];
  /** The chunk that took the prompt, until its report comes. */
  #chunk = null;
  /** Chunks that a running transition may still take. */
  #changing = null;
  /** An answer may be overtaken by what it announces. */
  #lastApplied = null;
  #timers = {};

  /** Nothing of ours is under way: what is reported now, someone else has changed. */
  get idle() {
    return this.#unanswered.length === 0 && this.#accepted.length === 0;
  }

  sent(parameters) {
    this.#unanswered.push({ parameters });
    if (isPrompt(parameters)) {
      [this.#chunk, this.#changing] = [null, null];
      this.#say('sent', 'sent');
    }
  }

  accepted(update, paused) {
    const entry = this.#unanswered.shift();
    if (!entry) return;
    this.#accepted.push({ ...entry, update, paused });
    if (this.#lastApplied?.update >= update) this.applied(this.#lastApplied);
    else if (paused && entry.parameters.paused === undefined) {
      this.#say(place(entry.parameters), 'takes effect when it goes on');
    }
  }

  /** Nobody is there to take it. */
  kept(parameters) {
    this.#say(place(parameters), 'the next stream starts with it');
  }

  refused() {
    const entry = this.#unanswered.shift();
    if (entry) this.#say(place(entry.parameters), '');
  }

  /** Something failed that was taken before. */
  failed() {
    [this.#chunk, this.#changing] = [null, null];
    this.#say('sent', '');
  }

  applied(message) {
    const { update, cache_epoch: epoch, chunk_index: index, transition_active: active } = message;
    this.#lastApplied = message;
    if (this.#changing !== null && !active) this.#end('changed');
    const applied = this.#accepted.filter((entry) => entry.update <= update);
    this.#accepted = this.#accepted.filter((entry) => entry.update > update);
    for (const { parameters, paused } of applied) {
      if (isPrompt(parameters)) this.#prompt(parameters, active, { epoch, index, paused });
      else if (parameters.reset_cache) this.#say('sent', 'started over', true);
      else this.#setting(parameters);
    }
  }

  chunk({ cache_epoch: epoch, chunk_index: index, timings }) {
    if (this.#changing !== null) {
      this.#changing -= 1;
      if (this.#changing <= 0) this.#end('');
    }
    const taken = this.#chunk;
    if (!taken || epoch < taken.epoch || (epoch === taken.epoch && index < taken.index)) return;
    this.#chunk = null;
    // After a pause the time says nothing.
    const same = !taken.paused && epoch === taken.epoch && index === taken.index && timings.parameter_to_packet_us > 0;
    this.#say('sent', same ? `in the picture after ${ms(timings.parameter_to_packet_us)}` : 'in the picture');
  }

  /** Something that happened to the stream. */
  note(text) {
    this.#say('sent', text, true);
  }

  /** A new session knows nothing of what was under way. */
  forget() {
    [this.#unanswered, this.#accepted] = [[], []];
    [this.#chunk, this.#changing, this.#lastApplied] = [null, null, null];
    for (const id of ['sent', 'settings-sent']) this.#say(id, '');
  }

  #prompt({ transition }, active, taken) {
    if (active) {
      this.#changing = (transition?.num_steps ?? 0) + GRACE;
      this.#say('sent', 'changing …');
    } else {
      this.#chunk = taken;
      this.#say('sent', `taken by chunk ${taken.index}`);
    }
  }

  #setting(parameters) {
    const told = Object.entries(parameters).filter(([key]) => wording[key]).map(([key, value]) => wording[key](value));
    if (told.length) this.#say('settings-sent', `${told.join(', ')}: in use`, true);
  }

  #end(text) {
    this.#changing = null;
    this.#say('sent', text);
  }

  #say(id, text, passing = false) {
    clearTimeout(this.#timers[id]);
    show(id, text);
    if (passing) this.#timers[id] = setTimeout(() => show(id, ''), SHOWN_MS);
  }
}

const isPrompt = ({ prompts, transition }) => prompts !== undefined || transition !== undefined;
const place = (parameters) => (isPrompt(parameters) || parameters.reset_cache || parameters.paused !== undefined ? 'sent' : 'settings-sent');
