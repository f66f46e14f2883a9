import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { ZazenError } from '../../base/errors.ts';
import { KernelSymbols } from './symbols.ts';
import { makeKernel } from './test-kernel.ts';
import type { TestKernel } from './test-kernel.ts';

const [COUNT, BASE, OFFSETS, NAMES, TOKENS, INDEX] = [0x8000, 0x8008, 0x8100, 0x8200, 0x9000, 0x9800];
const LONG = 'x'.repeat(150);
/** Types and names; two of them share an address. */
const SYMBOLS: readonly (readonly [offset: number, name: string])[] =
  [[0x100, 'Tfirst'], [0x200, 'Tsecond'], [0x200, 'T__mark'], [0x300, `t${LONG}`], [0x9000, 'Tlast']];

/** Each token is one character, but for number 1, which is "se". */
function makeTable(): TestKernel {
  const kernel = makeKernel();
  kernel.bytes.writeUInt32LE(SYMBOLS.length, COUNT);
  kernel.bytes.writeBigUInt64LE(kernel.at(0x10_0000), BASE);
  let name = NAMES;
  SYMBOLS.forEach(([offset, text], i) => {
    kernel.bytes.writeUInt32LE(offset, OFFSETS + 4 * i);
    const tokens = Buffer.from(text.replace('se', '\x01'), 'latin1');
    if (tokens.length >= 0x80) kernel.bytes.writeUInt8((tokens.length & 0x7f) | 0x80, name++);
    kernel.bytes.writeUInt8(tokens.length >= 0x80 ? tokens.length >> 7 : tokens.length, name++);
    name += tokens.copy(kernel.bytes, name);
  });
  for (let token = 0; token < 256; token++) {
    kernel.bytes.writeUInt16LE(4 * token, INDEX + 2 * token);
    kernel.bytes.write(token === 1 ? 'se' : String.fromCharCode(token), TOKENS + 4 * token, 'latin1');
  }
  return kernel;
}

function open(kernel: TestKernel): KernelSymbols {
  const places = { num_syms: COUNT, relative_base: BASE, offsets: OFFSETS, names: NAMES, token_table: TOKENS,
    token_index: INDEX };
  const { memory, info } = kernel.open(Object.entries(places).map(([name, at]) =>
    `SYMBOL(kallsyms_${name})=${kernel.at(at).toString(16)}`));
  return new KernelSymbols(memory, info);
}

test('functions by address: the first of several names, long names, and nothing before or far behind', () => {
  const kernel = makeTable();
  const symbols = open(kernel);
  const find = (offset: number) => symbols.find(kernel.at(0x10_0000 + offset));
  assert.equal(symbols.count, SYMBOLS.length);
  assert.deepEqual(find(0x100), { name: 'first', offsetBytes: 0 });
  assert.deepEqual(find(0x1ff), { name: 'first', offsetBytes: 0xff });
  assert.deepEqual(find(0x204), { name: 'second', offsetBytes: 4 });
  assert.deepEqual(find(0x300), { name: LONG, offsetBytes: 0 });
  assert.deepEqual(find(0x9001), { name: 'last', offsetBytes: 1 });
  assert.deepEqual([find(0xff), find(-1), find(0x9000 + 2 ** 21)], [undefined, undefined, undefined]);
});

test('any tables are read or refused', () => {
  const change = fc.tuple(fc.nat((INDEX + 512 - COUNT) / 4 - 1), fc.oneof(fc.nat(255), fc.nat(0xffffffff)));
  fc.assert(fc.property(fc.array(change, { minLength: 1, maxLength: 20 }), (changes) => {
    const kernel = makeTable();
    for (const [word, value] of changes) kernel.bytes.writeUInt32LE(value, COUNT + 4 * word);
    try {
      const symbols = open(kernel);
      for (const [offset] of SYMBOLS) symbols.find(kernel.at(0x10_0000 + offset));
    } catch (error) {
      assert.ok(error instanceof ZazenError && error.code === 'ZAZEN_GUEST_KERNEL', String(error));
    }
  }), { numRuns: 200 });
});
