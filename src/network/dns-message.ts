// DNS messages (RFC 1035) as far as a relay needs them: the one question of a query, and short answers.
//
//   message │ id │ flags │ questions │ answers │ authorities │ additionals │ question … │ records …
//           0    2       4           6         8             10            12
//   name    │ length label │ length label │ … │ 0       at most 255 bytes, labels of at most 63

import { readU16, writeU16, writeU32 } from './wire.ts';

export const TYPE_A = 1;
export const TYPE_PTR = 12;
export const TYPE_ANY = 255;

export const NO_ERROR = 0;
export const SERVER_FAILURE = 2;
export const NAME_ERROR = 3;
export const REFUSED = 5;

const HEADER_BYTES = 12;
const CLASS_INTERNET = 1;
const MAX_NAME_BYTES = 255;
const MAX_LABEL_BYTES = 63;
/** Local names may change when guests come and go. */
const LOCAL_TTL_SECONDS = 5;

export interface DnsQuery {
  readonly id: number;
  /** In lower case, labels with dots between, none at the end. */
  readonly name: string;
  readonly type: number;
  /** Where the question ends in the message. */
  readonly questionEnd: number;
}

/** The question of a standard query for the Internet class, or undefined. */
export function parseQuery(message: Uint8Array): DnsQuery | undefined {
  if (message.length < HEADER_BYTES + 5) return undefined;
  if ((readU16(message, 2) & 0xf800) !== 0 || readU16(message, 4) !== 1) return undefined;
  const labels: string[] = [];
  let at = HEADER_BYTES;
  for (;;) {
    const length = message[at];
    if (length === undefined || length > MAX_LABEL_BYTES || at - HEADER_BYTES > MAX_NAME_BYTES) return undefined;
    if (length === 0) break;
    if (at + 1 + length > message.length) return undefined;
    labels.push(Buffer.from(message.subarray(at + 1, at + 1 + length)).toString('latin1'));
    at += 1 + length;
  }
  if (at + 5 > message.length || readU16(message, at + 3) !== CLASS_INTERNET) return undefined;
  return {
    id: readU16(message, 0), name: labels.join('.').toLowerCase(), type: readU16(message, at + 1), questionEnd: at + 5,
  };
}

/** Whether `answer` answers the question of `query`, whose id was replaced by `id`. */
export function isAnswer(answer: Uint8Array, query: Uint8Array, questionEnd: number, id: number): boolean {
  if (answer.length < HEADER_BYTES || readU16(answer, 0) !== id || (answer[2]! & 0x80) === 0) return false;
  if (readU16(answer, 4) === 0) return true; // some errors come without the question
  return Buffer.compare(answer.subarray(HEADER_BYTES, questionEnd), query.subarray(HEADER_BYTES, questionEnd)) === 0;
}

/** A record of a local answer. */
export interface DnsRecord {
  readonly type: number;
  readonly data: Uint8Array;
}

/** The relay's own answer to a query. */
export function buildAnswer(
  message: Uint8Array, query: DnsQuery, code: number, records: readonly DnsRecord[],
): Uint8Array {
  const sizes = records.map(({ data }) => 12 + data.length);
  const answer = new Uint8Array(query.questionEnd + sizes.reduce((sum, size) => sum + size, 0));
  answer.set(message.subarray(0, query.questionEnd));
  // Response, recursion available; recursion desired as asked.
  writeU16(answer, 2, 0x8080 | (readU16(message, 2) & 0x0100) | code);
  writeU16(answer, 6, records.length);
  writeU32(answer, 8, 0);
  let at = query.questionEnd;
  for (const { type, data } of records) {
    writeU16(answer, at, 0xc000 | HEADER_BYTES); // the question's name
    writeU16(answer, at + 2, type);
    writeU16(answer, at + 4, CLASS_INTERNET);
    writeU32(answer, at + 6, LOCAL_TTL_SECONDS);
    writeU16(answer, at + 10, data.length);
    answer.set(data, at + 12);
    at += 12 + data.length;
  }
  return answer;
}

export function encodeName(name: string): Uint8Array {
  const parts = name.split('.').map((label) => Buffer.from(label, 'latin1').subarray(0, MAX_LABEL_BYTES));
  return Buffer.concat([...parts.flatMap((label) => [Buffer.of(label.length), label]), Buffer.of(0)]);
}
