// An image with code in its hot pages: a pCPU that has nothing else to do decodes it when it is opened, and nothing is left
// when it is closed.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { PATIENCE_MILLIS } from '../../test/patience.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { systemClock } from '../base/clock.ts';
import { SeededRandom } from '../base/random.ts';
import { BASE_GFN, bankOf, fillFrame, makeFolder, makeMachine, makeRequest } from '../image/test-images.ts';
import { writeImage } from '../image/writer.ts';
import { codeSection } from '../lifecycle/code-section.ts';
import { HostCore } from './host-core.ts';

const PAGES = 200;
const folder = makeFolder();

async function writeGuest(): Promise<{ path: string; code: Map<number, Uint32Array> }> {
  const path = join(folder, 'guest.core');
  const machine = makeMachine((PAGES + 1) * FRAME_BYTES);
  for (let page = 0; page < PAGES; page++) fillFrame(machine, page + 1, page + 1);
  const random = new SeededRandom(7);
  const hotPages = Array.from({ length: PAGES }, (_, page) => ({ gfn: BASE_GFN + PAGES - 1 - page, mfn: PAGES - page }));
  // Every other page, more than there are in one request.
  const code = new Map(hotPages.filter(({ gfn }) => gfn % 2 === 0).map(({ gfn }) => [gfn, new Uint32Array(32).fill(random.u32(), 3, 7)]));
  const sections = [codeSection(hotPages.map(({ gfn }) => gfn), code)];
  await writeImage(makeRequest({
    path, machine, banks: [bankOf(PAGES)], pages: [{ gfn: BASE_GFN, count: PAGES, mfn: 1 }], later: async () => ({ sections, hotPages }),
  }));
  return { path, code };
}

test('code of hot pages is decoded while nothing runs', { timeout: PATIENCE_MILLIS }, async (t) => {
  const { path, code } = await writeGuest();
  const core = new HostCore({
    memoryBytes: 256 * 2 ** 20, pcpus: 1, cores: 3, clock: systemClock, random: new SeededRandom(1), log: () => {},
  });
  t.after(() => core.close());
  core.startWorkers();
  const { p2m, heap } = core.thread;
  const used = heap.stats().used;
  for (let round = 0; round < 2; round++) {
    const user = { p2mRoot: 0 };
    const image = await core.images.open(path, user);
    await image.hotPagesLoaded;
    const mfnOf = (gfn: number): number => p2m.frameForRead(image.root, gfn);
    const isDecoded = (gfn: number): boolean => {
      const found = core.decodeCache.decodedIn(mfnOf(gfn));
      return found !== undefined && found.every((bits: number, i: number) => bits === code.get(gfn)![i]);
    };
    while (![...code.keys()].every(isDecoded)) await sleep(1);
    assert.equal(core.decodeCache.slotsInUse, (round + 1) * code.size);
    image.leave(user);
    assert(!core.decodeAhead.isWaiting);
    await image.close();
    heap.tearDown.finish();
    assert.deepEqual([heap.stats().used, core.audit().problems], [used, []]);
  }
  // One that is given up at once.
  const user = { p2mRoot: 0 };
  const image = await core.images.open(path, user);
  image.leave(user);
  await image.close();
  assert(!core.decodeAhead.isWaiting);
  heap.tearDown.finish();
  assert.deepEqual([heap.stats().used, core.audit().problems], [used, []]);
});
