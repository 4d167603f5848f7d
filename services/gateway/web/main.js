// Puts the page together.

import * as api from '/assets/api.js';
import { Controls } from '/assets/controls.js';
import { Examples } from '/assets/examples.js';
import { listen } from '/assets/keys.js';
import { Panel } from '/assets/panel.js';
import { Prompts } from '/assets/prompts.js';
import { Receipts } from '/assets/receipts.js';
import { Screen } from '/assets/screen.js';
import { Stream } from '/assets/stream.js';
import { leaving, problem, sentence, waiting } from '/assets/texts.js';
import { Wishes } from '/assets/wishes.js';

const WATCH_MS = 1000;
/** While nobody answers. */
const KNOCK_MS = 400;
/** A fault that lasts longer is no matter of a moment. */
const LONG_MS = 10_000;

const element = (id) => document.getElementById(id);
const panel = new Panel();
const receipts = new Receipts();
const wishes = new Wishes();
const screen = new Screen((width, height) => panel.picture(width, height));
const stream = new Stream(element('video'), initial);
const controls = new Controls(send);
const boxes = new Prompts(element('prompts'), element('add-prompt'), sendPrompt);
const examples = new Examples(element('examples'), (text) => {
  boxes.put(text);
  sendPrompt();
});
let paused = false;
let adopted = false;
/** Since when the session recovers from a fault, or null. */
let recovering = null;

/** The first session starts with what stands in the prompt box; a later one with what was sent last. */
async function initial() {
  if (!adopted) await api.cell().then(({ model }) => model && adopt(model), () => {});
  const prompts = boxes.read();
  if (!wishes.has('prompts') && prompts.length) {
    wishes.keep({ prompts });
    boxes.settle();
  }
  return { input_mode: 'text', ...wishes.all() };
}

function send(parameters) {
  hideNotice();
  if (stream.send(parameters)) {
    wishes.sent(parameters);
    receipts.sent(parameters);
    return;
  }
  wishes.keep(parameters);
  receipts.kept(parameters);
}

function sendPrompt() {
  const prompts = boxes.read();
  if (prompts.length === 0) {
    receipts.note('the prompt is empty: nothing was sent');
    boxes.focus();
    return;
  }
  boxes.settle();
  const chunks = Number(element('transition').value);
  send(chunks === 0 ? { prompts } : { transition: { target_prompts: prompts, num_steps: chunks } });
}

function notice(text, raw = '') {
  element('notice').textContent = sentence(text);
  element('notice').title = raw;
  element('notice').hidden = false;
  element('notice').scrollIntoView({ block: 'nearest' });
}

function hideNotice() {
  element('notice').hidden = true;
}

function showPaused() {
  element('pause').setAttribute('aria-pressed', String(paused));
  element('pause').querySelector('span').textContent = paused ? 'Play' : 'Pause';
  element('pause-icon').setAttribute('d', paused ? 'M6 4l10 6-10 6z' : 'M6 4h3v12H6zM11 4h3v12h-3z');
  element('paused-mark').hidden = !paused;
}

function pause() {
  if (!stream.open) return;
  paused = !paused;
  send({ paused });
  showPaused();
}

async function snapshot() {
  if (!stream.session) return;
  try {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(await api.frame(stream.session));
    link.download = `kinemesh-${new Date().toISOString().replace(/[:.]/g, '-')}.jpg`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  } catch (error) {
    notice(`no snapshot: ${problem(error.error ?? { message: error.message })}`, error.message);
  }
}

function fullscreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else element('screen').requestFullscreen?.();
}

// Connection ------------------------------------------------------------------------------------------------------

function connection(state, text, raw = '') {
  element('connection').dataset.state = state;
  element('connection-text').textContent = text;
  element('connection').title = raw;
  panel.live(state === 'live', paused);
}

const STATES = {
  unreachable() {
    connection('unreachable', 'reconnecting');
    screen.cover({ title: 'Reconnecting', text: 'the server does not answer; the stream starts anew as soon as it does' });
  },
  waiting({ text }) {
    connection('waiting', 'waiting for the server', text);
    const title = leaving(text) ? 'The server is leaving' : 'The server is getting ready';
    const then = leaving(text) ? '; the stream starts anew once it is back' : '';
    screen.cover({ title, text: `${waiting(text)}${then}`, raw: text });
  },
  connecting() {
    connection('connecting', 'connecting');
    screen.cover({ title: 'Connecting', text: 'the first picture takes a moment' });
  },
  live() {
    connection('live', paused ? 'paused' : 'live');
    if (!screen.empty) screen.lift();
    else if (paused) screen.cover({ title: 'Paused', text: 'the new stream starts when you press play', busy: false });
  },
  interrupted({ silent }) {
    connection('interrupted', 'interrupted');
    const text = silent ? 'the server does not answer; it reconnects by itself' : 'no new pictures arrive; they go on as soon as some do';
    screen.cover({ title: 'Interrupted', text });
  },
  reconnecting({ error }) {
    connection('reconnecting', 'reconnecting', error.message);
    screen.cover({ title: 'Reconnecting', text: problem(error), raw: error.message });
  },
  failed({ error, status, retry }) {
    connection('failed', 'no stream', error.message);
    const seconds = Math.max(1, Math.round(retry / 1000));
    screen.cover({ title: 'No stream', text: `${problem(error)}; trying again in ${seconds} s`, raw: error.message, retry: true, busy: false });
    if (status === 401) askToken();
  },
};

