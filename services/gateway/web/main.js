// Puts the page together.

import * as api from '/assets/api.js';
import { Controls } from '/assets/controls.js';
import { listen } from '/assets/keys.js';
import { Panel } from '/assets/panel.js';
import { Prompts } from '/assets/prompts.js';
import { Stream } from '/assets/stream.js';

const element = (id) => document.getElementById(id);
const video = element('video');
const screen = element('screen');
const curtain = element('curtain');
const panel = new Panel();
let paused = false;
let sentAt = null;
let awaited = 0;

const stream = new Stream(video, () => {
  const prompts = boxes.read();
  return { input_mode: 'text', ...(prompts.length ? { prompts } : {}), ...controls.read() };
});
const send = (parameters) => {
  hideNotice();
  if (!stream.send(parameters)) say('not connected yet');
};
const controls = new Controls((parameters) => { if (stream.open) send(parameters); });
const boxes = new Prompts(element('prompts'), sendPrompt);

function sendPrompt() {
  const prompts = boxes.read();
  if (prompts.length === 0) {
    say('the prompt is empty');
    return;
  }
  const chunks = Number(element('transition').value);
  sentAt = performance.now();
  awaited = Infinity;
  say('sent');
  send(chunks === 0 ? { prompts } : { transition: { target_prompts: prompts, num_steps: chunks } });
}

function say(text) {
  element('sent').textContent = text;
}

function notice(text) {
  element('notice').textContent = text;
  element('notice').hidden = false;
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
    notice(`no snapshot: ${error.message}`);
  }
}

function fullscreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else screen.requestFullscreen?.();
}

// Connection ------------------------------------------------------------------------------------------------------

const TITLES = { waiting: 'The server is getting ready', connecting: 'Connecting', failed: 'No stream' };

stream.addEventListener('state', ({ detail: { state, text, status, retry } }) => {
  element('connection').dataset.state = state;
  element('connection-text').textContent = state === 'waiting' ? `waiting for ${text}` : text;
  element('retry').hidden = state !== 'failed';
  element('pulse').hidden = state === 'failed';
  element('curtain-title').textContent = TITLES[state] ?? '';
  element('curtain-text').textContent = state === 'waiting' ? `It waits for ${text}.`
    : state === 'failed' ? `${text}. Trying again in ${Math.max(1, Math.round(retry / 1000))} s.` : '';
  if (state !== 'live') curtain.classList.remove('away');
  if (state === 'live' && video.videoWidth > 0) curtain.classList.add('away');
  if (state === 'connecting') element('curtain-text').textContent = 'The first picture takes a moment.';
  if (status === 401) askToken();
});

stream.addEventListener('open', () => {
  paused = false;
  showPaused();
  hideNotice();
  say('');
});

stream.addEventListener('message', ({ detail: message }) => {
  switch (message.type) {
    case 'chunk':
      panel.chunk(message);
      break;
    case 'parameters_accepted':
      awaited = message.update;
      break;
    case 'applied':
      if (sentAt !== null && message.update >= awaited) {
        say(message.transition_active ? 'changing …' : `in the picture after ${Math.round(performance.now() - sentAt)} ms`);
        sentAt = null;
      }
      break;
    case 'session_state':
      sessionState(message);
      break;
    case 'error':
      sentAt = null;
      say('');
      notice(message.error.message);
      break;
    default:
  }
});

function sessionState({ state, error }) {
  if (state === 'recovering') {
    element('connection').dataset.state = 'connecting';
    element('connection-text').textContent = 'the mesh is recovering';
    notice(error?.message ?? 'The mesh lost a process and is forming again. The stream goes on when it is back.');
    return;
  }
  if (state === 'streaming' || state === 'paused') {
    element('connection').dataset.state = 'live';
    element('connection-text').textContent = state === 'paused' ? 'paused' : 'live';
    paused = state === 'paused';
    showPaused();
    hideNotice();
  }
}

function playing() {
  if (video.videoWidth === 0) return;
  screen.style.setProperty('--shape', `${video.videoWidth} / ${video.videoHeight}`);
  screen.classList.toggle('small', video.videoWidth <= 256);
  panel.picture(video.videoWidth, video.videoHeight);
  curtain.classList.add('away');
}

video.addEventListener('playing', playing);
video.addEventListener('resize', playing);

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

const reset = () => send({ reset_cache: true });

element('prompt-form').addEventListener('submit', (event) => {
  event.preventDefault();
  sendPrompt();
});
element('add-prompt').addEventListener('click', () => boxes.add());
element('pause').addEventListener('click', pause);
element('reset').addEventListener('click', reset);
element('snapshot').addEventListener('click', snapshot);
element('fullscreen').addEventListener('click', fullscreen);
element('retry').addEventListener('click', () => stream.retryNow());
listen({ '/': () => boxes.focus(), ' ': pause, r: reset, s: snapshot, f: fullscreen });

async function watchCell() {
  try {
    const state = await api.cell();
    panel.cell(state);
    if (state.model) controls.adopt(state.model);
  } catch {
    // The connection line says what is wrong.
  }
  panel.roundTrip(await stream.roundTrip());
}

setInterval(watchCell, 2000);
watchCell();
stream.run();
