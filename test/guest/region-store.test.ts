// What one host has compiled for a guest the next host finds: a guest does the same with an empty store, with a full one that
// two hosts use at a time, and with one of which every file is damaged or of another emitter.

import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { SeededRandom } from '../../src/base/random.ts';
import { Host } from '../../src/host/index.ts';
import type { HostStats } from '../../src/host/index.ts';
import { FAST_BOOT, runSections } from './guests.ts';

const folder = mkdtempSync(join(tmpdir(), 'zazen-region-store-'));
process.env['ZAZEN_REGION_STORE'] = folder;
after(() => rmSync(folder, { recursive: true }));
const random = new SeededRandom(Number(process.env['ZAZEN_SEED'] ?? 1));

/** Some tens of millions of instructions, in programs and in the kernel. */
const SECTIONS = {
  sums: 'i=0; sum=0; while [ $i -lt 4000 ]; do i=$((i+1)); sum=$(((sum*31+i)%65521)); done; echo $sum',
  files: 'dd if=/dev/zero bs=64k count=64 2>/dev/null | tr "\\0" z | md5sum; find /bin | sort | wc -l',
};
/** Fewer than a boot has, by far: how many are hot depends on what else the machine does. */
const FOUND_MIN = 100;

interface Run {
  readonly outputs: readonly string[];
  readonly codeCache: HostStats['codeCache'];
}

async function boot(): Promise<Run> {
  await using host = await Host.start({ memory: '512MiB', pcpus: 1 });
  const run = await runSections(host, { memory: '128MiB', cmdline: FAST_BOOT }, SECTIONS);
  return { outputs: Object.keys(SECTIONS).map(name => run.outputOf(name)), codeCache: host.stats().codeCache };
}
const files = (): string[] => readdirSync(folder).map(name => join(folder, name));
const regionFiles = (): string[] => files().filter(file => file.endsWith('.regions'));
/** The interpreter, and what a boot needs. */
const WHOLE_FILES = 2;
const wholeFiles = (): string[] => files().filter(file => file.endsWith('.whole'));

/** A bit of each 64 KiB, past what says which emitter a file is of. */
function damage(file: string): void {
  const bytes = readFileSync(file);
  for (let at = 64; at < bytes.length; at += 65536) {
    bytes[at + random.u32() % Math.min(65536, bytes.length - at)]! ^= 1 << (random.u32() & 7);
  }
  writeFileSync(file, bytes);
}

test('a guest does the same with every state of the store', async () => {
  const empty = await boot();
  assert.equal(empty.codeCache.storedRegions, 0);
  assert.equal(empty.codeCache.foundRegions, 0);
  assert.ok(regionFiles().length > 0 && wholeFiles().length === WHOLE_FILES, 'nothing was kept');
  for (const file of files()) assert.equal(statSync(file).mode & 0o077, 0);

  const full = await Promise.all([boot(), boot()]);
  for (const { outputs, codeCache } of full) {
    assert.deepEqual(outputs, empty.outputs);
    assert.ok(codeCache.foundRegions > FOUND_MIN, `${codeCache.foundRegions} of ${codeCache.storedRegions} were found`);
  }
  assert.equal(files().length, regionFiles().length + WHOLE_FILES, 'something was left unfinished');

  // The first one as another emitter would have left it: its version begins at byte 16.
  const [foreign, ...others] = regionFiles() as [string, ...string[]];
  writeFileSync(foreign, readFileSync(foreign).fill(0, 16, 48));
  for (const file of [...others, ...wholeFiles()]) damage(file);
  const damaged = await boot();
  assert.deepEqual(damaged.outputs, empty.outputs);
  assert.ok(damaged.codeCache.storedRegions < full[0].codeCache.storedRegions);
});
