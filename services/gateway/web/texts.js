// What the server says, in words for who watches. Its own words are for operators; they stay within reach as tooltips.

const STOPPED = 'a part of the server stopped; the picture goes on by itself once it is back';
const SILENT = 'a part of the server does not answer';
const BUSY = 'the server is busy with another viewer';
const LEAVING = 'the server is shutting down';

/** What `/ready` waits for: the first that fits. */
const WAITS = [
  [/warming (\d+)\/(\d+)/, ([, done, all]) => `the model is warming up, ${done} of ${all}`],
  [/loading/, () => 'the model is being loaded'],
  [/recovering|fault|end of call/, () => STOPPED],
  [/lease/, () => 'another part of the server is still in charge; this takes a few seconds'],
  [/workers|leader key|forming/, () => 'the parts of the server are coming together'],
  [/draining|shutdown|stopped/, () => LEAVING],
  [/no leader/, () => 'a part of the server is not running; it goes on when it is back'],
  [/broker/, () => 'the parts of the server do not reach each other yet'],
];

const PROBLEMS = {
  too_many_sessions: 'this server shows as many streams as it can',
  busy: BUSY,
  queue_full: BUSY,
  slot_busy: BUSY,
  lease_held: BUSY,
  not_ready: 'the server is not ready yet',
  not_loaded: 'the server is not ready yet',
  recovering: STOPPED,
  rank_lost: STOPPED,
  call_aborted: STOPPED,
  stale_epoch: STOPPED,
  draining: LEAVING,
  broker_unavailable: SILENT,
  no_responders: SILENT,
  budget_spent: SILENT,
  session_ended: 'the stream ended',
  no_such_session: 'the stream ended',
  no_such_resource: 'there is no picture yet',
  bad_token: 'this server asks for a token',
  foreign_origin: 'this page may not use the server',
  foreign_host: 'the server does not know the name in the address bar',
  bad_sdp: 'this browser and the server found no way to send video',
  no_common_codec: 'this browser knows none of the video formats that the server makes',
};

/** Whether the server will not get ready any more, of what it says that it waits for. */
export const leaving = (raw) => waiting(raw) === LEAVING;

export function waiting(raw) {
  for (const [pattern, words] of WAITS) {
    const match = pattern.exec(raw);
    if (match) return words(match);
  }
  return 'the server is starting';
}

/** Of an error as the server sends it: `{class, reason, message}`. What is wrong with an input is said as it is. */
export function problem({ class: kind, reason, message } = {}) {
  if (PROBLEMS[reason]) return PROBLEMS[reason];
  if (kind === 'invalid_argument' || kind === 'unsupported') return message;
  return reason ? 'something went wrong inside the server' : message ?? 'the stream ended';
}

export const sentence = (text) => (text ? `${text[0].toUpperCase()}${text.slice(1)}${/[.!?…]$/.test(text) ? '' : '.'}` : '');

export const ms = (us) => (us >= 1e6 ? `${(us / 1e6).toFixed(2)} s` : `${Math.round(us / 1000)} ms`);
