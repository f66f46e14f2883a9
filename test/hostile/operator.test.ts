// Mistakes of the person who creates a guest: each gets one line with a stable code, and leaves nothing behind.

import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { SeededRandom } from '../../src/base/random.ts';
import { Host, ZazenError } from '../../src/host/index.ts';
import type { DomainSpec, HostOptions } from '../../src/host/index.ts';
import { MEMORY, bareMetalImage } from '../bare-metal.ts';
import { until } from '../waiting.ts';
import { Arena } from './arena.ts';

/** More than it has is asked for. */
const HOST_MEMORY = '512MiB';

let arena: Arena;
let directory: string;
let freeBytes: number;
before(async () => {
  arena = await Arena.open(HOST_MEMORY);
  await arena.settle();
  freeBytes = free();
  // Threads begin when there are vCPUs for them, and are not what a refused domain leaves behind.
  const { pcpus } = arena.host.stats();
  const first = await arena.host.create({ kernel: arena.file(good()), initrd: 'none', memory: MEMORY, vcpus: pcpus.length, paused: true });
  await first.destroy();
  await until('all memory is given back', () => free() === freeBytes);
  directory = mkdtempSync(join(tmpdir(), 'zazen-operator-'));
});
after(async () => {
  await arena.close();
  rmSync(directory, { recursive: true });
});

/** With what the host keeps for the next domain. */
function free(): number {
  const { freeBytes: unused, cachedBytes } = arena.host.stats();
  return unused + cachedBytes;
}

const good = (): Uint8Array => bareMetalImage({});
const workers = (): number => process.getActiveResourcesInfo().filter(name => /worker|messageport/i.test(name)).length;

function isOneLine(error: unknown, code: string | RegExp): true {
  assert.ok(error instanceof ZazenError, `not a ZazenError: ${String(error)}`);
  assert.match(error.code, typeof code === 'string' ? new RegExp(`^${code}$`) : code);
  for (const text of [error.message, error.hint ?? '']) assert.doesNotMatch(text, /\p{Cc}/u, 'more than a line');
  assert.ok(error.message.length > 10, error.message);
  return true;
}

/** `create` fails with this code, and everything is as before. */
async function refused(code: string | RegExp, spec: DomainSpec): Promise<void> {
  const earlier = { domains: arena.host.stats().domains, workers: workers() };
  const complete = { initrd: 'none', memory: MEMORY, ...spec, kernel: spec.kernel ?? arena.file(good()) };
  await assert.rejects(arena.host.create(complete), error => isOneLine(error, code));
  await arena.audit();
  assert.equal(arena.host.stats().domains, earlier.domains);
  await until('all memory is given back', () => free() === freeBytes);
  assert.equal(workers(), earlier.workers);
}

const bytes = (sizeBytes: number, put: (view: Buffer) => void): Uint8Array => {
  const view = Buffer.alloc(sizeBytes);
  put(view);
  return view;
};

const kernels: Readonly<Record<string, readonly [code: string, file: () => Uint8Array]>> = {
  'an empty file': ['ZAZEN_KERNEL_UNREADABLE', () => new Uint8Array(0)],
  'a few bytes': ['ZAZEN_KERNEL_NOT_A_KERNEL', () => new Uint8Array(20)],
  'zeros': ['ZAZEN_KERNEL_NOT_A_KERNEL', () => new Uint8Array(100_000)],
  'text': ['ZAZEN_KERNEL_NOT_A_KERNEL', () => Buffer.from('#!/bin/sh\necho no kernel\n'.repeat(100))],
  'an x86 bzImage': ['ZAZEN_KERNEL_OTHER_MACHINE', () => bytes(4096, view => { view.write('MZ', 0); view.write('HdrS', 0x202); })],
  'an x86-64 ELF file': ['ZAZEN_KERNEL_OTHER_MACHINE', () => bytes(4096, view => {
    view.write('\x7fELF\x02\x01\x01', 0, 'latin1');
    view.writeUInt16LE(62, 18);
  })],
  'an arm64 ELF file': ['ZAZEN_KERNEL_NOT_A_KERNEL', () => bytes(4096, view => {
    view.write('\x7fELF\x02\x01\x01', 0, 'latin1');
    view.writeUInt16LE(183, 18);
  })],
  'a RISC-V Image': ['ZAZEN_KERNEL_OTHER_MACHINE', () => bytes(4096, view => view.writeUInt32LE(0x0543_5352, 0x38))],
  'an Image cut in its header': ['ZAZEN_KERNEL_NOT_A_KERNEL', () => good().subarray(0, 50)],
  'a gzip file cut short': ['ZAZEN_KERNEL_TRUNCATED', () => gzipSync(new Uint8Array(good())).subarray(0, 60)],
  'a gzip file of something else': ['ZAZEN_KERNEL_NOT_A_KERNEL', () => gzipSync('hello '.repeat(1000))],
  'a big-endian Image': ['ZAZEN_KERNEL_BIG_ENDIAN', () => { const image = good(); image[0x18]! |= 1; return image; }],
  'an Image with pages of 64 KiB': ['ZAZEN_KERNEL_PAGE_SIZE', () => { const image = good(); image[0x18] = 6; return image; }],
  'an Image that wants 3 GiB': ['ZAZEN_KERNEL_TOO_LARGE', () => { const image = good(); image[0x13] = 0xc0; return image; }],
  'an Image with an absurd size': ['ZAZEN_KERNEL_CORRUPT', () => { const image = good(); image.fill(0xff, 0x10, 0x18); return image; }],
  'an Image with an absurd offset': ['ZAZEN_KERNEL_CORRUPT', () => { const image = good(); image.fill(0xff, 8, 0x10); return image; }],
};

