import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { DOMID_SELF, ERRNO, GUEST_GNTTAB_BASE, HYPERVISOR } from '../abi/xen.ts';
import {
  GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GNTST, GNTTABOP, GTF_PERMIT_ACCESS, GTF_READING, GTF_READONLY, GTF_WRITING,
  gnttabCopy, gnttabCopySide, gnttabGetVersion, gnttabQuerySize, gnttabSetVersion, gnttabSetupTable,
  gnttabSwapGrantRef,
} from '../abi/xen-grant-table.ts';
import { XENMEM, XENMAPSPACE, xenAddToPhysmap, xenMemoryReservation } from '../abi/xen-memory.ts';
import { seed } from '../memory/test-memory.ts';
import type { GrantMapping } from './grant-table.ts';
import { GuestStruct } from './guest-struct.ts';
import { ARGS, TestMachine, page } from './test-domain.ts';
import type { TestGuest } from './test-domain.ts';

const TABLE_GFN = GUEST_GNTTAB_BASE / FRAME_BYTES;

/** A guest that has mapped the first frame of its grant table. */
function createGuest(machine: TestMachine): TestGuest {
  const guest = machine.createGuest();
  assert.equal(guest.op(HYPERVISOR.memory_op, XENMEM.add_to_physmap, xenAddToPhysmap,
    { domid: DOMID_SELF, space: XENMAPSPACE.grant_table, idx: 0, gpfn: TABLE_GFN }).result, 0);
  return guest;
}

const entry = (guest: TestGuest, ref: number) => guest.word(TABLE_GFN, 8 * ref);

function grant(machine: TestMachine, guest: TestGuest, ref: number, gfn: number, flags = 0, domid = 0): void {
  const word = entry(guest, ref);
  machine.memory.u32[word + 1] = gfn;
  Atomics.store(machine.memory.u32, word, GTF_PERMIT_ACCESS | flags | (domid << 16));
}

const flagsOf = (machine: TestMachine, guest: TestGuest, ref: number) =>
  machine.memory.u32[entry(guest, ref)]! & 0xffff;

function mapped(machine: TestMachine, guest: TestGuest, ref: number, write: boolean): GrantMapping {
  const mapping = machine.hypercalls.grants.map(guest.domid, ref, write);
  assert.ok(typeof mapping !== 'number', `map failed: ${mapping as number}`);
  return mapping;
}

/** One operation with a single structure. */
function grantOp<K extends string>(guest: TestGuest, command: number, type: Parameters<typeof guest.op<K>>[2],
  fields: Parameters<typeof guest.op<K>>[3]): { result: number; out: GuestStruct } {
  guest.callers[0]!.vcpu.setX(2, 1n);
  return guest.op(HYPERVISOR.grant_table_op, command, type, fields);
}

test('a backend uses what the guest grants, and the entry says so meanwhile', () => {
  const machine = new TestMachine();
  const guest = createGuest(machine);
  grant(machine, guest, 8, page(3));
  const write = mapped(machine, guest, 8, true);
  const read = mapped(machine, guest, 8, false);
  assert.equal(read.mfn, write.mfn);
  assert.equal(flagsOf(machine, guest, 8), GTF_PERMIT_ACCESS | GTF_READING | GTF_WRITING);
  machine.memory.u32[write.mfn * 1024] = 0x1234;
  assert.equal(machine.memory.u32[guest.word(page(3))], 0x1234);
  machine.audit();
  machine.hypercalls.grants.unmap(write);
  assert.equal(flagsOf(machine, guest, 8), GTF_PERMIT_ACCESS | GTF_READING);
  machine.hypercalls.grants.unmap(read);
  assert.equal(flagsOf(machine, guest, 8), GTF_PERMIT_ACCESS);
  machine.audit();
});

test('several grants at once: all of them, or none and as if none had been asked for', () => {
  const machine = new TestMachine();
  const guest = createGuest(machine);
  const { grants } = machine.hypercalls;
  // One grant in several places, as a guest may name it.
  const refs = Array.from({ length: 100 }, (_, i) => 8 + i % 90);
  for (const ref of new Set(refs)) grant(machine, guest, ref, page(ref % 5), ref === 70 ? GTF_READONLY : 0);
  const uses = () => grants.usesOf(machine.hypercalls.domains.record(guest.domid));
  const before = machine.memory.u32.slice(entry(guest, 0), entry(guest, 100));
  const readings = grants.mapAll(guest.domid, refs, false);
  assert.ok(typeof readings !== 'number');
  assert.deepEqual(readings.map(({ ref, write }) => [ref, write]), refs.map((ref) => [ref, false]));
  assert.ok(readings.every(({ mfn, ref }) => mfn === guest.word(page(ref % 5)) * 4 / FRAME_BYTES));
  assert.equal(uses(), 100);
  assert.equal(grants.mapAll(guest.domid, refs, true), GNTST.general_error);
  assert.equal(uses(), 100);
  grants.unmapAll(readings);
  assert.equal(uses(), 0);
  assert.deepEqual(machine.memory.u32.slice(entry(guest, 0), entry(guest, 100)), before);
  assert.equal(grants.mapAll(guest.domid, [8, 9, 500], false), GNTST.bad_gntref);
  assert.equal(uses(), 0);
  assert.deepEqual(grants.mapAll(guest.domid, [], true), []);
  machine.audit();
});

