import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FRAME_BYTES, THREAD_MAX, layoutMachine, defaultMachineParameters } from '../abi/machine-memory.ts';
import type { MachineRegions } from '../abi/machine-memory.ts';
import { ZazenError } from '../base/errors.ts';
import { Heap } from './heap.ts';
import { MachineMemory } from './machine-memory.ts';
import { P2m, entryValue } from './p2m.ts';
import { assertAudit, createMachine, mark, markOf, smallMachine } from './test-memory.ts';

function assertDisjoint(regions: MachineRegions, sizeBytes: number): void {
  const sorted = Object.values(regions).sort((a, b) => a.offsetBytes - b.offsetBytes);
  let end = 0;
  for (const region of sorted) {
    assert.ok(region.offsetBytes >= end, 'regions overlap');
    assert.equal(region.offsetBytes % FRAME_BYTES, 0);
    end = region.offsetBytes + region.sizeBytes;
  }
  assert.equal(end, sizeBytes);
  assert.ok(regions.frames.offsetBytes < 2 ** 32);
}

test('regions are disjoint, aligned, and leave most of the memory to frames', () => {
  for (const [sizeBytes, addressType] of [[2 ** 31, 'i32'], [2 ** 32, 'i32'], [2 ** 34, 'i64']] as const) {
    const regions = layoutMachine({ ...defaultMachineParameters, sizeBytes, addressType });
    assertDisjoint(regions, sizeBytes);
    assert.ok(regions.frames.sizeBytes > 0.85 * sizeBytes);
    assert.equal(regions.frameTable.sizeBytes, (sizeBytes / FRAME_BYTES) * 16);
  }
});

test('a small machine has places for fewer vCPUs, and most of it is frames all the same', () => {
  const shareOf = (sizeBytes: number): number => {
    const machine = MachineMemory.create({ sizeBytes, codeBytes: 0 });
    return machine.region('frames').sizeBytes / sizeBytes;
  };
  assert.equal(MachineMemory.create().parameters.vcpuCount, defaultMachineParameters.vcpuCount);
  assert.equal(MachineMemory.create({ sizeBytes: 2 ** 28 }).parameters.vcpuCount, 192);
  for (const sizeBytes of [2 ** 28, 2 ** 29, 2 ** 30]) assert.ok(shareOf(sizeBytes) > 0.8, `${sizeBytes}`);
});

test('a worker finds everything from the header', () => {
  const created = MachineMemory.create({ ...smallMachine, pcpuCount: 3 });
  const attached = MachineMemory.attach(created.memory);
  assert.deepEqual(attached.parameters, created.parameters);
  assert.equal(attached.parameters.pcpuCount, 3);
  for (const name of ['pcpus', 'domains', 'vcpus', 'code', 'frameTable', 'heap', 'frames'] as const) {
    assert.deepEqual(attached.region(name), created.region(name));
  }
  assert.equal(attached.firstFrame * FRAME_BYTES, attached.region('frames').offsetBytes);
  assert.equal(attached.frameEnd * FRAME_BYTES, attached.parameters.sizeBytes);
  assert.ok(attached.pcpuAddress(THREAD_MAX) <= attached.region('domains').offsetBytes, 'each thread has its record');
  assert.throws(() => MachineMemory.attach(new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true })));
});

test('sizes that cannot be are operator errors', () => {
  const codeOf = (parameters: object) => {
    try {
      MachineMemory.create(parameters);
    } catch (error) {
      return (error as ZazenError).code;
    }
    return undefined;
  };
  assert.equal(codeOf({ sizeBytes: 12345 }), 'ZAZEN_HOST_MEMORY_SIZE');
  assert.equal(codeOf({ sizeBytes: NaN }), 'ZAZEN_HOST_MEMORY_SIZE');
  assert.equal(codeOf({ sizeBytes: 1024 * 1024 }), 'ZAZEN_HOST_MEMORY_SIZE');
  assert.equal(codeOf({ sizeBytes: 2 ** 33 }), 'ZAZEN_HOST_MEMORY_SIZE');
  assert.equal(codeOf({ sizeBytes: 2 ** 35, addressType: 'i64' }), 'ZAZEN_HOST_MEMORY_SIZE');
});

