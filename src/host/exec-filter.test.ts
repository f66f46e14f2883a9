import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { exitMarker, startMarker } from '../guest/init-script.ts';
import { ExecFilter, ExecInput } from './exec-filter.ts';
import type { ExecPiece } from './exec-filter.ts';

const NONCE = '00c0ffee';

interface Parsed {
  before: string;
  output: string | undefined;
  status: number | undefined;
  after: string;
}

function run(chunks: readonly Uint8Array[]): Parsed {
  const filter = new ExecFilter(NONCE);
  const pieces: ExecPiece[] = [...chunks.flatMap((chunk) => {
    const scratch = Buffer.from(chunk);
    // A caller may use its buffer again, so what is held back must be a copy.
    const copied = filter.push(scratch).map((p) => 'bytes' in p ? { ...p, bytes: Buffer.from(p.bytes) } : p);
    scratch.fill(0xee);
    return copied;
  }), ...filter.end()];
  const parsed: Parsed = { before: '', output: undefined, status: undefined, after: '' };
  for (const piece of pieces) {
    if (piece.type === 'start') parsed.output = '';
    else if (piece.type === 'exit') parsed.status = piece.status;
    else if (piece.type === 'output') parsed.output += piece.bytes.toString('latin1');
    else if (parsed.status === undefined) parsed.before += piece.bytes.toString('latin1');
    else parsed.after += piece.bytes.toString('latin1');
  }
  return parsed;
}

const bytes = (text: string): Buffer => Buffer.from(text, 'latin1');

/** Text that likes to look like a marker. */
const tricky = fc.array(fc.oneof(
  fc.string(),
  fc.constantFrom(
    '\n', '\r', '\r\n', '\x1e', startMarker, exitMarker, `${startMarker}${NONCE}`, `${exitMarker}${NONCE}`,
    `${exitMarker}${NONCE} 1234\n`, `${exitMarker}${NONCE} 256\n`, `${exitMarker}${NONCE} x\n`, NONCE,
    `${exitMarker}deadbeef 0\n`, `\n${exitMarker.slice(0, 5)}`, '\0', '\xff',
  ),
), { maxLength: 8 }).map((parts) => parts.join(''))
  .filter((text) => !new RegExp(`${startMarker}${NONCE}\\r?\\n`).test(text))
  .filter((text) => !new RegExp(`${exitMarker}${NONCE} ([01]?\\d\\d?|2[0-4]\\d|25[0-5])\\r?\\n`).test(text))
  // Of fc.string's characters only those of one byte are meant here.
  .map((text) => text.replaceAll(/[^\0-\xff]/g, '?'));

function cut(stream: Buffer, places: readonly number[]): Buffer[] {
  const ends = [...new Set(places.map((place) => place % (stream.length + 1)))].sort((a, b) => a - b);
  return [...ends, stream.length].map((end, i) => stream.subarray(i === 0 ? 0 : ends[i - 1], end));
}

test('the three parts come out byte for byte however the stream is cut', () => {
  fc.assert(fc.property(
    tricky, tricky, tricky, fc.nat(255), fc.boolean(), fc.array(fc.nat(), { maxLength: 30 }),
    (before, output, after, status, translated, places) => {
      const start = `${startMarker}${NONCE}${translated ? '\r' : ''}\n`;
      const exit = `${exitMarker}${NONCE} ${status}${translated ? '\r' : ''}\n`;
      // Joined to its neighbour a part may make a marker that it is not by itself: then the first one counts.
      fc.pre((before + start).indexOf(start) === before.length);
      const stream = bytes(before + start + output + exit + after);
      assert.deepEqual(run(cut(stream, places)), { before, output, status, after });
      assert.deepEqual(run([...stream].map((byte) => Buffer.of(byte))), { before, output, status, after });
    },
  ), { numRuns: 300 });
});

