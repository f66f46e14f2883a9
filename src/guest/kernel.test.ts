import { test } from 'node:test';
import assert from 'node:assert/strict';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { spawnSync } from 'node:child_process';
import fc from 'fast-check';
import { needsTool } from '../../test/tools.ts';
import { ZazenError } from '../base/errors.ts';
import { loadKernel, parseKernel } from './kernel.ts';
import type { Kernel } from './kernel.ts';

/** An Image as Linux with an EFI stub makes it: header, PE header, one section of `sectionBytes`. */
function makeImage({ flags = 0b1010, textOffset = 0, imageSize = 0x20000, sectionBytes = 4096 } = {}): Buffer {
  const image = Buffer.alloc(0x1000 + sectionBytes);
  for (let i = 0x1000; i < image.length; i++) image[i] = i * 31;
  image.write('MZ', 0, 'latin1');
  image.writeBigUInt64LE(BigInt(textOffset), 8);
  image.writeBigUInt64LE(BigInt(imageSize), 0x10);
  image.writeBigUInt64LE(BigInt(flags), 0x18);
  image.write('ARM\x64', 0x38, 'latin1');
  image.writeUInt32LE(0x40, 0x3c);
  image.write('PE\0\0', 0x40, 'latin1');
  image.writeUInt16LE(1, 0x46);
  image.writeUInt16LE(0xa0, 0x54);
  const section = 0x40 + 24 + 0xa0;
  image.writeUInt32LE(sectionBytes, section + 16);
  image.writeUInt32LE(0x1000, section + 20);
  return image;
}

function makeZboot(payload: Uint8Array, compression: string): Buffer {
  const header = Buffer.alloc(0x80);
  header.write('MZ\0\0zimg', 0, 'latin1');
  header.writeUInt32LE(header.length, 8);
  header.writeUInt32LE(payload.length, 12);
  header.write(compression, 24, 'latin1');
  return Buffer.concat([header, payload, Buffer.alloc(100, 0xaa)]);
}

const parse = (bytes: Uint8Array): Promise<Kernel> => parseKernel(bytes, 'kernel');

const fails = async (bytes: Uint8Array, code: string): Promise<void> => {
  await assert.rejects(parse(bytes), (error) => {
    assert(error instanceof ZazenError, String(error));
    assert.equal(error.code, code, error.message);
    assert(!error.message.includes('\n'));
    return true;
  });
};

test('a raw Image gives its header fields', async () => {
  const image = makeImage({ textOffset: 0x80000 });
  const kernel = await parse(image);
  assert.equal(kernel.image, image);
  assert.equal(kernel.textOffset, 0x80000);
  assert.equal(kernel.imageSize, 0x20000);
  assert.deepEqual(kernel.flags, { pageSizeBytes: 4096, placeAnywhere: true });
});

test('an Image without a size takes at least its own length', async () => {
  const image = makeImage({ imageSize: 0, flags: 0 });
  const kernel = await parse(image);
  assert.equal(kernel.imageSize, image.length);
  assert.deepEqual(kernel.flags, { pageSizeBytes: 0, placeAnywhere: false });
});

test('compressed and zboot kernels unpack to the Image', async () => {
  const image = makeImage();
  const gzip = gzipSync(image);
  const zstd = zstdCompressSync(image);
  const zboot = makeZboot(gzip, 'gzip');
  for (const bytes of [gzip, zstd, zboot, makeZboot(zstd, 'zstd'), gzipSync(zboot)]) {
    assert.deepEqual(Buffer.from((await parse(bytes)).image), image);
  }
});

test('an xz-compressed kernel unpacks to the Image', async (t) => {
  if (!needsTool(t, 'xz', 'xz-utils')) return;
  const image = makeImage();
  const packed = spawnSync('xz', ['-c', '--check=crc32'], { input: image }).stdout;
  assert.deepEqual(Buffer.from((await parse(packed)).image), image);
  assert.deepEqual(Buffer.from((await parse(makeZboot(packed, 'xzkern'))).image), image);
  await fails(packed.subarray(0, packed.length / 2), 'ZAZEN_KERNEL_TRUNCATED');
});

