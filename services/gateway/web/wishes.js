// What the viewer wants: what was sent last and not refused. A new session starts with it, not with half-typed text.

export class Wishes {
  #settled = {};
  /** Sent and not answered yet, oldest first. */
  #sent = [];

  /** Something that is kept for the next session, with nobody to refuse it. */
  keep(parameters) {
    this.#settled = merge(this.#settled, parameters);
  }

  sent(parameters) {
    this.#sent.push(parameters);
  }

  accepted() {
    this.keep(this.#sent.shift() ?? {});
  }

  refused() {
    this.#sent.shift();
  }

  /** The connection is gone, and with it the answers: the last word counts. */
  disconnected() {
    for (const parameters of this.#sent.splice(0)) this.keep(parameters);
  }

  has(key) {
    return this.all()[key] !== undefined;
  }

  all() {
    return this.#sent.reduce(merge, this.#settled);
  }
}

/** A transition is on its way to its prompts; a reset is done once. */
function merge(before, { transition, reset_cache: _, ...after }) {
  return { ...before, ...after, ...(transition ? { prompts: transition.target_prompts } : {}) };
}