test('a machine of 16 GiB with 64-bit addresses works to its last byte', () => {
  const memory = createMachine({ ...defaultMachineParameters, sizeBytes: 2 ** 34, addressType: 'i64' });
  const heap = new Heap(memory, 64);
  const last = memory.frameEnd - 1;
  mark(memory, last, 7);
  assert.equal(memory.u8[2 ** 34 - 4], 7);
  assert.equal(memory.u64[2 ** 31 - 1]! >> 32n, 7n);
  memory.zeroFrame(last);

  // Blocks come from the top of the memory first, so all of this is above 4 GiB.
  const block = heap.allocateBlock(1, 9);
  assert.ok(block * FRAME_BYTES > 2 ** 33);
  const p2m = new P2m(heap);
  const root = p2m.create(1);
  assert.ok(p2m.mapZeroRange(root, 0, 2 ** 22));
  const gfns = [0, 511, 2 ** 20, 2 ** 22 - 1];
  for (const gfn of gfns) {
    const mfn = p2m.frameForWrite(root, gfn);
    assert.ok(mfn > 0);
    mark(memory, mfn, gfn + 1);
  }
  for (const gfn of gfns) assert.equal(markOf(memory, entryValue(p2m.lookup(root, gfn))), gfn + 1);
  p2m.releaseStale();
  p2m.release(root);
  heap.tearDown.finish();
  assertAudit(heap, { roots: [], held: Array.from({ length: 512 }, (_, i) => block + i), readClean: false });
});

test('frames are zeroed and copied whole and nothing beside them, with both kinds of addresses', () => {
  for (const [addressType, sizeBytes] of [['i32', 4 * 2 ** 20], ['i64', 5 * 2 ** 30]] as const) {
    const memory = createMachine({ sizeBytes, addressType });
    const mfn = memory.frameEnd - 4;
    for (let i = 0; i < 4; i++) memory.u32.fill(i + 1, (mfn + i) * 1024, (mfn + i + 1) * 1024);
    memory.zeroFrame(mfn + 1);
    memory.copyFrame(mfn + 2, mfn + 3);
    for (const [i, value] of [1, 0, 4, 4].entries()) {
      assert.ok(memory.u32.subarray((mfn + i) * 1024, (mfn + i + 1) * 1024).every((word) => word === value));
    }
  }
});

test('differences of two frames are found one by one, wherever they are, with both kinds of addresses', () => {
  for (const [addressType, sizeBytes] of [['i32', 4 * 2 ** 20], ['i64', 5 * 2 ** 30]] as const) {
    const memory = createMachine({ sizeBytes, addressType });
    const [a, b] = [memory.frameEnd - 1, memory.frameEnd - 3];
    const found = () => {
      const offsets: number[] = [];
      for (let from = 0; from < FRAME_BYTES; from += 8) {
        from = memory.nextDifference(a, b, from);
        if (from < FRAME_BYTES) offsets.push(from);
      }
      return offsets;
    };
    assert.deepEqual(found(), []);
    memory.u8.fill(0xa5, a * FRAME_BYTES, (a + 1) * FRAME_BYTES);
    assert.equal(found().length, FRAME_BYTES / 8);
    memory.copyFrame(b, a);
    // First and last bytes of the frame, of a block, of a word; neighbours; the neighbouring frames do not count.
    const bytes = [0, 7, 8, 63, 64, 1000, 2040, 2047, 2048, 4095];
    for (const offset of bytes) memory.u8[b * FRAME_BYTES + offset]! ^= 0x80;
    for (const beside of [a - 1, b - 1]) memory.u8.fill(beside & 0xff, beside * FRAME_BYTES, (beside + 1) * FRAME_BYTES);
    assert.deepEqual(found(), [...new Set(bytes.map((offset) => offset - offset % 8))]);
    assert.equal(memory.nextDifference(b, a, 72), 1000);
    assert.equal(memory.nextDifference(b, a, 4088), 4088);
  }
});
