// Hypercalls that need a page which cannot be had now: made again when it can, they end as if nothing had been.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DOMAIN, HELD_FRAME } from '../abi/domain-record.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import type { Struct } from '../abi/struct.ts';
import { EVTCHNOP, EVTCHNSTAT, evtchnAllocUnbound } from '../abi/xen-event-channel.ts';
import { GNTTABOP, GTF_PERMIT_ACCESS, gnttabSetupTable, gnttabSwapGrantRef, grantEntryV1 } from '../abi/xen-grant-table.ts';
import { XENMAPSPACE, XENMEM, xenAddToPhysmapBatch, xenMemoryReservation } from '../abi/xen-memory.ts';
import { DOMID_SELF, ERRNO, HYPERVISOR, SCHEDOP, XENVER, multicallEntry, schedPoll } from '../abi/xen.ts';
import { ARGS, RAM_PAGES, TestMachine, encode, page } from './test-domain.ts';
import type { TestGuest } from './test-domain.ts';

/** Where lists lie: half of each in the page that is missing. */
const MISSING = 21;
const MIDDLE = ARGS + BigInt(MISSING * FRAME_BYTES);
const BEFORE = MIDDLE - BigInt(FRAME_BYTES);

interface Rig {
  readonly machine: TestMachine;
  readonly guest: TestGuest;
}

function newRig(): Rig {
  const machine = new TestMachine();
  return { machine, guest: machine.createGuest() };
}

/** Makes a call that cannot have a page, and makes it again when it can. @returns its answer */
function interrupted(rig: Rig, ...call: Parameters<TestGuest['call']>): number {
  return interruptedFor('all', rig, ...call);
}
function interruptedFor(what: 'all' | 'for writing', { machine, guest }: Rig, ...call: Parameters<TestGuest['call']>): number {
  machine.missing.set(page(MISSING), what);
  const registers = (): bigint[] => [0, 1, 2, 3, 4].map((i) => guest.callers[0]!.vcpu.x(i));
  guest.call(...call);
  assert(machine.mustRetry, 'nothing was missing');
  const left = registers();
  // Made once more too early, it gets no further.
  guest.call(call[0]);
  assert.deepEqual(registers(), left);
  machine.missing.clear();
  return guest.call(call[0]);
}

/** A list of structures so many of which lie before the missing page. @returns its address */
function list(guest: TestGuest, type: Struct, before: number, entries: readonly Uint8Array[]): bigint {
  const start = MIDDLE - BigInt(before * type.sizeBytes);
  entries.forEach((bytes, i) => guest.write(start + BigInt(i * type.sizeBytes), bytes));
  return start;
}

const u64s = (...values: number[]): Uint8Array => new Uint8Array(new BigUint64Array(values.map(BigInt)).buffer);
const currentPages = ({ guest }: Rig): number => guest.made.domain.get(DOMAIN.at.pages);

function multicall(op: number, ...args: (number | bigint)[]): Uint8Array {
  const fields = Object.fromEntries(args.map((arg, i) => [multicallEntry.at.args + 8 * i, BigInt(arg)]));
  const bytes = Buffer.alloc(multicallEntry.sizeBytes);
  bytes.writeBigUInt64LE(BigInt(op), multicallEntry.at.op);
  for (const [offset, value] of Object.entries(fields)) bytes.writeBigUInt64LE(value, Number(offset));
  return bytes;
}
function results(guest: TestGuest, start: bigint, count: number): number[] {
  return Array.from({ length: count }, (_, i) => {
    const at = start + BigInt(i * multicallEntry.sizeBytes + multicallEntry.at.result);
    return Number(new BigInt64Array(guest.read(at, 8).slice().buffer)[0]);
  });
}
const usedPorts = ({ guest }: Rig): number =>
  Array.from({ length: 100 }, (_, port) => guest.made.domain.portState(port)).filter((state) => state !== EVTCHNSTAT.closed).length;

