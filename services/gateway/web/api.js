// Requests to the gateway. Errors carry the text that the server wrote for people.

const TOKEN = 'kinemesh.token';

export class ApiError extends Error {
  constructor(status, body) {
    const detail = Array.isArray(body?.detail) ? body.detail.map((entry) => entry.msg).join('; ') : body?.detail;
    super(body?.error?.message ?? detail ?? `the server answered ${status}`);
    this.status = status;
    this.retryable = body?.error?.retryable ?? status >= 500;
  }
}

export function setToken(token) {
  localStorage.setItem(TOKEN, token);
}

export async function request(method, path, body, { signal } = {}) {
  const headers = {};
  const token = localStorage.getItem(TOKEN);
  if (token) headers.authorization = `Bearer ${token}`;
  if (body !== undefined) headers['content-type'] = 'application/json';
  let response;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal });
  } catch (cause) {
    if (signal?.aborted) throw cause;
    throw new ApiError(0, { detail: 'the server cannot be reached', error: { message: 'the server cannot be reached', retryable: true } });
  }
  const type = response.headers.get('content-type') ?? '';
  const answer = type.startsWith('application/json') ? await response.json() : response.status === 204 ? null : await response.blob();
  if (!response.ok && path !== '/ready') throw new ApiError(response.status, answer);
  return answer;
}

export const ready = () => request('GET', '/ready');
export const cell = () => request('GET', '/api/v1/cell');
export const iceServers = () => request('GET', '/api/v1/webrtc/ice-servers');
export const offer = (body) => request('POST', '/api/v1/webrtc/offer', body);
export const candidates = (session, list) => request('PATCH', `/api/v1/webrtc/offer/${session}`, { candidates: list });
export const hangUp = (session) => request('DELETE', `/api/v1/webrtc/offer/${session}`);
export const frame = (session) => request('GET', `/api/v1/session/frame?quality=95&session_id=${session}`);
