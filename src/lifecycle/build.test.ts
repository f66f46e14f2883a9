import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { FRAME_BYTES, P2M_KIND } from '../abi/machine-memory.ts';
import { SeededRandom } from '../base/random.ts';
import { audit } from '../memory/audit.ts';
import { Heap } from '../memory/heap.ts';
import { MachineMemory } from '../memory/machine-memory.ts';
import { P2m, entryKind, entryValue } from '../memory/p2m.ts';
import { buildDomain, layoutDomain } from './build.ts';
import type { DomainSpec } from './build.ts';
import { hexOfCells, nodeAt, readDeviceTree } from './test-device-tree-reader.ts';

const seed = Number(process.env['ZAZEN_TEST_SEED'] ?? 1);
const MIB = 2 ** 20;
const DOMAIN_ID = 3;

function createHost(sizeBytes: number) {
  const memory = MachineMemory.create({
    sizeBytes, domainCount: 8, domainStrideBytes: 4096, vcpuCount: 1, vcpuStrideBytes: 4096, codeBytes: 0,
  });
  Heap.initialize(memory);
  const heap = new Heap(memory, 64);
  return { memory, heap, p2m: new P2m(heap) };
}

/** Bytes that say where they are, with zero pages among them. */
function pattern(sizeBytes: number, tag: number): Uint8Array {
  const bytes = new Uint8Array(sizeBytes);
  for (let i = 0; i < sizeBytes; i++) {
    if ((i >>> 12) % 3 !== 1) bytes[i] = (Math.imul(i, 31) + (i >>> 8) + tag) & 0xff;
  }
  return bytes;
}

const defaultSpec: DomainSpec = {
  kernel: { image: pattern(3 * MIB + 77, 1), textOffset: 0, imageSize: 5 * MIB },
  initrd: pattern(MIB + 1234, 2),
  commandLine: 'console=hvc0',
  memoryBytes: 64 * MIB,
  vcpuCount: 1,
};
const specOf = (more: Partial<DomainSpec> = {}): DomainSpec => ({ ...defaultSpec, ...more });