/** Grants of the guest's, references 8 to 10, with different frames in them. @returns which they are now */
function threeGrants({ machine, guest }: Rig): () => number[] {
  const { domain } = guest.made;
  assert(domain.locked(() => machine.hypercalls.grants.grow(domain, 1)));
  const table = domain.memory.u32[(domain.address + DOMAIN.at.grants + HELD_FRAME.at.mfn) / 4]! * FRAME_BYTES;
  const at = (ref: number): number => table + ref * grantEntryV1.sizeBytes;
  for (const ref of REFS) {
    machine.memory.u32[(at(ref) + grantEntryV1.at.frame) / 4] = page(ref);
    machine.memory.u16[(at(ref) + grantEntryV1.at.flags) / 2] = GTF_PERMIT_ACCESS;
  }
  return () => REFS.map((ref) => machine.memory.u32[(at(ref) + grantEntryV1.at.frame) / 4]!);
}
const REFS = [8, 9, 10];
/** Such that some of them done twice, or three times, would be seen. */
const swaps = (count: number): Uint8Array[] =>
  Array.from({ length: count }, (_, i) => encode(gnttabSwapGrantRef, { ref_a: 8 + (i % 2), ref_b: 9 + (i % 2) }));
function swapped(frames: readonly number[], count: number): number[] {
  const result = [...frames];
  for (let i = 0; i < count; i++) {
    const a = i % 2;
    [result[a], result[a + 1]] = [result[a + 1]!, result[a]!];
  }
  return result;
}

test('grant operations go on with the next of the list', () => {
  const rig = newRig();
  const frames = threeGrants(rig);
  const first = frames();
  const start = list(rig.guest, gnttabSwapGrantRef, 2, swaps(5));
  assert.equal(interrupted(rig, HYPERVISOR.grant_table_op, GNTTABOP.swap_grant_ref, start, 5), 0);
  const second = frames();
  assert.deepEqual(second, swapped(first, 5));
  // One structure that lies in both pages is one that has not been begun.
  const torn = MIDDLE - 4n - BigInt(2 * gnttabSwapGrantRef.sizeBytes);
  swaps(4).forEach((bytes, i) => rig.guest.write(torn + BigInt(i * bytes.length), bytes));
  assert.equal(interrupted(rig, HYPERVISOR.grant_table_op, GNTTABOP.swap_grant_ref, torn, 3), 0);
  assert.deepEqual(frames(), swapped(second, 3));
});

test('where the grant table is, a guest is told in a list elsewhere', () => {
  const rig = newRig();
  rig.guest.write(ARGS, encode(gnttabSetupTable, { dom: DOMID_SELF, nr_frames: 3, frame_list: MIDDLE - 8n }));
  assert.equal(interrupted(rig, HYPERVISOR.grant_table_op, GNTTABOP.setup_table, ARGS, 1), 0);
  const frames = new BigUint64Array(rig.guest.read(MIDDLE - 8n, 24).slice().buffer);
  assert.deepEqual([frames[1]! - frames[0]!, frames[2]! - frames[0]!], [1n, 2n]);
});

test('a multicall goes on with the call that it was at, and this one where it was', () => {
  const rig = newRig();
  const before = usedPorts(rig);
  const allocate = encode(evtchnAllocUnbound, { dom: DOMID_SELF, remote_dom: 0 });
  rig.guest.write(ARGS, allocate);
  const alloc = multicall(HYPERVISOR.event_channel_op, EVTCHNOP.alloc_unbound, ARGS);
  const version = multicall(HYPERVISOR.xen_version, XENVER.pagesize);
  const start = list(rig.guest, multicallEntry, 2, [alloc, version, alloc, version, alloc]);
  assert.equal(interrupted(rig, HYPERVISOR.multicall, start, 5), 0);
  assert.deepEqual(results(rig.guest, start, 5), [0, FRAME_BYTES, 0, FRAME_BYTES, 0]);
  assert.equal(usedPorts(rig), before + 3);

  const frames = threeGrants(rig);
  const swapList = list(rig.guest, gnttabSwapGrantRef, 2, swaps(3));
  const entries = [alloc, multicall(HYPERVISOR.grant_table_op, GNTTABOP.swap_grant_ref, swapList, 3), alloc];
  entries.forEach((bytes, i) => rig.guest.write(BEFORE + BigInt(i * bytes.length), bytes));
  assert.equal(interrupted(rig, HYPERVISOR.multicall, BEFORE, 3), 0);
  assert.deepEqual(results(rig.guest, BEFORE, 3), [0, 0, 0]);
  assert.deepEqual(frames(), swapped(REFS.map(page), 3));
  assert.equal(usedPorts(rig), before + 5);
});

