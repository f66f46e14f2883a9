import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { BASE_GFN, bankOf, fillFrame, makeMachine, makeRequest, makeVcpu, runsOf } from '../image/test-images.ts';
import { writeImage } from '../image/writer.ts';
import { FakeIo, runCli } from './test-io.ts';

const folder = mkdtempSync(join(tmpdir(), 'zazen-cli-image-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const path = join(folder, 'web.core');
const machine = makeMachine(65536);
fillFrame(machine, 1, 1);
const base = makeRequest({
  path, machine, banks: [bankOf(1024)], pages: runsOf([undefined, 1]), vcpus: [makeVcpu(1)],
  domain: { name: 'web\x1b[2J', uuid: 'none', vcpus: 1 }, sections: [{ name: 'gic', bytes: new Uint8Array(77) }],
});
const written = await writeImage(base);
const child = join(folder, 'child.core');
await writeImage({ ...base, path: child, pages: runsOf([1, 'parent']), parent: written.reference });

test('image info tells what is in it, and lets no file write to the terminal', async () => {
  const plain = await runCli(['image', 'info', path]);
  assert.equal(plain.status, 0);
  assert.match(plain.out, /^name +web\?\[2J$/m);
  assert.match(plain.out, /^memory +4 MiB at 0x0000000040000000$/m);
  assert.match(plain.out, /^pages +1 stored, 1023 zero, 0 in the parent$/m);
  assert.match(plain.out, /^state +gic: 77 bytes$/m);
  const { out } = await runCli(['image', 'info', child, '--json']);
  const facts = JSON.parse(out);
  assert.deepEqual(facts.pages, { zero: 1022, stored: 1, parent: 1 });
  assert.equal(facts.parent.id, written.reference.id);
  assert.equal(facts.banks[0].guestAddress, BASE_GFN * 4096);
});

test('image info shows the chain, or what is wrong with it', async () => {
  const facts = JSON.parse((await runCli(['image', 'info', child, '--json'])).out);
  assert.deepEqual(facts.chain.parents, [{ path, id: written.reference.id, storedPages: 1 }]);
  const plain = await runCli(['image', 'info', child]);
  assert.match(plain.out, new RegExp(`^builds on +${path}: 1 stored, id ${written.reference.id}$`, 'm'));
  assert.doesNotMatch((await runCli(['image', 'info', path])).out, /builds on/);
  renameSync(path, `${path}.away`);
  const lost = await runCli(['image', 'info', child]);
  renameSync(`${path}.away`, path);
  assert.equal(lost.status, 0);
  assert.match(lost.out, /^builds on +image .*child.core: needs its parent: image .*web.core: cannot be opened \(ENOENT\)/m);
});

test('image verify has one bar for the whole chain, where that goes to a terminal', async () => {
  const { status, err } = await runCli(['image', 'verify', child], {}, new FakeIo().terminal());
  assert.equal(status, 0);
  const shown = [...err.matchAll(/verify \[[#.]{30}\] (\d+) %/g)].map(([, percent]) => Number(percent));
  assert.ok(shown.length >= 2, err);
  assert.deepEqual(shown, shown.toSorted((a, b) => a - b));
  assert.ok(shown[0]! >= 40 && shown[0]! <= 55 && shown.at(-1)! >= 95, shown.join());
  assert.ok(err.endsWith('\r\x1b[K'));
});

test('image verify: intact, damaged, no image at all', async () => {
  const intact = await runCli(['image', 'verify', child]);
  assert.deepEqual([intact.status, intact.err], [0, '']);
  assert.match(intact.out, /is intact: 2048 pages/);
  assert.equal(JSON.parse((await runCli(['image', 'verify', path, '--json'])).out).intact, true);
  const bytes = readFileSync(path);
  bytes[2 * 4096 + 7]! ^= 4; // in the stored page
  writeFileSync(path, bytes);
  const damaged = await runCli(['image', 'verify', child]);
  assert.deepEqual([damaged.status, damaged.out], [1, '']);
  assert.match(damaged.err, new RegExp(`^zazen: image ${path}: page ${BASE_GFN + 1} is not what was written\n`));
  assert.match(damaged.err, /1 of its pages are damaged; do not use it/);
  const other = await runCli(['image', 'verify', import.meta.filename]);
  assert.deepEqual([other.status, other.out], [1, '']);
  assert.match(other.err, /is not a Zazen image/);
  assert.equal((await runCli(['image', 'verify'])).status, 2);
  assert.equal((await runCli(['image'])).status, 2);
});
