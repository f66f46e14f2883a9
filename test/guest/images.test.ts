// Save and restore of a real guest: what it had in memory, in files and in its shell is there again, in this host, in
// another one, and in several domains from one file. Then what must not happen: an altered file that is believed.

import assert from 'node:assert/strict';
import { mkdtemp, open, rm, stat, truncate } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'node:test';
import { P2M_ENTRIES } from '../../src/abi/machine-memory.ts';
import { SeededRandom } from '../../src/base/random.ts';
import { ZazenError } from '../../src/base/errors.ts';
import { Host } from '../../src/host/index.ts';
import { layoutImage } from '../../src/image/format.ts';
import { openImage } from '../../src/image/image.ts';
import type { Image } from '../../src/image/image.ts';
import { decodeState } from '../../src/lifecycle/image-state.ts';
import { hostMemory } from '../host-memory.ts';
import { TEST_PATIENCE_MILLIS } from '../patience.ts';
import { FAST_BOOT, collect } from './guests.ts';
import { ask } from './shell.ts';

const SEED = 20261121;
const MUTATIONS = 3000;

test('a guest is saved, restored and restored again, in its host and in another', { timeout: TEST_PATIENCE_MILLIS }, async () => {
  const folder = await mkdtemp(join(tmpdir(), 'zazen-images-'));
  const path = join(folder, 'guest.core');
  try {
    const uuid = '11111111-2222-4333-8444-555555555555';
    let sum: string;
    {
      await using host = await Host.start({ memory: hostMemory('1GiB') });
      const domain = await host.create({ name: 'saved', uuid, memory: '256MiB', vcpus: 2, cmdline: FAST_BOOT });
      await collect(domain.attachConsole()).until(/root@saved:~# /);
      sum = await ask(domain, 'x=42; head -c 3000000 /dev/urandom > /tmp/f; md5sum /tmp/f');
      assert.match(sum, /^[0-9a-f]{32} /);
      const stats = await domain.save(path);
      assert(stats.pagesWritten > 5000 && stats.zeroPages > 20_000);
      assert((await stat(path)).blocks * 512 < stats.fileBytes / 2, 'zero pages are holes');
      assert.equal(await ask(domain, 'echo $x'), '42\n');
      // A second one while the first lives: another name is asked for, and the UUID is not used twice.
      await assert.rejects(host.restore(path), { code: 'ZAZEN_DOMAIN_NAME_TAKEN' });
      const twin = await host.restore(path, { name: 'twin' });
      assert.notEqual(twin.uuid, uuid);
      assert.equal(await ask(twin, 'md5sum /tmp/f'), sum);
      await domain.destroy();
      await twin.destroy();
      assert.deepEqual((await host.audit()).problems, []);
    }
    await using host = await Host.start({ memory: hostMemory('1GiB') });
    const restored = await host.restore(path);
    assert.deepEqual([restored.name, restored.uuid], ['saved', uuid]);
    assert.equal(await ask(restored, 'echo $x; md5sum /tmp/f; nproc'), `42\n${sum}2\n`);
    await using checkpoint = await host.loadCheckpoint(path);
    const forks = await checkpoint.fork(3);
    for (const fork of forks) assert.equal(await ask(fork, 'md5sum /tmp/f'), sum);
    assert.deepEqual((await host.audit()).problems, []);
    await checkMutatedState(path);
    await checkAltered(host, path);
  } finally {
    await rm(folder, { recursive: true });
  }
});

async function checkAltered(host: Host, path: string): Promise<void> {
  // Images that nobody uses are kept until somebody wants the memory.
  const available = (): number => host.stats().freeBytes + host.stats().cachedBytes;
  const before = available();
  const image = await openImage(path);
  // Of a page that is stored once.
  const hot = new Set(image.hotGfns);
  checkOrder(image);
  const gfn = [...image.runs()].flatMap(run => Array.from({ length: run.count }, (_, i) => run.gfn + i))
    .findLast(page => !hot.has(page))!;
  const bank = image.banks.findIndex(({ guestAddress, sizeBytes }) => gfn * 4096 < guestAddress + sizeBytes);
  const at = layoutImage(image.banks).bankOffsets[bank]! + gfn * 4096 - image.banks[bank]!.guestAddress + 100;
  await image.close();
  const file = await open(path, 'r+');
  const { size } = await file.stat();
  const byte = Buffer.alloc(1);
  await file.read(byte, 0, 1, at);
  await file.write(Buffer.from([byte[0]! ^ 1]), 0, 1, at);
  await assert.rejects(host.restore(path, { name: 'altered', lazy: false }), { code: 'ZAZEN_IMAGE_CHECKSUM' });
  await file.write(byte, 0, 1, at);
  await file.close();
  await (await host.restore(path, { name: 'mended', lazy: false })).destroy();
  await truncate(path, size - 4096);
  await assert.rejects(host.restore(path, { name: 'torn' }), { code: 'ZAZEN_IMAGE_TRUNCATED' });
  await truncate(path, size);
  await assert.rejects(host.restore(`${path}.none`), { code: 'ZAZEN_IMAGE_OPEN' });
  assert.deepEqual((await host.audit()).problems, []);
  // What was read for nothing is given back, in time. (The forks that run meanwhile take a little.)
  while (available() < before - 24 * 2 ** 20) await new Promise(resolve => { setTimeout(resolve, 10); });
}

/** Pages that a restored domain gets a node of its own for, because the hypervisor holds one beside them, come first. */
function checkOrder(image: Image): void {
  const nodeOf = (gfn: number): number => Math.floor(gfn / P2M_ENTRIES);
  const nodes = new Set(decodeState(image).held.map(({ gfn }) => nodeOf(gfn)));
  const isBeside = Array.from(image.hotGfns, (gfn) => nodes.has(nodeOf(gfn)));
  assert(isBeside.includes(true) && isBeside.includes(false) && isBeside.lastIndexOf(true) < isBeside.indexOf(false));
}

/** Sections with random bytes changed are decoded or refused, and nothing else. */
async function checkMutatedState(path: string): Promise<void> {
  const image = await openImage(path);
  const random = new SeededRandom(SEED);
  const names = [...image.sections.keys()].filter(name => name.startsWith('domain'));
  let refused = 0;
  for (let i = 0; i < MUTATIONS; i++) {
    const victim = random.pick(names);
    const source = {
      path,
      section(name: string): Uint8Array {
        const bytes = image.section(name).slice();
        if (name !== victim) return bytes;
        for (let n = 1 + random.below(3); n > 0; n--) bytes[random.below(bytes.length)] = random.u32();
        return random.below(10) === 0 ? bytes.subarray(0, random.below(bytes.length)) : bytes;
      },
    };
    try {
      decodeState(source);
    } catch (error) {
      assert(error instanceof ZazenError, `seed ${SEED}, mutation ${i} of ${victim}: ${String(error)}`);
      refused++;
    }
  }
  assert(refused > MUTATIONS / 20 && refused < MUTATIONS, `${refused} refused`);
  await image.close();
}
