import assert from 'node:assert/strict';
import { once } from 'node:events';
import { open, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { spawn } from 'node:child_process';
import { test } from 'node:test';
import { HolePuncher } from './hole-puncher.ts';
import { openDisk } from './open-disk.ts';
import { pageMemory, testFolder } from './test-disks.ts';

const skip = HolePuncher.isAvailable ? false : 'fallocate is not installed: apt-get install util-linux';
const MIB = 2 ** 20;

test('a raw disk gives back the space of what was discarded, and keeps the rest', { skip }, async (t) => {
  const path = join(await testFolder(t), 'disk.img');
  await using file = await open(path, 'wx');
  await file.writeFile(new Uint8Array(MIB).fill(7));
  await file.sync();
  const before = (await stat(path)).blocks;
  const disk = await openDisk({ path, format: 'raw' });
  assert.ok(disk.canDiscard);
  // Many at once, and one that reaches beyond whole blocks at both ends.
  await Promise.all([disk.discard(4096, 65536), disk.discard(131072 - 512, 8192), disk.discard(262144, 262144)]);
  await disk.flush();
  const bytes = pageMemory(MIB);
  await disk.read([bytes], 0);
  const wanted = new Uint8Array(MIB).fill(7);
  for (const [from, to] of [[4096, 69632], [131072, 135168], [262144, 524288]] as const) wanted.fill(0, from, to);
  assert.ok(Buffer.from(wanted).equals(bytes));
  await disk.close();
  assert.ok(Buffer.from(wanted).equals(await readFile(path)), 'its size, too, is what it was');
  assert.equal((await stat(path)).blocks, before - (65536 + 4096 + 262144) / 512);
  const readOnly = await openDisk({ path, format: 'raw', isReadOnly: true });
  assert.equal(readOnly.canDiscard, false);
  await readOnly.close();
});

test('where it cannot be done it is not asked for again, and nobody waits for an answer', { skip }, async (t) => {
  const path = join(await testFolder(t), 'disk.img');
  await using file = await open(path, 'wx');
  await file.writeFile(new Uint8Array(65536).fill(7));
  for (const program of ['/bin/false', '/nonexistent']) {
    const puncher = new HolePuncher(file.fd, program);
    assert.deepEqual(await Promise.all([puncher.punch(0, 4096), puncher.punch(4096, 4096)]), [false, false]);
    assert.equal(await puncher.punch(0, 4096), false);
    puncher.close();
  }
  assert.ok((await readFile(path)).every((byte) => byte === 7));
});

test('a process that has discarded ends by itself, and takes its helper along', { skip }, async (t) => {
  const path = join(await testFolder(t), 'disk.img');
  const script = `import { open } from 'node:fs/promises';
    import { HolePuncher } from ${JSON.stringify(join(import.meta.dirname, 'hole-puncher.ts'))};
    const file = await open(${JSON.stringify(path)}, 'w+');
    await file.truncate(8192);
    console.log(await new HolePuncher(file.fd).punch(0, 4096));`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] });
  let output = '';
  child.stdout.on('data', (text) => { output += String(text); });
  // The pipe closes when nobody has it any more, helpers included.
  const [status] = await once(child, 'close');
  assert.deepEqual([status, output], [0, 'true\n']);
});
