// What server and client agree on. A command is one HTTP request over a Unix socket:
//
//   POST /v1/command    {"command":"pause","domain":"web"}
//     200 application/json       {"result":{…}}
//     4xx application/json       {"error":{"code":"ZAZEN_…","message":"…","hint":"…"}}
//   the same, for commands that follow something, or with `Accept: application/x-ndjson`
//     200 application/x-ndjson   {"log":"…"}\n … {"result":{…}}\n      log: a step that takes time, for a person
//                                … {"progress":{"done":1,"total":9}}\n  how far a long step has come, in its own unit
//                                … {"error":{…}}\n                     an error after the first line ends it
//   GET /v1/console?domain=web   Upgrade: zazen-console
//     101                        bytes of the console, both ways; who closes one way has left

import { ZazenError } from '../base/errors.ts';
import { isRecord } from './checks.ts';

export const COMMAND_PATH = '/v1/command';
export const CONSOLE_PATH = '/v1/console';
export const CONSOLE_PROTOCOL = 'zazen-console';
export const JSON_TYPE = 'application/json';
export const LINES_TYPE = 'application/x-ndjson';

export const BODY_MAX_BYTES = 65536;
export const HEADERS_MAX_BYTES = 8192;
/** Of one line of an answer; a list of a thousand domains fits. */
export const ANSWER_MAX_BYTES = 16 * 2 ** 20;

export interface ErrorAnswer {
  readonly code: string;
  readonly message: string;
  readonly hint?: string;
}

/** How far a long step has come, in a unit of its own. */
export interface Progress {
  readonly done: number;
  readonly total: number;
}

export type Answer =
  | { readonly result: unknown }
  | { readonly error: ErrorAnswer }
  | { readonly log: string }
  | { readonly progress: Progress };

export function describeError(error: ZazenError): ErrorAnswer {
  return { code: error.code, message: error.message, ...(error.hint === undefined ? {} : { hint: error.hint }) };
}

/** @throws ZazenError ZAZEN_HOST_PROTOCOL for what no Zazen would answer */
export function parseAnswer(line: string): Answer {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    throw notUnderstood();
  }
  if (!isRecord(value)) throw notUnderstood();
  if ('result' in value) return { result: value['result'] };
  if (typeof value['log'] === 'string') return { log: value['log'] };
  const { error, progress } = value;
  if (isRecord(progress)) return { progress: { done: Number(progress['done']), total: Number(progress['total']) } };
  if (!isRecord(error)) throw notUnderstood();
  const { code, message, hint } = error;
  if (typeof code !== 'string' || typeof message !== 'string') throw notUnderstood();
  return { error: { code, message, ...(typeof hint === 'string' ? { hint } : {}) } };
}

export function errorFrom({ code, message, hint }: ErrorAnswer): ZazenError {
  return new ZazenError(code, message, hint === undefined ? {} : { hint });
}

export function notUnderstood(): ZazenError {
  return new ZazenError('ZAZEN_HOST_PROTOCOL', 'the host answered with something that Zazen does not understand', {
    hint: 'is it of another version? see: zazen info --host',
  });
}

export function unknownDomain(name: string): ZazenError {
  return new ZazenError('ZAZEN_DOMAIN_UNKNOWN', `there is no domain ${name}`, {
    hint: 'zazen list shows those there are',
  });
}
