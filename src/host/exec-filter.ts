// Finding one command's bytes in what the console says, and writing the command's input so that the guest's terminal
// hands it over unaltered. Both ends of the framing of guest/init-script.ts; bytes in, bytes out, chunk by chunk.
//
//     boot messages │ RS " zazen-start NONCE" LF │ output │ RS " zazen-exit NONCE STATUS" LF │ kernel's last words
//          log      │          dropped           │ output │            dropped              │        log
//
// Only bytes that may be the beginning of a marker wait for the next chunk, and all those begin with RS: a line is
// passed on as soon as it is there.

import { exitMarker, startMarker } from '../guest/init-script.ts';
import type { ExecTty } from './types.ts';

export type ExecPiece =
  | { readonly type: 'log'; readonly bytes: Buffer }
  | { readonly type: 'start' }
  | { readonly type: 'output'; readonly bytes: Buffer }
  | { readonly type: 'exit'; readonly status: number };

const LF = 0x0a;
/** CR, three digits, LF and room to spare: a marker that goes on for longer is none. */
const TRAILER_MAX_BYTES = 6;

/** The pieces come in the order log* start output* exit log*, whatever the guest writes. */
export class ExecFilter {
  readonly #start: Buffer;
  readonly #exit: Buffer;
  #state: 'before' | 'inside' | 'after' = 'before';
  /** The end of what came so far, that may be the beginning of a marker. */
  #held: Buffer = Buffer.alloc(0);

  constructor(nonce: string) {
    this.#start = Buffer.from(startMarker + nonce, 'latin1');
    this.#exit = Buffer.from(`${exitMarker}${nonce} `, 'latin1');
  }

  push(chunk: Uint8Array): ExecPiece[] {
    const view = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    let rest = this.#held.length === 0 ? view : Buffer.concat([this.#held, view]);
    this.#held = Buffer.alloc(0);
    const pieces: ExecPiece[] = [];
    while (rest.length > 0) rest = this.#step(rest, pieces);
    return pieces;
  }

  /** What was held back, when no more will come. */
  end(): ExecPiece[] {
    const bytes = this.#held;
    this.#held = Buffer.alloc(0);
    return bytes.length === 0 ? [] : [this.#text(bytes)];
  }

  #text(bytes: Buffer): ExecPiece {
    return { type: this.#state === 'inside' ? 'output' : 'log', bytes };
  }

  /** Takes what it can from the front of `bytes`; gives what is left, or nothing when it has to wait for more. */
  #step(bytes: Buffer, pieces: ExecPiece[]): Buffer {
    if (this.#state === 'after') {
      pieces.push(this.#text(bytes));
      return bytes.subarray(bytes.length);
    }
    const marker = this.#state === 'before' ? this.#start : this.#exit;
    const at = bytes.indexOf(marker);
    const textEnd = at >= 0 ? at : bytes.length - heldBytes(bytes, marker);
    if (textEnd > 0) pieces.push(this.#text(bytes.subarray(0, textEnd)));
    if (at < 0) return this.#hold(bytes.subarray(textEnd));
    const trailer = readTrailer(bytes, at + marker.length, this.#state === 'inside');
    if (trailer === 'more') return this.#hold(bytes.subarray(at));
    if (trailer === 'other') {
      pieces.push(this.#text(bytes.subarray(at, at + 1)));
      return bytes.subarray(at + 1);
    }
    pieces.push(this.#state === 'before' ? { type: 'start' } : { type: 'exit', status: trailer.status });
    this.#state = this.#state === 'before' ? 'inside' : 'after';
    return bytes.subarray(trailer.end);
  }

  #hold(bytes: Buffer): Buffer {
    // A copy: the caller may use its chunk again.
    this.#held = Buffer.from(bytes);
    return bytes.subarray(bytes.length);
  }
}

/** Length of the longest end of `bytes` that is a beginning of `marker`, but not all of it. */
function heldBytes(bytes: Buffer, marker: Buffer): number {
  for (let length = Math.min(marker.length - 1, bytes.length); length > 0; length--) {
    if (bytes.subarray(bytes.length - length).equals(marker.subarray(0, length))) return length;
  }
  return 0;
}

/** What follows a marker: the status if it has one, a CR if the terminal translates, LF. */
function readTrailer(
  bytes: Buffer,
  from: number,
  hasStatus: boolean,
): { status: number; end: number } | 'more' | 'other' {
  const text = bytes.toString('latin1', from, from + TRAILER_MAX_BYTES);
  const match = (hasStatus ? /^(\d{1,3})\r?\n/ : /^()\r?\n/).exec(text);
  if (match !== null) {
    const status = Number(match[1]);
    return status > 255 ? 'other' : { status, end: from + match[0].length };
  }
  return (hasStatus ? /^\d{0,3}\r?$/ : /^\r?$/).test(text) ? 'more' : 'other';
}

const CTRL_D = 0x04;
/** Linux's hvc driver takes ^O at the console for the SysRq key, in every mode of the terminal; ^O ^O is ^O. */
const CTRL_O = 0x0f;
const CTRL_V = 0x16;
/** What a terminal set up for `pipe` obeys: intr, eof, reprint, kill, lnext, werase, susp, quit, erase. */
const SPECIAL: ReadonlySet<number> = new Set([0x03, CTRL_D, 0x12, 0x15, CTRL_V, 0x17, 0x1a, 0x1c, 0x7f]);
/** A Linux terminal loses what goes beyond 4095 bytes of one line. */
const LINE_MAX_BYTES = 1024;
/** Each end of file is seen by one read; a second program in the same command, that reads as well, needs another. */
const END_OF_FILE_COUNT = 16;

/** Input of the command, as it has to be typed. A cooked terminal is for a person, who may mean what ^C or ^O does. */
export class ExecInput {
  readonly #tty: ExecTty;
  readonly #isSerial: boolean;
  /** Bytes since the last line end that the guest's terminal has in hand. */
  #lineBytes = 0;

  /** @param isSerial the console is a serial port, whose driver has no such key */
  constructor(tty: ExecTty, isSerial = false) {
    this.#tty = tty;
    this.#isSerial = isSerial;
  }

  encode(chunk: Uint8Array): Uint8Array {
    if (this.#tty === 'cooked') return chunk;
    const isPipe = this.#tty === 'pipe';
    // Each byte may become two, and a long line is handed over in pieces: ^D does so where a line is not empty.
    const typed = Buffer.allocUnsafe(2 * chunk.length + Math.ceil(chunk.length / LINE_MAX_BYTES) + 1);
    let length = 0;
    for (const byte of chunk) {
      if (isPipe && this.#lineBytes === LINE_MAX_BYTES) {
        typed[length++] = CTRL_D;
        this.#lineBytes = 0;
      }
      if (isPipe && SPECIAL.has(byte)) typed[length++] = CTRL_V;
      if (byte === CTRL_O && !this.#isSerial) typed[length++] = CTRL_O;
      typed[length++] = byte;
      this.#lineBytes = byte === LF ? 0 : this.#lineBytes + 1;
    }
    return typed.subarray(0, length);
  }

  /** End of file. A raw terminal has none. */
  end(): Uint8Array {
    if (this.#tty === 'raw') return Buffer.alloc(0);
    if (this.#tty === 'cooked') return Buffer.of(CTRL_D);
    const ends = Buffer.alloc(END_OF_FILE_COUNT, CTRL_D);
    return this.#lineBytes > 0 ? Buffer.concat([Buffer.of(CTRL_D), ends]) : ends;
  }
}
