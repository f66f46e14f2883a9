import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import type { TestContext } from 'node:test';
import { BLKIF_OP } from '../../abi/xen-block.ts';
import { XENBUS } from '../../abi/xenbus.ts';
import { Store } from '../../xenstore/store.ts';
import { BlockDevice } from './device.ts';
import type { BlockDeviceState } from './device.ts';
import { Disk } from './disk.ts';
import type { DiskState } from './disk.ts';
import { HolePuncher } from './hole-puncher.ts';
import { openDisk } from './open-disk.ts';
import { rawFile, testFolder } from './test-disks.ts';
import { TestGuest, TestRing } from './test-front-end.ts';
import { freeDevice, virtualDevice } from './vdev.ts';

const FRONT = '/local/domain/7/device/vbd/51712';
const BACK = '/local/domain/7/backends/vbd/51712';

async function setUp(t: TestContext, options: { isReadOnly?: boolean; persistent?: boolean } = {}) {
  const path = await rawFile(await testFolder(t), 2 ** 20);
  const store = new Store();
  store.write('/local/domain/7', '');
  store.domainIntroduced(7);
  const guest = new TestGuest(64);
  guest.grantAll(20, 20);
  const disk = await openDisk({ path, format: 'raw', isReadOnly: options.isReadOnly });
  const device = new BlockDevice({ bus: guest, store, disk, device: virtualDevice('xvda'), path, persistent: options.persistent });
  t.after(() => device.close('keep'));
  const state = () => Number(store.read(`${BACK}/state`));
  const connect = (entries: Record<string, number | string> = { 'ring-ref': 1 }): TestRing => {
    const pages = Array.from({ length: Number(entries['ring-page-order'] ?? 0) === 1 ? 2 : 1 }, (_, i) => i + 1);
    const ring = new TestRing(guest, pages);
    const all = { 'event-channel': 9, protocol: 'arm-abi', ...entries, state: XENBUS.initialised };
    for (const [name, value] of Object.entries(all)) store.write(`${FRONT}/${name}`, String(value));
    return ring;
  };
  const transfer = async (ring: TestRing, operation: number, sector: number, of = guest): Promise<number> => {
    ring.request(operation, sector, [{ ref: 20, first: 0, last: 7 }]);
    of.callback!();
    for (;; await turn()) {
      const [response] = ring.responses();
      if (response !== undefined) return response.status;
    }
  };
  return { path, store, guest, disk, device, state, connect, transfer };
}

test('a front end finds all that it looks for, connects, and transfers', async (t) => {
  const { store, guest, device, state, connect, transfer } = await setUp(t);
  assert.equal(state(), XENBUS.initWait);
  const entries = Object.fromEntries(store.list(BACK)!.map((name) => [name, store.read(`${BACK}/${name}`)]));
  const discard = HolePuncher.isAvailable
    ? { 'feature-discard': '1', 'discard-granularity': '65536', 'discard-alignment': '0', 'discard-secure': '0' } : { 'feature-discard': '0' };
  assert.deepEqual({ ...entries, params: '' }, {
    frontend: FRONT, 'frontend-id': '7', online: '1', removable: '0', bootable: '1', dev: 'xvda', type: 'phy', mode: 'w',
    'device-type': 'disk', params: '', 'hotplug-status': 'connected', 'feature-flush-cache': '1', 'feature-barrier': '1',
    'feature-persistent': '0', 'feature-max-indirect-segments': '256', 'max-ring-page-order': '4', ...discard,
    'sector-size': '512', 'physical-sector-size': '4096', sectors: '2048', info: '0', state: '2',
  });
  assert.equal(store.read(`${FRONT}/backend`), 'backends/vbd/51712');
  assert.deepEqual(store.getPerms(FRONT), ['n7']);
  assert.deepEqual(store.getPerms(`${BACK}/sectors`), ['n0', 'r7']);
  const ring = connect();
  assert.equal(state(), XENBUS.connected);
  guest.page(20).fill(0xab);
  assert.equal(await transfer(ring, BLKIF_OP.write, 8), 0);
  guest.page(20).fill(0);
  assert.equal(await transfer(ring, BLKIF_OP.read, 8), 0);
  assert.ok(guest.page(20).every((byte) => byte === 0xab));
  assert.equal(device.metrics.writes, 1);
});

