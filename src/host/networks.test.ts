import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { systemClock } from '../base/clock.ts';
import { SeededRandom } from '../base/random.ts';
import type { NetConnection } from '../devices/net/backend.ts';
import { parsePortForward } from '../network/port-forward.ts';
import { HostCore } from './host-core.ts';
import { untilChanged } from './network-thread.ts';
import type { HostCard } from './networks.ts';

const folder = mkdtempSync(join(tmpdir(), 'zazen-networks-'));
after(() => rmSync(folder, { recursive: true }));

/** Without pCPUs. */
function makeCore(): HostCore {
  return new HostCore({ memoryBytes: 256 * 2 ** 20, pcpus: 1, clock: systemClock, random: new SeededRandom(1), log: () => {} });
}

function attach({ networks }: HostCore, options: { mac?: string; address?: string; network?: string } = {}): HostCard {
  return networks.attach({ domid: 1, network: 'default', mac: '00:16:3e:00:00:01', name: 'guest', ...options });
}

const threadsNamed = (name: string): number =>
  process.getActiveResourcesInfo().filter((resource) => resource === name).length;

test('the network thread begins when it is needed, and ends with the host', async () => {
  const core = makeCore();
  const before = threadsNamed('MessagePort');
  assert.deepEqual(core.networks.metrics(), {});
  await core.networks.create({});
  assert.equal(threadsNamed('MessagePort'), before);
  await Promise.all([core.networks.begin(), core.networks.begin()]);
  attach(core);
  assert.deepEqual(Object.keys(core.networks.metrics()), ['default']);
  assert(core.networks.busyMillis > 0);
  await core.close();
  assert.deepEqual(core.networks.metrics(), {});
  // One that nobody has needed has nothing to end.
  await makeCore().close();
});

test('what an operator gets wrong is an error where he asks for it', async (t) => {
  const core = makeCore();
  t.after(() => core.close());
  const { networks } = core;
  const capturePath = join(folder, 'missing', 'a.pcap');
  await assert.rejects(networks.create({ a: { capturePath } }), { name: 'ZazenError', code: 'ZAZEN_CAPTURE_FILE', hint: /./ });
  await assert.rejects(networks.create({ b: { mtuBytes: 3 } }), { code: 'ZAZEN_NETWORK_MTU' });
  await assert.rejects(networks.create({ 'no/name': {} }), { code: 'ZAZEN_SPEC_NETWORK' });
  const captured = join(folder, 'b.pcap');
  await networks.create({ c: { capturePath: captured, mtuBytes: 9000 } });
  assert(existsSync(captured));
  const card = attach(core, { network: 'c' });
  assert.deepEqual([card.mac, card.mtuBytes], ['00:16:3e:00:00:01', 9000]);
  assert.throws(() => attach(core, { network: 'c' }), { name: 'ZazenError', code: 'ZAZEN_NETWORK_MAC_IN_USE' });
  assert.throws(() => attach(core, { address: '10.9.9.9' }), { code: 'ZAZEN_NETWORK_ADDRESS' });
  assert.throws(() => attach(core, { mac: '01:00:00:00:00:00' }), { code: 'ZAZEN_NETWORK_MAC' });
  // One that was refused is nowhere.
  assert.deepEqual(networks.metrics()['default']!.ports, []);
  card.close();
  assert.deepEqual(attach(core, { network: 'c' }).mac, card.mac);
});

test('forwards are opened and closed by the thread, and a port that somebody has is said so', async (t) => {
  const core = makeCore();
  t.after(() => core.close());
  await core.networks.begin();
  const card = attach(core);
  const taken = createServer().listen(0, '127.0.0.1');
  t.after(() => taken.close());
  await new Promise((resolve) => { taken.once('listening', resolve); });
  const { port } = taken.address() as AddressInfo;
  await assert.rejects(card.forward(parsePortForward(`${port}:80`)), { name: 'ZazenError', code: 'ZAZEN_PORT_IN_USE', hint: /./ });
  const active = await card.forward(parsePortForward('0:80'));
  assert(active.hostPort > 0);
  await assert.rejects(card.forward(parsePortForward(`${active.hostPort}:81`)), { code: 'ZAZEN_PORT_IN_USE' });
  await active.close();
  await active.close();
  const again = await card.forward(parsePortForward(`${active.hostPort}:81`));
  // They go with the card.
  card.close();
  const other = attach(core);
  assert.equal((await other.forward(parsePortForward(`${active.hostPort}:82`))).hostPort, again.hostPort);
  await again.close();
});

test('a bell of before is no answer', () => {
  const word = new Int32Array(new SharedArrayBuffer(4));
  const bells = ['ok', 'timed-out', 'ok'];
  untilChanged(word, 0, () => {
    if (bells.length === 1) word[0] = 1;
    return bells.shift()!;
  });
  assert.deepEqual(bells, []);
});

test('calls, one right after the other, each get their own answer', async (t) => {
  const core = makeCore();
  t.after(() => core.close());
  await core.networks.begin();
  const cards = Array.from({ length: 20 }, (_, i) => attach(core, { mac: `00:16:3e:00:00:${(i + 16).toString(16)}` }));
  for (let round = 0; round < 100; round++) {
    for (const card of cards) {
      assert.equal(core.networks.cardMetrics([card])[0]!.port.mac, card.mac);
      if (round % 10 === 0) core.networks.release([card]);
    }
  }
});

test('a card that is held has its state with it until it is released', async (t) => {
  const core = makeCore();
  t.after(() => core.close());
  await core.networks.begin();
  const card = attach(core);
  core.networks.hold([card], true);
  assert.deepEqual([card.held!.card.address, card.save()], [0x0a00020f, undefined]);
  core.networks.release([card]);
  assert.equal(card.held, undefined);
  core.networks.hold([card], false);
  assert.equal(card.held, undefined);
  const [metrics] = core.networks.cardMetrics([card]);
  assert.deepEqual([metrics!.port.address, metrics!.device.notifications], ['10.0.2.15', 0]);
  card.close();
  core.networks.release([]);
});

test('a card that cannot go on says so, unless it was told something else since', async (t) => {
  const core = makeCore();
  t.after(() => core.close());
  await core.networks.begin();
  const card = attach(core);
  // The guest is none that lives, and has no event channels.
  const connection: NetConnection = {
    queues: [{ txRef: 1, rxRef: 2, txPort: 3, rxPort: 3, txPosition: 0, rxPosition: 0 }], scatterGather: false,
    features: { checksumPartial: false, tsoV4: false, tsoV6: false },
  };
  let refused = 0;
  card.goOn(connection, () => { refused++; });
  assert(card.isConnected);
  card.goOn(connection, () => { refused += 10; });
  card.wake();
  await new Promise((resolve) => { card.goOn(connection, () => resolve(undefined)); });
  assert.deepEqual([refused, card.isConnected, card.connect(connection)], [0, false, false]);
  card.goOn(connection, () => { refused++; });
  card.disconnect();
  await card.forward(parsePortForward('0:80'));
  assert.equal(refused, 0);
  const [metrics] = core.networks.detach([card]);
  assert.equal(metrics!.port.mac, card.mac);
  card.close();
  await assert.rejects(card.forward(parsePortForward('0:80')), { code: 'ZAZEN_NIC_UNKNOWN' });
});