stream.addEventListener('state', ({ detail }) => STATES[detail.state](detail));

stream.addEventListener('open', () => {
  hideNotice();
  panel.begin();
});

stream.addEventListener('closed', () => {
  wishes.disconnected();
  receipts.forget();
  stream.held = false;
  recovering = null;
});

stream.addEventListener('message', ({ detail: message }) => {
  switch (message.type) {
    case 'chunk':
      panel.chunk(message);
      receipts.chunk(message);
      stream.chunkTook(message.timings.chunk_us / 1000);
      break;
    case 'parameters_accepted':
      wishes.accepted();
      receipts.accepted(message.update, paused);
      break;
    case 'parameters_updated':
      wishes.keep(message.parameters);
      follow(message.parameters);
      break;
    case 'applied':
      receipts.applied(message);
      if (receipts.idle) follow(message.changed);
      break;
    case 'session_state':
      sessionState(message);
      break;
    case 'continued':
      continued(message);
      break;
    case 'error':
      if (message.refused) {
        wishes.refused();
        receipts.refused();
      } else {
        receipts.failed();
      }
      notice(problem(message.error), message.error.message);
      break;
    default:
  }
});

/** Shows what holds, whoever changed it. */
function follow(parameters) {
  controls.show(parameters);
  const prompts = parameters.transition?.target_prompts ?? parameters.prompts;
  if (prompts?.length) boxes.show(prompts);
}

function sessionState({ state, error }) {
  stream.held = state === 'recovering' || state === 'paused' || state === 'starting';
  if (state !== 'recovering') recovering = null;
  if (state === 'recovering') {
    recovering ??= performance.now();
    connection('recovering', 'one moment', error?.message);
    screen.cover({ title: 'One moment', text: problem(error ?? { reason: 'recovering' }), raw: error?.message });
    return;
  }
  if (state !== 'streaming' && state !== 'paused') return;
  paused = state === 'paused';
  showPaused();
  hideNotice();
  if (stream.live) STATES.live();
}

/** Of a fault that lasts: what the server waits for now, and for how long already. */
async function stillWaiting() {
  if (recovering === null || performance.now() - recovering < LONG_MS) return;
  const { waiting_for: raw } = await api.ready().catch(() => ({}));
  if (recovering === null || !raw) return;
  const seconds = Math.round((performance.now() - recovering) / 1000);
  screen.cover({ title: 'Still waiting', text: `${sentence(waiting(raw))} It has taken ${seconds} s so far`, raw });
}

/** Another process makes the stream now: say what that cost. */
function continued({ restored, lost_chunks: lost }) {
  if (!restored) receipts.note('the story starts over: its last state was lost');
  else if (lost > 0) receipts.note(`the stream goes on; ${lost} ${lost === 1 ? 'chunk was' : 'chunks were'} lost`);
  else receipts.note('the stream goes on');
}

// Token -----------------------------------------------------------------------------------------------------------

function askToken() {
  const dialog = element('token-dialog');
  if (!dialog.open) dialog.showModal();
}

element('token-form').addEventListener('submit', () => {
  api.setToken(element('token').value);
  stream.retryNow();
});

// Buttons and keys ------------------------------------------------------------------------------------------------

const reset = () => {
  if (stream.open) send({ reset_cache: true });
};

element('prompt-form').addEventListener('submit', (event) => {
  event.preventDefault();
  sendPrompt();
});
element('pause').addEventListener('click', pause);
element('reset').addEventListener('click', reset);
element('snapshot').addEventListener('click', snapshot);
element('fullscreen').addEventListener('click', fullscreen);
element('retry').addEventListener('click', () => stream.retryNow());
listen({ '/': () => boxes.focus(), ' ': pause, r: reset, s: snapshot, f: fullscreen });

async function watchCell() {
  let next = WATCH_MS;
  try {
    const state = await api.cell();
    panel.cell(state);
    if (state.model) adopt(state.model);
    stream.answered(state.instance);
  } catch (error) {
    panel.cell(null);
    if (error.status === 0) {
      next = KNOCK_MS;
      stream.silent();
    } else {
      stream.answered();
    }
  }
  if (stream.live) panel.roundTrip(await stream.roundTrip());
  await stillWaiting();
  setTimeout(watchCell, next);
}

/** What the model works with by default holds where nobody has chosen. */
function adopt({ name, default_steps: steps, default_attention_bias: bias, supports_kv_cache_bias: biased, examples: texts }) {
  if (adopted) return;
  adopted = true;
  controls.offerBias(biased);
  for (const note of document.querySelectorAll('[data-model]')) note.hidden = note.dataset.model !== name;
  examples.offer(texts);
  if (texts.length) boxes.suggest(texts[0]);
  const defaults = { denoising_step_list: steps, kv_cache_attention_bias: bias };
  controls.show(Object.fromEntries(Object.entries(defaults).filter(([key, value]) => value && !wishes.has(key))), 'default');
}

watchCell();
stream.run();
