import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import fc from 'fast-check';
import { SeededRandom } from '../base/random.ts';
import { BootFiles } from './boot-images.ts';
import { planDomain } from './domain-spec.ts';
import type { DomainPlan } from './domain-spec.ts';
import { formatSize, parseSize } from './size.ts';
import type { DomainSpec } from './types.ts';

const dir = mkdtempSync(join(tmpdir(), 'zazen-spec-'));
after(() => rmSync(dir, { recursive: true, force: true }));

/** The least that passes for an arm64 Image: a header. */
const kernel = join(dir, 'Image');
const header = Buffer.alloc(4096);
header.writeUInt32LE(0x644d5241, 0x38);
header.writeBigUInt64LE(4096n, 0x10);
writeFileSync(kernel, header);
const initrd = join(dir, 'initrd');
writeFileSync(initrd, 'cpio?'); // of a length that is no multiple of four
const large = join(dir, 'large');
writeFileSync(large, '');
truncateSync(large, 2 ** 30);

/** Nothing is fetched: kernel and initramfs are files, unless the spec says otherwise. */
function plan(spec: DomainSpec): Promise<DomainPlan> {
  return planDomain({ kernel, initrd, ...spec }, { files: new BootFiles(), random: new SeededRandom(1), cacheDir: join(dir, 'cache') });
}

test('sizes: units are powers of 1024, no unit is MiB, numbers are bytes, all in whole pages', () => {
  const same: readonly (readonly [string | number, number])[] = [
    ['400MiB', 400 * 2 ** 20], ['400M', 400 * 2 ** 20], ['400', 400 * 2 ** 20], ['400 mb', 400 * 2 ** 20],
    ['1GiB', 2 ** 30], ['0.5g', 2 ** 29], ['1.5GiB', 1.5 * 2 ** 30], ['64k', 65536], [4097, 8192], ['5K', 8192],
  ];
  for (const [text, bytes] of same) assert.equal(parseSize(text), bytes, String(text));
  for (const wrong of [
    '', 'much', '-1', '0', '1X', '1e9', '1 2', 'MiB', '9999999TiB', 0, -4096, Number.NaN, Infinity,
  ]) {
    assert.throws(() => parseSize(wrong), { code: 'ZAZEN_SPEC_SIZE' }, String(wrong));
  }
  fc.assert(fc.property(fc.integer({ min: 1, max: 2 ** 40 }), (bytes) => {
    const size = parseSize(bytes);
    assert.ok(size >= bytes && size < bytes + 4096 && size % 4096 === 0);
    // What is shown can be given back, to the digits shown.
    assert.ok(Math.abs(parseSize(formatSize(size).replace(' bytes', '').replace(/^(\d+)$/, '$1K')) / size - 1) < 0.06
      || size < 1024);
  }));
  assert.equal(formatSize(400 * 2 ** 20), '400 MiB');
  assert.equal(formatSize(1.5 * 2 ** 30), '1.5 GiB');
});