test('a reader sees what the guest writes after the mapping', () => {
  const machine = new TestMachine();
  const guest = createGuest(machine);
  grant(machine, guest, 8, page(3), GTF_READONLY);
  const read = mapped(machine, guest, 8, false);
  machine.memory.u32[guest.word(page(3))] = 77;
  assert.equal(machine.memory.u32[read.mfn * 1024], 77);
  machine.hypercalls.grants.unmap(read);
});

test('what was not granted is refused', () => {
  const machine = new TestMachine();
  const guest = createGuest(machine);
  const { grants } = machine.hypercalls;
  grant(machine, guest, 1, page(3), GTF_READONLY);
  grant(machine, guest, 2, page(3), 0, 5);
  grant(machine, guest, 3, 0x10);
  grant(machine, guest, 4, 0xffff_ffff);
  assert.equal(grants.map(guest.domid, 0, false), GNTST.bad_gntref);
  assert.equal(grants.map(guest.domid, 1, true), GNTST.general_error);
  assert.equal(grants.map(guest.domid, 2, false), GNTST.bad_gntref);
  assert.equal(grants.map(guest.domid, 3, false), GNTST.bad_page);
  assert.equal(grants.map(guest.domid, 4, true), GNTST.bad_page);
  assert.equal(flagsOf(machine, guest, 4), GTF_PERMIT_ACCESS, 'a failed mapping leaves no mark');
  for (const ref of [512, 0xffff_ffff, -1]) assert.equal(grants.map(guest.domid, ref, false), GNTST.bad_gntref);
  for (const domid of [7, 8, 0x7ff0, -1]) assert.equal(grants.map(domid, 1, false), GNTST.bad_domain);
  machine.audit();
});

test('a frame in use outlives the page, the entry, and the guest', () => {
  const machine = new TestMachine();
  const guest = createGuest(machine);
  grant(machine, guest, 8, page(3));
  machine.memory.u32[guest.word(page(3))] = 0xabcd;
  const mapping = mapped(machine, guest, 8, true);
  const another = mapped(machine, guest, 8, false);
  guest.write(ARGS + 512n, new Uint8Array(new BigUint64Array([BigInt(page(3))]).buffer));
  assert.equal(guest.op(HYPERVISOR.memory_op, XENMEM.decrease_reservation, xenMemoryReservation,
    { extent_start: ARGS + 512n, nr_extents: 1, domid: DOMID_SELF }).result, 1);
  machine.memory.u32[entry(guest, 8)] = 0;
  machine.audit();
  machine.destroy(guest);
  assert.equal(machine.memory.u32[mapping.mfn * 1024], 0xabcd);
  // The tables in which it was counted are gone; what is where they would be if their frames were 0 stays as it is.
  const header = machine.memory.u8.slice(0, FRAME_BYTES);
  machine.hypercalls.grants.unmap(another);
  assert.deepEqual(machine.memory.u8.slice(0, FRAME_BYTES), header);
  // Another domain with the same record is no business of the old mapping.
  const others = Array.from({ length: 7 }, () => createGuest(machine));
  assert.ok(others.some((other) => other.domid === mapping.domid));
  machine.hypercalls.grants.unmap(mapping);
  for (const other of others) assert.equal(machine.hypercalls.grants.usesOf(other.made.domain), 0);
  machine.audit();
});

test('copies between guests, by reference and by frame', () => {
  const machine = new TestMachine();
  const a = createGuest(machine);
  const b = createGuest(machine);
  grant(machine, a, 8, page(3), GTF_READONLY, b.domid);
  machine.memory.u8.set([1, 2, 3, 4], a.word(page(3)) * 4 + 100);
  const { at } = gnttabCopy;
  const copy = (fields: { flags: number; len: number; domid?: number; offset?: number; ref?: bigint }) => {
    const args = GuestStruct.blank(gnttabCopy);
    args.set64(at.source + gnttabCopySide.ref, fields.ref ?? 8n);
    args.set16(at.source + gnttabCopySide.domid, fields.domid ?? a.domid);
    args.set16(at.source + gnttabCopySide.offset, fields.offset ?? 100);
    args.set64(at.dest + gnttabCopySide.ref, BigInt(page(9)));
    args.set16(at.dest + gnttabCopySide.domid, DOMID_SELF);
    args.set16(at.len, fields.len);
    args.set16(at.flags, fields.flags);
    b.write(ARGS, args.bytes(0, gnttabCopy.sizeBytes));
    assert.equal(b.call(HYPERVISOR.grant_table_op, GNTTABOP.copy, ARGS, 1), 0);
    return new Int16Array(b.read(ARGS + BigInt(at.status), 2).buffer)[0];
  };
  assert.equal(copy({ flags: GNTCOPY_SOURCE_GREF, len: 4 }), GNTST.okay);
  const to = b.word(page(9)) * 4;
  assert.deepEqual([...machine.memory.u8.subarray(to, to + 5)], [1, 2, 3, 4, 0]);
  assert.equal(copy({ flags: GNTCOPY_SOURCE_GREF, len: 4096 }), GNTST.bad_copy_arg);
  assert.equal(copy({ flags: 0, len: 4 }), GNTST.permission_denied);
  assert.equal(copy({ flags: GNTCOPY_SOURCE_GREF | GNTCOPY_DEST_GREF, len: 4 }), GNTST.bad_gntref);
  assert.equal(copy({ flags: GNTCOPY_SOURCE_GREF, len: 4, domid: 7 }), GNTST.bad_domain);
  assert.equal(copy({ flags: 0, len: 4, domid: DOMID_SELF, ref: 1n << 60n }), GNTST.bad_page);
  assert.equal(flagsOf(machine, a, 8), GTF_PERMIT_ACCESS | GTF_READONLY);
  machine.audit();
});

