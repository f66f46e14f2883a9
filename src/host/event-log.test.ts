import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { EVENTS_KEPT, EventLog } from './event-log.ts';
import type { EventSubscription } from './types.ts';

const drain = async (events: EventSubscription<number>): Promise<number[]> => {
  const all: number[] = [];
  for await (const event of events) all.push(event);
  return all;
};

test('each subscriber gets all of it, whenever it comes', async () => {
  const log = new EventLog<number>();
  const early = log.subscribe();
  const waiting = drain(log.subscribe());
  log.add(1);
  log.add(2);
  const late = log.subscribe();
  const fresh = log.subscribe({ history: false });
  log.add(3);
  log.end();
  assert.deepEqual(await waiting, [1, 2, 3]);
  assert.deepEqual([await drain(early), await drain(late), await drain(fresh)], [[1, 2, 3], [1, 2, 3], [3]]);
  assert.deepEqual(await drain(log.subscribe()), [1, 2, 3]);
});

test('answers come in the order in which they were asked for', async () => {
  const log = new EventLog<number>();
  const events = log.subscribe();
  const asked = [events.next(), events.next(), events.next()];
  log.add(1);
  const later = events.next();
  log.add(2);
  log.end();
  assert.deepEqual((await Promise.all([...asked, later])).map(({ value }) => value), [1, 2, undefined, undefined]);
});

test('leaving ends what waits, and nobody else', async () => {
  const log = new EventLog<number>();
  const leaving = log.subscribe();
  const staying = log.subscribe();
  const asked = [leaving.next(), leaving.next()];
  const other = staying.next();
  assert.equal((await leaving.return()).done, true);
  assert.deepEqual((await Promise.all(asked)).map(({ done }) => done), [true, true]);
  log.add(1);
  assert.equal((await leaving.next()).done, true);
  assert.equal((await other).value, 1);
  log.end();
  assert.deepEqual(await drain(staying), []);
});

test('a loop that is left can be left for good', async () => {
  const log = new EventLog<number>();
  for (const event of [1, 2, 3]) log.add(event);
  const events = log.subscribe();
  for await (const event of events) if (event === 2) break;
  assert.equal((await events.next()).done, true);
});

test('who is slow misses the oldest, sees how many, and gets the rest', async () => {
  const log = new EventLog<number>();
  const slow = log.subscribe();
  const TOTAL = 3 * EVENTS_KEPT;
  log.add(0);
  assert.equal((await slow.next()).value, 0);
  for (let event = 1; event < TOTAL; event++) log.add(event);
  assert.equal(log.length, TOTAL);
  log.end();
  const rest = await drain(slow);
  assert.equal(slow.missed, TOTAL - 1 - EVENTS_KEPT);
  assert.deepEqual(rest, Array.from({ length: EVENTS_KEPT }, (_, i) => TOTAL - EVENTS_KEPT + i));
});

test('whoever reads at whatever pace gets a rising sequence and knows what is missing', async () => {
  const anyStep = fc.oneof(
    fc.nat(2 * EVENTS_KEPT).map(added => ({ added })), fc.record({ reader: fc.nat(2), reads: fc.nat(50) }));
  await fc.assert(fc.asyncProperty(fc.array(anyStep, { maxLength: 20 }), async steps => {
    const log = new EventLog<number>();
    const readers = [0, 1, 2].map(() => ({ events: log.subscribe(), got: [] as number[] }));
    for (const step of steps) {
      if ('added' in step) for (let i = 0; i < step.added; i++) log.add(log.length);
      else {
        const { events, got } = readers[step.reader]!;
        for (let i = 0; i < step.reads && (got.at(-1) ?? -1) < log.length - 1; i++) got.push((await events.next()).value!);
      }
    }
    log.end();
    for (const { events, got } of readers) {
      got.push(...await drain(events));
      assert.ok(got.every((event, i) => i === 0 || event > got[i - 1]!));
      assert.equal(got.length + events.missed, log.length);
      if (log.length > 0) assert.equal(got.at(-1), log.length - 1);
    }
  }), { numRuns: 50 });
});