for (const [what, [code, file]] of Object.entries(kernels)) {
  test(`the kernel is ${what}`, () => refused(code, { kernel: arena.file(file()) }));
}

test('the kernel is random bytes behind a valid start, or a valid kernel with random bytes in its header, seed 51', async () => {
  const dice = new SeededRandom(51);
  const starts = [[0x4d, 0x5a], [0x1f, 0x8b, 8], [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0], [0x28, 0xb5, 0x2f, 0xfd], [0x7f, 0x45, 0x4c, 0x46],
    [...Buffer.from('MZ\0\0zimg')]];
  for (const start of starts) {
    for (let round = 0; round < 5; round++) {
      const file = Uint8Array.from({ length: 64 + dice.below(4000) }, () => dice.below(256));
      file.set(start);
      await refused(/^ZAZEN_KERNEL_/, { kernel: arena.file(file) });
    }
  }
  for (let round = 0; round < 30; round++) {
    const file = good();
    for (let change = 0; change < 4; change++) file[8 + dice.below(52)] = dice.below(256);
    try {
      await arena.survive(await arena.host.create({ kernel: arena.file(file), initrd: 'none', memory: MEMORY }));
    } catch (error) {
      isOneLine(error, /^ZAZEN_(KERNEL|MEMORY)_/);
    }
  }
});

test('a kernel or an initramfs that cannot be read', async () => {
  mkdirSync(join(directory, 'folder'));
  const paths = [join(directory, 'folder'), join(directory, 'none'), join(arena.file(good()), 'below-a-file'), 'a\0b', 'two\nlines',
    `/${'long'.repeat(2000)}`, '/dev/zero', '/proc/self/maps'];
  for (const path of paths) {
    await refused('ZAZEN_KERNEL_UNREADABLE', { kernel: path });
    await refused('ZAZEN_INITRD_UNREADABLE', { initrd: path });
  }
  await refused('ZAZEN_KERNEL_UNREADABLE', { kernel: '' });
  await refused('ZAZEN_INITRD_UNREADABLE', { initrd: '' });
  await refused('ZAZEN_INITRD_UNREADABLE', { initrd: arena.file(new Uint8Array(0)) });
});

test('memory that is too little, too much, or no size', async () => {
  for (const memory of [1, '4KiB', '1MiB', '2MiB', '16MiB', 2 ** 20]) {
    await refused(/^ZAZEN_(KERNEL_TOO_LARGE|MEMORY_TOO_SMALL)$/, { memory });
  }
  await refused('ZAZEN_INITRD_TOO_LARGE', { initrd: arena.file(new Uint8Array(64 * 2 ** 20)) });
  await refused('ZAZEN_HOST_OUT_OF_MEMORY', { memory: '1GiB' });
  await refused(/^ZAZEN_(MEMORY_SIZE|HOST_OUT_OF_MEMORY)$/, { memory: '1023TiB' });
  for (const memory of [0, -1, Number.NaN, Infinity, '', 'much', '-5', '4 apples', '0', '1e9', '9'.repeat(400)]) {
    await refused('ZAZEN_SPEC_SIZE', { memory });
  }
});

