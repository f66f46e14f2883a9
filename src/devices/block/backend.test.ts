import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { BLKIF_OP, BLKIF_RSP } from '../../abi/xen-block.ts';
import { bytesOf } from '../../lanes/pieces.ts';
import type { Pieces } from '../../lanes/pieces.ts';
import { BlockBackend } from './backend.ts';
import type { BlockMedium } from './backend.ts';
import { seed } from './test-disks.ts';
import { TestGuest, TestRing } from './test-front-end.ts';
import type { TestResponse } from './test-front-end.ts';

const SECTORS = 4096;
const runs = Number(process.env['ZAZEN_TEST_RUNS'] ?? 100);

/** A disk in memory that can be slow and can fail, and says what was asked of it in which order. */
class MemoryDisk implements BlockMedium {
  readonly bytes = new Uint8Array(SECTORS * 512);
  readonly isReadOnly: boolean;
  canDiscard = true;
  errno: string | undefined;
  readonly log: string[] = [];
  /** When set, requests wait for it. */
  gate: PromiseWithResolvers<void> | undefined;
  constructor(isReadOnly = false) {
    this.isReadOnly = isReadOnly;
  }
  get sizeBytes(): number {
    return this.bytes.length;
  }
  async #asked(words: string): Promise<void> {
    this.log.push(words);
    await this.gate?.promise;
    if (this.errno !== undefined) throw Object.assign(new Error('the disk is broken'), { code: this.errno });
  }
  async read(pieces: Pieces, offset: number): Promise<void> {
    await this.#asked(`read ${offset}+${bytesOf(pieces)}`);
    for (const piece of pieces) {
      piece.set(this.bytes.subarray(offset, offset + piece.length));
      offset += piece.length;
    }
  }
  async write(pieces: Pieces, offset: number): Promise<void> {
    await this.#asked(`write ${offset}+${bytesOf(pieces)}`);
    for (const piece of pieces) {
      this.bytes.set(piece, offset);
      offset += piece.length;
    }
  }
  async flush(): Promise<void> {
    await this.#asked('flush');
  }
  async discard(offset: number, sizeBytes: number): Promise<void> {
    await this.#asked(`discard ${offset}+${sizeBytes}`);
    this.bytes.fill(0, offset, offset + sizeBytes);
  }
}

function setUp(options: { pages?: number; disk?: MemoryDisk; isPersistent?: boolean; position?: number; limits?: { requestsPerSecond?: number } } = {}) {
  const guest = new TestGuest(64);
  const disk = options.disk ?? new MemoryDisk();
  const pages = Array.from({ length: options.pages ?? 1 }, (_, i) => i + 1);
  const ring = new TestRing(guest, pages, options.position);
  const clock = { nowNanos: 0, monotonicNanos: () => clock.nowNanos, wallMillis: () => 0 };
  const backend = new BlockBackend({
    guest: { memory: guest.memory, map: (ref, write) => guest.map(ref, write), unmap: (page) => guest.unmap(page), notify: () => guest.notify() },
    disk, limits: options.limits ?? {}, clock,
  });
  assert.ok(backend.connect({ ringRefs: pages, isPersistent: options.isPersistent ?? false, position: options.position ?? 0 }));
  guest.grantAll(20, 40);
  const answers = async (count: number): Promise<TestResponse[]> => {
    const got: TestResponse[] = [];
    for (backend.service(); got.length < count; await turn()) got.push(...ring.responses());
    return got;
  };
  const statuses = async (count: number): Promise<number[]> => (await answers(count)).map(({ status }) => status);
  return { guest, disk, ring, backend, clock, answers, statuses };
}

test('data goes to the disk and back, sector by sector, in rings of any size', async () => {
  for (const pages of [1, 2, 4]) {
    const { guest, disk, ring, answers } = setUp({ pages, position: 0xffff_fffe });
    guest.page(20).forEach((_, i, page) => { page[i] = i % 251; });
    const count = ring.slots;
    const ids = Array.from({ length: count }, (_, i) => ring.request(BLKIF_OP.write, i * 20, [
      { ref: 20, first: 0, last: 7 }, { ref: 20, first: 3, last: 3 }, { ref: 21, first: 1, last: 6 },
    ]));
    assert.deepEqual((await answers(count)).toSorted((a, b) => a.id - b.id), ids.map((id) => ({ id, operation: BLKIF_OP.write, status: 0 })));
    assert.deepEqual(disk.bytes.subarray(0, 4096), guest.page(20));
    assert.deepEqual(disk.bytes.subarray(4096, 4608), guest.page(20).subarray(1536, 2048));
    ring.request(BLKIF_OP.read, 8, [{ ref: 30, first: 7, last: 7 }]);
    assert.deepEqual((await answers(1))[0]!.status, BLKIF_RSP.okay);
    assert.deepEqual(guest.page(30).subarray(3584), guest.page(20).subarray(1536, 2048));
    assert.ok(guest.page(30).subarray(0, 3584).every((byte) => byte === 0));
    assert.equal(guest.inUse, pages, 'only the ring is in use');
  }
});

