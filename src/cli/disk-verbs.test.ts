import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { diskVerbs } from './disk-verbs.ts';
import { parseArguments } from './arguments.ts';
import { FakeIo } from './test-io.ts';

test('disks are made, described, checked and converted', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'zazen-disk-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const disk = async (verbName: string, ...words: string[]): Promise<string> => {
    const verb = diskVerbs.find(({ name }) => name === `disk ${verbName}`)!;
    const io = new FakeIo();
    assert.equal(await verb.run(parseArguments(verb, words), io, undefined as never), 0);
    return io.stdout.text;
  };
  const [base, layer, raw, again] = ['base.img', 'a.layer', 'copy.img', 'b.layer'].map((name) => join(folder, name)) as [string, string, string, string];
  await disk('create', base, '1MiB');
  const bytes = Buffer.alloc(2 ** 20);
  bytes.write('hello', 70_000);
  await writeFile(base, bytes);
  await disk('create', layer, '--backing', base);
  assert.match(await disk('info', layer), /size +1048576 bytes\nfile +\S+a\.layer \(layer, 0 bytes of data\)\nlies on +\S+base\.img \(raw\)\n/);
  assert.equal(await disk('check', layer), 'no damage found\n');
  await disk('convert', layer, raw);
  assert.ok((await readFile(raw)).equals(bytes));
  await disk('convert', raw, again);
  const described = JSON.parse(await disk('info', again, '--json')) as { sizeBytes: number; files: { dataBytes: number }[] };
  assert.deepEqual([described.sizeBytes, described.files.length, described.files[0]!.dataBytes], [2 ** 20, 1, 65536]);
  await rm(raw);
  await disk('convert', again, raw);
  assert.ok((await readFile(raw)).equals(bytes));
  await writeFile(base, 'changed');
  await assert.rejects(disk('check', layer), { code: 'ZAZEN_DISK_BACKING' });
  await assert.rejects(disk('create', layer, '1MiB', '--format', 'layer'), { code: 'ZAZEN_DISK_UNREADABLE' });
});

test('a disk that cannot be made is told in a line, and nothing of it is left', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'zazen-disk-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const [from, to] = [join(folder, 'from.img'), join(folder, 'to')];
  await writeFile(from, Buffer.alloc(2 ** 20, 1));
  // Files may have half a MiB, which for a program is as if the disk were full.
  const program = [process.execPath, join(import.meta.dirname, 'main.ts'), 'disk'];
  const disk = (...words: string[]) =>
    spawnSync('sh', ['-c', 'ulimit -f 1024 && exec "$@"', 'sh', ...program, ...words], { encoding: 'utf8' });
  const commands = [
    ['create', to, '1MiB'], ['convert', from, to, '--format', 'raw'], ['convert', from, to, '--format', 'layer'],
    ['create', to, '1MiB', '--format', 'layer'], ['create', to, '--backing', from],
  ];
  for (const words of commands) {
    const { status, stderr } = disk(...words);
    assert.deepEqual([status, stderr], [1, `zazen: disk ${to}: reading or writing failed: EFBIG\n`], words.join(' '));
    assert.equal(existsSync(to), false, words.join(' '));
  }
  await writeFile(to, 'dear');
  assert.deepEqual([disk('convert', from, to).stderr, await readFile(to, 'utf8')], [`zazen: disk ${to}: exists already\n`, 'dear']);
});

test('a conversion that is ended leaves nothing', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'zazen-disk-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const [from, to] = [join(folder, 'from.img'), join(folder, 'to')];
  await writeFile(from, Buffer.alloc(2 ** 20, 1));
  const verb = diskVerbs.find(({ name }) => name === 'disk convert')!;
  for (const format of ['raw', 'layer']) {
    const io = new FakeIo();
    io.interrupt();
    await assert.rejects(verb.run(parseArguments(verb, [from, to, '--format', format]), io, undefined as never), (error) => error === io.signal.reason);
    assert.equal(existsSync(to), false);
  }
});
