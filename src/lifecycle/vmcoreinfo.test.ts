import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { vcpuRecord } from '../abi/vcpu.ts';
import { VMCOREINFO_BYTES_MAX } from '../image/format.ts';
import { Heap } from '../memory/heap.ts';
import { P2m } from '../memory/p2m.ts';
import { createMachine } from '../memory/test-memory.ts';
import type { FrozenDomain } from './checkpoint.ts';
import { findVmcoreinfo } from './vmcoreinfo.ts';

const RAM_GFN = 0x40000;
const RAM_PAGES = 200;
const BANKS = [{ guestAddress: RAM_GFN * FRAME_BYTES, sizeBytes: RAM_PAGES * FRAME_BYTES }];
const VIRTUAL = 0xffff_8000_0800_0000n;
/** Page of RAM that the kernel's tables lie in. */
const TABLES = 100;

function makeGuest() {
  const machine = createMachine();
  const p2m = new P2m(new Heap(machine, 0));
  const root = p2m.create(1);
  assert(p2m.mapZeroRange(root, RAM_GFN, RAM_PAGES));
  const registers = new Uint8Array(vcpuRecord.sizeBytes);
  const state = { domid: 1, vcpus: [{ registers }] } as unknown as FrozenDomain['state'];
  return {
    setTables: (address: bigint) => new DataView(registers.buffer).setBigUint64(vcpuRecord.at.ttbr1El1, address, true),
    /** Writes bytes from the start of a page on, over as many as it takes. */
    put(page: number, bytes: Uint8Array): void {
      for (let at = 0; at < bytes.length; at += FRAME_BYTES) {
        const mfn = p2m.frameForWrite(root, RAM_GFN + page + at / FRAME_BYTES);
        assert(mfn > 0);
        machine.u8.set(bytes.subarray(at, at + FRAME_BYTES), mfn * FRAME_BYTES);
      }
    },
    find: () => findVmcoreinfo(machine, { root, state }, BANKS),
  };
}

function note(text: string, sizeBytes = text.length): Uint8Array {
  const bytes = Buffer.alloc(24 + text.length);
  bytes.writeUInt32LE(11, 0);
  bytes.writeUInt32LE(sizeBytes, 4);
  bytes.write('VMCOREINFO', 12);
  bytes.write(text, 24);
  return bytes;
}

/** @param page of RAM that the tables are said to lie in; the image starts with RAM */
const text = (page: number, release = '6.1.0') => [`OSRELEASE=${release}`, 'PAGESIZE=4096',
  `SYMBOL(_stext)=${(VIRTUAL + 0x1000n).toString(16)}`, 'SYMBOL(mem_section)=ffff000000001000',
  `SYMBOL(swapper_pg_dir)=${(VIRTUAL + BigInt(page * FRAME_BYTES)).toString(16)}`,
  `NUMBER(kimage_voffset)=0x${(VIRTUAL - BigInt(RAM_GFN * FRAME_BYTES)).toString(16)}`, ''].join('\n');
const shown = (found: { vmcoreinfo?: Uint8Array }) => found.vmcoreinfo && new TextDecoder().decode(found.vmcoreinfo);

test('the note is found, with the part of the image that it names', () => {
  const guest = makeGuest();
  assert.deepEqual(guest.find(), {});
  guest.put(40, note(text(TABLES)));
  const found = guest.find();
  assert.equal(shown(found), text(TABLES));
  assert.deepEqual(found.kernelWindow, {
    virtualAddress: VIRTUAL + 0x1000n, guestAddress: (RAM_GFN + 1) * FRAME_BYTES, sizeBytes: TABLES * FRAME_BYTES,
  });
});

test('a note of several pages is put together; one that runs out of memory is none', () => {
  const long = `${text(TABLES)}X=${'y'.repeat(9000)}\n`;
  const guest = makeGuest();
  guest.put(40, note(long));
  assert.equal(shown(guest.find()), long);
  const other = makeGuest();
  other.put(RAM_PAGES - 1, note(text(TABLES), 5000));
  assert.deepEqual(other.find(), {});
});

test('of several notes the one counts whose page tables the vCPU uses; else the first', () => {
  const guest = makeGuest();
  guest.put(3, note(text(9, 'forged')));
  guest.put(40, note(text(TABLES)));
  assert.match(shown(guest.find())!, /forged/);
  const address = BigInt((RAM_GFN + TABLES) * FRAME_BYTES);
  guest.setTables(address | (77n << 48n)); // with an ASID
  assert.equal(shown(guest.find()), text(TABLES));
  guest.setTables(address - 0x2000n); // those for EL0, which lie before
  assert.equal(shown(guest.find()), text(TABLES));
  // The kernel is another one: where the note was is only a guess.
  guest.put(40, Buffer.alloc(100));
  guest.put(60, note(text(TABLES, 'next')));
  assert.match(shown(guest.find())!, /next/);
});

test('what is no note is passed over, and a window that leads nowhere is left out', () => {
  const huge = note(text(TABLES), VMCOREINFO_BYTES_MAX + 1);
  for (const wrong of [note('OSRELEASE=1\nPAGESIZE=\x07\n'), note('PAGESIZE=4096\n'), huge]) {
    const guest = makeGuest();
    guest.put(5, wrong);
    assert.deepEqual(guest.find(), {});
  }
  const lies = ['SYMBOL(_stext)=12', 'SYMBOL(_stext)=zz', 'NUMBER(kimage_voffset)=0', 'SYMBOL(far)=ffff80000fffffff'];
  for (const lie of lies) {
    const guest = makeGuest();
    guest.put(5, note(`${text(TABLES)}${lie}\n`));
    const found = guest.find();
    assert.ok(found.vmcoreinfo !== undefined);
    assert.equal(found.kernelWindow, undefined, lie);
  }
});