test('pages side by side make one request of the system', async () => {
  const { guest, disk, ring, statuses } = setUp();
  const pieces: number[] = [];
  disk.write = async (given) => { pieces.push(...given.map((piece) => piece.length)); };
  ring.request(BLKIF_OP.write, 0, [
    { ref: 20, first: 4, last: 7 }, { ref: 21, first: 0, last: 7 }, { ref: 22, first: 0, last: 1 }, { ref: 30, first: 0, last: 0 },
  ]);
  await statuses(1);
  assert.deepEqual(pieces, [2048 + 4096 + 1024, 512]);
  assert.equal(guest.notifications, 1);
});

test('indirect requests', async () => {
  const { guest, disk, ring, answers, statuses } = setUp();
  guest.grantAll(20, 40);
  for (let page = 20; page < 60; page++) guest.page(page).fill(page);
  const segments = Array.from({ length: 40 }, (_, i) => ({ ref: 20 + i, first: 0, last: 7 }));
  ring.indirect(BLKIF_OP.write, 8, segments, 10);
  assert.deepEqual((await answers(1)).map(({ operation, status }) => [operation, status]), [[BLKIF_OP.write, BLKIF_RSP.okay]]);
  for (let i = 0; i < 40; i++) assert.ok(disk.bytes.subarray((i + 1) * 4096, (i + 2) * 4096).every((byte) => byte === 20 + i));
  ring.indirect(BLKIF_OP.flush_diskcache, 0, segments.slice(0, 1), 10);
  ring.indirect(BLKIF_OP.read, 0, [], 10);
  ring.indirect(BLKIF_OP.read, 0, Array.from({ length: 257 }, () => segments[0]!), 10);
  ring.indirect(BLKIF_OP.read, 0, segments.slice(0, 3), 10);
  guest.granted.delete(10);
  assert.deepEqual(await statuses(4), Array.from({ length: 4 }, () => BLKIF_RSP.error));
});

test('what cannot be is answered with an error, and touches nothing', async () => {
  const { guest, disk, ring, statuses, backend } = setUp();
  guest.granted.set(25, false);
  const good = { ref: 20, first: 0, last: 7 };
  ring.request(BLKIF_OP.read, 0, [{ ...good, first: 5, last: 4 }]);
  ring.request(BLKIF_OP.read, 0, [{ ...good, last: 8 }]);
  ring.request(BLKIF_OP.read, 0, [{ ...good, ref: 99 }]);
  ring.request(BLKIF_OP.read, 0, [good, { ...good, ref: 25 }]);
  ring.request(BLKIF_OP.read, 0, []);
  ring.request(BLKIF_OP.read, 0, Array.from({ length: 12 }, () => good));
  ring.request(BLKIF_OP.read, SECTORS - 7, [good]);
  ring.request(BLKIF_OP.write, 2 ** 44, [good]);
  ring.request(BLKIF_OP.write, Number.MAX_SAFE_INTEGER, [good]);
  ring.discard(SECTORS - 1, 2);
  ring.discard(0, 0);
  assert.deepEqual(await statuses(11), Array.from({ length: 11 }, () => BLKIF_RSP.error));
  assert.deepEqual(disk.log, []);
  assert.equal(backend.metrics.badRequests, 11);
  ring.request(77, 0, [good]);
  ring.request(4, 0, []);
  disk.canDiscard = false;
  ring.discard(0, 8);
  assert.deepEqual(await statuses(3), Array.from({ length: 3 }, () => BLKIF_RSP.eopnotsupp));
  assert.equal(guest.inUse, 1);
  const readOnly = setUp({ disk: new MemoryDisk(true) });
  readOnly.ring.request(BLKIF_OP.write, 0, [good]);
  assert.deepEqual(await readOnly.statuses(1), [BLKIF_RSP.error]);
});