test('a front end may close and come again, with another kind of ring', async (t) => {
  const { store, guest, state, connect, transfer } = await setUp(t, { persistent: true });
  connect();
  store.write(`${FRONT}/state`, String(XENBUS.closing));
  assert.equal(state(), XENBUS.closing);
  assert.equal(guest.callback, undefined);
  store.write(`${FRONT}/state`, String(XENBUS.closed));
  assert.equal(state(), XENBUS.closed);
  assert.equal(guest.inUse, 0);
  store.write(`${FRONT}/state`, String(XENBUS.initialising));
  assert.equal(state(), XENBUS.initWait);
  const ring = connect({ 'ring-page-order': 1, 'ring-ref0': 1, 'ring-ref1': 2, 'feature-persistent': 1 });
  assert.equal(state(), XENBUS.connected);
  assert.equal(await transfer(ring, BLKIF_OP.read, 0), 0);
  assert.equal(guest.inUse, 3, 'a ring of two pages, and the data page stays');
});

test('a front end that cannot be connected is refused, and harms nobody', async (t) => {
  const { store, guest, state, connect } = await setUp(t);
  const refused: Record<string, number | string>[] = [
    { 'ring-ref': 4_000_000 }, { 'ring-ref': '1; rm' }, { 'ring-ref': -1 }, { 'ring-page-order': 9 },
    { 'ring-page-order': 1, 'ring-ref0': 1 }, { 'ring-ref': 1, protocol: 'x86_32-abi' }, { 'ring-ref': 1, 'event-channel': 'nine' },
    { 'ring-ref': '99999999999999999999' },
  ];
  for (const entries of refused) {
    for (const name of store.list(FRONT)!) if (name.startsWith('ring-')) store.rm(`${FRONT}/${name}`);
    connect(entries);
    assert.equal(state(), XENBUS.closed, JSON.stringify(entries));
    assert.equal(guest.inUse, 0);
    store.write(`${FRONT}/state`, String(XENBUS.initialising));
  }
  guest.isBindRefused = true;
  connect();
  assert.equal(state(), XENBUS.closed);
  assert.equal(guest.inUse, 0);
  store.rm(FRONT);
  assert.equal(state(), XENBUS.closed);
});

test('resized, the guest is told', async (t) => {
  const { store, device, state, connect, transfer } = await setUp(t);
  const ring = connect();
  let told = 0;
  store.watch(`${BACK}/state`, () => told++);
  told = 0;
  await device.resize(2 ** 21);
  assert.equal(store.read(`${BACK}/sectors`), '4096');
  assert.equal(told, 1);
  assert.equal(state(), XENBUS.connected);
  assert.equal(await transfer(ring, BLKIF_OP.write, 4088), 0);
  await assert.rejects(device.resize(1000), { code: 'ZAZEN_DISK_SIZE' });
});

test('detached, the guest lets go first', async (t) => {
  const { store, device, state, connect } = await setUp(t);
  connect();
  const gone = device.askToDetach();
  assert.equal(store.read(`${BACK}/online`), '0');
  assert.equal(state(), XENBUS.closing);
  store.write(`${FRONT}/state`, String(XENBUS.closing));
  store.write(`${FRONT}/state`, String(XENBUS.closed));
  await gone;
  await device.close('remove');
  assert.ok(!store.exists(FRONT) && !store.exists(BACK));
});