test('the defaults', async () => {
  const made = await plan({});
  assert.deepEqual({ ...made, kernel: made.kernel.imageSize, initramfs: made.initramfs!.sizeBytes }, {
    name: undefined, type: 'pvh', uuid: made.uuid, memoryBytes: 400 * 2 ** 20, vcpus: 1, cmdline: 'console=hvc0',
    paused: false, share: { weight: 256, capPercent: 0 }, nics: [], kernel: 4096, initramfs: 5, exec: undefined,
  });
  assert.match(made.uuid, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  assert.equal((await plan({ initrd: 'none' })).initramfs, undefined);
  assert.equal((await plan({ uuid: 'AAAAAAAA-0000-0000-0000-000000000000' })).uuid,
    'aaaaaaaa-0000-0000-0000-000000000000');
});

test('the command line: the caller\'s words come last', async () => {
  const made = await plan({
    name: 'web', cmdline: ' quiet console=ttyAMA0 ', exec: 'echo hi',
    terminal: { rows: 24, columns: 80, type: 'vt100' },
  });
  const nonce = made.exec!.nonce;
  assert.match(nonce, /^[0-9a-f]{32}$/);
  assert.deepEqual(made.cmdline.split(' '), [
    'console=hvc0', 'panic=-1', `zazen.nonce=${nonce}`, 'zazen.tty=pipe',
    `zazen.exec=${Buffer.from('echo hi').toString('base64')}`, 'zazen.winsize=24x80', 'zazen.term=vt100',
    'zazen.hostname=web', 'quiet', 'console=ttyAMA0',
  ]);
  assert.equal(made.exec!.tty, 'pipe');
});

test('a long command goes into an archive after the initramfs, at a multiple of four bytes', async () => {
  const command = `echo ${'x'.repeat(100_000)}`;
  const made = await plan({ exec: { command, tty: 'raw' } });
  assert.ok(made.cmdline.length < 200 && !made.cmdline.includes('zazen.exec'));
  const initramfs = Buffer.from(made.initramfs!.bytes!);
  assert.equal(initramfs.toString('latin1', 0, 14), `cpio?${'\0'.repeat(3)}070701`);
  assert.ok(initramfs.includes('etc/zazen/command\0') && initramfs.includes(command));
});

const refused: readonly (readonly [DomainSpec, string])[] = [
  [{ name: '' }, 'ZAZEN_SPEC_NAME'],
  [{ name: '12' }, 'ZAZEN_SPEC_NAME'],
  [{ name: 'a/b' }, 'ZAZEN_SPEC_NAME'],
  [{ name: 'x'.repeat(65) }, 'ZAZEN_SPEC_NAME'],
  [{ uuid: 'no' }, 'ZAZEN_SPEC_UUID'],
  [{ memory: 'lots' }, 'ZAZEN_SPEC_SIZE'],
  [{ vcpus: 0 }, 'ZAZEN_SPEC_VCPUS'],
  [{ vcpus: 1.5 }, 'ZAZEN_SPEC_VCPUS'],
  [{ vcpus: 65 }, 'ZAZEN_SPEC_VCPUS'],
  [{ cpuWeight: 0 }, 'ZAZEN_SPEC_CPU_SHARE'],
  [{ cpuWeight: 65_536 }, 'ZAZEN_SPEC_CPU_SHARE'],
  [{ cpuCapPercent: -1 }, 'ZAZEN_SPEC_CPU_SHARE'],
  [{ cpuCapPercent: 0.5 }, 'ZAZEN_SPEC_CPU_SHARE'],
  [{ exec: ' ' }, 'ZAZEN_SPEC_EXEC'],
  [{ exec: 'a\0b' }, 'ZAZEN_SPEC_EXEC'],
  [{ exec: 'a', initrd: 'none' }, 'ZAZEN_SPEC_EXEC'],
  [{ exec: { command: 'a', tty: 'soft' as 'raw' } }, 'ZAZEN_SPEC_EXEC'],
  [{ cmdline: 'a\nb' }, 'ZAZEN_SPEC_CMDLINE'],
  [{ cmdline: 'x'.repeat(2040) }, 'ZAZEN_SPEC_CMDLINE'],
  [{ terminal: { rows: 0, columns: 80 } }, 'ZAZEN_SPEC_TERMINAL'],
  [{ terminal: { rows: 24, columns: 80, type: 'a b' } }, 'ZAZEN_SPEC_TERMINAL'],
  [{ nics: [{ mac: 'x' }] }, 'ZAZEN_SPEC_NIC'],
  [{ nics: Array.from({ length: 9 }, () => ({})) }, 'ZAZEN_SPEC_NIC'],
  [{ nics: [{ network: '' }] }, 'ZAZEN_SPEC_NETWORK'],
  [{ initrd: join(dir, 'absent') }, 'ZAZEN_INITRD_UNREADABLE'],
  [{ initrd: dir }, 'ZAZEN_INITRD_UNREADABLE'],
  [{ initrd: '/dev/zero' }, 'ZAZEN_INITRD_UNREADABLE'],
  [{ kernel: '/dev/zero' }, 'ZAZEN_KERNEL_UNREADABLE'],
  [{ kernel: large }, 'ZAZEN_KERNEL_TOO_LARGE'],
  [{ initrd: large }, 'ZAZEN_INITRD_TOO_LARGE'],
  [{ kernel: join(dir, 'absent') }, 'ZAZEN_KERNEL_UNREADABLE'],
  [{ kernel: initrd }, 'ZAZEN_KERNEL_NOT_A_KERNEL'],
];

for (const [spec, code] of refused) {
  test(`refused with ${code}: ${JSON.stringify(spec).slice(0, 60)}`, async () => {
    await assert.rejects(plan(spec), (error: Error & { code?: string }) => {
      assert.equal(error.code, code);
      assert.ok(!error.message.includes('\n') || spec.cmdline !== undefined);
      return true;
    });
  });
}

test('an aborted create reads nothing', async () => {
  const signal = AbortSignal.abort(new Error('enough'));
  await assert.rejects(planDomain({ kernel, initrd }, { files: new BootFiles(), random: new SeededRandom(1), signal }), /enough/);
});
