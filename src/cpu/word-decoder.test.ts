// Records are what the instruction table says of each word by itself, whatever words came before.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HANDLER_UNDEFINED } from '../abi/decode-cache.ts';
import { vOffset, xOffset } from '../abi/vcpu.ts';
import { RECORD_BYTES } from '../a64/operand.ts';
import { operandsOf } from '../a64/row.ts';
import { decode, handlerNumber, rows } from '../a64/table.ts';
import { SeededRandom } from '../base/random.ts';
import { WordDecoder } from './word-decoder.ts';

const PAGE_WORDS = 1024;

/** The record's half words, and whether a run ends with it. */
function expected(word: number, index: number): { record: Uint16Array; ends: boolean } {
  const record = new Uint16Array(RECORD_BYTES / 2);
  const view = new DataView(record.buffer);
  const found = decode(word);
  record[0] = HANDLER_UNDEFINED;
  if (found === undefined) return { record, ends: true };
  const { row, fields } = found;
  const operands = operandsOf(row, fields);
  let isFar = false;
  for (const key in operands) {
    const { kind, value, place } = operands[key]!;
    if (kind === 'imm64') view.setBigInt64(place, value as bigint, true);
    else if (kind === 'x') view.setUint16(place, xOffset(value as number), true);
    else if (kind === 'v') view.setUint16(place, vOffset(value as number), true);
    else if (key === row.branch) {
      const target = index + (value as number) / 4;
      isFar = target < 0 || target >= PAGE_WORDS;
      view.setInt32(place, isFar ? value as number : (value as number) / 4 * RECORD_BYTES, true);
    } else view.setInt32(place, value as number, true);
  }
  record[0] = handlerNumber(row, fields, isFar);
  return { record, ends: row.ends || row.branch !== undefined };
}

test('a word\'s record does not depend on words before it that differ in registers or distances', () => {
  const random = new SeededRandom(0xdec0de);
  const decoder = new WordDecoder();
  const u16 = new Uint16Array(RECORD_BYTES / 2);
  const u32 = new Uint32Array(u16.buffer);
  let compared = 0;
  const compare = (word: number): void => {
    const index = random.u32() % PAGE_WORDS;
    const { record, ends } = expected(word >>> 0, index);
    u16.fill(0);
    assert.equal(decoder.decodeTo(u16, u32, 0, index, word >>> 0), ends, (word >>> 0).toString(16));
    assert.deepEqual(u16, record, (word >>> 0).toString(16));
    if (record[0] !== HANDLER_UNDEFINED) compared++;
  };
  for (const row of rows) {
    for (let i = 0; i < 20; i++) {
      const word = (random.u32() & ~row.mask) | row.bits;
      compare(word);
      // Others that are the same but for one field, or several.
      for (const { shift, bits } of row.fields.values()) {
        const mask = ((1 << bits) - 1) << shift;
        for (const value of [0, -1, random.u32()]) compare((word & ~mask) | ((value << shift) & mask));
      }
      compare((word ^ random.u32()) & ~row.mask | row.bits);
    }
  }
  assert.ok(compared > 100 * rows.length, `${compared} were allocated`);
});
