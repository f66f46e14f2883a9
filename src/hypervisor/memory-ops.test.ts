import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DOMAIN } from '../abi/domain-record.ts';
import { P2M_KIND } from '../abi/machine-memory.ts';
import { DOMID_SELF, ERRNO, GUEST_GNTTAB_BASE, HYPERVISOR } from '../abi/xen.ts';
import {
  XENMAPSPACE, XENMEM, xenAddToPhysmap, xenAddToPhysmapBatch, xenMemoryReservation, xenRemoveFromPhysmap,
} from '../abi/xen-memory.ts';
import { entryKind, entryValue } from '../memory/p2m.ts';
import { ARGS, RAM_GFN, RAM_PAGES, TestMachine, page } from './test-domain.ts';
import type { TestGuest } from './test-domain.ts';

const MEMORY = HYPERVISOR.memory_op;
const LIST = ARGS + 1024n;

function lookup(machine: TestMachine, guest: TestGuest, gfn: number): { kind: number; value: number } {
  const entry = machine.p2m.lookup(guest.made.domain.get(DOMAIN.at.p2mRoot), gfn);
  return { kind: entryKind(entry), value: entryValue(entry) };
}

function add(guest: TestGuest, space: number, idx: number | bigint, gpfn: number | bigint): number {
  return guest.op(MEMORY, XENMEM.add_to_physmap, xenAddToPhysmap, { domid: DOMID_SELF, space, idx, gpfn }).result;
}

function reservation(guest: TestGuest, op: number, gfns: number[], order = 0, count?: number | bigint): number {
  guest.write(LIST, new Uint8Array(new BigUint64Array(gfns.map(BigInt)).buffer));
  return guest.op(MEMORY, op, xenMemoryReservation, {
    extent_start: LIST, nr_extents: count ?? gfns.length, extent_order: order, domid: DOMID_SELF,
  }).result;
}

const current = (guest: TestGuest) => {
  guest.write(ARGS, new Uint8Array([0xf0, 0x7f]));
  return guest.call(MEMORY, XENMEM.current_reservation, ARGS);
};

test('shared_info and grant frames are where the guest last asked for them, and only there', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest();
  const info = guest.made.domain.get(DOMAIN.at.sharedInfo);
  const at = () => [page(40), page(41)].map((gfn) => lookup(machine, guest, gfn).value === info);
  machine.memory.u32[guest.word(page(40))] = 1;
  assert.equal(add(guest, XENMAPSPACE.shared_info, 0, page(40)), 0);
  assert.deepEqual(at(), [true, false]);
  assert.ok(machine.flushes.includes(guest.domid), 'the page of RAM that was there is not in any TLB');
  assert.equal(add(guest, XENMAPSPACE.shared_info, 0, page(40)), 0);
  assert.equal(machine.heap.frames.mappings(info), 1);
  assert.equal(add(guest, XENMAPSPACE.shared_info, 0, page(41)), 0);
  assert.deepEqual(at(), [false, true]);
  assert.equal(guest.word(page(41)), info * 1024, 'the guest writes to the very frame');
  machine.audit();

  const tableGfn = GUEST_GNTTAB_BASE / 4096;
  for (let i = 3; i >= 0; i--) assert.equal(add(guest, XENMAPSPACE.grant_table, i, tableGfn + i), 0);
  assert.equal(guest.made.domain.get(DOMAIN.at.grantFrames), 4);
  assert.equal(add(guest, XENMAPSPACE.grant_table, 64, tableGfn), -ERRNO.EINVAL);
  assert.equal(add(guest, XENMAPSPACE.grant_table, 0x8000_0000, tableGfn), -ERRNO.EINVAL);
  assert.equal(add(guest, XENMAPSPACE.shared_info, 1, tableGfn), -ERRNO.EINVAL);
  assert.equal(add(guest, XENMAPSPACE.shared_info, 0, 1n << 40n), -ERRNO.EINVAL);
  assert.equal(add(guest, XENMAPSPACE.gmfn_foreign, 0, tableGfn), -ERRNO.EPERM);
  assert.equal(guest.op(MEMORY, XENMEM.remove_from_physmap, xenRemoveFromPhysmap,
    { domid: DOMID_SELF, gpfn: page(41) }).result, 0);
  assert.equal(add(guest, XENMAPSPACE.shared_info, 0, page(42)), 0);
  machine.audit();
  machine.destroy(guest);
  machine.audit();
});

test('a batch answers for each of its pages', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest();
  const u64s = (...values: number[]) => new Uint8Array(new BigUint64Array(values.map(BigInt)).buffer);
  guest.write(LIST, u64s(0, 99, 1));
  guest.write(LIST + 64n, u64s(page(50), page(51), page(52)));
  const batch = (size: number) => guest.op(MEMORY, XENMEM.add_to_physmap_batch, xenAddToPhysmapBatch, {
    domid: DOMID_SELF, space: XENMAPSPACE.grant_table, size, idxs: LIST, gpfns: LIST + 64n, errs: LIST + 128n,
  }).result;
  assert.equal(batch(3), 0);
  assert.deepEqual([...new Int32Array(guest.read(LIST + 128n, 12).buffer)], [0, -ERRNO.EINVAL, 0]);
  assert.equal(batch(0), 0);
  machine.audit();
});

test('the balloon: pages go and come back as zero, up to the maximum', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest();
  machine.memory.u32[guest.word(page(7))] = 5;
  assert.equal(reservation(guest, XENMEM.decrease_reservation, [page(7), page(8)]), 2);
  assert.equal(lookup(machine, guest, page(7)).kind, P2M_KIND.absent);
  assert.equal(current(guest), RAM_PAGES - 2);
  assert.equal(reservation(guest, XENMEM.decrease_reservation, [page(9), page(8)]), 1, 'that page is gone already');
  assert.equal(reservation(guest, XENMEM.populate_physmap, [page(7), page(8), page(9), RAM_GFN + 600]), 3);
  assert.equal(current(guest), RAM_PAGES);
  assert.equal(machine.memory.u32[guest.word(page(7))], 0);
  assert.equal(reservation(guest, XENMEM.populate_physmap, [page(3)], 1), 0, 'not aligned');
  assert.equal(reservation(guest, XENMEM.populate_physmap, [RAM_GFN], 10), 0);
  assert.equal(reservation(guest, XENMEM.populate_physmap, [2 ** 27 - 1], 9), 0);
  assert.equal(reservation(guest, XENMEM.decrease_reservation, [page(512 - 64)], 6), 1);
  assert.equal(current(guest), RAM_PAGES - 64);
  // An endless list ends where it is not readable.
  assert.ok(reservation(guest, XENMEM.decrease_reservation, [page(30)], 0, 2n ** 63n) >= 1);
  machine.audit();
});

test('queries', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest();
  guest.write(ARGS, new Uint8Array([0xf0, 0x7f]));
  assert.equal(guest.call(MEMORY, XENMEM.maximum_reservation, ARGS), RAM_PAGES);
  assert.equal(guest.call(MEMORY, XENMEM.maximum_gpfn, ARGS), RAM_GFN + RAM_PAGES - 1);
  assert.equal(guest.call(MEMORY, XENMEM.maximum_ram_page, 0), machine.memory.frameEnd - 1);
  guest.write(ARGS, new Uint8Array([0, 0]));
  assert.equal(guest.call(MEMORY, XENMEM.current_reservation, ARGS), -ERRNO.EPERM);
  assert.equal(guest.call(MEMORY, XENMEM.current_reservation, 0), -ERRNO.EFAULT);
  assert.equal(guest.call(MEMORY, 9, ARGS), -ERRNO.ENOSYS);
});