test('truncated kernels are told', async () => {
  const image = makeImage();
  await fails(image.subarray(0, image.length - 1), 'ZAZEN_KERNEL_TRUNCATED');
  await fails(image.subarray(0, 100), 'ZAZEN_KERNEL_TRUNCATED');
  await fails(image.subarray(0, 20), 'ZAZEN_KERNEL_TRUNCATED');
  await fails(new Uint8Array(0), 'ZAZEN_KERNEL_TRUNCATED');
  await fails(gzipSync(image).subarray(0, -20), 'ZAZEN_KERNEL_TRUNCATED');
  await fails(zstdCompressSync(image).subarray(0, -9), 'ZAZEN_KERNEL_TRUNCATED');
  await fails(makeZboot(gzipSync(image), 'gzip').subarray(0, 300), 'ZAZEN_KERNEL_TRUNCATED');
  await fails(makeZboot(gzipSync(image), 'gzip').subarray(0, 30), 'ZAZEN_KERNEL_TRUNCATED');
});

test('kernels that cannot run are told apart', async () => {
  await fails(makeImage({ flags: 1 }), 'ZAZEN_KERNEL_BIG_ENDIAN');
  await fails(makeImage({ flags: 0b100 }), 'ZAZEN_KERNEL_PAGE_SIZE');
  await fails(makeImage({ flags: 0b110 }), 'ZAZEN_KERNEL_PAGE_SIZE');
  const bzImage = Buffer.alloc(0x400);
  bzImage.write('MZ', 0, 'latin1');
  bzImage.write('HdrS', 0x202, 'latin1');
  await fails(bzImage, 'ZAZEN_KERNEL_OTHER_MACHINE');
  const elf = Buffer.alloc(64);
  elf.write('\x7fELF\x02\x01', 0, 'latin1');
  elf.writeUInt16LE(62, 18);
  await fails(elf, 'ZAZEN_KERNEL_OTHER_MACHINE');
  elf.writeUInt16LE(183, 18);
  await fails(elf, 'ZAZEN_KERNEL_NOT_A_KERNEL');
  const zImage = Buffer.alloc(0x100);
  zImage.writeUInt32LE(0x016f2818, 0x24);
  await fails(zImage, 'ZAZEN_KERNEL_OTHER_MACHINE');
  await fails(makeZboot(gzipSync(makeImage()), 'lzma'), 'ZAZEN_KERNEL_COMPRESSION');
  await fails(makeZboot(Buffer.alloc(50), 'gzip'), 'ZAZEN_KERNEL_CORRUPT');
  await fails(Buffer.from('#!/bin/sh\necho not a kernel\n'.repeat(9)), 'ZAZEN_KERNEL_NOT_A_KERNEL');
  await assert.rejects(loadKernel('/nonexistent/Image'), { code: 'ZAZEN_KERNEL_UNREADABLE' });
});

test('what unpacks to more than there is room for is refused, in any container', async (t) => {
  const image = makeImage({ sectionBytes: 2 ** 20 });
  const packed = [gzipSync(image), zstdCompressSync(image), makeZboot(gzipSync(image), 'gzip')];
  if (needsTool(t, 'xz', 'xz-utils')) packed.push(spawnSync('xz', ['-c'], { input: image }).stdout);
  for (const bytes of packed) {
    await assert.rejects(parseKernel(bytes, 'vmlinuz', image.length - 1), {
      code: 'ZAZEN_KERNEL_TOO_LARGE', message: 'vmlinuz: the kernel is larger than the 1 MiB that there are for it',
    });
    assert.equal((await parseKernel(bytes, 'vmlinuz', image.length)).image.length, image.length);
  }
});

test('mutated kernels give a kernel or a typed error', async (t) => {
  if (!needsTool(t, 'xz', 'xz-utils')) return;
  const image = makeImage();
  const xz = spawnSync('xz', ['-c'], { input: image }).stdout;
  const seeds = [image, gzipSync(image), zstdCompressSync(image), makeZboot(gzipSync(image), 'gzip'), xz];
  const mutations = fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 8 });
  const cuts = fc.option(fc.nat());
  await fc.assert(
    fc.asyncProperty(fc.constantFrom(...seeds), mutations, cuts, async (seed, changes, cut) => {
      const bytes = Uint8Array.from(cut === null ? seed : seed.subarray(0, cut % seed.length));
      // Half of the changes go to the headers, where they matter most.
      changes.forEach(([at, value], i) => (bytes[at % (i % 2 ? bytes.length : Math.min(bytes.length, 0x100))] = value));
      try {
        const kernel = await parse(bytes);
        assert(kernel.imageSize >= kernel.image.length && kernel.textOffset >= 0);
      } catch (error) {
        assert(error instanceof ZazenError && error.code.startsWith('ZAZEN_KERNEL_'), String(error));
      }
    }),
    { numRuns: 400 },
  );
});
