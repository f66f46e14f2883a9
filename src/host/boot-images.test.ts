import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import type { TestContext } from 'node:test';
import { HOST_ACCOUNT } from '../memory/heap.ts';
import { TestMachine } from '../hypervisor/test-domain.ts';
import { BootFiles, BootImages } from './boot-images.ts';
import type { BootImageOwner } from './boot-images.ts';
import { FrameCaches } from './frame-caches.ts';

const dir = mkdtempSync(join(tmpdir(), 'zazen-images-'));
after(() => rmSync(dir, { recursive: true, force: true }));
let files = 0;

function write(bytes: Uint8Array, path = join(dir, `file${files++}`)): string {
  writeFileSync(path, bytes);
  return path;
}

function kernelImage(byte: number): Buffer {
  const image = Buffer.alloc(100_000, byte);
  image.fill(0, 0, 64);
  image.writeUInt32LE(0x644d5241, 0x38);
  image.writeBigUInt64LE(0x8_0000n, 8);
  image.writeBigUInt64LE(300_000n, 0x10);
  return image;
}

/** Files are only remembered when their last change is some seconds old. */
function setUp(t: TestContext) {
  t.mock.timers.enable({ apis: ['Date'], now: Date.now() + 3_600_000 });
  const machine = new TestMachine(4 * 2 ** 20);
  const { heap, p2m } = machine;
  const caches = new FrameCaches();
  const owner: BootImageOwner = { thread: machine, caches, releaseRoot: (root) => p2m.release(root) };
  return { machine, heap, caches, images: new BootImages(owner) };
}

test('a file is read once, and again when it has changed or its frames were given up', async (t) => {
  const { machine, heap, caches, images } = setUp(t);
  const before = heap.chargedFrames(HOST_ACCOUNT);
  const path = write(kernelImage(1));
  const use = async (isRead: boolean): Promise<number> => {
    using now = new BootFiles(images);
    const kernel = await now.kernel(path, 2 ** 30);
    assert.equal(kernel.bytes !== undefined, isRead);
    assert.deepEqual([kernel.sizeBytes, kernel.textOffset, kernel.imageSize], [100_000, 0x8_0000, 300_000]);
    const { root } = now.image(kernel, 0x8_0000)!;
    assert.ok(!caches.giveUpOldest() || caches.roots().length === 1, 'what is in use was given up');
    machine.audit(caches.roots());
    return root;
  };
  const root = await use(true);
  assert.equal(heap.chargedFrames(HOST_ACCOUNT) - before, caches.frames);
  assert.equal(await use(false), root);

  writeFileSync(path, kernelImage(2));
  const changed = await use(true);
  assert.notEqual(changed, root);
  assert.deepEqual(caches.roots(), [changed], 'the old contents went first');
  assert.ok(caches.giveUpOldest());
  heap.tearDown.finish();
  assert.equal(heap.chargedFrames(HOST_ACCOUNT), before);
  await use(true);
  await use(false);
});

test('the same contents in another file, or made twice at once, are one image', async (t) => {
  const { heap, caches, images } = setUp(t);
  const [one, other] = [write(Buffer.alloc(50_000, 1)), write(Buffer.alloc(50_000, 1))];
  using first = new BootFiles(images);
  using second = new BootFiles(images);
  const [a, b] = await Promise.all([first.initramfs(one, 2 ** 20), second.initramfs(other, 2 ** 20)]);
  assert.ok(a.bytes !== undefined && b.bytes !== undefined);
  const { root } = first.image(a, 4096)!;
  const used = heap.stats().used;
  assert.equal(second.image(b, 4096)!.root, root);
  assert.equal(heap.stats().used, used);
  assert.ok(!caches.giveUpOldest());
  first[Symbol.dispose]();
  assert.ok(!caches.giveUpOldest());
  second[Symbol.dispose]();
  assert.ok(caches.giveUpOldest());
});

test('an initramfs with something appended is another one', async (t) => {
  const { images } = setUp(t);
  const path = write(Buffer.from('cpio?'));
  using now = new BootFiles(images);
  const plain = await now.initramfs(path, 100);
  const extended = await now.initramfs(path, 100, Buffer.from('more'));
  assert.notEqual(plain.key, extended.key);
  assert.equal(Buffer.from(extended.bytes!).toString('latin1'), 'cpio?\0\0\0more');
  assert.deepEqual(await now.initramfs(path, 100), plain);
});

test('a file that is just being written is read each time', async (t) => {
  const { images } = setUp(t);
  t.mock.timers.setTime(0);
  const path = write(Buffer.from('one'));
  for (const content of ['one', 'two', 'six']) {
    writeFileSync(path, content);
    using now = new BootFiles(images);
    const read = await now.initramfs(path, 100);
    assert.equal(Buffer.from(read.bytes!).toString(), content);
    now.image(read, 4096);
  }
});

test('an allocation that finds no frame gets those of images that nobody needs', async (t) => {
  const { machine, heap, caches, images } = setUp(t);
  heap.reclaim = () => caches.giveUpOldest();
  const path = write(Buffer.alloc(2 ** 20, 3));
  const held: number[] = [];
  {
    using now = new BootFiles(images);
    const image = now.image(await now.initramfs(path, 2 ** 20), 0)!;
    assert.ok(image.frames >= 256);
    for (let mfn = heap.allocate(1); mfn !== 0; mfn = heap.allocate(1)) held.push(mfn);
    assert.deepEqual(caches.roots(), [image.root]);
    using late = new BootFiles(images);
    assert.equal(late.image(await late.initramfs(write(Buffer.alloc(9000, 4)), 2 ** 20), 0), undefined);
  }
  const more = heap.allocate(1);
  assert.ok(more !== 0);
  assert.deepEqual(caches.roots(), []);
  for (const mfn of [...held, more]) heap.release(mfn);
  machine.audit();
});
