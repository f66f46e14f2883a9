// Debian's own driver on disks of the host: an ext4 file system through checkpoints, rollbacks, forks, images and a host that
// is killed; disks that come, go and grow.

import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, readdir, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { HolePuncher } from '../../src/devices/block/hole-puncher.ts';
import type { DiskStats, Domain } from '../../src/host/index.ts';
import { FAST_BOOT, collect, runSections, testHost } from './guests.ts';

const host = await testHost({ memory: '1GiB', pcpus: 1 });
const MIB = 2 ** 20;
const MKFS = '/usr/sbin/mkfs.ext4';
const FSCK = '/usr/sbin/fsck.ext4';
const needsTools = existsSync(MKFS) && existsSync(FSCK) ? false : 'mkfs.ext4 is not installed: apt-get install e2fsprogs';

async function folderFor(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(import.meta.dirname, '.block-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

async function diskFile(folder: string, name: string, sizeBytes: number): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, '');
  await truncate(path, sizeBytes);
  return path;
}

/** A shell in the guest that is given one line after another. */
class Shell {
  readonly #console: NodeJS.ReadWriteStream;
  readonly #output: ReturnType<typeof collect>;
  #number: number;

  constructor(domain: Domain, first = 0) {
    this.#console = domain.console;
    this.#output = collect(domain.console);
    this.#number = first;
  }

  /** What the command writes. It must not fail. */
  async run(command: string): Promise<string> {
    const mark = `mark-${++this.#number}`;
    this.#console.write(`echo "<${mark}"; (${command}) 2>&1; echo "$?>${mark}"\n`);
    const text = await this.#output.until(new RegExp(`\\d+>${mark}`));
    const [, output, status] = new RegExp(`<${mark}\\r?\\n([\\s\\S]*?)(\\d+)>${mark}`).exec(text.slice(text.lastIndexOf(`<${mark}`)))!;
    assert.equal(status, '0', `${command}: ${output}`);
    return output!.replaceAll('\r', '').trim();
  }
}

const SHELL = { memory: '128MiB', cmdline: `${FAST_BOOT} zazen.exec=${Buffer.from('stty -echo; exec sh').toString('base64')}` } as const;

async function guestWith(disks: Parameters<typeof host.create>[0] & {}): Promise<{ domain: Domain; shell: Shell }> {
  const domain = await host.create({ ...SHELL, ...disks });
  return { domain, shell: new Shell(domain) };
}

test('a file system, written and read by Linux, on two disks at once', { skip: needsTools }, async (t) => {
  const folder = await folderFor(t);
  const path = await diskFile(folder, 'ext4.img', 64 * MIB);
  const plain = await diskFile(folder, 'plain.img', 4 * MIB);
  execFileSync(MKFS, ['-q', path]);
  const run = await runSections(host, {
    memory: '128MiB', cmdline: FAST_BOOT,
    disks: [{ path, format: 'raw' }, { path: plain, format: 'raw', readOnly: true, target: 'xvdc' }],
  }, {
    list: 'cat /sys/block/xvda/size /sys/block/xvda/ro /sys/block/xvdc/size /sys/block/xvdc/ro /sys/block/xvda/queue/discard_granularity',
    write: 'mount -t ext4 /dev/xvda /mnt && head -c 10000000 /dev/urandom >/mnt/a && sha256sum </mnt/a >/mnt/sum && umount /mnt',
    read: 'mount -t ext4 /dev/xvda /mnt && sha256sum </mnt/a && cat /mnt/sum && umount /mnt',
    readOnly: 'sha256sum </dev/xvdc; ! dd if=/dev/zero of=/dev/xvdc bs=4096 count=1 2>/dev/null',
    odd: 'dd if=/dev/xvda of=/tmp/x bs=512 skip=3 count=5 2>/dev/null && wc -c </tmp/x',
  });
  assert.equal(run.outputOf('list'), `${64 * MIB / 512}\n0\n${4 * MIB / 512}\n1\n${HolePuncher.isAvailable ? 65536 : 0}\n`);
  run.outputOf('write');
  const [found, wanted] = run.outputOf('read').trim().split('\n');
  assert.equal(found, wanted);
  run.outputOf('readOnly');
  assert.equal(run.outputOf('odd').trim(), '2560');
  execFileSync(FSCK, ['-fn', path], { stdio: 'pipe' });
  assert.deepEqual((await readdir(folder)).toSorted(), ['ext4.img', 'plain.img'], 'nothing is left beside the disks');
});

