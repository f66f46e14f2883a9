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
    const [kept, { version }] = [history.read(), history];
    history.append(Buffer.from('x'));
    history.restore(kept, version);
    assert.ok(history.read().equals(kept));
    history.append(Buffer.from('x'));
    assert.equal(history.read().length, Math.min(kept.length + 1, limitBytes));
    history.restore(Buffer.alloc(0), undefined);
    assert.equal(history.read().length, 0);
  }), { seed, numRuns: 200 });
});

test('what has not changed since is not put back, and what has is, however often', () => {
  const history = new ConsoleHistory(100);
  history.append(Buffer.from('one'));
  const { version } = history;
  history.restore(Buffer.from('not looked at'), version);
  assert.equal(history.read().toString(), 'one');
  for (const more of [' two', ' three']) {
    history.append(Buffer.from(more));
    assert.notEqual(history.version, version);
    history.restore(Buffer.from('one'), version);
    assert.equal(history.read().toString(), 'one');
  }
});
