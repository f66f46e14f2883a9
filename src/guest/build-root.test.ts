// The root file system as an unprivileged user makes it, looked at with debugfs: owners, permissions, links, what dpkg knows.

import { test } from 'node:test';
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmodSync, chownSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { packTar } from 'modern-tar';
import type { TarEntry } from 'modern-tar';
import { needsTool } from '../../test/tools.ts';
import { buildRoot } from './build-root.ts';
import { findE2fsprogs, makeExt4 } from './ext4-image.ts';
import { makeDeb } from './test-debs.ts';

const NOBODY = 65534;
const file = (name: string, body: string, more: Partial<TarEntry['header']> = {}): TarEntry =>
  ({ header: { name, size: body.length, mode: 0o644, ...more }, body });
const directory = (name: string, more: Partial<TarEntry['header']> = {}): TarEntry =>
  ({ header: { name, type: 'directory', size: 0, mode: 0o755, ...more } });

async function deb(control: TarEntry[], data: TarEntry[]): Promise<Buffer> {
  return makeDeb('data.tar', await packTar(data), await packTar(control));
}

const base = (): Promise<Buffer> => deb(
  [file('./control', 'Package: base\nVersion: 1\nArchitecture: arm64\nDescription: x\n more\n'), file('./conffiles', '/etc/base.conf\n'),
    file('./postinst', '#!/bin/sh\n', { mode: 0o755 })],
  [directory('./'), directory('./tmp/', { mode: 0o1777 }), directory('./var/mail/', { mode: 0o2775, gid: 8 }),
    file('./etc/base.conf', 'set\n'), file('./bin/su', 'program', { mode: 0o4755 }),
    file('./usr/share/base-passwd/passwd.master', 'root:*:0:0:root:/root:/bin/bash\nmail:*:8:8::/var/mail:/bin/false\n'),
    file('./usr/share/man/man1/su.1', 'long')],
);
const tool = (): Promise<Buffer> => deb(
  [file('./control', 'Package: tool\nVersion: 2\nArchitecture: arm64\nMulti-Arch: same\n')],
  [directory('./tmp/'), file('./usr/bin/odd "name"', 'x', { uid: 7, gid: 9 }),
    { header: { name: './usr/bin/again', type: 'link', linkname: './bin/su', size: 0 } },
    { header: { name: './sbin/s', type: 'symlink', linkname: '../usr/share/x', size: 0 } }],
);

