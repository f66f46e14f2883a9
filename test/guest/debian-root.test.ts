// Debian on a root file system of its own (`zazen guest build`), with three more disks: its own tools for making, filling and
// checking file systems, with checkpoints and rollbacks under way, and the host killed. Paravirtual and emulated devices.
//
// ZAZEN_TEST_ROUNDS: checkpoints that are taken meanwhile, and times that the host is killed; hundreds, for a long run.

import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, open, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, test } from 'node:test';
import { BlockFile } from '../../src/devices/block/block-file.ts';
import { copyToRaw } from '../../src/devices/block/copying.ts';
import { referenceTo } from '../../src/devices/block/chain.ts';
import { HolePuncher } from '../../src/devices/block/hole-puncher.ts';
import { Layer } from '../../src/devices/block/layer.ts';
import { openState } from '../../src/devices/block/open-disk.ts';
import { findE2fsprogs } from '../../src/guest/ext4-image.ts';
import { buildRoot } from '../../src/host/index.ts';
import type { DomainSpec } from '../../src/host/index.ts';
import { FAST_BOOT, limited, testHost } from './guests.ts';
import { SHELL, Shell } from './shell.ts';

const MIB = 2 ** 20;
const LIMIT_MILLIS = 1_200_000;
const rounds = Number(process.env['ZAZEN_TEST_ROUNDS'] ?? 30);
const kills = Math.ceil(Number(process.env['ZAZEN_TEST_ROUNDS'] ?? 10) / 10);

const tools = await findE2fsprogs().catch(() => undefined);
const skip = tools === undefined ? 'e2fsprogs is not installed: apt-get install e2fsprogs' : false;
const host = await testHost({ memory: '1GiB', pcpus: 1 });
const folder = await mkdtemp(join(import.meta.dirname, '.debian-root-'));
after(() => rm(folder, { recursive: true, force: true }));
/** Of all tests: they write to layers on it. */
const base = join(folder, 'debian.ext4');
if (!skip) await buildRoot(base, { packages: ['fio'], sizeBytes: 768 * MIB });

async function layerOnBase(path: string): Promise<string> {
  const state = await openState({ path: base, format: 'raw', isReadOnly: true });
  const backing = await referenceTo(state.node.store, dirname(path));
  await (await Layer.create(path, { sizeBytes: state.sizeBytes, backing })).close();
  await state.release();
  return path;
}

async function empty(path: string, sizeBytes: number): Promise<string> {
  await using file = await open(path, 'wx');
  await file.truncate(sizeBytes);
  return path;
}

/** What is on a disk now, by all its layers, in a raw file. */
async function flattened(path: string): Promise<string> {
  const raw = `${path}.flat`;
  const state = await openState({ path, isReadOnly: true });
  const file = await BlockFile.open(raw, 'create');
  await copyToRaw(state, file);
  await file.close();
  await state.release();
  return raw;
}

