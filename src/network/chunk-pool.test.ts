import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CHUNK_BYTES, copyChunk, giveBack } from './chunk-pool.ts';
import { SendQueue } from './tcp-send-queue.ts';

const filled = (length: number, value: number): Uint8Array => new Uint8Array(length).fill(value);

test('a chunk is used again when it was given back, and not before', () => {
  const first = copyChunk(filled(CHUNK_BYTES, 1));
  const second = copyChunk(filled(CHUNK_BYTES - 7, 2));
  assert.notEqual(first.buffer, second.buffer);
  assert.deepEqual([first.length, second.length, first[0], second[0]], [CHUNK_BYTES, CHUNK_BYTES - 7, 1, 2]);
  giveBack(second);
  const third = copyChunk(filled(CHUNK_BYTES / 2, 3));
  assert.equal(third.buffer, second.buffer);
  assert.deepEqual(third, filled(CHUNK_BYTES / 2, 3));
  assert.deepEqual(first, filled(CHUNK_BYTES, 1));
  for (const chunk of [first, third]) giveBack(chunk);
});

test('what is short or long, and what comes from elsewhere, is left to the collector', () => {
  for (const length of [0, 1, CHUNK_BYTES / 2 - 1, CHUNK_BYTES + 1]) {
    const source = filled(length, 5);
    const copy = copyChunk(source);
    assert.deepEqual(Uint8Array.from(copy), source);
    giveBack(copy);
    giveBack(source);
  }
  const good = copyChunk(filled(CHUNK_BYTES, 6));
  assert.equal(good.buffer.byteLength, CHUNK_BYTES);
  giveBack(good);
});

test('a send queue gives back what is acknowledged, or all when it is cleared', () => {
  const queue = new SendQueue();
  const chunks = [1, 2, 3].map((value) => copyChunk(filled(CHUNK_BYTES, value)));
  for (const chunk of chunks) queue.push(chunk);
  queue.drop(CHUNK_BYTES + 10);
  const again = copyChunk(filled(CHUNK_BYTES, 9));
  assert.equal(again.buffer, chunks[0]!.buffer);
  const target = new Uint8Array(20);
  queue.copy(CHUNK_BYTES - 20, 20, target, 0);
  assert.deepEqual([...target], [...filled(10, 2), ...filled(10, 3)]);
  queue.clear();
  const two = [copyChunk(filled(CHUNK_BYTES, 4)), copyChunk(filled(CHUNK_BYTES, 4))];
  // Whichever comes first; the same memory, and not only the same contents.
  for (const { buffer } of chunks.slice(1)) assert(two.some((chunk) => chunk.buffer === buffer));
});
