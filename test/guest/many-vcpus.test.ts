// The stock kernel with eight vCPUs: on two pCPUs, and its image on one and on three. All eight work at the same
// time, are stopped between two instructions for checkpoint and rollback, and go on where they were.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { Host } from '../../src/host/index.ts';
import type { Domain } from '../../src/host/index.ts';
import { hostMemory } from '../host-memory.ts';
import { FAST_BOOT, complaints, limited, testHost } from './guests.ts';
import { SHELL, Shell } from './shell.ts';

const VCPUS = 8;
const ALL = Array.from({ length: VCPUS }, (_, cpu) => cpu);

const host = await testHost({ memory: '1GiB', pcpus: 2 });
const folder = mkdtempSync(join(tmpdir(), 'zazen-many-vcpus-'));
after(() => rmSync(folder, { recursive: true }));

/** On each CPU at the same time: a sum, and which CPU it was made on. @returns what they printed */
async function workEverywhere(shell: Shell): Promise<string[]> {
  const work = 'i=0; s=0; while [ $i -lt 300 ]; do s=$(( (s * 31 + i) % 65521 )); i=$((i + 1)); done; echo $(cut -d" " -f39 /proc/self/stat) $s';
  const words = await limited(shell.domain, () =>
    shell.ask(`for c in ${ALL.join(' ')}; do taskset $(printf %x $((1 << c))) sh -c '${work}' & done; wait`));
  return words.split('\n').toSorted();
}
const sum = Array.from({ length: 300 }, (_, i) => i).reduce((before, i) => (before * 31 + i) % 65521, 0);
const expected = ALL.map(cpu => `${cpu} ${sum}`);

/** How much each vCPU has run. */
const retired = (domain: Domain): number[] => domain.stats().vcpus.map(({ instructionsRetired }) => Number(instructionsRetired));

test('eight vCPUs on two pCPUs: all work, stop for checkpoint and rollback, and go on; its image on one pCPU and on three', async () => {
  const domain = await host.create({ memory: '192MiB', vcpus: VCPUS, cmdline: FAST_BOOT, exec: SHELL });
  const shell = new Shell(domain, 'first');
  assert.equal(await limited(domain, () => shell.ask('nproc; grep -c ^processor /proc/cpuinfo')), `${VCPUS}\n${VCPUS}`);
  assert.deepEqual(await workEverywhere(shell), expected);

  // While all of them are busy: what each has counted is in a file of its own.
  await shell.ask(`for c in ${ALL.join(' ')}; do taskset $(printf %x $((1 << c))) sh -c 'i=0; while [ ! -e /tmp/end ]; do i=$((i + 1)); echo $i >/tmp/count'$c'; done' & done`);
  await limited(domain, () => shell.ask(`for c in ${ALL.join(' ')}; do while [ ! -s /tmp/count$c ]; do :; done; done`));
  await shell.ask('echo before >/tmp/state');
  await using checkpoint = await domain.checkpoint();
  await shell.ask('echo after >/tmp/state');
  await domain.rollback(checkpoint);
  await domain.pause();
  const standing = retired(domain);
  assert.ok(standing.every(count => count > 0));
  await domain.unpause();
  assert.equal(await new Shell(domain, 'second').ask('cat /tmp/state'), 'before');
  // All of them go on: each writes a new number.
  await limited(domain, () => new Shell(domain, 'third').ask(
    `for c in ${ALL.join(' ')}; do read -r n </tmp/count$c; m=$n; while [ "$m" = "$n" ]; do read -r m </tmp/count$c; done; done`));
  retired(domain).forEach((count, cpu) => assert.ok(count > standing[cpu]!, `vCPU ${cpu} stands still`));
  assert.deepEqual(complaints(await new Shell(domain, 'fourth').ask('dmesg')), []);

  const image = join(folder, 'image');
  await domain.save(image);
  await domain.destroy();
  for (const pcpus of [1, 3]) {
    await using other = await Host.start({ memory: hostMemory('1GiB'), pcpus });
    const restored = await other.restore(image);
    const again = new Shell(restored, `on${pcpus}`);
    assert.equal(await limited(restored, () => again.ask('touch /tmp/end; cat /tmp/state')), 'before');
    assert.deepEqual(await workEverywhere(again), expected);
    await restored.destroy();
  }
});
