import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { ConsoleHistory } from './history.ts';

const seed = Number(process.env['ZAZEN_TEST_SEED'] ?? 1);

test('keeps the last bytes, in order, and no more', () => {
  const pieces = fc.array(fc.uint8Array({ maxLength: 9000 }), { maxLength: 12 });
  fc.assert(fc.property(fc.constantFrom(0, 1, 100, 4096, 5000, 20_000), pieces, (limitBytes, chunks) => {
    const history = new ConsoleHistory(limitBytes);
    let all = Buffer.alloc(0);
    for (const chunk of chunks) {
      history.append(chunk);
      all = Buffer.concat([all, chunk]);
      assert.ok(history.read().equals(all.subarray(Math.max(0, all.length - limitBytes))));
    }
    history.clear();
    assert.equal(history.read().length, 0);
    history.append(Buffer.from('x'));
    assert.equal(history.read().length, Math.min(1, limitBytes));
  }), { seed, numRuns: 200 });
});
