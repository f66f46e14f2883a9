// The disk of a guest of type hvm: who answers its requests, and that none is lost while its queue goes from thread to thread.

import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import type { DiskStats } from '../../src/host/index.ts';
import { FAST_BOOT, limited, testHost } from './guests.ts';
import { Shell, SHELL } from './shell.ts';

const host = await testHost({ memory: '1GiB', pcpus: 1 });
const MIB = 2 ** 20;

async function diskFile(t: TestContext, sizeBytes: number): Promise<string> {
  const folder = await mkdtemp(join(import.meta.dirname, '.hvm-disk-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const path = join(folder, 'disk.img');
  await writeFile(path, '');
  await truncate(path, sizeBytes);
  return path;
}

async function guestWith(path: string) {
  const domain = await host.create({ type: 'hvm', memory: '128MiB', cmdline: FAST_BOOT, exec: SHELL, disks: [{ path, format: 'raw' }] });
  domain.exec!.output.resume();
  const shell = new Shell(domain, 'disk');
  await limited(domain, async () => {
    await domain.exec!.started;
    await shell.ask('until (: </dev/vda) 2>/dev/null; do :; done; head -c 1048576 /dev/urandom >/tmp/r');
  });
  const disk = (): DiskStats => domain.stats().disks![0]!;
  const lent = (): number => disk().byDiskThread + disk().byVcpus;
  return { domain, shell, disk, lent };
}

test('reads and writes of a virtio disk are done without the host\'s thread', async (t) => {
  const path = await diskFile(t, 16 * MIB);
  const { domain, shell, disk, lent } = await guestWith(path);
  await limited(domain, async () => {
    // The disk thread begins with the first request.
    while (lent() === 0) await shell.ask('dd if=/dev/vda of=/dev/null bs=64k count=4 iflag=direct 2>/dev/null');
    const isOnDisk = ((await stat(path)).dev >>> 8 & 0xfff) !== 0;
    if (isOnDisk) while (disk().byVcpus === 0) await shell.ask('dd if=/dev/vda of=/dev/null bs=4k count=64 iflag=direct 2>/dev/null');
    // What a loaded machine's disk was too slow for goes to the host for a second.
    for (let share = 0; share < 0.9;) {
      const before = { ...disk(), lent: lent() };
      await shell.ask('dd if=/tmp/r of=/dev/vda bs=4k oflag=direct conv=notrunc 2>/dev/null');
      await shell.ask('dd if=/tmp/r of=/dev/vda bs=256k seek=32 oflag=direct conv=notrunc,fsync 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches');
      assert.equal(await shell.ask('dd if=/dev/vda bs=64k skip=128 count=16 iflag=direct 2>/dev/null | cmp - /tmp/r; dd if=/dev/vda bs=4k count=256 2>/dev/null | cmp - /tmp/r'), '');
      const now = disk();
      share = (lent() - before.lent) / (now.reads + now.writes - before.reads - before.writes);
    }
    const now = disk();
    assert.equal(now.failures + now.badRequests, 0);
  });
  await domain.destroy();
  const file = await readFile(path);
  assert.deepEqual(file.subarray(0, MIB), file.subarray(8 * MIB, 9 * MIB));
});

test('checkpoints, rollbacks, another size, and a driver that lets go of the device, while requests are under way', async (t) => {
  const path = await diskFile(t, 16 * MIB);
  const { domain, shell, lent } = await guestWith(path);
  await limited(domain, async () => {
    await shell.ask('while [ ! -e /tmp/stop ]; do dd if=/tmp/r of=/dev/vda bs=16k oflag=direct conv=notrunc 2>/dev/null && '
      + 'dd if=/dev/vda bs=64k count=16 iflag=direct 2>/dev/null | cmp - /tmp/r || echo bad >>/tmp/bad; done >/dev/null & true');
    for (let taken = 0; taken < 6; taken++) {
      for (const before = lent(); lent() < before + 10; await delay(1));
      const checkpoint = await domain.checkpoint();
      if (taken % 2 === 1) await domain.rollback(checkpoint);
      await checkpoint.destroy();
      await domain.resizeDisk('xvda', `${17 + taken}MiB`);
    }
    assert.equal(await shell.ask('touch /tmp/stop; wait; [ ! -e /tmp/bad ] || echo bad; cat /sys/block/vda/size; head -c 1048576 /dev/vda | cmp - /tmp/r'), String(22 * 2048));
    // The driver resets the device, and begins anew.
    const driver = 'd=$(basename $(readlink -f /sys/block/vda/..)); cd /sys/bus/virtio/drivers/virtio_blk';
    for (let round = 0; round < 3; round++) {
      await shell.ask(`(dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2>/dev/null & ${driver}; echo $d >unbind; wait; echo $d >bind); `
        + 'until (: </dev/vda) 2>/dev/null; do :; done');
      for (const before = lent(); lent() < before + 10;) {
        assert.equal(await shell.ask('dd if=/dev/vda bs=64k count=16 iflag=direct 2>/dev/null | cmp - /tmp/r'), '');
      }
    }
  });
  await domain.destroy();
  assert.equal((await stat(path)).size, 22 * MIB);
});
