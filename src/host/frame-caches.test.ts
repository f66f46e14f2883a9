import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FrameCaches } from './frame-caches.ts';

class TestCache {
  readonly root: number;
  readonly frames = 10;
  isNeeded = false;
  isGone = false;
  constructor(root: number) {
    this.root = root;
  }
  giveUp(): boolean {
    assert.ok(!this.isGone, 'asked twice');
    this.isGone = !this.isNeeded;
    return this.isGone;
  }
}

test('the least recently used goes first, those that are needed stay, and none is asked again', () => {
  const caches = new FrameCaches();
  const [a, b, c, d] = [1, 2, 3, 4].map((root) => new TestCache(root)) as [TestCache, TestCache, TestCache, TestCache];
  for (const cache of [a, b, c, d]) caches.touch(cache);
  caches.touch(a);
  caches.remove(d);
  b.isNeeded = true;
  assert.deepEqual(caches.roots(), [2, 3, 1]);
  assert.equal(caches.frames, 30);
  assert.ok(caches.giveUpOldest());
  assert.deepEqual(caches.roots(), [2, 1]);
  assert.ok(caches.giveUpOldest());
  assert.ok(!caches.giveUpOldest());
  assert.deepEqual(caches.roots(), [2]);
  b.isNeeded = false;
  assert.ok(caches.giveUpOldest());
  assert.deepEqual([a, b, c, d].map((cache) => cache.isGone), [true, true, true, false]);
  assert.ok(!caches.giveUpOldest());
});