test('paused, frozen, rolled back and forked', async (t) => {
  const { path, store, guest, disk, device, connect, transfer } = await setUp(t);
  const ring = connect();
  guest.page(20).fill(1);
  assert.equal(await transfer(ring, BLKIF_OP.write, 0), 0);
  await device.pause();
  device.letGo();
  assert.equal(guest.inUse, 0);
  const state: BlockDeviceState = structuredClone(device.save());
  const frozen: DiskState = disk.freeze();
  const frozenMemory = guest.memory.slice();
  // This one is in the ring, and not taken yet.
  device.resume();
  guest.page(20).fill(2);
  assert.equal(await transfer(ring, BLKIF_OP.write, 0), 0);

  const twin = new TestGuest(64);
  twin.grantAll(20, 20);
  twin.memory.set(frozenMemory);
  const twinRing = new TestRing(twin, [1], 1);
  const twinStore = new Store();
  twinStore.write('/local/domain/7', '');
  twinStore.domainIntroduced(7);
  for (const root of [FRONT, BACK]) {
    twinStore.mkdir(root);
    twinStore.restoreSnapshot(root, twinStore.snapshotOf(store.dump(root)!)!);
  }
  const forked = (memoryReady?: Promise<unknown>): BlockDevice => new BlockDevice({
    bus: twin, store: twinStore, disk: Disk.fork(frozen), device: virtualDevice('xvda'), path, state, memoryReady,
  });
  const shortLived = forked();
  await shortLived.pause();
  assert.deepEqual(shortLived.save(), state, 'a checkpoint right after a fork has the ring, though it connects a moment later');
  await shortLived.close('keep');
  const unborn = forked();
  await unborn.close('keep');
  await turn();
  assert.equal(twin.inUse, 0, 'one that is closed before does not connect');
  twin.notifications = 0;
  const memory = Promise.withResolvers<void>();
  const early = forked(memory.promise);
  await turn();
  await turn();
  assert.equal(twin.inUse + twin.notifications, 0, 'while its memory is being read, its ring is left alone');
  memory.resolve();
  while (twin.inUse === 0) await turn();
  assert.equal(twin.notifications, 1, 'then it connects');
  await early.close('keep');
  twin.notifications = 0;
  const fork = forked();
  await turn();
  assert.equal(twin.notifications, 1, 'in case an event was on its way');
  assert.equal(await transfer(twinRing, BLKIF_OP.read, 0, twin), 0);
  assert.ok(twin.page(20).every((byte) => byte === 1));
  twin.page(20).fill(3);
  assert.equal(await transfer(twinRing, BLKIF_OP.write, 0, twin), 0);
  await fork.close('remove');

  assert.equal(await transfer(ring, BLKIF_OP.read, 0), 0);
  assert.ok(guest.page(20).every((byte) => byte === 2), 'a fork writes to a layer of its own');

  await device.pause();
  device.letGo();
  const again = new TestRing(guest, [1], 1);
  device.restore(state, frozen);
  device.resume();
  assert.equal(guest.inUse, 1, 'the ring, once');
  assert.equal(await transfer(again, BLKIF_OP.read, 0), 0);
  assert.ok(guest.page(20).every((byte) => byte === 1), 'rolled back');
  frozen.release();
});

test('rolled back to when there is no frame for the ring, or it is just not granted, a disk goes on when there is', async (t) => {
  const { store, guest, disk, device, state, connect, transfer } = await setUp(t);
  connect();
  await device.pause();
  device.letGo();
  const saved: BlockDeviceState = structuredClone(device.save());
  const frozen: DiskState = disk.freeze();
  device.resume();
  for (const isGranted of [true, false]) {
    await device.pause();
    device.letGo();
    const ring = new TestRing(guest, [1], 0);
    if (!isGranted) guest.granted.delete(1);
    guest.shortage = isGranted ? 3 : 0;
    device.restore(saved, frozen);
    device.resume();
    assert.equal(guest.inUse, 0);
    assert.equal(state(), XENBUS.connected);
    guest.granted.set(1, true);
    assert.equal(await transfer(ring, BLKIF_OP.read, 0), 0);
  }
  assert.ok(!store.exists(`${BACK}/error`));
  await frozen.release();
});

test('names of virtual disks', () => {
  const numbers = { xvda: 51712, xvdb: 51728, xvda1: 51713, xvdp: 51952, xvdq: 268439552, xvdaa: 268442112, sda: 2048, hda: 768, hdb1: 833, hdc: 5632 };
  for (const [name, number] of Object.entries(numbers)) assert.deepEqual(virtualDevice(name), { name, number });
  for (const name of ['', 'xvd', 'vda', 'xvda100', '../x', 'hde', 'sdq', 'xvdA']) {
    assert.throws(() => virtualDevice(name), { code: 'ZAZEN_DISK_SPEC' });
  }
  assert.equal(freeDevice(new Set([51712])).name, 'xvdb');
  const taken = new Set<number>();
  for (let i = 0; i < 30; i++) taken.add(freeDevice(taken).number);
  assert.equal(freeDevice(taken).name, 'xvdae');
});
