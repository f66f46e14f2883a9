import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ZazenError } from '../base/errors.ts';
import type { BuildRootOptions, BuiltRoot } from '../guest/build-root.ts';
import type { DomainSpec } from '../host/types.ts';
import { FakeIo, runCli } from './test-io.ts';

const notFetched = async (): Promise<never> => { throw new Error('not to be fetched here'); };

test('guest build passes packages and size on, and tells what it made', async () => {
  const asked: { path: string; options: BuildRootOptions }[] = [];
  const build = async (path: string, options: BuildRootOptions = {}): Promise<BuiltRoot> => {
    asked.push({ path, options });
    options.log?.('fetching fio');
    return { path: '/d/root.ext4', sizeBytes: 3 * 2 ** 30, packages: [{ name: 'bash', version: '1' }, { name: 'fio', version: '2' }] };
  };
  const words = ['guest', 'build', 'root.ext4', 'fio', 'curl', '--size', '3GiB', '--refresh'];
  const { status, out, err } = await runCli(words, {}, new FakeIo(), notFetched, build);
  assert.deepEqual([status, err], [0, 'zazen: fetching fio\n']);
  assert.match(out, /^file +\/d\/root\.ext4\nsize +3221225472 bytes\npackages +2\n$/);
  const { path, options: { packages, sizeBytes, refresh } } = asked[0]!;
  assert.deepEqual([path, packages, sizeBytes, refresh], ['root.ext4', ['fio', 'curl'], 3 * 2 ** 30, true]);
  const json = await runCli(['guest', 'build', 'root.ext4', '--json'], {}, new FakeIo(), notFetched, build);
  assert.deepEqual(JSON.parse(json.out).packages[1], { name: 'fio', version: '2' });
  assert.deepEqual([asked[1]!.options.packages, asked[1]!.options.sizeBytes], [[], undefined]);
});

test('guest build: mistakes are told in one line', async () => {
  assert.equal((await runCli(['guest', 'build'])).status, 2);
  assert.equal((await runCli(['guest', 'build', 'x', '--size', 'large'])).status, 2);
  const build = async (): Promise<never> => {
    throw new ZazenError('ZAZEN_GUEST_TOOL', 'mkfs.ext4 is not installed', { hint: 'install e2fsprogs' });
  };
  const failed = await runCli(['guest', 'build', 'x'], {}, new FakeIo(), notFetched, build);
  assert.deepEqual([failed.status, failed.err], [1, 'zazen: mkfs.ext4 is not installed; install e2fsprogs\n']);
});

test('run --root: the first disk, named on the kernel command line', async () => {
  const specs: DomainSpec[] = [];
  const create = async (spec: DomainSpec): Promise<void> => { specs.push(spec); };
  const guest = (): void => {};
  for (const words of [['--root', '/r.ext4'], ['--root', '/r.ext4,raw,xvdf,ro', '--disk', '/d.img', '--cmdline', 'quiet']]) {
    await runCli(['run', ...words, '--timeout', '0.01', '--exec', 'true'], { guest, create });
  }
  assert.deepEqual(specs[0]!.disks, [{ path: '/r.ext4', target: 'xvda' }]);
  assert.match(specs[0]!.cmdline!, /(^| )root=\/dev\/xvda( |$)/);
  assert.deepEqual(specs[1]!.disks, [{ path: '/r.ext4', format: 'raw', target: 'xvdf', readOnly: true }, { path: '/d.img' }]);
  assert.match(specs[1]!.cmdline!, /(^| )root=\/dev\/xvdf ro quiet$/);
});
