import assert from 'node:assert/strict';
import { test } from 'node:test';
import { systemClock } from '../base/clock.ts';
import { SeededRandom } from '../base/random.ts';
import { HostCore } from './host-core.ts';

test('a pCPU begins when there is a vCPU for it', async (t) => {
  const core = new HostCore({
    memoryBytes: 256 * 2 ** 20, pcpus: 3, clock: systemClock, random: new SeededRandom(1), log: () => {},
  });
  t.after(() => core.close());
  core.startWorkers();
  await core.firstPcpuRuns;
  assert.equal(core.startedPcpus, 1);
  const first = core.takeVcpus(1)!;
  assert.equal(core.startedPcpus, 1);
  core.returnVcpus(first);
  const two = core.takeVcpus(2)!;
  assert.equal(core.startedPcpus, 2);
  core.returnVcpus(core.takeVcpus(2)!);
  assert.equal(core.startedPcpus, 3);
  core.returnVcpus(core.takeVcpus(8)!);
  assert.equal(core.startedPcpus, 3);
  core.returnVcpus(two);
});