test('a disk that fails is an error, and the next request is tried again', async () => {
  const { disk, ring, statuses, backend } = setUp();
  disk.errno = 'EIO';
  ring.request(BLKIF_OP.read, 0, [{ ref: 20, first: 0, last: 7 }]);
  ring.request(BLKIF_OP.flush_diskcache, 0, []);
  assert.deepEqual(await statuses(2), [BLKIF_RSP.error, BLKIF_RSP.error]);
  disk.errno = undefined;
  ring.request(BLKIF_OP.flush_diskcache, 0, []);
  assert.deepEqual(await statuses(1), [BLKIF_RSP.okay]);
  assert.equal(backend.metrics.failures, 2);
});

test('a barrier waits for all before it, and all after it wait for it', async () => {
  const { disk, ring, backend, statuses } = setUp();
  const segment = [{ ref: 20, first: 0, last: 0 }];
  disk.gate = Promise.withResolvers();
  ring.request(BLKIF_OP.write, 0, segment);
  ring.request(BLKIF_OP.write, 1, segment);
  ring.request(BLKIF_OP.write_barrier, 2, segment);
  ring.request(BLKIF_OP.write, 3, segment);
  backend.service();
  await turn();
  assert.deepEqual(disk.log, ['write 0+512', 'write 512+512']);
  const { gate } = disk;
  disk.gate = undefined;
  gate.resolve();
  assert.deepEqual(await statuses(4), [0, 0, 0, 0]);
  assert.deepEqual(disk.log, ['write 0+512', 'write 512+512', 'flush', 'write 1024+512', 'flush', 'write 1536+512']);
});

test('persistent grants are mapped once, and given back at the end', async () => {
  const { guest, ring, backend, statuses } = setUp({ isPersistent: true });
  for (let i = 0; i < 5; i++) {
    ring.request(i % 2 === 0 ? BLKIF_OP.read : BLKIF_OP.write, 0, [{ ref: 20, first: 0, last: 7 }, { ref: 21, first: 0, last: 7 }]);
    await statuses(1);
  }
  assert.equal(guest.maps, 1 + 2);
  assert.equal(guest.inUse, 3);
  await backend.pause();
  backend.letGo();
  assert.equal(guest.inUse, 0);
  backend.resume();
  ring.request(BLKIF_OP.read, 0, [{ ref: 20, first: 0, last: 7 }]);
  await statuses(1);
  backend.disconnect();
  assert.equal(guest.inUse, 0);
});

test('a guest that goes while its requests are under way leaves its pages in use until they end', async () => {
  for (const isPersistent of [false, true]) {
    const { guest, disk, ring, backend } = setUp({ isPersistent });
    disk.gate = Promise.withResolvers();
    ring.request(BLKIF_OP.read, 0, [{ ref: 20, first: 0, last: 7 }]);
    backend.service();
    await turn();
    backend.disconnect();
    assert.deepEqual([...guest.uses].filter(([, uses]) => uses > 0), [[20, 1]]);
    disk.gate.resolve();
    await backend.pause();
    assert.equal(guest.inUse, 0);
    assert.equal(ring.index('rsp_prod'), 0, 'nobody is answered');
  }
});

test('when there is no frame for a page, its request waits', async () => {
  const { guest, ring, statuses } = setUp();
  guest.shortage = 3;
  ring.request(BLKIF_OP.read, 0, [{ ref: 20, first: 0, last: 7 }]);
  assert.deepEqual(await statuses(1), [BLKIF_RSP.okay]);
});

test('a connection goes on although its ring cannot be had at that moment, and is served when it can', async () => {
  const { guest, disk, ring, backend, statuses } = setUp();
  const request = (): number => ring.request(BLKIF_OP.read, 0, [{ ref: 20, first: 0, last: 7 }]);
  const standStill = async (): Promise<void> => {
    await backend.pause();
    backend.letGo();
  };
  await standStill();
  guest.shortage = 2;
  request();
  backend.resume();
  assert.equal(guest.inUse, 0);
  // Nobody tells of a frame that is free again.
  for (let got = 0; got === 0; await turn()) got = ring.responses().length;
  assert.equal(guest.shortage, 0);
  await standStill();
  guest.granted.delete(1);
  request();
  backend.resume();
  assert.equal(guest.inUse, 0);
  guest.granted.set(1, true);
  assert.deepEqual(await statuses(1), [BLKIF_RSP.okay]);
  await standStill();
  const state = backend.save()!;
  assert.equal(state.position, 2);
  backend.disconnect();

  const next = new BlockBackend({
    disk, guest: { memory: guest.memory, map: (ref, write) => guest.map(ref, write), unmap: (page) => guest.unmap(page), notify: () => guest.notify() },
  });
  guest.granted.delete(1);
  assert.ok(!next.connect(state), 'a new one must have it');
  guest.granted.set(1, true);
  guest.shortage = 1;
  assert.ok(next.connect(state));
  request();
  next.service();
  for (let got = 0; got === 0; await turn()) got = ring.responses().length;
  await next.pause();
  next.disconnect();
  assert.equal(guest.inUse, 0);
});

