import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { ZazenError } from '../base/errors.ts';
import type { PrepareGuestOptions, PreparedGuest } from '../guest/initramfs.ts';
import { NO_FEATURES, NO_OFFLOAD } from '../network/frame-port.ts';
import { Network } from '../network/network.ts';
import { describeNetworks } from './info.ts';
import { FakeIo, runCli } from './test-io.ts';

const cacheDir = mkdtempSync(join(tmpdir(), 'zazen-info-'));
after(() => rmSync(cacheDir, { recursive: true, force: true }));

test('info tells what this machine gives, and what the cache has, spoilt entries left out', async () => {
  const io = new FakeIo();
  io.env['ZAZEN_CACHE_DIR'] = cacheDir;
  assert.match((await runCli(['info'], {}, io)).out, /guests +none yet; zazen guest fetch gets one\n/);
  const manifests = { cloud: '{"kernelRelease":"6.1.0-1-cloud-arm64"}', generic: '{spoilt' };
  for (const [name, manifest] of Object.entries(manifests)) {
    mkdirSync(join(cacheDir, 'guests', name), { recursive: true });
    writeFileSync(join(cacheDir, 'guests', name, 'manifest.json'), manifest);
  }
  const again = new FakeIo();
  again.env['ZAZEN_CACHE_DIR'] = cacheDir;
  const { status, out } = await runCli(['info', '--json'], {}, again);
  const facts = JSON.parse(out);
  assert.equal(status, 0);
  assert.deepEqual(facts.guests, [{ name: 'cloud', kernelRelease: '6.1.0-1-cloud-arm64' }]);
  assert.equal(facts.node.version, process.version);
  assert.deepEqual(Object.values(facts.disks).map((fact) => typeof fact), ['boolean', 'boolean', 'boolean']);
  // The Node that is pinned has all of them; a wrong probe would say no.
  const { memory4GiB, ...features } = facts.features;
  assert.equal(typeof memory4GiB, 'boolean');
  assert.deepEqual(features, { sharedMemory: true, tailCalls: true, simd: true, memory64: true });
});

const guest: PreparedGuest = {
  kernelPath: '/c/Image', modulesDir: '/c/modules', busyboxPath: '/c/busybox', initramfsPath: '/c/i.cpio',
  kernelRelease: '6.1.0', packages: [{ name: 'linux', version: '1' }, { name: 'busybox', version: '2' }],
  missingModules: [],
};

test('guest fetch passes its options on, tells the steps on stderr and the files on stdout', async () => {
  const asked: PrepareGuestOptions[] = [];
  const prepare = async (options: PrepareGuestOptions = {}): Promise<PreparedGuest> => {
    asked.push(options);
    options.log?.('fetching linux');
    return guest;
  };
  const plain = await runCli(['guest', 'fetch', '--flavour', 'generic', '--refresh'], {}, new FakeIo(), prepare);
  assert.deepEqual([plain.status, plain.err], [0, 'zazen: fetching linux\n']);
  assert.match(plain.out, /^kernel +\/c\/Image\n/);
  assert.match(plain.out, /packages +linux 1\n +busybox 2\n$/);
  assert.deepEqual([asked[0]!.flavour, asked[0]!.refresh], ['generic', true]);
  const json = await runCli(['guest', 'fetch', '--json'], {}, new FakeIo(), prepare);
  assert.deepEqual(JSON.parse(json.out), guest);
});

test('guest fetch: an error is one line, an interruption waits for the clean-up', async () => {
  const failing = async (): Promise<never> => {
    throw new ZazenError('ZAZEN_GUEST_DOWNLOAD', 'no network', { hint: 'try again' });
  };
  const failed = await runCli(['guest', 'fetch'], {}, new FakeIo(), failing);
  assert.deepEqual([failed.status, failed.out, failed.err], [1, '', 'zazen: no network; try again\n']);
  const io = new FakeIo();
  let cleaned = false;
  const slow = ({ signal }: PrepareGuestOptions = {}): Promise<never> => new Promise((_resolve, reject) => {
    signal!.addEventListener('abort', () => setImmediate(() => {
      cleaned = true;
      reject(new Error('a child process was ended'));
    }));
    setImmediate(() => io.interrupt());
  });
  const { status, err } = await runCli(['guest', 'fetch'], {}, io, slow);
  assert.deepEqual([status, err, cleaned], [130, 'zazen: ended by SIGINT\n', true]);
});

test('networks of a host: their cards and what they have moved', async () => {
  const network = Network.open({ outbound: false });
  const empty = Network.open({ outbound: false });
  const link = { features: NO_FEATURES, receive: () => true, writable: () => {} };
  const cards = ['00:16:3e:00:00:01', '00:16:3e:00:00:02'].map((mac) => network.attach(link, { mac }));
  // From the first card to the second.
  cards[0]!.send(Buffer.concat([Buffer.from('00163e00000200163e0000010800', 'hex'), Buffer.alloc(1010)]), NO_OFFLOAD);
  const text = describeNetworks({ blue: network.metrics(), green: empty.metrics() });
  assert.equal(text, 'blue: 2 cards, sent 1 KiB in 1 frames, received 1 KiB in 1, 0 dropped; 0 TCP connections, 0 UDP flows, 0 DNS questions\n'
    + 'green: 0 cards, sent 0 bytes in 0 frames, received 0 bytes in 0, 0 dropped; 0 TCP connections, 0 UDP flows, 0 DNS questions');
  await Promise.all([network.close(), empty.close()]);
});
