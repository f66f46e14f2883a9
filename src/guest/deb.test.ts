import { test } from 'node:test';
import assert from 'node:assert/strict';
import { existsSync, lstatSync, mkdtempSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { spawnSync } from 'node:child_process';
import { packTar } from 'modern-tar';
import type { TarEntry } from 'modern-tar';
import { needsTool } from '../../test/tools.ts';
import { unpackDeb } from './deb.ts';
import { makeDeb } from './test-debs.ts';

async function unpack(
  deb: Uint8Array,
  check: (dir: string) => void,
  filter?: (path: string) => boolean,
): Promise<void> {
  const dir = mkdtempSync(join(tmpdir(), 'zazen-deb-'));
  try {
    writeFileSync(join(dir, 'x.deb'), deb);
    await unpackDeb(join(dir, 'x.deb'), dir, filter);
    check(dir);
  } finally {
    rmSync(dir, { recursive: true });
  }
}

const big = Buffer.alloc(700_000, 'zazen');
const entries: TarEntry[] = [
  { header: { name: './', type: 'directory', size: 0 } },
  { header: { name: './bin/', type: 'directory', size: 0, mode: 0o755 } },
  { header: { name: './bin/tool', size: big.length, mode: 0o4755 }, body: big },
  { header: { name: './bin/hard', type: 'link', linkname: './bin/tool', size: 0 } },
  { header: { name: './bin/soft', type: 'symlink', linkname: '/bin/tool', size: 0 } },
  { header: { name: './deep/er/file', size: 2, mode: 0o600 }, body: 'ok' },
];

function checkTree(dir: string): void {
  assert.deepEqual(readFileSync(join(dir, 'bin/tool')), big);
  assert.equal(lstatSync(join(dir, 'bin/tool')).mode & 0o7777, 0o755);
  assert.equal(lstatSync(join(dir, 'bin/tool')).ino, lstatSync(join(dir, 'bin/hard')).ino);
  assert.equal(readlinkSync(join(dir, 'bin/soft')), '/bin/tool');
  assert.equal(readFileSync(join(dir, 'deep/er/file'), 'utf8'), 'ok');
}

test('packages in every compression unpack', async () => {
  const tar = await packTar(entries);
  await unpack(makeDeb('data.tar', tar), checkTree);
  await unpack(makeDeb('data.tar.gz', gzipSync(tar)), checkTree);
  await unpack(makeDeb('data.tar.zst', zstdCompressSync(tar)), checkTree);
});

test('an xz package unpacks', async (t) => {
  if (!needsTool(t, 'xz', 'xz-utils')) return;
  const tar = await packTar(entries);
  await unpack(makeDeb('data.tar.xz', spawnSync('xz', ['-c'], { input: tar }).stdout), checkTree);
});

test('a filter leaves out large files without stalling', async () => {
  const numbers = Array.from({ length: 20 }, (_, i) => i);
  const many = numbers.map((i): TarEntry => ({ header: { name: `f${i}`, size: big.length }, body: big }));
  const check = (dir: string): void => {
    assert(existsSync(join(dir, 'f7')));
    assert(!existsSync(join(dir, 'f8')));
  };
  await unpack(makeDeb('data.tar.gz', gzipSync(await packTar(many))), check, (path) => path === 'f7');
});

test('nothing is written outside the directory', async () => {
  const outside: TarEntry[] = [{ header: { name: '../evil', size: 1 }, body: 'x' }];
  const throughLink: TarEntry[] = [
    { header: { name: 'out', type: 'symlink', linkname: tmpdir(), size: 0 } },
    { header: { name: 'out/evil', size: 1 }, body: 'x' },
  ];
  for (const hostile of [outside, throughLink]) {
    const deb = makeDeb('data.tar', await packTar(hostile));
    await assert.rejects(unpack(deb, () => {}), { code: 'ZAZEN_GUEST_PACKAGE' });
    assert(!existsSync(join(tmpdir(), 'evil')));
  }
});

test('damaged packages are errors', async () => {
  const deb = makeDeb('data.tar.gz', gzipSync(await packTar(entries)));
  const cases = [deb.subarray(0, -30), deb.subarray(0, 100), Buffer.from('nonsense'), makeDeb('other.tar', big)];
  for (const bytes of cases) await assert.rejects(unpack(bytes, () => {}), { code: 'ZAZEN_GUEST_PACKAGE' });
});
