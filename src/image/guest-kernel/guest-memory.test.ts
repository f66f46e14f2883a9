import assert from 'node:assert/strict';
import { test } from 'node:test';
import { GuestMemory } from './guest-memory.ts';
import { GuestKernel } from './guest-kernel.ts';
import { RAM, makeKernel } from './test-kernel.ts';
import { Vmcoreinfo } from './vmcoreinfo.ts';

test('addresses of the kernel lead through its tables, and nowhere where it maps nothing', () => {
  const kernel = makeKernel();
  const { memory } = kernel.open([]);
  kernel.bytes.write('hello', 0x12ffe);
  assert.equal(memory.translate(kernel.at(0x12ffe)), RAM + 0x12ffe);
  assert.equal(Buffer.from(memory.read(kernel.at(0x12ffe), 5)).toString(), 'hello');
  assert.equal(Buffer.from(memory.physical(RAM + 0x12ffe, 5)!).toString(), 'hello');
  assert.equal(memory.imageVirtual(memory.imageAddress(kernel.at(77))), kernel.at(77));
  for (const nowhere of [0n, kernel.at(-1), kernel.at(2 ** 21), kernel.at(0) - 2n ** 39n, 2n ** 64n - 1n]) {
    assert.equal(memory.translate(nowhere), undefined);
    assert.throws(() => memory.u64(nowhere), { code: 'ZAZEN_GUEST_KERNEL' });
  }
  assert.equal(memory.tryRead(kernel.at(2 ** 21 - 4), 8), undefined);
  assert.equal(memory.physical(RAM - 4, 8), undefined);
  assert.throws(() => memory.read(kernel.at(0), 2 ** 30), { code: 'ZAZEN_GUEST_KERNEL' });
});

test('a page of the last level, and one that the tables put outside of memory', () => {
  const kernel = makeKernel();
  const entry = 0x2000 + 8 * Number((kernel.at(0) >> 21n) & 511n);
  kernel.bytes.writeBigUInt64LE(BigInt(RAM + 0x3000) | 3n, entry + 8);
  kernel.bytes.writeBigUInt64LE(BigInt(RAM + 0x9000) | 0x703n, 0x3000);
  kernel.bytes.writeBigUInt64LE(0x7000_0000n | 0x703n, 0x3008);
  kernel.bytes.writeBigUInt64LE(BigInt(RAM) | 0x701n, 0x3010); // a block where there are only pages
  kernel.bytes.write('page', 0x9004);
  const { memory } = kernel.open([]);
  const next = 2 ** 21;
  assert.equal(Buffer.from(memory.read(kernel.at(next + 4), 4)).toString(), 'page');
  assert.equal(memory.tryRead(kernel.at(next + 0x1000), 1), undefined);
  assert.equal(memory.translate(kernel.at(next + 0x2000)), undefined);
});

test('kernels that cannot be read are refused', () => {
  const { pages, note } = makeKernel();
  assert.throws(() => new GuestKernel(pages, undefined), { code: 'ZAZEN_GUEST_KERNEL', message: /no VMCOREINFO/ });
  assert.throws(() => new GuestKernel(pages, Uint8Array.of(1, 2, 3)), { code: 'ZAZEN_GUEST_KERNEL' });
  for (const line of ['PAGESIZE=0', 'PAGESIZE=8192', 'PAGESIZE=x', 'NUMBER(VA_BITS)=52', 'NUMBER(kimage_voffset)=y']) {
    const info = new Vmcoreinfo('test.core', note([line]));
    assert.throws(() => new GuestMemory(pages, info), { code: 'ZAZEN_GUEST_KERNEL' }, line);
  }
  const info = new Vmcoreinfo('test.core', note(['SYMBOL(prb)=-1', 'OFFSET(a.b)=7', 'NUMBER(n)=-129', 'SIZE(c)=']));
  assert.throws(() => info.symbol('prb'), { code: 'ZAZEN_GUEST_KERNEL' });
  assert.throws(() => info.symbol('none'), { code: 'ZAZEN_GUEST_KERNEL' });
  assert.throws(() => info.size('c'), { code: 'ZAZEN_GUEST_KERNEL' });
  assert.deepEqual([info.offset('a.b'), info.number('n')], [7, 2n ** 64n - 129n]);
});
