import { test } from 'node:test';
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { lstatSync, mkdtempSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { needsTool } from '../../test/tools.ts';
import { S_IFCHR, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, writeCpio } from './cpio.ts';
import type { CpioEntry } from './cpio.ts';

const text = (s: string): Uint8Array => new TextEncoder().encode(s);

test('the bytes of a small archive', () => {
  const archive = Buffer.from(
    writeCpio([
      { path: 'a', mode: S_IFREG | 0o644, data: text('hello') },
      { path: 'dev', mode: S_IFCHR | 0o600, device: [5, 1], uid: 1, gid: 2, mtimeSeconds: 0x5eadbeef },
    ]),
  ).toString('latin1');
  const first =
    '070701' + '00000001' + '000081a4' + '00000000' + '00000000' + '00000001' + '00000000' + '00000005' +
    '00000000' + '00000000' + '00000000' + '00000000' + '00000002' + '00000000' + 'a\0' + 'hello\0\0\0';
  const second =
    '070701' + '00000002' + '00002180' + '00000001' + '00000002' + '00000001' + '5eadbeef' + '00000000' +
    '00000000' + '00000000' + '00000005' + '00000001' + '00000004' + '00000000' + 'dev\0' + '\0\0';
  const trailer =
    '070701' + '00000000'.repeat(4) + '00000001' + '00000000'.repeat(6) + '0000000b' + '00000000' +
    'TRAILER!!!\0' + '\0\0\0';
  assert.equal(archive, first + second + trailer);
});

test('an archive is a multiple of 4 long and depends on its entries only', () => {
  const entries: CpioEntry[] = [
    { path: 'd', mode: S_IFDIR | 0o755 },
    { path: 'd/é', mode: S_IFREG | 0o600, data: text('x') },
  ];
  const archive = writeCpio(entries);
  assert.equal(archive.length % 4, 0);
  assert.deepEqual(writeCpio(entries), archive);
});

/** Trees as paths: directories d0, d1, … (each perhaps inside an earlier one), files and links in them. */
const treeArbitrary = fc
  .array(
    fc.record({
      parent: fc.nat(),
      kind: fc.constantFrom('dir', 'file', 'link'),
      permissions: fc.constantFrom(0o700, 0o755, 0o711),
      content: fc.uint8Array({ maxLength: 300 }),
      name: fc.stringMatching(/^[a-zA-Z0-9é _.+-]{0,40}$/),
    }),
    { maxLength: 25 },
  )
  .map((items) => {
    const dirs = [''];
    return items.map(({ parent, kind, permissions, content, name }, i): CpioEntry => {
      const path = `${dirs[parent % dirs.length]}${i}${name.replaceAll(/[ .]+$/g, '')}`;
      if (kind === 'dir') {
        dirs.push(`${path}/`);
        return { path, mode: S_IFDIR | permissions };
      }
      if (kind === 'file') return { path, mode: S_IFREG | permissions, data: content };
      return { path, mode: S_IFLNK | 0o777, data: text(`../target of/${i}`) };
    });
  });

test('cpio unpacks what was written', (t) => {
  if (!needsTool(t, 'cpio')) return;
  fc.assert(
    fc.property(treeArbitrary, (entries) => {
      const dir = mkdtempSync(join(tmpdir(), 'zazen-cpio-'));
      try {
        const args = ['-i', '-d', '-m', '--quiet', '--no-absolute-filenames', '-H', 'newc'];
        const run = spawnSync('cpio', args, { cwd: dir, input: writeCpio(entries) });
        assert.equal(run.status, 0, run.stderr?.toString());
        for (const { path, mode, data } of entries) {
          const info = lstatSync(join(dir, path));
          assert.equal(info.mode & S_IFMT, mode & S_IFMT, path);
          if (info.isSymbolicLink()) assert.equal(readlinkSync(join(dir, path)), Buffer.from(data!).toString());
          else assert.equal(info.mode & 0o777, mode & 0o777, path);
          if (info.isFile()) assert.deepEqual(new Uint8Array(readFileSync(join(dir, path))), data);
        }
      } finally {
        rmSync(dir, { recursive: true });
      }
    }),
    { numRuns: 40 },
  );
});