test('checkpoint, rollback, fork, save and restore take the disk along', { skip: needsTools }, async (t) => {
  const folder = await folderFor(t);
  const path = await diskFile(folder, 'disk.img', 64 * MIB);
  execFileSync(MKFS, ['-q', path]);
  const { domain, shell } = await guestWith({ disks: [{ path, format: 'raw' }] });
  // What is in the page cache is no proof.
  const sums = 'echo 3 >/proc/sys/vm/drop_caches; cd /mnt && sha256sum ?; cd /';
  await shell.run('mount -t ext4 /dev/xvda /mnt && head -c 3000000 /dev/urandom >/mnt/a && sync');
  const first = await shell.run(sums);
  await using checkpoint = await domain.checkpoint();
  await shell.run('head -c 2000000 /dev/urandom >/mnt/b && rm /mnt/a && sync');
  const second = await shell.run(sums);

  const [fork] = await checkpoint.fork(1);
  const forked = new Shell(fork!, 100);
  assert.equal(await forked.run(sums), first);
  await forked.run('head -c 1000000 /dev/urandom >/mnt/c && sync');
  const forkSums = await forked.run(sums);
  assert.equal(await shell.run(sums), second, 'a fork writes to a layer of its own');
  assert.ok(domain.stats().disks![0]!.lasting && !fork!.stats().disks![0]!.lasting);

  const image = join(folder, 'guest.core');
  await fork!.save(image);
  assert.equal(await forked.run(sums), forkSums);
  await fork!.destroy();

  await domain.rollback(checkpoint);
  assert.equal(await shell.run(sums), first);
  await shell.run('head -c 500000 /dev/urandom >/mnt/d && sync');
  const third = await shell.run(sums);

  const restored = await host.restore(image);
  const again = new Shell(restored, 200);
  assert.equal(await again.run(sums), forkSums, 'the image has the disk with it');
  await again.run('rm /mnt/c && umount /mnt');
  await restored.destroy();

  assert.equal(await shell.run(sums), third);
  await shell.run('umount /mnt');
  await checkpoint.destroy();
  await domain.destroy();
  execFileSync(FSCK, ['-fn', path], { stdio: 'pipe' });
  assert.deepEqual((await readdir(folder)).filter((name) => name.startsWith('disk')), ['disk.img'], 'layers have gone into the disk');
  // Bring the image's files to nothing else: the layer can be opened once more.
  await (await host.restore(image)).destroy();
  for (const name of await readdir(folder)) if (name.endsWith('.layer')) await rm(join(folder, name));
  await assert.rejects(host.restore(image), { code: 'ZAZEN_DISK_MISSING' });
  assert.deepEqual((await host.audit()).problems, [], 'what was begun beside has been given back');
});

test('checksums stay right across many checkpoints and rollbacks', async (t) => {
  const folder = await folderFor(t);
  const path = await diskFile(folder, 'disk.img', 4 * MIB);
  const { domain, shell } = await guestWith({ disks: [{ path, format: 'raw' }] });
  const sum = 'echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/xvda';
  let checkpoint = await domain.checkpoint();
  let kept = await shell.run(sum);
  const rounds = Number(process.env['ZAZEN_TEST_ROUNDS'] ?? 20);
  for (let round = 0; round < rounds; round++) {
    const at = (round * 37) % 500;
    await shell.run(`dd if=/dev/urandom of=/dev/xvda bs=4096 seek=${at} count=${1 + round % 9} conv=notrunc,fsync 2>/dev/null`);
    if (round % 3 === 0) {
      await domain.rollback(checkpoint);
      assert.equal(await shell.run(sum), kept, `round ${round}`);
    } else {
      const before = checkpoint;
      checkpoint = await domain.checkpoint();
      await before.destroy();
      kept = await shell.run(sum);
    }
  }
  await checkpoint.destroy();
  assert.ok(domain.stats().disks![0]!.layers.length <= 2, 'layers that nobody needs go');
  // The ring is taken from the threads that serve it, and lent to them again, while requests are under way.
  await shell.run('head -c 1048576 /dev/urandom >/tmp/r');
  await shell.run(`while [ ! -e /tmp/stop ]; do dd if=/tmp/r of=/dev/xvda bs=16k oflag=direct conv=notrunc 2>/dev/null &&
    dd if=/dev/xvda bs=64k count=16 iflag=direct 2>/dev/null | cmp - /tmp/r || echo bad >>/tmp/bad; done & echo`);
  const disk = (): DiskStats => domain.stats().disks![0]!;
  const lent = (): number => disk().byDiskThread + disk().byVcpus;
  for (let taken = 0; taken < 10; taken++) {
    for (const before = lent(); lent() < before + 10; await delay(1));
    await (await domain.checkpoint()).destroy();
  }
  await shell.run('touch /tmp/stop; wait; [ ! -e /tmp/bad ]');
  await shell.run('head -c 1048576 /dev/xvda | cmp - /tmp/r');
  await domain.destroy();
  assert.deepEqual(await readdir(folder), ['disk.img']);
});