test('without the end marker all the rest is output, without the start marker all is log', () => {
  fc.assert(fc.property(tricky, fc.array(fc.nat(), { maxLength: 10 }), (text, places) => {
    const started = `${startMarker}${NONCE}\n${text}`;
    assert.deepEqual(run(cut(bytes(started), places)), { before: '', output: text, status: undefined, after: '' });
    assert.deepEqual(run(cut(bytes(text), places)), { before: text, output: undefined, status: undefined, after: '' });
  }));
});

test('what cannot become a marker any more is not held back', () => {
  const filter = new ExecFilter(NONCE);
  filter.push(bytes(`${startMarker}${NONCE}\n`));
  for (const text of ['prompt> ', 'a line\n']) {
    assert.deepEqual(filter.push(bytes(text)), [{ type: 'output', bytes: bytes(text) }]);
  }
  const noMarker = `${exitMarker}${NONCE} 99999999`;
  const passed = filter.push(bytes(noMarker)).map((piece) => 'bytes' in piece ? piece.bytes.toString('latin1') : '');
  assert.equal(passed.join(''), noMarker);
});

// ---- input

/** What Linux's hvc driver makes of what is typed: ^O is the SysRq key, and twice itself. */
function driver(typed: Uint8Array): Buffer {
  const passed: number[] = [];
  let isSysRq = false;
  for (const byte of typed) {
    if (byte === 0x0f) isSysRq = !isSysRq;
    else assert.ok(!isSysRq, `the kernel obeys SysRq ${byte}`);
    if (!isSysRq) passed.push(byte);
  }
  return Buffer.from(passed);
}

/** What a program reads from a terminal with these settings: the canonical mode of Linux's n_tty, in short. */
function terminal(typed: Uint8Array): { lines: Buffer[]; isEnded: boolean } {
  const lines: Buffer[] = [];
  let line: number[] = [];
  let isQuoted = false;
  for (const byte of typed) {
    if (isQuoted || ![0x03, 0x04, 0x0a, 0x12, 0x15, 0x16, 0x17, 0x1a, 0x1c, 0x7f].includes(byte)) {
      line.push(byte);
      isQuoted = false;
    } else if (byte === 0x16) {
      isQuoted = true;
    } else if (byte === 0x0a || byte === 0x04) {
      if (byte === 0x04 && line.length === 0) return { lines, isEnded: true };
      if (byte === 0x0a) line.push(byte);
      lines.push(Buffer.from(line));
      line = [];
    } else {
      assert.fail(`the terminal obeys the byte ${byte}`);
    }
  }
  lines.push(Buffer.from(line));
  return { lines, isEnded: false };
}

test('any input reaches a program behind a terminal unaltered, then ends', () => {
  const chunk = fc.oneof(
    fc.uint8Array({ maxLength: 40 }),
    fc.integer({ min: 1000, max: 5000 }).map((n) => new Uint8Array(n).fill(0x78)),
    fc.constantFrom(bytes('\n'), bytes('\x04'), bytes('\x16\x04\n'), bytes('\x03\x1a\x0f')),
  );
  fc.assert(fc.property(fc.array(chunk, { maxLength: 6 }), (chunks) => {
    const input = new ExecInput('pipe');
    const typed = Buffer.concat([...chunks.map((each) => input.encode(each)), input.end()]);
    const { lines, isEnded } = terminal(driver(typed));
    assert.ok(isEnded);
    assert.deepEqual(Buffer.concat(lines), Buffer.concat(chunks));
    assert.ok(lines.every((line) => line.length < 4096));
  }));
});

test('a raw terminal gets all bytes unaltered, and has no end; a cooked one is typed at', () => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 3000 }), (chunk) => {
    const raw = new ExecInput('raw');
    assert.deepEqual(driver(raw.encode(chunk)), Buffer.from(chunk));
    assert.equal(raw.end().length, 0);
    const cooked = new ExecInput('cooked');
    assert.deepEqual(Buffer.from(cooked.encode(chunk)), Buffer.from(chunk));
    assert.deepEqual(Buffer.from(cooked.end()), Buffer.of(4));
  }));
});