for (const type of ['pvh', 'hvm'] as const) {
  test(`fio verifies four disks through checkpoints and rollbacks, and fsck finds nothing: ${type}`, { skip }, async () => {
    const at = (name: string): string => join(folder, `${type}-${name}`);
    const root = await layerOnBase(at('root.layer'));
    const b = await empty(at('b.img'), 32 * MIB);
    const c = await empty(at('c.img'), 8 * MIB);
    await (await Layer.create(at('d.layer'), { sizeBytes: 8 * MIB })).close();
    const device = (letter: string): string => `/dev/${type === 'pvh' ? 'x' : ''}vd${letter}`;
    const spec: DomainSpec = {
      type, memory: '256MiB', cmdline: `${FAST_BOOT} root=/dev/xvda`, exec: SHELL,
      disks: [{ path: root }, { path: b }, { path: c }, { path: at('d.layer') }],
    };
    const domain = await host.create(spec);
    await limited(domain, async () => {
      const shell = await new Shell(domain, type).ready();
      assert.equal(await shell.ask('. /etc/os-release; echo $ID $(stat -c %u:%g:%a /usr/bin/passwd /tmp /root /etc/shadow)'),
        'debian 0:0:4755 0:0:1777 0:0:700 0:42:640');
      assert.equal(await shell.ask('findmnt -n -o SOURCE,FSTYPE / | tr -s " "'), `${device('a')} ext4`);
      // The files are the same for both: once is enough for the large ones.
      const packages = type === 'pvh' ? 'bash coreutils libc6 fio' : 'fio';
      assert.equal(await shell.ask(`dpkg --verify ${packages} | grep -Ev "^missing .*(/usr/share|/gconv)"; echo checked`),
        'checked', 'every file is as Debian made it');
      assert.equal(await shell.ask(`mkfs.ext4 -q ${device('b')} 2>&1 && fsck.ext4 -fn ${device('b')} >/dev/null 2>&1; echo $?`), '0');
      await shell.ask(`mount ${device('b')} /mnt`);
      const jobs = [['root', '/root/fio'], ['b', '/mnt/fio'], ['c', device('c')], ['d', device('d')]]
        .map(([name, file]) => `--name=${name} --filename=${file}`).join(' ');
      const options = '--size=2M --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite --bsrange=512-128k --bs_unaligned=0 '
        + '--verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=7 --fsync=64';
      await shell.ask(`(fio ${options} ${jobs} >/root/fio.log 2>&1; echo $? >/root/fio.status; sync) & true`);
      let checkpoint = await domain.checkpoint();
      let busyRounds = 0;
      for (let round = 0; round < rounds; round++) {
        if (await shell.ask('[ -e /root/fio.status ] || echo busy') === 'busy') busyRounds++;
        if (round % 3 === 2) {
          await domain.rollback(checkpoint);
        } else {
          const before = checkpoint;
          checkpoint = await domain.checkpoint();
          await before.destroy();
        }
      }
      await checkpoint.destroy();
      assert.ok(busyRounds >= Math.min(rounds, 3), `fio was at work in ${busyRounds} rounds only`);
      assert.equal(await shell.ask('wait; cat /root/fio.status'), '0', await shell.ask('cat /root/fio.log'));
      assert.equal(await shell.ask('grep -c "err= 0" /root/fio.log'), '4');
      assert.equal(await shell.ask(`umount /mnt && fsck.ext4 -fn ${device('b')} >/dev/null 2>&1; echo $?`), '0');
      if (HolePuncher.isAvailable) {
        assert.equal(await shell.ask(`blkdiscard ${device('c')}; echo $?; cmp -n ${8 * MIB} ${device('c')} /dev/zero; echo $?`), '0\n0');
        assert.equal((await stat(c)).blocks, 0, 'the space is the host\'s again');
      }
      const end = domain.waitForShutdown();
      shell.end();
      assert.equal(await end, 'poweroff');
    }, LIMIT_MILLIS);
    assert.deepEqual(domain.stats().disks!.map(({ failures, badRequests }) => failures + badRequests), [0, 0, 0, 0]);
    await domain.destroy();
    // Clean: the journals are empty, since the guest has unmounted both.
    for (const path of [b, await flattened(root)]) {
      assert.match(String(execFileSync(tools!.fsck, ['-n', path], { stdio: 'pipe' })), /clean/);
      execFileSync(tools!.fsck, ['-fn', path], { stdio: 'pipe' });
    }
  });
}

test('a disk without a file system: the guest says so and powers off', { skip }, async () => {
  const path = await empty(join(folder, 'nothing.img'), MIB);
  const domain = await host.create({
    memory: '128MiB', cmdline: `${FAST_BOOT} root=/dev/xvda`, disks: [{ path, format: 'raw' }], exec: 'true',
  });
  await assert.rejects(domain.exec!.result, { code: 'ZAZEN_EXEC_LOST', message: /cannot mount the root file system \/dev\/xvda/ });
  await domain.destroy();
});

test('files that were flushed are there when the host is killed', { skip }, async (t) => {
  for (let kill = 0; kill < kills; kill++) {
    const types = ['pvh', 'hvm'] as const;
    const disks = new Map<string, string>();
    for (const type of types) {
      const path = await empty(join(folder, `kill-${kill}-${type}.img`), 16 * MIB);
      execFileSync(tools!.mkfs, ['-q', path]);
      disks.set(type, path);
    }
    const roots = await Promise.all(types.map((type) => layerOnBase(join(folder, `kill-${kill}-${type}-root.layer`))));
    const words = [join(import.meta.dirname, 'debian-root-child.ts'), ...types.flatMap((type, i) => [type, roots[i]!, disks.get(type)!])];
    const child = spawn(process.execPath, words, { stdio: ['ignore', 'pipe', 'inherit'] });
    t.after(() => child.kill('SIGKILL'));
    const last: Record<string, number> = { pvh: -1, hvm: -1 };
    for await (const line of createInterface(child.stdout)) {
      const [, type, number] = /^(pvh|hvm) flushed (\d+)$/.exec(line) ?? [];
      if (type !== undefined) last[type] = Number(number);
      // By then a checkpoint has been taken, and what came after it has gone to layers.
      if (Object.values(last).every((n) => n >= 12 + kill % 5)) break;
    }
    child.kill('SIGKILL');
    await once(child, 'exit');
    for (const [type, path] of disks) {
      const flat = await flattened(path);
      // Puts what is in the journal where it belongs; 1: there was something to put right, as there must be.
      assert.ok([0, 1].includes(statusOf(() => execFileSync(tools!.fsck, ['-p', flat], { stdio: 'pipe' }))));
      execFileSync(tools!.fsck, ['-fn', flat], { stdio: 'pipe' });
      for (let number = 0; number <= last[type]!; number++) {
        const text = String(execFileSync(tools!.debugfs, ['-R', `cat /f${number}`, flat], { stdio: 'pipe' }));
        assert.equal(text, `file ${number}\n`, `${type}: file ${number} is lost`);
      }
    }
  }
});

function statusOf(run: () => unknown): number {
  try {
    run();
    return 0;
  } catch (error) {
    return (error as { status: number }).status;
  }
}