test('table operations', () => {
  const machine = new TestMachine();
  const guest = createGuest(machine);
  const run = <K extends string>(command: number, type: Parameters<typeof guest.op<K>>[2],
    fields: Parameters<typeof guest.op<K>>[3]) => grantOp(guest, command, type, fields);
  let { out } = run(GNTTABOP.query_size, gnttabQuerySize, { dom: DOMID_SELF });
  assert.deepEqual([out.u32(gnttabQuerySize.at.nr_frames), out.u32(gnttabQuerySize.at.max_nr_frames)], [1, 64]);
  ({ out } = run(GNTTABOP.setup_table, gnttabSetupTable,
    { dom: DOMID_SELF, nr_frames: 2, frame_list: ARGS + 512n }));
  assert.equal(out.u16(gnttabSetupTable.at.status), 0);
  assert.deepEqual([...new BigUint64Array(guest.read(ARGS + 512n, 16).buffer)],
    [BigInt(TABLE_GFN), BigInt(TABLE_GFN + 1)]);
  ({ out } = run(GNTTABOP.setup_table, gnttabSetupTable, { dom: DOMID_SELF, nr_frames: 65 }));
  assert.equal(out.u16(gnttabSetupTable.at.status), 0xffff);
  assert.equal(run(GNTTABOP.set_version, gnttabSetVersion, { version: 2 }).result, -ERRNO.ENOSYS);
  assert.equal(run(GNTTABOP.set_version, gnttabSetVersion, { version: 1 }).result, 0);
  ({ out } = run(GNTTABOP.get_version, gnttabGetVersion, { dom: DOMID_SELF }));
  assert.equal(out.u32(gnttabGetVersion.at.version), 1);

  grant(machine, guest, 1, page(1));
  grant(machine, guest, 2, page(2), GTF_READONLY);
  const swap = () => run(GNTTABOP.swap_grant_ref, gnttabSwapGrantRef, { ref_a: 1, ref_b: 2 })
    .out.u16(gnttabSwapGrantRef.at.status);
  assert.equal(swap(), 0);
  assert.equal(flagsOf(machine, guest, 1), GTF_PERMIT_ACCESS | GTF_READONLY);
  const mapping = mapped(machine, guest, 1, false);
  assert.equal(swap(), 0x10000 + GNTST.eagain);
  machine.hypercalls.grants.unmap(mapping);
});

test('whatever the guest writes in its table, every use is counted and undone', () => {
  const step = fc.record({
    action: fc.constantFrom('grant', 'map', 'map', 'unmap', 'garbage'),
    ref: fc.nat(3), page: fc.nat(6), write: fc.boolean(), word: fc.integer({ min: 0, max: 0xffff_ffff }),
  });
  fc.assert(fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
    const machine = new TestMachine(4 * 1024 * 1024);
    const guest = createGuest(machine);
    const mappings: GrantMapping[] = [];
    for (const { action, ref, page: index, write, word } of steps) {
      if (action === 'grant') grant(machine, guest, ref, page(index), write ? 0 : GTF_READONLY);
      else if (action === 'garbage') machine.memory.u32[entry(guest, ref)] = word;
      else if (action === 'unmap') {
        const mapping = mappings.pop();
        if (mapping !== undefined) machine.hypercalls.grants.unmap(mapping);
      } else {
        const mapping = machine.hypercalls.grants.map(guest.domid, ref, write);
        if (typeof mapping !== 'number') mappings.push(mapping);
      }
      assert.equal(machine.hypercalls.grants.usesOf(guest.made.domain), mappings.length);
    }
    machine.audit();
    for (const mapping of mappings) machine.hypercalls.grants.unmap(mapping);
    machine.audit();
    machine.destroy(guest);
    machine.audit();
  }), { seed, numRuns: 60 });
});
