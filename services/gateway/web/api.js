// Requests to the gateway. Errors carry the text that the server wrote for people.

const TOKEN = 'kinemesh.token';
/** An offer may take this long: creating, gathering. */
const PATIENCE_MS = 15_000;
const QUICK_MS = 1500;

export class ApiError extends Error {
  /** Status 0: nobody answered. */
  constructor(status, body, retryAfter = null) {
    const detail = Array.isArray(body?.detail) ? body.detail.map((entry) => entry.msg).join('; ') : body?.detail;
    super(body?.error?.message ?? detail ?? `the server answered ${status}`);
    this.status = status;
    this.error = body?.error;
    this.retryAfterMs = retryAfter > 0 ? retryAfter * 1000 : null;
  }
}

export function setToken(token) {
  localStorage.setItem(TOKEN, token);
}

export async function request(method, path, body, patience = PATIENCE_MS) {
  const headers = {};
  const token = localStorage.getItem(TOKEN);
  if (token) headers.authorization = `Bearer ${token}`;
  if (body !== undefined) headers['content-type'] = 'application/json';
  let response;
  let answer;
  try {
    const signal = AbortSignal.timeout(patience);
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal });
    const type = response.headers.get('content-type') ?? '';
    answer = type.startsWith('application/json') ? await response.json() : response.status === 204 ? null : await response.blob();
  } catch {
    throw new ApiError(0, { error: { message: 'the server cannot be reached' } });
  }
  if (!response.ok && path !== '/ready') throw new ApiError(response.status, answer, Number(response.headers.get('retry-after')));
  return answer;
}

export const ready = () => request('GET', '/ready', undefined, QUICK_MS);
export const cell = () => request('GET', '/api/v1/cell', undefined, QUICK_MS);
export const iceServers = () => request('GET', '/api/v1/webrtc/ice-servers');
export const offer = (body) => request('POST', '/api/v1/webrtc/offer', body);
export const candidates = (session, list) => request('PATCH', `/api/v1/webrtc/offer/${session}`, { candidates: list });
export const hangUp = (session) => request('DELETE', `/api/v1/webrtc/offer/${session}`);
export const frame = (session) => request('GET', `/api/v1/session/frame?quality=95&session_id=${session}`);