function readGuest({ memory, p2m }: ReturnType<typeof createHost>, root: number, address: number, sizeBytes: number) {
  const bytes = new Uint8Array(sizeBytes);
  for (let at = 0; at < sizeBytes;) {
    const offset = (address + at) % FRAME_BYTES;
    const entry = p2m.lookup(root, Math.floor((address + at) / FRAME_BYTES));
    assert.ok(entryKind(entry) === P2M_KIND.frame || entryKind(entry) === P2M_KIND.zero);
    const part = memory.frameBytes(entryValue(entry)).subarray(offset, offset + sizeBytes - at);
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

const assertAudit = (heap: Heap, roots: number[]) =>
  assert.deepEqual(audit(heap, { roots, readClean: true }).problems, []);

test('all is where the layout says, and only pages with something in them take frames', () => {
  const host = createHost(128 * MIB);
  const { heap, p2m } = host;
  const spec = specOf();
  const built = buildDomain(p2m, heap, DOMAIN_ID, spec, new SeededRandom(seed));
  assert.ok(!p2m.stale);
  assert.equal(built.entryAddress, 0x4000_0000);
  assert.deepEqual(readGuest(host, built.p2mRoot, built.kernel.address, spec.kernel.image.length), spec.kernel.image);
  assert.deepEqual(readGuest(host, built.p2mRoot, built.initrd!.address, spec.initrd!.length), spec.initrd);
  const tail = spec.kernel.imageSize - spec.kernel.image.length;
  const bss = readGuest(host, built.p2mRoot, built.kernel.address + spec.kernel.image.length, tail);
  assert.ok(bss.every((byte) => byte === 0));

  const tree = readDeviceTree(readGuest(host, built.p2mRoot, built.deviceTree.address, 2 * MIB));
  const chosen = nodeAt(tree, '/chosen').properties;
  assert.equal(chosen['linux,initrd-start'], hexOfCells(0, built.initrd!.address));
  assert.equal(chosen['linux,initrd-end'], hexOfCells(0, built.initrd!.address + spec.initrd!.length));
  assert.equal(nodeAt(tree, '/memory@40000000').properties['reg'], hexOfCells(0, 0x4000_0000, 0, 64 * MIB));

  assert.deepEqual([built.consoleGfn, built.xenstoreGfn], [0x39000, 0x39001]);
  for (const gfn of [built.consoleGfn, built.xenstoreGfn]) {
    assert.equal(entryKind(p2m.lookup(built.p2mRoot, gfn)), P2M_KIND.frame);
    assert.ok(readGuest(host, built.p2mRoot, gfn * FRAME_BYTES, FRAME_BYTES).every((byte) => byte === 0));
  }
  assert.equal(built.pages, 64 * 256 + 2);
  assert.equal(entryKind(p2m.lookup(built.p2mRoot, built.maxGfn)), P2M_KIND.zero);
  assert.equal(p2m.lookup(built.p2mRoot, built.maxGfn + 1), P2M_KIND.absent);

  // Two thirds of the pages of the files, the rings, a page of device tree, and tables.
  const filePages = Math.ceil(spec.kernel.image.length / FRAME_BYTES) + Math.ceil(spec.initrd!.length / FRAME_BYTES);
  const frames = heap.chargedFrames(DOMAIN_ID);
  assert.ok(frames < (filePages * 2) / 3 + 16, `${frames} frames`);
  assertAudit(heap, [built.p2mRoot]);
});

test('frames with old data in them do not show', () => {
  const host = createHost(48 * MIB);
  const { memory, heap, p2m } = host;
  const held: number[] = [];
  for (let mfn = heap.allocate(1); mfn !== 0; mfn = heap.allocate(1)) {
    memory.frameBytes(mfn).fill(0xa5);
    held.push(mfn);
  }
  for (const mfn of held) heap.release(mfn);
  const image = new Uint8Array(10_000).fill(1);
  const kernel = { image, textOffset: 0x80, imageSize: MIB };
  const built = buildDomain(p2m, heap, DOMAIN_ID, specOf({ kernel, memoryBytes: 32 * MIB }), new SeededRandom(seed));
  assert.equal(built.entryAddress, 0x4000_0080);
  const around = readGuest(host, built.p2mRoot, 0x4000_0000, 4 * FRAME_BYTES);
  around.forEach((byte, i) => assert.equal(byte, i >= 0x80 && i < 0x80 + image.length ? 1 : 0));
  assert.ok(readGuest(host, built.p2mRoot, built.consoleGfn * FRAME_BYTES, 2 * FRAME_BYTES).every((byte) => byte === 0));
});

test('whatever the sizes, nothing overlaps and the boot protocol is kept, or there is a clear error', () => {
  const sizes = fc.record({
    textOffset: fc.constantFrom(0, 0x80, 0x8_0000),
    imageBytes: fc.nat({ max: 40 * MIB }),
    bssBytes: fc.nat({ max: 40 * MIB }),
    initrdBytes: fc.oneof(fc.constant(0), fc.nat({ max: 80 * MIB })),
    memoryPages: fc.oneof(fc.nat({ max: 40_000 }), fc.integer({ min: 3 * 2 ** 18 - 5, max: 3 * 2 ** 18 + 5 })),
  });
  // Views of one buffer: the contents do not matter here.
  const bytes = new Uint8Array(80 * MIB);
  fc.assert(fc.property(sizes, ({ textOffset, imageBytes, bssBytes, initrdBytes, memoryPages }) => {
    const kernel = { image: bytes.subarray(0, imageBytes), textOffset, imageSize: imageBytes + bssBytes };
    const memoryBytes = memoryPages * FRAME_BYTES;
    let layout;
    try {
      layout = layoutDomain(specOf({ kernel, initrd: bytes.subarray(0, initrdBytes), memoryBytes }));
    } catch (error) {
      const { code, message } = error as { code: string; message: string };
      assert.match(code, /^ZAZEN_(MEMORY_SIZE|KERNEL_TOO_LARGE|INITRD_TOO_LARGE|MEMORY_TOO_SMALL)$/);
      assert.match(message, /MiB|0 bytes/);
      // Not refused without need.
      assert.ok(memoryBytes < textOffset + kernel.imageSize + initrdBytes + 23 * MIB);
      return;
    }
    assert.equal(layout.banks.reduce((sum, bank) => sum + bank.sizeBytes, 0), memoryBytes);
    const placed = [layout.kernel, ...(layout.initrd === undefined ? [] : [layout.initrd]), layout.deviceTree];
    let end = 0x4000_0000;
    for (const { address, sizeBytes } of placed) {
      assert.ok(address >= end, 'ascending, without overlap');
      end = address + sizeBytes;
    }
    assert.ok(end <= 0x4000_0000 + layout.banks[0]!.sizeBytes);
    assert.equal((layout.kernel.address - textOffset) % (2 * MIB), 0);
    assert.equal(layout.deviceTree.address % (2 * MIB), 0);
    assert.equal((layout.initrd?.address ?? 0) % FRAME_BYTES, 0);
  }), { seed, numRuns: 500 });
});

test('memory beyond 3 GiB goes into the second bank', () => {
  const { banks } = layoutDomain(specOf({ memoryBytes: 5 * 2 ** 30 }));
  assert.deepEqual(banks, [
    { address: 0x4000_0000, sizeBytes: 3 * 2 ** 30 }, { address: 0x2_0000_0000, sizeBytes: 2 * 2 ** 30 },
  ]);
});

test('what cannot be is refused in one clear line', () => {
  const refused = (more: Partial<DomainSpec>, code: string, message: RegExp) => {
    assert.throws(() => layoutDomain(specOf(more)), (error: { code: string; message: string; hint?: string }) => {
      assert.equal(error.code, code);
      assert.match(error.message, message);
      assert.ok(!`${error.message}${error.hint}`.includes('\n'));
      return true;
    });
  };
  refused({ memoryBytes: 4 * MIB }, 'ZAZEN_KERNEL_TOO_LARGE', /the kernel takes 5 MiB, the guest has 4 MiB/);
  refused({ memoryBytes: 6 * MIB }, 'ZAZEN_INITRD_TOO_LARGE', /the initramfs takes 2 MiB, the guest has 1 MiB/);
  refused({ memoryBytes: 6 * MIB, initrd: undefined }, 'ZAZEN_MEMORY_TOO_SMALL', /at least 26 MiB/);
  refused({ memoryBytes: 20 * MIB }, 'ZAZEN_MEMORY_TOO_SMALL', /20 MiB is too little .* at least 28 MiB/);
  layoutDomain(specOf({ memoryBytes: 28 * MIB }));
  for (const memoryBytes of [0, -4096, NaN, Infinity, 64 * MIB + 1, 2 ** 60]) {
    refused({ memoryBytes }, 'ZAZEN_MEMORY_SIZE', /guest memory of/);
  }
  for (const vcpuCount of [0, -1, 1.5, NaN, 129]) refused({ vcpuCount }, 'ZAZEN_VCPU_COUNT', /cannot have .* vCPUs/);
  refused({ commandLine: 'x'.repeat(2048) }, 'ZAZEN_CMDLINE', /2048 bytes/);
  refused({ commandLine: 'a\0b' }, 'ZAZEN_CMDLINE', /NUL/);
  layoutDomain(specOf({ commandLine: 'x'.repeat(2047), vcpuCount: 128 }));
});

test('a guest larger than what the host has left is refused, and takes nothing', () => {
  const { heap, p2m } = createHost(32 * MIB);
  const before = heap.stats();
  assert.throws(() => buildDomain(p2m, heap, DOMAIN_ID, specOf(), new SeededRandom(seed)),
    { code: 'ZAZEN_HOST_OUT_OF_MEMORY', message: /a guest of 64 MiB does not fit in the host, which has 31 MiB left/ });
  assert.deepEqual(heap.stats(), before);
});

test('when frames run out on the way, all come back', () => {
  const { memory, heap, p2m } = createHost(64 * MIB);
  const spec = specOf({ memoryBytes: 28 * MIB });
  const random = new SeededRandom(seed);
  const built = buildDomain(p2m, heap, DOMAIN_ID, spec, random);
  const needed = heap.chargedFrames(DOMAIN_ID);
  while (!p2m.releaseStep(built.p2mRoot, 1000));

  // The host says that there is enough until the moment that it is asked: as if other threads had taken it meanwhile.
  class ScarceHeap extends Heap {
    left = 0;
    override allocate(owner: number, overwritten = false): number {
      return this.left-- > 0 ? super.allocate(owner, overwritten) : 0;
    }
  }
  const scarce = new ScarceHeap(memory, 65);
  const scarceP2m = new P2m(scarce);
  for (const left of [0, 1, 2, 3, 4, 5, 6, 7, 100, needed - 4, needed - 3, needed - 2, needed - 1]) {
    scarce.left = left;
    assert.throws(() => buildDomain(scarceP2m, scarce, DOMAIN_ID, spec, random), { code: 'ZAZEN_HOST_OUT_OF_MEMORY' });
    assert.equal(heap.chargedFrames(DOMAIN_ID), 0);
    assert.equal(heap.stats().used, 0);
    assert.ok(!scarceP2m.stale);
  }
  assertAudit(heap, []);
  scarce.left = needed;
  assertAudit(heap, [buildDomain(scarceP2m, scarce, DOMAIN_ID, spec, random).p2mRoot]);
});
