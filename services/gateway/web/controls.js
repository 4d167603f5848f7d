// Seed, steps and attention bias: read for a new session, sent while one runs.

const PRESETS = [
  { name: 'fine', steps: [1000, 750, 500, 250] },
  { name: 'balanced', steps: [1000, 667, 333] },
  { name: 'quick', steps: [1000, 500] },
  { name: 'rough', steps: [1000] },
];

const same = (a, b) => a.length === b.length && a.every((step, index) => step === b[index]);

export class Controls {
  #seed = document.getElementById('seed');
  #steps = document.getElementById('steps');
  #bias = document.getElementById('bias');
  #shown = document.getElementById('bias-value');
  #touched = new Set();
  #later = null;

  constructor(send) {
    this.#fill(PRESETS);
    this.#seed.addEventListener('change', () => this.#changed('base_seed', send));
    this.#steps.addEventListener('change', () => this.#changed('denoising_step_list', send));
    this.#bias.addEventListener('input', () => {
      this.#show();
      clearTimeout(this.#later);
      this.#later = setTimeout(() => this.#changed('kv_cache_attention_bias', send), 120);
    });
    document.getElementById('dice').addEventListener('click', () => {
      this.#seed.value = Math.floor(Math.random() * 1e6);
      this.#changed('base_seed', send);
    });
  }

  /** Takes over what the model works with by default, where the viewer has not chosen. */
  adopt(model) {
    if (!this.#touched.has('denoising_step_list') && model.default_steps?.length) {
      const known = PRESETS.some(({ steps }) => same(steps, model.default_steps));
      this.#fill(known ? PRESETS : [{ name: 'default', steps: model.default_steps }, ...PRESETS]);
      this.#steps.value = JSON.stringify(model.default_steps);
    }
    if (!this.#touched.has('kv_cache_attention_bias') && model.default_attention_bias) {
      this.#bias.value = model.default_attention_bias;
      this.#show();
    }
  }

  /** What the viewer has chosen; the rest is the model's business. */
  read() {
    const all = {
      base_seed: this.#seedValue(),
      denoising_step_list: JSON.parse(this.#steps.value),
      kv_cache_attention_bias: Number(this.#bias.value),
    };
    return Object.fromEntries(Object.entries(all).filter(([key, value]) => this.#touched.has(key) && value !== null));
  }

  #seedValue() {
    const seed = Number(this.#seed.value);
    const valid = this.#seed.value !== '' && Number.isSafeInteger(seed) && seed >= 0;
    this.#seed.setCustomValidity(valid ? '' : 'a whole number of at least 0');
    this.#seed.reportValidity();
    return valid ? seed : null;
  }

  #changed(key, send) {
    this.#touched.add(key);
    const value = this.read()[key];
    if (value !== undefined) send({ [key]: value });
  }

  #fill(presets) {
    this.#steps.replaceChildren(
      ...presets.map(({ name, steps }) => new Option(`${steps.length} – ${name}`, JSON.stringify(steps))),
    );
  }

  #show() {
    this.#shown.textContent = Number(this.#bias.value).toFixed(2);
  }
}
