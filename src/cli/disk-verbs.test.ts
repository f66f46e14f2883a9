import assert from 'node:assert/strict';
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
