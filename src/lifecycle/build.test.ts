import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { DOMAIN } from '../abi/domain-record.ts';
import { FRAME_BYTES, P2M_KIND } from '../abi/machine-memory.ts';
import { SeededRandom } from '../base/random.ts';
import type { DomainRecord } from '../hypervisor/domain-record.ts';
import { TestMachine } from '../hypervisor/test-domain.ts';
import { HOST_ACCOUNT, Heap } from '../memory/heap.ts';
import { P2m, entryKind, entryValue } from '../memory/p2m.ts';
import { BOOT_IMAGE_ALIGN, makeBootImage } from './boot-image.ts';
import type { BootImage } from './boot-image.ts';
import { checkHostMemory, layoutDomain, loadDomain } from './build.ts';
import type { DomainSpec } from './build.ts';
import { hexOfCells, nodeAt, readDeviceTree } from './test-device-tree-reader.ts';

const seed = Number(process.env['ZAZEN_TEST_SEED'] ?? 1);
const MIB = 2 ** 20;
const random = new SeededRandom(seed);

const rootOf = (domain: DomainRecord) => domain.get(DOMAIN.at.p2mRoot);

function createDomain(machine: TestMachine): DomainRecord {
  const vcpuAddresses = [machine.memory.vcpuAddress(0)];
  const made = machine.builder.createDomain({ vcpuAddresses, handle: new Uint8Array(16), maxPages: 2 ** 20 });
  assert.ok(made !== undefined);
  return made.domain;
}

function destroyDomain({ builder, p2m, heap }: TestMachine, domain: DomainRecord): void {
  p2m.release(builder.destroyDomain(domain));
  heap.tearDown.finish();
  builder.forgetDomain(domain);
}

/** Bytes that say where they are, with zero pages among them. */
function pattern(sizeBytes: number, tag: number): Uint8Array {
  const bytes = new Uint8Array(sizeBytes);
  for (let i = 0; i < sizeBytes; i++) {
    if ((i >>> 12) % 3 !== 1) bytes[i] = (Math.imul(i, 31) + (i >>> 8) + tag) & 0xff;
  }
  return bytes;
}

interface TestFile {
  readonly bytes: Uint8Array;
  readonly sizeBytes: number;
}
type FileSpec = DomainSpec<TestFile>;
const file = (bytes: Uint8Array): TestFile => ({ bytes, sizeBytes: bytes.length });

const defaultSpec: FileSpec = {
  kernel: { image: file(pattern(3 * MIB + 77, 1)), textOffset: 0, imageSize: 5 * MIB },
  initrd: file(pattern(MIB + 1234, 2)),
  commandLine: 'console=hvc0',
  memoryBytes: 64 * MIB,
  vcpuCount: 1,
};
const specOf = (more: Partial<FileSpec> = {}): FileSpec => ({ ...defaultSpec, ...more });

type ImageSpec = DomainSpec<BootImage> & { readonly kernel: { readonly image: BootImage } };
const rootsOf = ({ kernel, initrd }: ImageSpec) => [kernel.image.root, ...(initrd === undefined ? [] : [initrd.root])];

/** The files in frames. */
function imagesOf({ p2m, heap }: { p2m: P2m; heap: Heap }, spec: FileSpec): ImageSpec {
  const layout = layoutDomain(spec);
  const make = ({ bytes }: TestFile, address: number): BootImage => {
    const image = makeBootImage(p2m, heap, bytes, address % BOOT_IMAGE_ALIGN);
    assert.ok(image !== undefined && !p2m.stale);
    return image;
  };
  return {
    ...spec, kernel: { ...spec.kernel, image: make(spec.kernel.image, layout.kernel.address) },
    initrd: spec.initrd && make(spec.initrd, layout.initrd!.address),
  };
}

function releaseImages({ p2m, heap }: { p2m: P2m; heap: Heap }, spec: ImageSpec): void {
  for (const root of rootsOf(spec)) p2m.release(root);
  heap.tearDown.finish();
}