test('vCPUs, names, identifiers, command lines and terminals that cannot be', async () => {
  for (const vcpus of [0, -1, 1.5, 65, 1000, Number.NaN, 2 ** 40]) await refused('ZAZEN_SPEC_VCPUS', { vcpus });
  for (const name of ['', 'a b', '17', 'a/b', 'n'.repeat(65), 'a\nb', 'ä', '\0']) await refused('ZAZEN_SPEC_NAME', { name });
  await refused('ZAZEN_DOMAIN_NAME_TAKEN', { name: 'witness' });
  for (const uuid of ['', 'x', '12345678-1234-1234-1234-12345678901', '\n']) await refused('ZAZEN_SPEC_UUID', { uuid });
  for (const cmdline of ['a\nb', 'a\0b', 'long '.repeat(500)]) await refused('ZAZEN_SPEC_CMDLINE', { cmdline });
  for (const exec of ['', '  ', 'a\0b', 'true']) await refused('ZAZEN_SPEC_EXEC', { exec });
  for (const [rows, columns, type] of [[0, 80, 'xterm'], [24, -1, 'xterm'], [24, 80, 'two words'], [1e9, 80, 'a']] as const) {
    await refused('ZAZEN_SPEC_TERMINAL', { terminal: { rows, columns, type } });
  }
});

test('two guests of one name at once: one of them is refused', async () => {
  const spec = { kernel: arena.file(good()), initrd: 'none', memory: MEMORY, name: 'twin' };
  const results = await Promise.allSettled([arena.host.create(spec), arena.host.create(spec)]);
  assert.deepEqual(results.map(result => result.status).toSorted(), ['fulfilled', 'rejected']);
  for (const result of results) {
    if (result.status === 'rejected') isOneLine(result.reason, 'ZAZEN_DOMAIN_NAME_TAKEN');
    else await arena.survive(result.value);
  }
});

test('an aborted creation leaves nothing', async () => {
  await assert.rejects(arena.host.create({ kernel: arena.file(good()), initrd: 'none' }, { signal: AbortSignal.abort(new Error('enough')) }),
    /enough/);
  await arena.audit();
});

test('as many guests as the host can have: the one too many is refused, and there is room again afterwards', async () => {
  const kernel = arena.file(good());
  const spec = { kernel, initrd: 'none', memory: MEMORY, vcpus: 64, paused: true };
  const guests = [];
  let refusal: unknown;
  while (refusal === undefined && guests.length < 3000) {
    try {
      guests.push(await arena.host.create(spec));
    } catch (error) {
      refusal = error;
    }
  }
  isOneLine(refusal, /^ZAZEN_(DOMAIN_LIMIT|HOST_OUT_OF_MEMORY)$/);
  assert.ok(guests.length > 0);
  await arena.audit();
  for (const guest of guests) await guest.destroy();
  await arena.audit();
  await arena.survive(await arena.host.create({ ...spec, paused: false }));
});

test('everything can be asked of a guest that is gone', async () => {
  const guest = await arena.start({});
  await guest.destroy();
  await guest.destroy();
  for (const verb of ['pause', 'unpause', 'shutdown'] as const) {
    await assert.rejects(guest[verb](), error => isOneLine(error, 'ZAZEN_DOMAIN_GONE'));
  }
  assert.equal(await guest.waitForShutdown(), 'destroyed');
  assert.equal(guest.stats().state, 'destroyed');
  guest.console.on('error', () => {}).write('nobody reads this');
});

test('a host that cannot be, and one that is closed', async () => {
  const earlier = workers();
  const cases: [string | RegExp, HostOptions][] = [
    ['ZAZEN_SPEC_PCPUS', { pcpus: 0 }], ['ZAZEN_SPEC_PCPUS', { pcpus: 1.5 }], ['ZAZEN_SPEC_PCPUS', { pcpus: 1000 }],
    ['ZAZEN_SPEC_SIZE', { memory: 'much' }], ['ZAZEN_SPEC_SIZE', { memory: -1 }],
    ['ZAZEN_HOST_MEMORY_SIZE', { memory: 1 }], ['ZAZEN_HOST_MEMORY_SIZE', { memory: '1MiB' }],
    [/^ZAZEN_HOST_MEMORY_/, { memory: '100GiB' }], [/^ZAZEN_HOST_MEMORY_/, { memory: '900TiB' }],
  ];
  for (const [code, options] of cases) await assert.rejects(Host.start(options), error => isOneLine(error, code));
  assert.equal(workers(), earlier);
  const host = await Host.start({ memory: '384MiB', pcpus: 1 });
  await Promise.all([host.close(), host.close()]);
  await assert.rejects(host.create({}), error => isOneLine(error, 'ZAZEN_HOST_CLOSED'));
  await assert.rejects(host.audit(), error => isOneLine(error, 'ZAZEN_HOST_CLOSED'));
  assert.equal(workers(), earlier);
});
