import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { XENCONS_INTERFACE } from '../../abi/xen-console.ts';
import { ConsoleRing } from './ring.ts';
import { TestFrontEnd } from './test-front-end.ts';
import type { IndexName } from './test-front-end.ts';

const seed = Number(process.env['ZAZEN_TEST_SEED'] ?? 1);
const { at } = XENCONS_INTERFACE;
const u32 = fc.oneof(fc.nat({ max: 0xffff_ffff }), fc.constantFrom(0, 1, 2047, 2048, 2049, 2 ** 31, 2 ** 32 - 1));

const step = fc.oneof(
  fc.record({ kind: fc.constant('guestWrites' as const), count: fc.nat({ max: 3000 }) }),
  fc.record({ kind: fc.constant('hostTakes' as const), count: fc.constant(0) }),
  fc.record({ kind: fc.constant('hostPuts' as const), count: fc.nat({ max: 1500 }) }),
  fc.record({ kind: fc.constant('guestReads' as const), count: fc.nat({ max: 1500 }) }),
);

test('bytes come out as they went in, over every wrap', () => {
  fc.assert(fc.property(u32, u32, fc.array(step, { maxLength: 60 }), (outIndex, inIndex, steps) => {
    const guest = new TestFrontEnd();
    guest.startAt(outIndex, inIndex);
    const ring = new ConsoleRing(() => guest.page);
    let next = 0;
    const fresh = (count: number) => Uint8Array.from({ length: count }, () => next++ * 7);
    const sent = { out: [] as number[], in: [] as number[] };
    const got = { out: [] as number[], in: [] as number[] };
    for (const { kind, count } of steps) {
      const bytes = fresh(count);
      if (kind === 'guestWrites') sent.out.push(...bytes.subarray(0, guest.write(bytes)));
      if (kind === 'hostTakes') {
        assert.equal(ring.hasOutput(), guest.index('out_prod') !== guest.index('out_cons'));
        got.out.push(...ring.takeOutput());
      }
      if (kind === 'hostPuts') sent.in.push(...bytes.subarray(0, ring.putInput(bytes)));
      if (kind === 'guestReads') got.in.push(...guest.read(count));
    }
    got.out.push(...ring.takeOutput());
    got.in.push(...guest.read());
    assert.deepEqual(got, sent);
    assert.equal(ring.badIndices, 0);
  }), { seed, numRuns: 300 });
});

test('with any indices, only what the interface says is read or written', () => {
  const indices = fc.record({ in_cons: u32, in_prod: u32, out_cons: u32, out_prod: u32 });
  fc.assert(fc.property(fc.array(indices, { maxLength: 20 }), fc.nat({ max: 3000 }), (rounds, inputBytes) => {
    const guest = new TestFrontEnd();
    const ring = new ConsoleRing(() => guest.page);
    for (const round of rounds) {
      guest.page.fill(0x55);
      for (const [name, value] of Object.entries(round)) guest.setIndex(name as IndexName, value);
      const outCount = (round.out_prod - round.out_cons) >>> 0;
      const taken = ring.takeOutput();
      assert.equal(taken.length, outCount <= 2048 ? outCount : 0);
      assert.ok(taken.every((byte) => byte === 0x55));
      const inCount = (round.in_prod - round.in_cons) >>> 0;
      const put = ring.putInput(new Uint8Array(inputBytes).fill(0xaa));
      assert.equal(put, inCount <= 1024 ? Math.min(1024 - inCount, inputBytes) : 0);
      assert.equal(guest.page.subarray(0, at.out).filter((byte) => byte === 0xaa).length, put);
      assert.ok(guest.page.subarray(at.out, at.in_cons).every((byte) => byte === 0x55));
      assert.ok(guest.page.subarray(XENCONS_INTERFACE.sizeBytes).every((byte) => byte === 0x55));
      assert.equal(guest.index('in_cons'), round.in_cons);
      assert.equal(guest.index('out_prod'), round.out_prod);
    }
  }), { seed, numRuns: 200 });
});

test('nonsense is counted, and forgiven once the guest puts it right', () => {
  const guest = new TestFrontEnd();
  const ring = new ConsoleRing(() => guest.page);
  guest.setIndex('out_prod', 2049);
  assert.equal(ring.takeOutput().length, 0);
  guest.setIndex('in_cons', 1);
  assert.equal(ring.putInput(Buffer.from('x')), 0);
  assert.equal(ring.badIndices, 2);
  guest.startAt(0, 0);
  guest.print('fine');
  assert.equal(ring.takeOutput().toString(), 'fine');
  assert.equal(ring.putInput(Buffer.from('x')), 1);
});

test('the page may move', () => {
  const guest = new TestFrontEnd();
  const ring = new ConsoleRing(() => guest.page);
  guest.print('one');
  assert.equal(ring.takeOutput().toString(), 'one');
  const copy = new Uint8Array(new SharedArrayBuffer(8192), 4096);
  copy.set(guest.page);
  guest.page = copy;
  guest.print('two');
  assert.equal(ring.takeOutput().toString(), 'two');
  assert.equal(guest.index('out_cons'), 6);
});
