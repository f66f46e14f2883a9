// A virtio disk whose queue is lent, with the threads that serve it, stepped by a test.

import assert from 'node:assert/strict';
import type { TestContext } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { DeviceFrame } from '../../hypervisor/emulated-devices.ts';
import { GuestRam } from '../../hypervisor/guest-ram.ts';
import { takeBuffer } from '../../lanes/buffers.ts';
import type { LentQueue } from '../../lanes/lane-queue.ts';
import { LaneServer } from '../../lanes/lane-server.ts';
import { HostLane, LaneTable } from '../../lanes/lane.ts';
import { P2m } from '../../memory/p2m.ts';
import { openDisk } from '../block/open-disk.ts';
import { rawFile, testFolder } from '../block/test-disks.ts';
import { VirtioBlock } from './block.ts';
import { VirtqueueOfLane } from './lane-queue.ts';
import { SLOT, TestDriver } from './test-driver.ts';
import type { TestBuffer } from './test-driver.ts';

export const SECTORS = 8192;
const LANE = 3;

/** Status bytes that no device writes. */
const NOT_YET = 0xff;

export class LentDisk {
  readonly path: string;
  readonly table = new LaneTable();
  readonly model: VirtioBlock;
  readonly driver: TestDriver;
  readonly lane: HostLane;
  nanos = 0;
  freeBytes = 2 ** 40;
  isLocal = true;
  isReady = true;
  isClosed = false;
  /** Called before the guest's memory, or its queue, is used in the lane. */
  onWork: () => void = () => {};
  /** Called when a vCPU waits for the disk. */
  onWait: () => void = () => {};
  readonly disk: Awaited<ReturnType<typeof openDisk>>;
  readonly #server: LaneServer;
  readonly #vcpus: LaneServer;

  constructor(path: string, disk: LentDisk['disk']) {
    this.path = path;
    this.disk = disk;
    this.model = new VirtioBlock({ disk, id: 'xvda', takeBuffer, clock: { monotonicNanos: () => this.nanos } });
    this.driver = new TestDriver(this.model);
    const { thread, domain } = this.driver.rig;
    const end = { domid: domain.domid, slot: SLOT };
    this.table.open(LANE, end);
    this.lane = new HostLane(this.table, LANE, {
      canTake: () => this.isReady,
      take: () => this.table.routeSlot(end.domid, end.slot, LANE),
      takeBack: () => this.table.routeSlot(end.domid, end.slot, undefined),
      closed: () => { this.isClosed = true; },
    });
    const lend = this.lane.lend.bind(this.lane);
    this.lane.lend = (loan, onReturn) => lend({ ...loan, isLocal: this.isLocal }, onReturn);
    this.model.useLane(this.lane);
    const openQueue = (lent: LentQueue): VirtqueueOfLane => new VirtqueueOfLane({
      frame: new DeviceFrame(thread.gic, thread.hypercalls.domains),
      ram: new GuestRam({ ...thread.environment, p2m: new P2m(thread.heap) }, domain),
      atWork: (body) => {
        this.onWork();
        return body();
      },
    }, end.domid, end.slot, lent);
    const brings = { nanos: () => this.nanos, freeBytes: () => this.freeBytes, openQueue };
    this.#server = new LaneServer(this.table, brings);
    this.#vcpus = new LaneServer(this.table, { ...brings, wait: (call) => {
      this.onWait();
      return call();
    } });
    this.driver.mmio.serveSlot = (domid, slot) => this.table.laneOfSlot(domid, slot) !== undefined;
  }

  static async open(t: TestContext, { isReadOnly = false, features }: { isReadOnly?: boolean; features?: number } = {}): Promise<LentDisk> {
    const path = await rawFile(await testFolder(t), SECTORS * 512);
    const lent = new LentDisk(path, await openDisk({ path, format: 'raw', isReadOnly }));
    t.after(() => lent.close());
    lent.start(features);
    assert.ok(lent.isLent);
    lent.driver.rig.hostWasCalled();
    return lent;
  }

  /** As a driver does it, and its first look finds nothing in the queue. */
  start(features?: number): void {
    this.driver.start(1, features);
    this.driver.slot.service(true);
  }

  get state(): number {
    return this.table.get(LANE, 'state');
  }
  get isLent(): boolean {
    return this.table.laneOfSlot(this.driver.rig.domain.domid, SLOT) === LANE;
  }
  serve(): boolean {
    return this.#server.serve();
  }
  serveAtOnce(): boolean {
    return this.#vcpus.serveAtOnce(LANE);
  }
  readAhead(): boolean {
    return this.#server.readAhead();
  }

  header(type: number, sector: number): TestBuffer {
    const bytes = Buffer.alloc(16);
    bytes.writeUInt32LE(type);
    bytes.writeBigUInt64LE(BigInt(sector), 8);
    return this.driver.bytes(bytes);
  }
  /** @returns what reads the request's status; undefined: it has none yet */
  ask(type: number, sector: number, data: readonly TestBuffer[], first = 0): () => number | undefined {
    const status = this.driver.buffer(1, true);
    this.driver.rig.write(status.address, Uint8Array.of(NOT_YET));
    this.driver.offerIndirect(0, [this.header(type, sector), ...data, status], first);
    return () => {
      const byte = this.driver.rig.read(status.address, 1)[0]!;
      return byte === NOT_YET ? undefined : byte;
    };
  }
  write(sector: number, bytes: Uint8Array, first = 0): () => number | undefined {
    return this.ask(1, sector, [this.driver.bytes(bytes)], first);
  }
  read(sector: number, sizeBytes: number, first = 0): { status: () => number | undefined; bytes: () => Buffer } {
    const data = this.driver.buffer(sizeBytes, true);
    return { status: this.ask(0, sector, [data], first), bytes: () => this.driver.rig.read(data.address, sizeBytes) };
  }

  /** With all threads at work, until the device has given back so many. */
  async answered(count: number): Promise<{ head: number; sizeBytes: number }[]> {
    const used: { head: number; sizeBytes: number }[] = [];
    for (; used.length < count; await turn()) {
      this.serve();
      used.push(...this.driver.takeUsed(0));
    }
    return used;
  }

  async close(): Promise<void> {
    this.model.close();
    this.serve();
    await this.model.pause();
    assert.ok(this.isClosed);
    this.driver.close();
    await this.disk.close();
  }
}
