import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Deadlines } from './deadlines.ts';

const seed = Number(process.env['ZAZEN_TEST_SEED'] ?? 1);

test('valid deadlines come in order of time, others never, and the heap does not pile up', () => {
  const adds = fc.array(fc.tuple(fc.integer({ min: 0, max: 9 }), fc.integer({ min: 0, max: 100 })), { maxLength: 400 });
  fc.assert(fc.property(adds, fc.integer({ min: 0, max: 100 }), (list, now) => {
    const current = new Map<number, number>();
    const deadlines = new Deadlines(d => current.get(d.vcpuAddress) === d.generation);
    list.forEach(([vcpuAddress, nanos], generation) => {
      current.set(vcpuAddress, generation);
      deadlines.add({ nanos, vcpuAddress, generation });
    });
    assert.ok(deadlines.size <= 64 + 1);
    const expected = [...current].map(([, generation]) => list[generation]![1]).toSorted((a, b) => a - b);
    assert.equal(deadlines.next(), expected[0] ?? Infinity);
    const due: number[] = [];
    for (let d = deadlines.takeDue(now); d !== undefined; d = deadlines.takeDue(now)) due.push(d.nanos);
    assert.deepEqual(due, expected.filter(nanos => nanos <= now));
  }), { seed, numRuns: 200 });
});

test('a deadline that never comes is not kept', () => {
  const deadlines = new Deadlines(() => true);
  deadlines.add({ nanos: Infinity, vcpuAddress: 1, generation: 1 });
  assert.equal(deadlines.size, 0);
  assert.equal(deadlines.takeDue(Infinity), undefined);
});
