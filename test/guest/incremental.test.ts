// Incremental images of a running guest: what a parent has is left to it, whether the checkpoint that was saved there is
// still held or not, and a guest that is restored from the end of the chain has everything. Then a guest larger than half
// of its host, saved past the page cache.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'node:test';
import { Host } from '../../src/host/index.ts';
import type { Domain } from '../../src/host/index.ts';
import { openImage } from '../../src/image/image.ts';
import { hostMemory } from '../host-memory.ts';
import { TEST_PATIENCE_MILLIS } from '../patience.ts';
import { FAST_BOOT, collect } from './guests.ts';
import { ask } from './shell.ts';

const MIB = 2 ** 20;
/** Beside the project, as the benchmarks do: folders for temporary files may lie in memory. */
const makeFolder = () => mkdtemp(join(process.cwd(), '.cache-bench-'));

async function boot(host: Host, memory: string): Promise<Domain> {
  const domain = await host.create({ name: 'guest', memory, cmdline: FAST_BOOT });
  await collect(domain.attachConsole()).until(/root@guest:~# /);
  return domain;
}

test('a chain of three images, by checkpoint and by checksum, restored in another host', { timeout: TEST_PATIENCE_MILLIS }, async () => {
  const folder = await makeFolder();
  const [first, second, third] = ['first', 'second', 'third'].map(name => join(folder, `${name}.core`)) as
    [string, string, string];
  try {
    let sums = '';
    {
      await using host = await Host.start({ memory: hostMemory('1GiB') });
      const domain = await boot(host, '192MiB');
      await ask(domain, 'head -c 1000000 /dev/urandom > /tmp/a');
      await using held = await domain.checkpoint();
      const whole = await held.save(first);
      assert.equal(whole.parentPages, 0);
      sums += await ask(domain, 'head -c 1500000 /dev/urandom > /tmp/b; md5sum /tmp/a');
      // By comparing trees, with the very checkpoint that is the parent; then by checksums, without one.
      const byTree = await domain.save(second, { parent: first });
      const byChecksum = await domain.save(join(folder, 'other.core'), { parent: first });
      for (const stats of [byTree, byChecksum]) {
        assert.ok(stats.parentPages > 0.8 * whole.pagesWritten, JSON.stringify(stats));
        // At least what was written to /tmp/b, and far from all.
        assert.ok(stats.pagesWritten > 350 && stats.bytesWritten < whole.bytesWritten / 2, JSON.stringify(stats));
      }
      // What was written to and is as it was all the same is found by checksums only.
      assert.ok(byChecksum.parentPages >= byTree.parentPages - 500, `${byChecksum.parentPages} and ${byTree.parentPages}`);
      sums += await ask(domain, 'rm /tmp/a; head -c 500000 /dev/urandom > /tmp/c; md5sum /tmp/b');
      await domain.save(third, { parent: second });
      sums += await ask(domain, 'md5sum /tmp/c');
      await assert.rejects(domain.save(first, { parent: third }), { code: 'ZAZEN_IMAGE_CREATE' });
      await assert.rejects(domain.save(join(folder, 'x'), { parent: join(folder, 'none') }), { code: 'ZAZEN_IMAGE_OPEN' });
      const other = await host.create({ name: 'other', memory: '128MiB', paused: true });
      await assert.rejects(other.save(join(folder, 'x'), { parent: first }),
        { code: 'ZAZEN_IMAGE_PARENT', message: /192 MiB of memory and 1 vCPUs, and this one has 128 MiB/ });
      assert.deepEqual((await host.audit()).problems, []);
    }
    {
      await using image = await openImage(third);
      assert.deepEqual([image.parent?.path, image.parent?.parent?.path], [second, first]);
      assert.equal((await image.verify()).problemCount, 0);
    }
    await using host = await Host.start({ memory: hostMemory('1GiB') });
    await rename(second, `${second}.away`);
    await assert.rejects(host.restore(third), { code: 'ZAZEN_IMAGE_PARENT' });
    await rename(`${second}.away`, second);
    const restored = await host.restore(third);
    const [a, b, c] = sums.trimEnd().split('\n');
    assert.equal(await ask(restored, 'md5sum /tmp/b /tmp/c; ls -1 /tmp'), `${b}\n${c}\nb\nc\n`);
    // The parent alone is a guest of its own.
    const older = await host.restore(second, { name: 'older' });
    assert.equal(await ask(older, 'md5sum /tmp/a /tmp/b'), `${a}\n${b}\n`);
    // The chain goes on from a restored guest.
    const fourth = join(folder, 'fourth.core');
    const { parentPages, pagesWritten } = await restored.save(fourth, { parent: third });
    assert.ok(parentPages > 2 * pagesWritten, `${parentPages} and ${pagesWritten}`);
    await restored.destroy();
    const again = await host.restore(fourth, { name: 'again' });
    assert.equal(await ask(again, 'md5sum /tmp/b /tmp/c'), `${b}\n${c}\n`);
    assert.deepEqual((await host.audit()).problems, []);
  } finally {
    await rm(folder, { recursive: true });
  }
});

/** One during which nobody else reads or writes a file is enough. */
const SAVES_MAX = 40;

/** Of the file, where there is a tool that tells; else of everybody's. */
async function cachedBytes(path: string): Promise<number> {
  const { status, stdout } = spawnSync('fincore', ['--bytes', '--noheadings', '--output', 'RES', path], { encoding: 'utf8' });
  if (status === 0) return Number(stdout);
  return Number(/^Cached: +(\d+) kB/m.exec(await readFile('/proc/meminfo', 'latin1'))![1]) * 1024;
}

test('a guest larger than half of its host is saved, and the page cache does not grow by it', { timeout: TEST_PATIENCE_MILLIS }, async () => {
  const folder = await makeFolder();
  try {
    await using host = await Host.start({ memory: '512MiB' });
    const domain = await boot(host, '325MiB');
    await ask(domain, 'mount -o remount,size=80% /tmp 2>/dev/null || mount -t tmpfs -o size=80% none /tmp');
    await ask(domain, 'head -c 2000000 /dev/urandom > /tmp/f; for i in $(seq 110); do cat /tmp/f; done > /tmp/g');
    await domain.pause();
    // Others use the machine's cache as well: the smallest growth counts, and to reach it the save must have used none.
    let growth = Infinity;
    const path = join(folder, 'large.core');
    await writeFile(path, '');
    for (let run = 0; run < SAVES_MAX && growth > MIB; run++) {
      const before = await cachedBytes(path);
      const { direct, pagesWritten, bytesWritten } = await domain.save(path);
      growth = Math.min(growth, await cachedBytes(path) - before);
      assert.ok(pagesWritten * 4096 > 256 * MIB && bytesWritten > 256 * MIB, `${pagesWritten} pages`);
      if (!direct) return; // a file system without direct I/O; stats say so
    }
    assert.ok(growth <= MIB, `the page cache grew by ${growth} bytes`);
    await using image = await openImage(path);
    assert.equal((await image.verify()).problemCount, 0);
    assert.deepEqual((await host.audit()).problems, []);
  } finally {
    await rm(folder, { recursive: true });
  }
});
