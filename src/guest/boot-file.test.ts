import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, symlinkSync, truncateSync, utimesSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { identify, readBootFile } from './boot-file.ts';

const dir = mkdtempSync(join(tmpdir(), 'zazen-boot-'));
after(() => rmSync(dir, { recursive: true, force: true }));

test('the whole file, by way of links', async () => {
  const path = join(dir, 'file');
  const link = join(dir, 'link');
  const content = Buffer.alloc(3 * 2 ** 20 + 5, 'abc');
  writeFileSync(path, content);
  symlinkSync(path, link);
  for (const name of [path, link]) {
    const { bytes } = await readBootFile(name, 'initramfs', content.length);
    assert.ok(content.equals(bytes));
  }
  assert.equal(await identify(path, 'initramfs'), await identify(link, 'initramfs'));
});

test('what is no file is refused without waiting for it', async () => {
  const fifo = join(dir, 'fifo');
  execFileSync('mkfifo', [fifo]);
  const socket = join(dir, 'socket');
  const server = createServer().listen(socket);
  await new Promise((resolve) => server.once('listening', resolve));
  after(() => server.close());
  const empty = join(dir, 'empty');
  writeFileSync(empty, '');
  for (const path of [empty, '/proc/self/maps']) {
    await assert.rejects(readBootFile(path, 'kernel', 100), { code: 'ZAZEN_KERNEL_UNREADABLE', message: /it is empty/ });
  }
  const wrong = [
    [fifo, /it is a FIFO, not a file/], [dir, /it is a directory/], ['/dev/zero', /it is a device/], [socket, /socket/],
    [join(dir, 'absent'), /no such file/], [join(dir, 'file', 'below'), /not a directory/i],
  ] as const;
  for (const [path, message] of wrong) {
    await assert.rejects(readBootFile(path, 'kernel', 2 ** 30), { code: 'ZAZEN_KERNEL_UNREADABLE', message });
    await assert.rejects(identify(path, 'initramfs'), { code: 'ZAZEN_INITRD_UNREADABLE', message });
  }
});

test('a file larger than its place is refused without reading it', async () => {
  const path = join(dir, 'sparse');
  writeFileSync(path, '');
  truncateSync(path, 2 ** 40);
  await assert.rejects(readBootFile(path, 'initramfs', 2 ** 30), { code: 'ZAZEN_INITRD_TOO_LARGE', message: /1024 MiB/ });
  await assert.rejects(readBootFile(path, 'kernel', 2 ** 30), { code: 'ZAZEN_KERNEL_TOO_LARGE' });
});

test('a file has an identity when its times are old enough to tell the next change', async () => {
  const path = join(dir, 'identity');
  writeFileSync(path, 'one');
  // The change time is now, whatever else the times say.
  utimesSync(path, 1, 1);
  assert.equal((await readBootFile(path, 'kernel', 10)).identity, undefined);
  // A file of this project that nobody has changed in the last seconds.
  const old = process.execPath;
  const { identity } = await readBootFile(old, 'kernel', 2 ** 30);
  assert.equal(identity, await identify(old, 'kernel'));
  const before = await identify(path, 'kernel');
  writeFileSync(path, 'two');
  utimesSync(path, 2, 2);
  assert.notEqual(await identify(path, 'kernel'), before);
});