/** Writes into guest memory as a vCPU does. */
function writeGuest({ memory, p2m }: TestMachine, domain: DomainRecord, address: number, byte: number): void {
  const mfn = p2m.frameForWrite(rootOf(domain), Math.floor(address / FRAME_BYTES));
  assert.ok(mfn > 0);
  memory.frameBytes(mfn)[address % FRAME_BYTES] = byte;
  p2m.releaseStale();
}

/** `deepEqual` takes a second for a megabyte. */
function assertBytes(actual: Uint8Array, expected: Uint8Array): void {
  assert.equal(Buffer.compare(actual, expected), 0);
}

function readGuest({ memory, p2m }: TestMachine, domain: DomainRecord, address: number, sizeBytes: number) {
  const bytes = new Uint8Array(sizeBytes);
  for (let at = 0; at < sizeBytes;) {
    const offset = (address + at) % FRAME_BYTES;
    const entry = p2m.lookup(rootOf(domain), Math.floor((address + at) / FRAME_BYTES));
    assert.ok(entryKind(entry) === P2M_KIND.frame || entryKind(entry) === P2M_KIND.zero);
    const part = memory.frameBytes(entryValue(entry)).subarray(offset, offset + sizeBytes - at);
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

test('all is where the layout says, and only pages with something in them take frames', () => {
  const machine = new TestMachine(16 * MIB);
  const { heap, p2m } = machine;
  const domain = createDomain(machine);
  const [hostBefore, pagesBefore] = [heap.chargedFrames(HOST_ACCOUNT), domain.get(DOMAIN.at.pages)];
  const spec = specOf();
  const [image, initrd] = [spec.kernel.image.bytes, spec.initrd!.bytes];
  const images = imagesOf(machine, spec);
  const imageFrames = heap.chargedFrames(HOST_ACCOUNT) - hostBefore;
  const loaded = loadDomain(p2m, heap, domain, images, random);
  assert.ok(!p2m.stale);
  assert.equal(loaded.entryAddress, 0x4000_0000);
  assertBytes(readGuest(machine, domain, loaded.kernel.address, image.length), image);
  assertBytes(readGuest(machine, domain, loaded.initrd!.address, initrd.length), initrd);
  const tail = spec.kernel.imageSize - image.length;
  const bss = readGuest(machine, domain, loaded.kernel.address + image.length, tail);
  assert.ok(bss.every((byte) => byte === 0));

  const tree = readDeviceTree(readGuest(machine, domain, loaded.deviceTree.address, 2 * MIB));
  const chosen = nodeAt(tree, '/chosen').properties;
  assert.equal(chosen['linux,initrd-start'], hexOfCells(0, loaded.initrd!.address));
  assert.equal(chosen['linux,initrd-end'], hexOfCells(0, loaded.initrd!.address + initrd.length));
  assert.equal(nodeAt(tree, '/memory@40000000').properties['reg'], hexOfCells(0, 0x4000_0000, 0, 64 * MIB));

  assert.equal(domain.get(DOMAIN.at.pages) - pagesBefore, 64 * 256);
  const maxGfn = domain.get(DOMAIN.at.maxGfn);
  assert.equal(entryKind(p2m.lookup(rootOf(domain), maxGfn)), P2M_KIND.zero);
  assert.equal(p2m.lookup(rootOf(domain), maxGfn + 1), P2M_KIND.absent);

  // Two thirds of the pages of the files, and a root, a node and leaf nodes each.
  const filePages = Math.ceil(image.length / FRAME_BYTES) + Math.ceil(initrd.length / FRAME_BYTES);
  assert.ok(imageFrames <= (filePages * 2) / 3 + 8, `${imageFrames} frames`);
  machine.audit(rootsOf(images));
});

test('domains share the files until they write, whatever their size, and see nothing of each other', () => {
  const machine = new TestMachine(32 * MIB);
  const { heap, p2m } = machine;
  const spec = specOf();
  const images = imagesOf(machine, spec);
  const load = (memoryBytes: number) => {
    const domain = createDomain(machine);
    const before = heap.chargedFrames(domain.domid);
    const loaded = loadDomain(p2m, heap, domain, { ...images, memoryBytes }, random);
    const frames = heap.chargedFrames(domain.domid) - before;
    assert.ok(frames <= 4, `${frames} frames`);
    return { domain, ...loaded };
  };
  const assertOriginal = ({ domain, kernel, initrd }: ReturnType<typeof load>) => {
    const { image } = spec.kernel;
    assertBytes(readGuest(machine, domain, kernel.address, image.sizeBytes), image.bytes);
    assertBytes(readGuest(machine, domain, initrd!.address, spec.initrd!.sizeBytes), spec.initrd!.bytes);
    const around = readGuest(machine, domain, initrd!.address - 4 * FRAME_BYTES, 4 * FRAME_BYTES);
    assert.ok(around.every((byte) => byte === 0));
  };
  const running = load(64 * MIB);
  const writer = load(96 * MIB + FRAME_BYTES);
  const sharedBefore = heap.stats().shared;
  // All of it, what surrounds it included; the same pages by another domain, so that no order of copies matters.
  for (const { domain, kernel, initrd } of [writer, load(64 * MIB)]) {
    for (const { address, sizeBytes } of [kernel, initrd!]) {
      for (let at = -3 * FRAME_BYTES; at < sizeBytes; at += FRAME_BYTES) {
        if (address + at >= kernel.address) writeGuest(machine, domain, address + at, domain.domid);
      }
    }
  }
  assert.ok(heap.stats().shared <= sharedBefore);
  assert.equal(readGuest(machine, writer.domain, writer.kernel.address, 1)[0], writer.domain.domid);
  const later = load(128 * MIB);
  for (const domain of [running, later]) assertOriginal(domain);
  machine.audit(rootsOf(images));

  // The images may go while domains use them; what these then have alone, they write in place.
  releaseImages(machine, images);
  for (const domain of [running, later]) assertOriginal(domain);
  destroyDomain(machine, later.domain);
  const used = heap.stats().used;
  writeGuest(machine, running.domain, running.kernel.address, 1);
  assert.equal(heap.stats().used, used);
  machine.audit();
});

test('frames with old data in them do not show', () => {
  const machine = new TestMachine(48 * MIB);
  const { memory, heap, p2m } = machine;
  const held: number[] = [];
  for (let mfn = heap.allocate(1); mfn !== 0; mfn = heap.allocate(1)) {
    memory.frameBytes(mfn).fill(0xa5);
    held.push(mfn);
  }
  for (const mfn of held) heap.release(mfn);
  const image = new Uint8Array(10_000).fill(1);
  const kernel = { image: file(image), textOffset: 0x80, imageSize: MIB };
  const domain = createDomain(machine);
  const images = imagesOf(machine, specOf({ kernel, memoryBytes: 32 * MIB }));
  const loaded = loadDomain(p2m, heap, domain, images, random);
  assert.equal(loaded.entryAddress, 0x4000_0080);
  const around = readGuest(machine, domain, 0x4000_0000, 4 * FRAME_BYTES);
  around.forEach((byte, i) => assert.equal(byte, i >= 0x80 && i < 0x80 + image.length ? 1 : 0));
});

test('whatever the sizes, nothing overlaps and the boot protocol is kept, or there is a clear error', () => {
  const sizes = fc.record({
    textOffset: fc.constantFrom(0, 0x80, 0x8_0000),
    imageBytes: fc.nat({ max: 40 * MIB }),
    bssBytes: fc.nat({ max: 40 * MIB }),
    initrdBytes: fc.oneof(fc.constant(0), fc.nat({ max: 80 * MIB })),
    memoryPages: fc.oneof(fc.nat({ max: 40_000 }), fc.integer({ min: 3 * 2 ** 18 - 5, max: 3 * 2 ** 18 + 5 })),
  });
  fc.assert(fc.property(sizes, ({ textOffset, imageBytes, bssBytes, initrdBytes, memoryPages }) => {
    const kernel = { image: { sizeBytes: imageBytes }, textOffset, imageSize: imageBytes + bssBytes };
    const memoryBytes = memoryPages * FRAME_BYTES;
    let layout;
    try {
      layout = layoutDomain({ ...defaultSpec, kernel, initrd: { sizeBytes: initrdBytes }, memoryBytes });
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
    // Each has the 2 MiB that it is in to itself.
    const blocks = placed.flatMap(({ address, sizeBytes }) => [address, address + Math.max(sizeBytes, 1) - 1])
      .map((address) => Math.floor(address / BOOT_IMAGE_ALIGN));
    for (let i = 2; i < blocks.length; i += 2) assert.ok(blocks[i]! > blocks[i - 1]!);
    const ramEnd = 0x4000_0000 + layout.banks[0]!.sizeBytes;
    for (const block of blocks) assert.ok((block + 1) * BOOT_IMAGE_ALIGN <= ramEnd);
  }), { seed, numRuns: 500 });
});

test('memory beyond 3 GiB goes into the second bank', () => {
  const { banks } = layoutDomain(specOf({ memoryBytes: 5 * 2 ** 30 }));
  assert.deepEqual(banks, [
    { address: 0x4000_0000, sizeBytes: 3 * 2 ** 30 }, { address: 0x2_0000_0000, sizeBytes: 2 * 2 ** 30 },
  ]);
});

test('what cannot be is refused in one clear line', () => {
  const refused = (more: Partial<FileSpec>, code: string, message: RegExp) => {
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

test('a guest larger than what the host has left is refused', () => {
  const { heap } = new TestMachine(32 * MIB);
  checkHostMemory(heap, 16 * MIB);
  assert.throws(() => checkHostMemory(heap, 64 * MIB),
    { code: 'ZAZEN_HOST_OUT_OF_MEMORY', message: /a guest of 64 MiB does not fit in the host, which has \d+ MiB left/ });
});

test('when frames run out on the way, tearing the domain down brings all back', () => {
  const machine = new TestMachine(16 * MIB);
  const { memory, heap } = machine;
  const kernel = { image: file(pattern(3 * MIB, 1)), textOffset: 0, imageSize: 4 * MIB };
  const spec = specOf({ kernel, initrd: file(pattern(100_000, 2)), memoryBytes: 32 * MIB });
  // The host says that there is enough until it is asked for it: as if other threads had taken it meanwhile.
  class ScarceHeap extends Heap {
    left = Infinity;
    override allocate(owner: number, overwritten = false): number {
      return this.left-- > 0 ? super.allocate(owner, overwritten) : 0;
    }
  }
  const scarce = new ScarceHeap(memory, 65);
  const p2m = new P2m(scarce);
  const images = imagesOf(machine, spec);
  const load = (left: number): void => {
    const domain = createDomain(machine);
    try {
      scarce.left = left;
      loadDomain(p2m, scarce, domain, images, random);
    } finally {
      assert.ok(!p2m.stale);
      destroyDomain(machine, domain);
      assert.equal(heap.chargedFrames(domain.domid), 0);
    }
  };
  const domain = createDomain(machine);
  const before = heap.chargedFrames(domain.domid);
  loadDomain(p2m, scarce, domain, images, random);
  const needed = heap.chargedFrames(domain.domid) - before;
  destroyDomain(machine, domain);

  for (let left = 0; left < needed; left++) assert.throws(() => load(left), { code: 'ZAZEN_HOST_OUT_OF_MEMORY' });
  load(needed);
  releaseImages(machine, images);
  machine.audit();

  // The same for the image itself.
  const used = heap.stats().used;
  for (const left of [0, 1, 2, 3, 4, 100, 512]) {
    scarce.left = left;
    assert.equal(makeBootImage(p2m, scarce, kernel.image.bytes, 0), undefined);
    heap.tearDown.finish();
    assert.equal(heap.stats().used, used);
  }
  machine.audit();
});
