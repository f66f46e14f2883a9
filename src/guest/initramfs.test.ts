// The real guest files are used (fetched once, then from the cache): a made-up busybox would prove nothing.

import { test } from 'node:test';
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { cacheFolder } from '../base/cache-folder.ts';
import { S_IFDIR, S_IFLNK, S_IFMT, S_IFREG } from './cpio.ts';
import { fetchGuest } from './fetch-guest.ts';
import { etcFiles, initScript } from './init-script.ts';
import { buildInitramfs, busyboxApplets, commandOverlay, prepareGuest, xenModules } from './initramfs.ts';
import { loadKernel } from './kernel.ts';
import { moduleName } from './modules.ts';

interface Unpacked {
  mode: number;
  data: Buffer;
}

/** The entries of a newc archive by name, each checked to come after the directory it is in. */
function readCpio(archive: Uint8Array): Map<string, Unpacked> {
  const view = Buffer.from(archive);
  const entries = new Map<string, Unpacked>();
  for (let at = 0; ; ) {
    assert.equal(view.toString('latin1', at, at + 6), '070701');
    const field = (i: number): number => Number.parseInt(view.toString('latin1', at + 6 + 8 * i, at + 14 + 8 * i), 16);
    const nameEnd = at + 110 + field(11);
    const name = view.toString('utf8', at + 110, nameEnd - 1);
    if (name === 'TRAILER!!!') return entries;
    const dataStart = (nameEnd + 3) & ~3;
    const parent = name.slice(0, Math.max(0, name.lastIndexOf('/')));
    assert(parent === '' || (entries.get(parent)!.mode & S_IFMT) === S_IFDIR, `${name} comes after its directory`);
    assert(!entries.has(name), `${name} is there once`);
    entries.set(name, { mode: field(1), data: view.subarray(dataStart, dataStart + field(6)) });
    at = (dataStart + field(6) + 3) & ~3;
  }
}

test('the fetched kernel is one that can be loaded', async () => {
  const guest = await fetchGuest();
  const kernel = await loadKernel(guest.kernelPath);
  assert.equal(kernel.flags.pageSizeBytes, 4096);
  assert(Buffer.from(kernel.image).includes(`Linux version ${guest.kernelRelease} `));
  assert.match(guest.modulesDir, new RegExp(`/${guest.kernelRelease.replaceAll('.', '\\.').replaceAll('+', '\\+')}$`));
});

test('a prepared guest has init, applets and the Xen modules in load order, and comes from the cache', async () => {
  const first = await prepareGuest();
  const entries = readCpio(readFileSync(first.initramfsPath));
  assert.equal(entries.get('init')!.data.toString(), initScript);
  assert.equal(entries.get('init')!.mode, S_IFREG | 0o755);
  assert.equal(entries.get('bin')!.data.toString(), 'usr/bin');
  for (const applet of ['sh', 'mount', 'insmod', 'setsid', 'stty', 'base64', 'poweroff', 'ip', 'ls', 'free']) {
    assert.equal(entries.get(`usr/bin/${applet}`)?.data.toString(), 'busybox', applet);
    assert.equal(entries.get(`usr/bin/${applet}`)!.mode & S_IFMT, S_IFLNK);
  }
  const lists = entries.get('etc/zazen/modules')!.data.toString().trim().split('\n');
  assert.ok(lists.some((line) => line.endsWith('/xen-blkfront.ko max_indirect_segments=256')));
  const order = lists.map((line) => line.split(' ')[0]!);
  for (const path of order) assert.equal(entries.get(path.slice(1))!.data.toString('latin1', 1, 4), 'ELF', path);
  const names = order.map((path) => moduleName(path));
  for (const name of xenModules) assert(names.includes(name.replaceAll('-', '_')), name);
  assert(names.indexOf('xen_privcmd') < names.indexOf('xenfs'));
  const lines: string[] = [];
  const second = await prepareGuest({ log: (line) => lines.push(line) });
  assert.deepEqual(second, first);
  assert.deepEqual(lines, []);
});

test('trees are laid over the root, into the merged /usr', async () => {
  const { busyboxPath } = await fetchGuest();
  const dir = mkdtempSync(join(tmpdir(), 'zazen-initramfs-'));
  try {
    mkdirSync(join(dir, 'bin'));
    mkdirSync(join(dir, 'usr/share'), { recursive: true });
    writeFileSync(join(dir, 'bin/gzip'), 'mine', { mode: 0o755 });
    symlinkSync('../usr/share/x', join(dir, 'bin/x'));
    symlinkSync('gzip', join(dir, 'bin/y'));
    symlinkSync('usr/sbin', join(dir, 'sbin'));
    writeFileSync(join(dir, 'usr/share/x'), 'x');
    const options = { busyboxPath, trees: [dir], init: '#!/bin/sh\n' };
    const archive = await buildInitramfs(options);
    const entries = readCpio(archive);
    assert.equal(entries.get('usr/bin/gzip')!.data.toString(), 'mine');
    assert.equal(entries.get('usr/bin/gzip')!.mode, S_IFREG | 0o755);
    assert.equal(entries.get('usr/bin/x')!.data.toString(), '/usr/share/x');
    assert.equal(entries.get('usr/bin/y')!.data.toString(), 'gzip');
    assert.equal(entries.get('sbin')!.data.toString(), 'usr/sbin');
    assert.equal(entries.get('usr/share/x')!.data.toString(), 'x');
    assert.equal(entries.get('init')!.data.toString(), '#!/bin/sh\n');
    assert.equal(entries.get('etc/passwd')!.data.toString(), etcFiles['etc/passwd']);
    assert.deepEqual(await buildInitramfs(options), archive);
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test('a cache that has been moved, and can only be read, is as good as before', async (t) => {
  const { initramfsPath } = await prepareGuest();
  const dir = mkdtempSync(join(tmpdir(), 'zazen-moved-'));
  t.after(() => rmSync(dir, { recursive: true }));
  for (const part of ['guests', 'initramfs']) symlinkSync(join(cacheFolder(), part), join(dir, part));
  const moved = await prepareGuest({ cacheDir: dir });
  assert.equal(moved.initramfsPath, join(dir, 'initramfs', basename(initramfsPath)));
  assert.deepEqual(readdirSync(dir).toSorted(), ['guests', 'initramfs'], 'nothing was to be made');
});

test('unusable input is an error that names it', async () => {
  const { busyboxPath } = await fetchGuest();
  const code = 'ZAZEN_INITRAMFS_INPUT';
  await assert.rejects(buildInitramfs({ busyboxPath: '/nonexistent' }), { code, message: /nonexistent/ });
  await assert.rejects(buildInitramfs({ busyboxPath, trees: ['/nonexistent'] }), { code, message: /nonexistent/ });
  await assert.rejects(prepareGuest({ trees: ['/nonexistent'] }), { code, message: /nonexistent/ });
  assert.throws(() => busyboxApplets(Buffer.from('not busybox')), { code });
});

test('a command of any length fits in an overlay', () => {
  const command = `echo '${'x'.repeat(10_000)}'\n`;
  assert.equal(readCpio(commandOverlay(command)).get('etc/zazen/command')!.data.toString(), command);
});

test('a shell accepts the init script', () => {
  const { status, stderr } = spawnSync('sh', ['-n'], { input: initScript });
  assert.equal(status, 0, stderr.toString());
});