test('paused, nothing is taken; another back end goes on where it stood', async () => {
  const { guest, disk, ring, backend, statuses } = setUp();
  const segment = [{ ref: 20, first: 0, last: 0 }];
  ring.request(BLKIF_OP.write, 0, segment);
  await statuses(1);
  await backend.pause();
  ring.request(BLKIF_OP.write, 1, segment);
  backend.service();
  await turn();
  assert.equal(disk.log.length, 1);
  const state = structuredClone(backend.save())!;
  assert.equal(state.position, 1);
  backend.letGo();
  backend.disconnect();
  const next = new BlockBackend({
    disk, guest: { memory: guest.memory, map: (ref, write) => guest.map(ref, write), unmap: (page) => guest.unmap(page), notify: () => guest.notify() },
  });
  assert.ok(next.connect(state));
  next.service();
  while (ring.index('rsp_prod') !== 2) await turn();
  assert.deepEqual(disk.log, ['write 0+512', 'write 512+512']);
});

test('limits make the guest wait', async (t) => {
  const { ring, backend, clock, disk } = setUp({ limits: { requestsPerSecond: 100 } });
  t.after(() => backend.disconnect());
  for (let i = 0; i < 30; i++) ring.request(BLKIF_OP.read, 0, [{ ref: 20, first: 0, last: 0 }]);
  backend.service();
  await turn();
  assert.ok(disk.log.length >= 10 && disk.log.length <= 12, `a tenth of a second at once, not ${disk.log.length}`);
  assert.ok(backend.metrics.throttled > 0);
  while (disk.log.length < 30) {
    clock.nowNanos += 10_000_000;
    await turn();
  }
  assert.ok(clock.nowNanos >= 0.18e9, 'and the rest at their pace');
});

test('whatever is in the ring, every request is answered once and nothing stays in use', async () => {
  const byte = fc.oneof(fc.nat({ max: 8 }), fc.nat({ max: 255 }));
  const slot = fc.uint8Array({ minLength: 112, maxLength: 112 }).chain((random) => fc.tuple(byte, byte, fc.array(byte, { maxLength: 104 }))
    .map(([operation, second, rest]) => {
      random.set(rest, 8);
      random[0] = operation;
      random[1] = second;
      return random;
    }));
  const action = fc.oneof(
    { weight: 8, arbitrary: fc.record({ kind: fc.constant('put' as const), slot }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('index' as const), value: fc.nat({ max: 0xffff_ffff }) }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constantFrom('revoke' as const, 'grant' as const), value: fc.nat({ max: 12 }) }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constantFrom('turn' as const, 'scribble' as const, 'pause' as const), value: fc.nat() }) },
  );
  await fc.assert(fc.asyncProperty(fc.array(action, { maxLength: 80 }), fc.boolean(), async (actions, isPersistent) => {
    const { guest, ring, backend } = setUp({ isPersistent });
    guest.grantAll(2, 10);
    let put = 0;
    let got = 0;
    const drain = async (): Promise<void> => {
      for (backend.service(); got < put; await turn()) got += ring.responses().length;
    };
    for (const step of actions) {
      if (step.kind === 'put') {
        if (put - got === ring.slots) await drain();
        ring.put(step.slot);
        put++;
      } else if (step.kind === 'index') {
        await drain();
        const right = ring.index('req_prod');
        const distance = (step.value - right) >>> 0;
        // What is within the ring's length are requests, made of what lies there.
        if (distance > ring.slots) ring.setIndex('req_prod', step.value);
        backend.service();
        await turn();
        ring.setIndex('req_prod', right);
      } else if (step.kind === 'revoke') guest.granted.delete(step.value);
      else if (step.kind === 'grant') guest.granted.set(step.value, step.value % 2 === 0);
      else if (step.kind === 'scribble') guest.page(2).forEach((_, i, page) => { page[i] = step.value * i; });
      else if (step.kind === 'pause') {
        await backend.pause();
        backend.letGo();
        assert.equal(guest.inUse, 0);
        guest.granted.set(1, true);
        backend.resume();
      } else backend.service();
    }
    await drain();
    assert.equal(ring.responses().length, 0);
    await backend.pause();
    backend.disconnect();
    assert.equal(guest.inUse, 0);
  }), { seed, numRuns: runs });
});
