// Prompts that the model offers to people who do not know it yet.

export class Examples {
  #list;
  #choose;

  /** `choose(text)` is called with what is clicked. */
  constructor(list, choose) {
    this.#list = list;
    this.#choose = choose;
  }

  offer(texts) {
    this.#list.replaceChildren(...texts.map((text) => this.#chip(text)));
    this.#list.hidden = texts.length === 0;
  }

  #chip(text) {
    const chip = Object.assign(document.createElement('button'), { type: 'button', className: 'chip', textContent: text });
    chip.addEventListener('click', () => this.#choose(text));
    return chip;
  }
}
