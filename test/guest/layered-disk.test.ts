// Disks in layers, of guests of both types: who answers their requests, and that everybody has what he has written through
// checkpoints, forks, rollbacks and an image.

import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Domain } from '../../src/host/index.ts';
import { FAST_BOOT, limited, testHost } from './guests.ts';
import { Shell, SHELL } from './shell.ts';

const host = await testHost({ memory: '1GiB', pcpus: 1 });
const MIB = 2 ** 20;
/** Where on the disk, and how it is read and written: in small and large requests, past the guest's page cache and through it. */
const PARTS = [
  { at: 0, sizeBytes: 4096, isDirect: true }, { at: 8 * MIB, sizeBytes: 262144, isDirect: true },
  { at: 16 * MIB, sizeBytes: 65536, isDirect: false }, { at: 24 * MIB, sizeBytes: MIB, isDirect: true },
];

/** Of the guest's, by its disk. */
class Writer {
  readonly domain: Domain;
  readonly #shell: Shell;
  readonly #device: string;

  constructor(domain: Domain, name: string, device: string) {
    this.domain = domain;
    this.#device = device;
    this.#shell = new Shell(domain, name);
  }

  async start(): Promise<void> {
    await this.domain.exec!.started;
    await this.#shell.ask(`until (: <${this.#device}) 2>/dev/null; do :; done`);
  }

  /** Other data into every part. @returns its checksum */
  async write(): Promise<string> {
    const writes = PARTS.map(({ at, sizeBytes, isDirect }) => (
      `dd if=/tmp/r of=${this.#device} conv=notrunc bs=${sizeBytes} seek=${at / sizeBytes} ${isDirect ? 'oflag=direct' : ''}`));
    return this.#shell.ask(`head -c ${MIB} /dev/urandom >/tmp/r; (${writes.join('; ')}; sync) 2>/dev/null; sha256sum </tmp/r`);
  }

  /** Checksum of each part. */
  async sums(): Promise<string[]> {
    const reads = PARTS.map(({ at, sizeBytes, isDirect }) => (
      `dd if=${this.#device} bs=${sizeBytes} skip=${at / sizeBytes} count=${MIB / sizeBytes} ${isDirect ? 'iflag=direct' : ''} 2>/dev/null | sha256sum`));
    return (await this.#shell.ask(`echo 3 >/proc/sys/vm/drop_caches; ${reads.join('; ')}`)).split(/\r?\n/);
  }

  /** Does something until most of its requests are answered by other threads: a busy machine's disk may be too slow for them. */
  async mostlyLent<T>(work: () => Promise<T>): Promise<T> {
    for (;;) {
      const before = this.domain.stats().disks![0]!;
      const result = await work();
      const now = this.domain.stats().disks![0]!;
      const lent = now.byDiskThread + now.byVcpus - before.byDiskThread - before.byVcpus;
      const asked = now.reads + now.writes + now.flushes - before.reads - before.writes - before.flushes;
      if (lent > 0.6 * asked) return result;
    }
  }
}

const same = (sum: string): string[] => PARTS.map(() => sum);

for (const type of ['pvh', 'hvm'] as const) {
  test(`of a disk in layers, what a guest of type ${type} reads and writes is done without the host's thread`, async (t) => {
    const folder = await mkdtemp(join(import.meta.dirname, '.layered-disk-'));
    t.after(() => rm(folder, { recursive: true, force: true }));
    const path = join(folder, 'disk.img');
    await writeFile(path, '');
    await truncate(path, 32 * MIB);
    const device = type === 'hvm' ? '/dev/vda' : '/dev/xvda';
    const domain = await host.create({ type, memory: '128MiB', cmdline: FAST_BOOT, exec: SHELL, disks: [{ path, format: 'raw' }] });
    domain.exec!.output.resume();
    await limited(domain, async () => {
      const guest = new Writer(domain, 'first', device);
      await guest.start();
      const first = await guest.write();
      const checkpoint = await domain.checkpoint();
      assert.deepEqual(await guest.mostlyLent(() => guest.sums()), same(first), 'nothing has been written since');
      // Nearly all of these are to places that the layer does not have yet.
      const second = await guest.write();
      assert.equal(domain.stats().disks![0]!.layers.length, 2);
      const third = await guest.mostlyLent(() => guest.write());
      assert.deepEqual(await guest.mostlyLent(() => guest.sums()), same(third));
      assert.notEqual(second, third);

      const [other] = await checkpoint.fork(1);
      const fork = new Writer(other!, 'fork', device);
      assert.deepEqual(await fork.mostlyLent(() => fork.sums()), same(first));
      const forked = await fork.mostlyLent(() => fork.write());
      assert.deepEqual(await fork.mostlyLent(() => fork.sums()), same(forked));
      const image = join(folder, 'guest.core');
      await other!.save(image);
      await other!.destroy();
      assert.deepEqual(await guest.sums(), same(third));

      await domain.rollback(checkpoint);
      const back = new Writer(domain, 'back', device);
      assert.deepEqual(await back.mostlyLent(() => back.sums()), same(first));
      const restored = await host.restore(image);
      const again = new Writer(restored, 'again', device);
      assert.deepEqual(await again.mostlyLent(() => again.sums()), same(forked));
      await again.mostlyLent(() => again.write());
      await restored.destroy();

      const last = await back.mostlyLent(() => back.write());
      const now = domain.stats().disks![0]!;
      assert.equal(now.failures + now.badRequests, 0);
      await checkpoint.destroy();
      assert.deepEqual(await back.sums(), same(last));
    });
    await domain.destroy();
    assert.deepEqual((await readdir(folder)).filter((name) => name.startsWith('disk')), ['disk.img'], 'all of it is in the file');
    const file = await readFile(path);
    for (const { at } of PARTS) assert.deepEqual(file.subarray(at, at + MIB), file.subarray(0, MIB));
  });
}