/** Linux makes a disk's node before the disk can be opened. */
const untilOpen = (device: string): string => `until (: <${device}) 2>/dev/null; do :; done`;

test('disks come, grow and go while the guest runs', async (t) => {
  const folder = await folderFor(t);
  const path = await diskFile(folder, 'disk.img', 4 * MIB);
  const { domain, shell } = await guestWith({});
  assert.equal(await domain.attachDisk({ path, format: 'raw' }), 'xvda');
  await shell.run(`${untilOpen('/dev/xvda')}; dd if=/dev/urandom of=/dev/xvda bs=1M count=4 conv=fsync 2>/dev/null`);
  await domain.resizeDisk('xvda', '6MiB');
  await shell.run('while [ "$(cat /sys/block/xvda/size)" != 12288 ]; do :; done');
  await shell.run('dd if=/dev/zero of=/dev/xvda bs=1M seek=5 count=1 conv=fsync 2>/dev/null');
  const sum = (await shell.run('sha256sum </dev/xvda')).split(' ')[0]!;
  await assert.rejects(domain.attachDisk({ path, format: 'raw' }), { code: 'ZAZEN_DISK_LOCKED' });
  await assert.rejects(domain.detachDisk('xvdb'), { code: 'ZAZEN_DISK_NOT_ATTACHED' });
  // The disk thread looks after it, as soon as it has begun.
  while (domain.stats().disks![0]!.byDiskThread === 0) await shell.run('dd if=/dev/xvda of=/dev/null bs=64k iflag=direct 2>/dev/null');
  // So do the vCPUs' own threads, of small requests, on a file system that is on a disk.
  const isOnDisk = ((await stat(path)).dev >>> 8 & 0xfff) !== 0;
  if (isOnDisk) while (domain.stats().disks![0]!.byVcpus === 0) await shell.run('dd if=/dev/xvda of=/dev/null bs=4k iflag=direct 2>/dev/null');
  await domain.detachDisk('xvda');
  await shell.run('while [ -b /dev/xvda ]; do :; done');
  assert.equal(execFileSync('sha256sum', [path]).toString().split(' ')[0], sum);
  assert.equal(await domain.attachDisk({ path, format: 'raw', target: 'xvdf' }), 'xvdf');
  await shell.run(untilOpen('/dev/xvdf'));
  assert.equal((await shell.run('sha256sum </dev/xvdf')).split(' ')[0], sum);
  await domain.destroy();
});

for (const [type, device] of [['pvh', 'xvda'], ['hvm', 'vda']] as const) {
  test(`what was flushed is there when the host is killed: ${type}`, async (t) => {
    const folder = await folderFor(t);
    const path = await diskFile(folder, 'disk.img', 8 * MIB);
    const child = spawn(process.execPath, [join(import.meta.dirname, 'block-child.ts'), path, type], { stdio: ['ignore', 'pipe', 'inherit'] });
    t.after(() => child.kill('SIGKILL'));
    const flushed = new Set<number>();
    for await (const line of createInterface(child.stdout)) {
      const [, number] = /^flushed (\d+)$/.exec(line) ?? [];
      if (number !== undefined) flushed.add(Number(number));
      // Among them some that went to a layer, as the child takes a checkpoint half-way.
      if (flushed.size === 40) break;
    }
    child.kill('SIGKILL');
    await once(child, 'exit');
    const run = await runSections(host, { type, memory: '128MiB', cmdline: FAST_BOOT, disks: [{ path, format: 'raw' }] }, {
      read: `${untilOpen(`/dev/${device}`)}; i=0; while [ $i -lt 64 ]; do `
        + `dd if=/dev/${device} bs=4096 skip=$((i*16)) count=1 2>/dev/null | head -n 1 | tr -d "\\0"; echo; i=$((i+1)); done`,
    });
    const found = run.outputOf('read');
    for (const number of flushed) assert.ok(found.includes(`block ${number} `), `block ${number} is lost`);
    assert.deepEqual(await readdir(folder), ['disk.img']);
    assert.ok((await readFile(path)).includes('block 39 '));
  });
}