test('a call that answers where it was asked has what it needs before it does anything', () => {
  const rig = newRig();
  const before = usedPorts(rig);
  for (const [i, what] of (['all', 'for writing'] as const).entries()) {
    rig.guest.write(MIDDLE - 4n, encode(evtchnAllocUnbound, { dom: DOMID_SELF, remote_dom: 0 }));
    assert.equal(interruptedFor(what, rig, HYPERVISOR.event_channel_op, EVTCHNOP.alloc_unbound, MIDDLE - 4n), 0);
    assert.equal(usedPorts(rig), before + 1 + i);
    const frames = threeGrants(rig);
    const start = list(rig.guest, gnttabSwapGrantRef, 2, swaps(3));
    assert.equal(interruptedFor(what, rig, HYPERVISOR.grant_table_op, GNTTABOP.swap_grant_ref, start, 3), 0);
    assert.deepEqual(frames(), swapped(REFS.map(page), 3));
  }
  assert.equal(interrupted(rig, HYPERVISOR.xen_version, XENVER.extraversion, MIDDLE), 0);
  assert.equal(Buffer.from(rig.guest.read(MIDDLE, 8)).toString(), '.0-zazen');
});

test('the balloon goes on with the next page', () => {
  const rig = newRig();
  for (const [operation, pages] of [[XENMEM.decrease_reservation, RAM_PAGES - 5], [XENMEM.populate_physmap, RAM_PAGES]] as const) {
    rig.guest.write(MIDDLE - 16n, u64s(...[30, 31, 32, 33, 34].map(page)));
    rig.guest.write(ARGS, encode(xenMemoryReservation, { domid: DOMID_SELF, nr_extents: 5, extent_start: MIDDLE - 16n }));
    assert.equal(interrupted(rig, HYPERVISOR.memory_op, operation, ARGS), 5);
    assert.equal(currentPages(rig), pages);
  }
  // A guest may say itself where to begin; beyond the end there is nothing to do.
  for (const [first, answer, pages] of [[3, 5, RAM_PAGES - 2], [5, 5, RAM_PAGES - 2], [9, 9, RAM_PAGES - 2]] as const) {
    assert.equal(rig.guest.call(HYPERVISOR.memory_op, XENMEM.decrease_reservation + 64 * first, ARGS), answer);
    assert.equal(currentPages(rig), pages);
  }
  assert.equal(rig.guest.call(HYPERVISOR.memory_op, XENMEM.add_to_physmap + 64, ARGS), -ERRNO.ENOSYS);
  rig.machine.audit();
});

test('places in the address space, whose answers have no room at first', () => {
  const rig = newRig();
  rig.guest.write(BEFORE, u64s(0, 99, 1, page(50), page(51), page(52)));
  rig.guest.write(ARGS, encode(xenAddToPhysmapBatch, {
    domid: DOMID_SELF, space: XENMAPSPACE.grant_table, size: 3, idxs: BEFORE, gpfns: BEFORE + 24n, errs: MIDDLE,
  }));
  assert.equal(interrupted(rig, HYPERVISOR.memory_op, XENMEM.add_to_physmap_batch, ARGS), 0);
  assert.deepEqual([...new Int32Array(rig.guest.read(MIDDLE, 12).slice().buffer)], [0, -ERRNO.EINVAL, 0]);
  rig.machine.audit();
});

test('nobody goes to sleep before all that he waits for is known', () => {
  const rig = newRig();
  rig.guest.write(MIDDLE - 4n, new Uint8Array(new Uint32Array([1, 2]).buffer));
  rig.guest.write(ARGS, encode(schedPoll, { ports: MIDDLE - 4n, nr_ports: 2 }));
  rig.machine.missing.set(page(MISSING), 'all');
  rig.guest.call(HYPERVISOR.sched_op, SCHEDOP.poll, ARGS);
  assert(rig.machine.mustRetry);
  assert.equal(rig.machine.blocked.length, 0);
  rig.machine.missing.clear();
  assert.equal(rig.guest.call(HYPERVISOR.sched_op), 0);
  assert.equal(rig.machine.blocked.length, 1);
});
