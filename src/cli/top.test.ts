import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ActivitySamples } from '../host/types.ts';
import type { HostListing } from './hosts.ts';
import { compareHosts } from './top.ts';

const NONE: ActivitySamples = { code: 0, memory: 0, decoding: 0, hypervisor: 0, devices: 0, idle: 0 };

/** As far as `compareHosts` looks. */
function listing(pid: number, uptimeMillis: number, activity: ActivitySamples, busyMillis: number, compiledMillis: number, hostThreadMillis: number, networkThreadMillis = 0): HostListing {
  const stats = { uptimeMillis, activity, hostThreadMillis, networkThreadMillis, pcpus: [{ id: 0, busyMillis, compiledMillis, wakeUps: 0 }, { id: 1, busyMillis: 0, compiledMillis: 0, wakeUps: 0 }] };
  return { client: { socketPath: `/run/${pid}` }, host: { pid, stats }, domains: [] } as unknown as HostListing;
}

test('time is shared out by what was seen between two samples', () => {
  const before = [listing(1, 1000, { ...NONE, code: 50, idle: 50 }, 500, 100, 10)];
  const now = [
    listing(1, 3000, { code: 130, memory: 30, decoding: 10, hypervisor: 20, devices: 10, idle: 100 }, 900, 400, 110, 40),
    listing(2, 10, NONE, 0, 0, 0),
  ];
  assert.deepEqual(compareHosts(before, now), [{
    hostPid: 1, compiledPercent: 30, interpretedPercent: 10, memoryPercent: 15, decodingPercent: 5, hypervisorPercent: 10,
    devicesPercent: 5, idlePercent: 25, hostThreadPercent: 5, networkThreadPercent: 2,
  }], 'of the host that has come since, nothing is known');
});

test('nothing has been looked at: all is zero', () => {
  const [activity] = compareHosts([listing(1, 5, NONE, 0, 0, 0)], [listing(1, 5, NONE, 0, 0, 0)]);
  assert.deepEqual(Object.values(activity!), [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
});
