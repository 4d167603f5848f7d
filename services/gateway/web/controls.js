// Seed, steps and attention bias: each change is told at once, and what others change is shown.

const PRESETS = [
  { name: 'fine', steps: [1000, 750, 500, 250] },
  { name: 'balanced', steps: [1000, 667, 333] },
  { name: 'quick', steps: [1000, 500] },
  { name: 'rough', steps: [1000] },
];

const same = (a, b) => a.length === b.length && a.every((step, index) => step === b[index]);
const focused = (field) => document.activeElement === field;

export class Controls {
  #seed = document.getElementById('seed');
  #steps = document.getElementById('steps');
  #bias = document.getElementById('bias');
  #shown = document.getElementById('bias-value');
  #later = null;
  /** The seed that holds. */
  #held = 42;

  constructor(send) {
    this.#fill(PRESETS);
    const sendSeed = () => {
      const seed = this.#seedValue();
      if (seed === null) return;
      this.#held = seed;
      send({ base_seed: seed });
    };
    this.#seed.addEventListener('change', sendSeed);
    this.#steps.addEventListener('change', () => send({ denoising_step_list: JSON.parse(this.#steps.value) }));
    this.#bias.addEventListener('input', () => {
      this.#showBias();
      clearTimeout(this.#later);
      this.#later = setTimeout(() => send({ kv_cache_attention_bias: Number(this.#bias.value) }), 120);
    });
    // What cannot be sent does not stay as if it held.
    this.#seed.addEventListener('blur', () => {
      if (this.#seedValue(false) === null) this.#seed.value = this.#held;
      this.#seedValue(false);
    });
    document.getElementById('dice').addEventListener('click', () => {
      this.#seed.value = Math.floor(Math.random() * 1e6);
      sendSeed();
    });
  }

  /** What holds now, whoever said so. A field that someone is using is left alone. */
  show({ base_seed: seed, denoising_step_list: steps, kv_cache_attention_bias: bias }, name = 'custom') {
    if (seed !== undefined) {
      this.#held = seed;
      if (!focused(this.#seed)) this.#seed.value = seed;
    }
    if (steps?.length && !focused(this.#steps)) {
      const known = PRESETS.some((preset) => same(preset.steps, steps));
      this.#fill(known ? PRESETS : [{ name, steps }, ...PRESETS]);
      this.#steps.value = JSON.stringify(steps);
    }
    if (bias !== undefined && !focused(this.#bias)) {
      this.#bias.value = bias;
      this.#showBias();
    }
  }

  /** A model that does not rebuild its cache has no bias to set. */
  offerBias(offered) {
    this.#bias.closest('.field').hidden = !offered;
  }

  #seedValue(report = true) {
    const seed = Number(this.#seed.value);
    const valid = this.#seed.value !== '' && Number.isSafeInteger(seed) && seed >= 0;
    this.#seed.setCustomValidity(valid ? '' : 'a whole number of at least 0');
    if (report) this.#seed.reportValidity();
    return valid ? seed : null;
  }

  #fill(presets) {
    this.#steps.replaceChildren(
      ...presets.map(({ name, steps }) => new Option(`${steps.length} – ${name}`, JSON.stringify(steps))),
    );
  }

  #showBias() {
    this.#shown.textContent = Number(this.#bias.value).toFixed(2);
  }
}
