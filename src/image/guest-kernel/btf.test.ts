import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { ZazenError } from '../../base/errors.ts';
import { BTF_HEADER_BYTES, BTF_MAGIC, Btf, btfBytes } from './btf.ts';

/** Words of types, and names; a name's number is where it starts. */
function encode(types: readonly number[], strings: string): Uint8Array {
  const text = Buffer.from(strings, 'latin1');
  const out = Buffer.alloc(BTF_HEADER_BYTES + 4 * types.length + text.length);
  out.set(BTF_MAGIC);
  out.writeUInt32LE(4 * types.length, 12);
  out.writeUInt32LE(4 * types.length, 16);
  out.writeUInt32LE(text.length, 20);
  types.forEach((word, i) => out.writeUInt32LE(word >>> 0, BTF_HEADER_BYTES + 4 * i));
  out.set(text, BTF_HEADER_BYTES + 4 * types.length);
  return out;
}

const STRINGS = '\0task\0pid\0list\0next\0name\0int\0flag\0';
const name = (word: string) => STRINGS.indexOf(`\0${word}\0`) + 1;
const info = (kind: number, count = 0, isBitfields = false) => (kind << 24) | count | (isBitfields ? 2 ** 31 : 0);

const TYPES = [
  name('int'), info(1), 4, 32, // 1
  0, info(2), 1, // 2: int *
  name('list'), info(4, 1), 8, name('next'), 2, 0, // 3: struct list { int *next; }
  0, info(3), 0, 1, 1, 16, // 4: int[16]
  name('int'), info(8), 4, // 5: typedef of it
  0, info(5, 2), 64, name('pid'), 1, 0, name('name'), 5, 0, // 6: union { int pid; int name[16]; }
  name('task'), info(4, 3, true), 80, // 7: struct task { int flag : 3; union 6; struct list list; }
  name('flag'), 1, (3 << 24) | 8, 0, 6, 64, name('list'), 3, 576,
];

test('members by name: nested, of unnamed unions, arrays behind typedefs, bit fields', () => {
  const bytes = encode(TYPES, STRINGS);
  assert.equal(btfBytes(bytes), bytes.length);
  const types = new Btf('test.core', bytes);
  assert.deepEqual([types.has('task'), types.has('pid')], [true, false]);
  assert.deepEqual(types.member('task', 'flag'), { offsetBytes: 1, sizeBytes: 4 });
  assert.deepEqual(types.member('task', 'pid'), { offsetBytes: 8, sizeBytes: 4 });
  assert.deepEqual(types.member('task', 'name'), { offsetBytes: 8, sizeBytes: 64 });
  assert.deepEqual(types.member('task', 'list.next'), { offsetBytes: 72, sizeBytes: 8 });
  assert.equal(types.tryMember('task', 'list.none'), undefined);
  assert.throws(() => types.member('none', 'x'), { code: 'ZAZEN_GUEST_KERNEL' });
});

test('types that hold themselves come to an end', () => {
  const inner = Array.from({ length: 60 }, () => [0, 1, 0]).flat();
  const types = new Btf('test.core', encode([name('task'), info(4, 60), 8, ...inner], STRINGS));
  assert.throws(() => types.member('task', 'pid'), { code: 'ZAZEN_GUEST_KERNEL', message: /too deep/ });
  const circle = new Btf('test.core', encode([name('task'), info(4, 1), 8, name('pid'), 2, 0, 0, info(8), 2], STRINGS));
  assert.throws(() => circle.member('task', 'pid'), { code: 'ZAZEN_GUEST_KERNEL', message: /too deep/ });
});

test('any words are read or refused', () => {
  const change = fc.tuple(fc.nat(TYPES.length - 1), fc.oneof(fc.nat(8), fc.nat(0xffffffff)));
  fc.assert(fc.property(fc.array(change, { minLength: 1, maxLength: 6 }),
    (changes) => {
      const words = TYPES.slice();
      for (const [at, word] of changes) words[at] = word;
      try {
        const types = new Btf('test.core', encode(words, STRINGS));
        types.tryMember('task', 'list.next');
        types.tryMember('task', 'name');
      } catch (error) {
        assert.ok(error instanceof ZazenError && error.code === 'ZAZEN_GUEST_KERNEL', String(error));
      }
    }), { numRuns: 500 });
});
