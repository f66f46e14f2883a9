import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { DOMAIN, HELD_FRAME, VCPU_ENTRY } from '../abi/domain-record.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { xOffset } from '../abi/vcpu.ts';
import { sharedInfo } from '../abi/xen-shared-info.ts';
import { SHUTDOWN } from '../abi/xen.ts';
import { EmulatedRig } from '../hypervisor/test-emulated.ts';
import { Store } from '../xenstore/store.ts';
import { writeDomainEntries } from './store-entries.ts';
import { delayWatchdogs, endSuspend, endSuspendElsewhere, isSuspended, suspendPort, watchesForSuspend } from './suspend.ts';

const ID = 7;
const PORT = `/local/domain/${ID}/device/suspend/event-channel`;
const FEATURE = `/local/domain/${ID}/control/feature-suspend`;

function newStore(): Store {
  const store = new Store();
  writeDomainEntries(store, { domainId: ID, name: 'a', uuid: 'u', memoryBytes: 2 ** 20, vcpus: 1 });
  return store;
}

test('a guest that has just been made offers nothing', () => {
  const store = newStore();
  assert.equal(suspendPort(store, ID), undefined);
  assert.equal(watchesForSuspend(store, ID), false);
  store.rm(`/local/domain/${ID}`);
  assert.equal(suspendPort(store, ID), undefined);
  assert.equal(watchesForSuspend(store, ID), false);
});

test('what it advertises counts if it is a number that a port can have', () => {
  const store = newStore();
  const port = (text: string): number | undefined => {
    store.write(PORT, text);
    return suspendPort(store, ID);
  };
  for (const [text, wanted] of [['3', 3], ['07', 7], ['4294967295', 2 ** 32 - 1], ['4294967296', undefined],
    ['0', undefined], ['-3', undefined], ['3.0', undefined], ['0x3', undefined], ['3\0', undefined], [' 3', undefined],
    ['3\n', undefined], ['33333333333', undefined]] as const) assert.equal(port(text), wanted, JSON.stringify(text));
  fc.assert(fc.property(fc.string({ unit: 'binary-ascii', maxLength: 12 }), text => {
    const found = port(text);
    assert.ok(found === undefined || (/^\d+$/.test(text) && Number(text) === found && found > 0 && found < 2 ** 32));
  }));
  for (const [text, wanted] of [['1', true], ['', false], ['0', false], ['yes', false]] as const) {
    store.write(FEATURE, text);
    assert.equal(watchesForSuspend(store, ID), wanted);
  }
});

const SECOND = 1e9;
const DAY_MILLIS = 86_400_000;

test('the time that a guest was away has passed for it, whatever it has made of its wall clock', () => {
  const clock = { nanos: 1e9, millis: 1e12 + 500, monotonicNanos: () => clock.nanos, wallMillis: () => clock.millis };
  const rig = new EmulatedRig([], clock);
  const { thread, domain } = rig;
  const info = domain.get(DOMAIN.at.sharedInfo + HELD_FRAME.at.mfn) * FRAME_BYTES / 4;
  const setZero = (seconds: number): void => {
    const { wc_sec: low, wc_sec_hi: high, wc_nsec: nanos } = sharedInfo.at;
    [[low, seconds % 2 ** 32], [high, Math.floor(seconds / 2 ** 32)], [nanos, (seconds % 1) * SECOND]].forEach(([at, value]) => {
      domain.memory.u32[info + at! / 4] = value!;
    });
  };
  /** @returns seconds that its counter went on by */
  const suspend = (zeroSeconds: number, end: typeof endSuspend, awayMillis: number): number => {
    thread.timers.setTime(domain.domid, 7 * SECOND);
    setZero(zeroSeconds);
    domain.set(DOMAIN.at.shutdown, SHUTDOWN.suspend + 1);
    thread.timers.stopTime(domain.domid);
    clock.millis += awayMillis;
    clock.nanos += 3 * SECOND;
    end(thread, domain);
    thread.timers.startTime(domain.domid);
    assert.equal(isSuspended(domain), false);
    return thread.timers.time(domain.domid) / SECOND - 7;
  };
  const rightZero = (): number => clock.millis / 1000 - 7;
  for (const end of [endSuspend, endSuspendElsewhere]) {
    assert.equal(suspend(rightZero(), end, 3000), 3);
    assert.equal(suspend(rightZero(), end, 365 * DAY_MILLIS), 365 * 86_400);
    // The host's clock was put back: nothing goes back for the guest.
    assert.equal(suspend(rightZero(), end, -DAY_MILLIS), 0);
    for (const nonsense of [0xffff_ffff_ffff, 2 ** 40, clock.millis / 1000 + 1e6, 2 ** 52]) assert.equal(suspend(nonsense, end, 1000), 0);
    // At most what it does to itself.
    assert.ok(suspend(0, end, 1000) < 100 * 365 * 86_400);
  }
  rig.audit();
});

test('the call of a guest that has suspended itself says whether it goes on where it was', () => {
  const { thread, domain } = new EmulatedRig([]);
  const x0 = (domain.vcpuAddress(0) + xOffset(0)) / 8;
  const waits = (domain.vcpuEntry(0) + VCPU_ENTRY.at.awaitsResume) / 4;
  const { u32, u64 } = thread.machine;
  for (const [end, isWaiting, wanted] of [[endSuspend, 1, 1n], [endSuspendElsewhere, 1, 0n], [endSuspend, 0, 0n]] as const) {
    u64[x0] = 0n;
    u32[waits] = isWaiting;
    domain.set(DOMAIN.at.shutdown, SHUTDOWN.suspend + 1);
    end(thread, domain);
    assert.deepEqual([u64[x0], u32[waits]], [wanted, 0]);
  }
});

test('watchdogs that are set have not run meanwhile', () => {
  const { domain } = new EmulatedRig([]);
  const [first, second] = [DOMAIN.at.watchdogNanos, DOMAIN.at.watchdogNanos + 8] as const;
  domain.setDouble(first, 5 * SECOND);
  delayWatchdogs(domain, 3 * SECOND);
  assert.deepEqual([domain.getDouble(first), domain.getDouble(second)], [8 * SECOND, 0]);
});
