// The prompt box: one text, or several blended by weight.

/** What the server takes. */
const MAX_PROMPTS = 16;
/** Stands there at first, for a model that suggests nothing. */
const FIRST = 'a quiet sea at dawn, slow waves, soft light';

export class Prompts {
  #list;
  /** The button that adds a line. */
  #adder;
  /** The lines as they were sent or shown last. */
  #known = null;

  constructor(list, adder, onSend) {
    this.#list = list;
    this.#adder = adder;
    adder.addEventListener('click', () => {
      this.add();
      this.#list.lastElementChild.querySelector('textarea').focus();
    });
    list.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && !event.shiftKey && event.target.matches('textarea')) {
        event.preventDefault();
        onSend();
      }
    });
    this.add(FIRST);
  }

  add(text = '', share = 100) {
    const lines = this.#list.children;
    if (lines.length >= MAX_PROMPTS) return;
    const number = lines.length + 1;
    const line = document.createElement('div');
    line.className = 'prompt-line';
    const box = Object.assign(document.createElement('textarea'), { rows: 1, maxLength: 2000, value: text, placeholder: 'Describe what should appear' });
    box.setAttribute('aria-label', `Prompt ${number}`);
    const weight = document.createElement('label');
    weight.className = 'weight';
    const slider = Object.assign(document.createElement('input'), { type: 'range', min: 0, max: 100, step: 5, value: share });
    slider.setAttribute('aria-label', `Weight of prompt ${number}`);
    const shown = document.createElement('span');
    shown.textContent = slider.value;
    slider.addEventListener('input', () => { shown.textContent = slider.value; });
    weight.append(slider, shown);
    const remove = Object.assign(document.createElement('button'), { type: 'button', className: 'ghost remove', textContent: '×', title: 'Remove' });
    remove.setAttribute('aria-label', `Remove prompt ${number}`);
    remove.addEventListener('click', () => {
      line.remove();
      this.#count();
      this.focus();
    });
    line.append(box, weight, remove);
    this.#list.append(line);
    this.#count();
  }

  #count() {
    this.#adder.disabled = this.#list.children.length >= MAX_PROMPTS;
  }

  focus() {
    const box = this.#list.querySelector('textarea');
    box?.focus();
    box?.select();
  }

  /** What stands there is what holds. */
  settle() {
    this.#known = JSON.stringify(this.read());
  }

  /** One text instead of all that stands there. */
  put(text) {
    this.#list.replaceChildren();
    this.add(text);
  }

  /** A better text to begin with, unless someone has begun. */
  suggest(text) {
    const lines = this.read();
    const untouched = this.#known === null && lines.length === 1 && lines[0].text === FIRST;
    if (untouched && !this.#list.contains(document.activeElement)) this.put(text);
  }

  /** Shows prompts that someone else sent, unless someone is typing here. */
  show(prompts) {
    const touched = this.#known !== null && this.#known !== JSON.stringify(this.read());
    if (touched || this.#list.contains(document.activeElement) || same(prompts, this.read())) return;
    const most = heaviest(prompts);
    this.#list.replaceChildren();
    for (const { text, weight } of prompts) this.add(text, (weight / most) * 100);
    this.settle();
  }

  /** `[{text, weight}]` of the lines that are not empty. */
  read() {
    return [...this.#list.children]
      .map((line) => ({
        text: line.querySelector('textarea').value.trim(),
        weight: Number(line.querySelector('input').value),
      }))
      .filter(({ text }) => text !== '');
  }
}

const heaviest = (prompts) => Math.max(...prompts.map(({ weight }) => weight)) || 1;
/** Weights are relative. */
const same = (a, b) => a.length === b.length && a.every(({ text, weight }, index) => text === b[index].text
  && Math.abs(weight / heaviest(a) - b[index].weight / heaviest(b)) < 0.03);
