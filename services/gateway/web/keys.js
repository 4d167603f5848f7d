// Keyboard shortcuts. They stay out of the way of typing and of focused controls.

const typing = (target) => target.closest?.('textarea, input, select, dialog') !== null;

/** `actions` by key: '/', ' ', 'r', ... */
export function listen(actions) {
  addEventListener('keydown', (event) => {
    if (event.key === 'Escape' && typing(event.target)) {
      event.target.blur();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
    // A focused button takes the space bar itself.
    if (event.key === ' ' && event.target.closest?.('button')) return;
    const action = actions[event.key.toLowerCase()];
    if (action) {
      event.preventDefault();
      action();
    }
  });
}