test('a root file system, made without root, belongs to root', async (t) => {
  if (!needsTool(t, 'mkfs.ext4', 'e2fsprogs')) return;
  const dir = mkdtempSync(join(tmpdir(), 'zazen-root-'));
  t.after(() => rmSync(dir, { recursive: true }));
  writeFileSync(join(dir, 'base.deb'), await base());
  writeFileSync(join(dir, 'tool.deb'), await tool());
  chmodSync(dir, 0o777);
  const isRoot = process.getuid?.() === 0;
  if (isRoot) chownSync(dir, NOBODY, NOBODY);
  const child = spawnSync(process.execPath, [join(import.meta.dirname, 'test-build-root-child.ts'), dir],
    isRoot ? { uid: NOBODY, gid: NOBODY } : {});
  assert.equal(child.status, 0, String(child.stderr));

  const { debugfs } = await findE2fsprogs();
  const ask = (request: string): string => String(spawnSync(debugfs, ['-R', request, join(dir, 'root.ext4')]).stdout);
  const owner = (path: string): string => {
    const text = ask(`stat "${path}"`);
    const [, type, mode] = /Type: (\w+) +Mode: +(\d+)/.exec(text) ?? [];
    const [, uid, gid] = /User: +(\d+) +Group: +(\d+)/.exec(text) ?? [];
    return `${type} ${mode} ${uid} ${gid}`;
  };
  assert.deepEqual(['/', '/tmp', '/var/mail', '/usr/bin/su', '/usr/bin/odd ""name""', '/etc/base.conf', '/etc/shadow', '/root',
    '/usr/bin', '/bin'].map(owner), [
    'directory 0755 0 0', 'directory 01777 0 0', 'directory 02775 0 8', 'regular 04755 0 0', 'regular 0644 7 9',
    'regular 0644 0 0', 'regular 0640 0 42', 'directory 0700 0 0', 'directory 0755 0 0', 'symlink 0777 0 0']);
  assert.match(ask('stat /usr/bin/again'), /Links: 2 /);
  assert.match(ask('stat /usr/sbin/s'), /Fast link dest: "\/usr\/share\/x"/);
  assert.equal(ask('cat /etc/passwd'), 'root:x:0:0:root:/root:/bin/bash\nmail:x:8:8::/var/mail:/bin/false\n');
  assert.match(ask('cat /etc/shadow'), /^root::.*\nmail:\*:/);
  assert.equal(ask('cat /var/lib/dpkg/status'), 'Package: base\nStatus: install ok unpacked\nVersion: 1\nArchitecture: arm64\n'
    + 'Description: x\n more\nConffiles:\n /etc/base.conf a7d4f9d0ee8ac98f6c4e5c9b4c9a2a5e\n\n'.replace(/[0-9a-f]{32}/, conffileSum)
    + 'Package: tool\nStatus: install ok unpacked\nVersion: 2\nArchitecture: arm64\nMulti-Arch: same\n\n');
  assert.match(ask('cat /var/lib/dpkg/info/base.list'), /^\/\.\n\/tmp\n[^]*\n\/usr\/share\/man\/man1\/su\.1\n$/);
  assert.match(ask('ls /var/lib/dpkg/info'), /base\.postinst[^]*tool:arm64\.list/);
  assert.equal(owner('/usr/share/man'), 'undefined undefined undefined undefined', 'what is left out is not there');
});

const conffileSum = String(spawnSync('md5sum', { input: 'set\n' }).stdout).slice(0, 32);

test('what cannot be built is an error, and leaves nothing', async (t) => {
  if (!needsTool(t, 'mkfs.ext4', 'e2fsprogs')) return;
  const dir = mkdtempSync(join(tmpdir(), 'zazen-root-'));
  t.after(() => rmSync(dir, { recursive: true }));
  await assert.rejects(findE2fsprogs([dir]), { code: 'ZAZEN_GUEST_TOOL', hint: /e2fsprogs/ });
  const tree = join(dir, 'tree');
  mkdirSync(tree);
  writeFileSync(join(tree, 'large'), Buffer.alloc(80 * 2 ** 20, 'x'));
  const path = join(dir, 'x.ext4');
  await assert.rejects(makeExt4(tree, path, { label: 'x', sizeBytes: 64 * 2 ** 20 }), { code: 'ZAZEN_ROOT_SIZE', hint: /--size/ });
  writeFileSync(join(tree, 'a\nb'), '');
  await assert.rejects(makeExt4(tree, path, { label: 'x', sizeBytes: 64 * 2 ** 20 }), { code: 'ZAZEN_ROOT_IMAGE', message: /a\?b/ });
  assert.equal(existsSync(path), false);
  await assert.rejects(buildRoot(tree), { code: 'ZAZEN_ROOT_EXISTS' });
  // Before anything is fetched: this cache has nothing, and its folder cannot be made.
  await assert.rejects(buildRoot(join(dir, 'none', 'x.ext4'), { cacheDir: '/proc/none' }), { code: 'ZAZEN_ROOT_IMAGE', hint: /folder/ });
  await assert.rejects(buildRoot(path, { sizeBytes: 1 }), { code: 'ZAZEN_ROOT_SIZE' });
  await assert.rejects(buildRoot(path, { packages: ['../x'] }), { code: 'ZAZEN_GUEST_PACKAGE_UNKNOWN' });
  const stop = AbortSignal.abort(new Error('enough'));
  rmSync(join(tree, 'a\nb'));
  await assert.rejects(makeExt4(tree, path, { label: 'x', sizeBytes: 2 ** 28, signal: stop }));
  assert.deepEqual(readdirSync(dir), ['tree']);
});
