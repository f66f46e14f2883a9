// The block device (OASIS Virtual I/O Device 1.2, 5.2): requests of the driver's, many at a time, on a disk that the
// host has opened. A request is copied out of guest memory before it is begun and into it when it is over, so that
// nothing of the host's goes on in memory that the driver has taken back by a reset.
//
// While nothing is under way the queue is lent to the disk thread, if there is one (lanes/lane.ts); it comes back with the first request that is not for that thread, and for a reset.

import { VIRTIO_ID } from '../../abi/emulated-devices.ts';
import type { Clock } from '../../base/clock.ts';
import type { Lane } from '../../lanes/lane.ts';
import { Lending } from '../../lanes/lending.ts';
import type { Lendable } from '../../lanes/lending.ts';
import { newMetrics } from '../../lanes/metrics.ts';
import type { BlockMetrics } from '../../lanes/metrics.ts';
import { BLOCK_HEADER_BYTES as HEADER_BYTES, BLOCK_STATUS as STATUS, BLOCK_TYPE as TYPE, sectorOf, typeOf } from './block-request.ts';
import type { Chain } from './queue.ts';
import type { VirtioModel, VirtioSlot } from './slot.ts';

/** The disk, as far as this device uses it. Offsets and sizes are bytes, multiples of 512. */
export interface VirtioDiskStore extends Lendable {
  readonly canDiscard: boolean;
  read(pieces: Uint8Array[], offset: number): Promise<void>;
  write(pieces: Uint8Array[], offset: number): Promise<void>;
  discard(offset: number, sizeBytes: number): Promise<void>;
  flush(): Promise<void>;
}

/** How much a disk may do. */
export interface VirtioDiskLimit {
  /** Until the next request may begin. */
  delayMillis(): number;
  take(sizeBytes: number): void;
}

export interface VirtioBlockOptions {
  readonly disk: VirtioDiskStore;
  /** What the driver is told as its serial number, at most 20 characters. */
  readonly id: string;
  /** Memory for a request; at most REQUEST_MAX_BYTES. */
  readonly takeBuffer: (sizeBytes: number) => Disposable & { readonly bytes: Uint8Array };
  readonly limit?: VirtioDiskLimit | undefined;
  readonly clock: Pick<Clock, 'monotonicNanos'>;
}

const F = { SEG_MAX: 2, RO: 5, BLK_SIZE: 6, FLUSH: 9, TOPOLOGY: 10, DISCARD: 13 } as const;
const CONFIG = {
  capacity: 0, segMax: 12, blkSize: 20, physicalBlockExponent: 24, minIoSize: 26,
  maxDiscardSectors: 36, maxDiscardSegments: 40,
  discardAlignment: 44, sizeBytes: 60,
} as const;
const SECTOR_BYTES = 512;
const PHYSICAL_BLOCK_EXPONENT = 3;
const DISCARD_RANGE_BYTES = 16;
const DISCARD_RANGES_MAX = 32;
const DISCARD_SECTORS_MAX = 2 ** 22;
const DISCARD_ALIGN_SECTORS = 128;
const ID_BYTES = 20;
/** Linux gives a request as many segments, of a page or more each. */
const SEGMENTS_MAX = 254;
const REQUEST_MAX_BYTES = 4 * 2 ** 20;
/** Under way at a time. */
const UNDER_WAY_MAX_BYTES = 64 * 2 ** 20;

type Request = { readonly chain: Chain; readonly slot: VirtioSlot; readonly startNanos: number };
type Input = { readonly header?: Uint8Array; readonly data: Uint8Array; readonly buffer?: Disposable };
type Answer = { readonly status: number; readonly data?: Uint8Array; readonly buffer?: Disposable };

/** A request that cannot be. */
class BadRequest extends Error {}

export class VirtioBlock implements VirtioModel {
  readonly deviceId = VIRTIO_ID.block;
  readonly queueCount = 1;
  readonly features: readonly number[];
  readonly #counts = newMetrics();
  readonly #options: VirtioBlockOptions;
  #slot: VirtioSlot | undefined;
  /** Taken, but not begun, since a page could not be had. */
  #waiting: Chain[] = [];
  /** Over, but not answered, for the same reason. */
  #answers: (() => boolean)[] = [];
  #underWay = 0;
  #underWayBytes = 0;
  #isPaused = false;
  #isClosed = false;
  /** For who waits until nothing is under way. */
  #atRest: PromiseWithResolvers<void> | undefined;
  #delay: NodeJS.Timeout | undefined;
  #lending: Lending | undefined;

  constructor(options: VirtioBlockOptions) {
    const { disk } = options;
    this.#options = options;
    this.features = [
      F.SEG_MAX, F.BLK_SIZE, F.FLUSH, F.TOPOLOGY, ...(disk.isReadOnly ? [F.RO] : []),
      ...(disk.canDiscard ? [F.DISCARD] : []),
    ];
  }

  get counts(): BlockMetrics {
    this.#lending?.count();
    return this.#counts;
  }

  /** From now on the queue may be looked after there. @param lane closed with the device */
  useLane(lane: Lane): void {
    const { disk, clock } = this.#options;
    this.#lending = new Lending({
      lane, disk, clock, metrics: this.#counts,
      onAwait: () => { this.#underWay++; },
      onBack: (wasAwaited) => {
        if (wasAwaited) this.#ended();
        this.#slot?.service(true);
      },
    });
  }

  /** When nothing waits. */
  #lend(slot: VirtioSlot): void {
    if (this.#lending === undefined || this.#underWay > 0 || this.#answers.length > 0 || slot.isReset || !slot.queues[0]!.isIdle) return;
    // What it remembers of the queue is not so any more when it is back.
    slot.queues[0]!.restart();
    this.#lending.lend({ ringMfns: [], position: 0, resets: slot.resets });
  }

  config(): Uint8Array {
    const config = new DataView(new ArrayBuffer(CONFIG.sizeBytes));
    config.setBigUint64(CONFIG.capacity, BigInt(Math.floor(this.#options.disk.sizeBytes / SECTOR_BYTES)), true);
    config.setUint32(CONFIG.segMax, SEGMENTS_MAX, true);
    config.setUint32(CONFIG.blkSize, SECTOR_BYTES, true);
    config.setUint8(CONFIG.physicalBlockExponent, PHYSICAL_BLOCK_EXPONENT);
    config.setUint16(CONFIG.minIoSize, 2 ** PHYSICAL_BLOCK_EXPONENT, true);
    config.setUint32(CONFIG.maxDiscardSectors, DISCARD_SECTORS_MAX, true);
    config.setUint32(CONFIG.maxDiscardSegments, DISCARD_RANGES_MAX, true);
    config.setUint32(CONFIG.discardAlignment, DISCARD_ALIGN_SECTORS, true);
    return new Uint8Array(config.buffer);
  }

  restarted(slot: VirtioSlot): void {
    this.#slot = slot;
    this.#waiting = [];
    // They are nobody's now, and let go of their buffers.
    this.#answers = this.#answers.filter((answer) => !answer());
    // Whoever has the queue finds it reset and gives it back, but perhaps not soon.
    this.#lending?.takeBack();
  }

  /** Resolves when no request is under way, and none is begun until `resume`. */
  async pause(): Promise<void> {
    this.#isPaused = true;
    this.#lending?.takeBack();
    if (this.#underWay > 0) await (this.#atRest ??= Promise.withResolvers()).promise;
  }
  resume(): void {
    // The domain may have been destroyed while somebody had it paused.
    if (this.#isClosed) return;
    this.#isPaused = false;
    this.#slot?.again();
  }
  close(): void {
    this.#isPaused = this.#isClosed = true;
    clearTimeout(this.#delay);
    this.#lending?.end();
  }

  serve(slot: VirtioSlot): void {
    this.#answers = this.#answers.filter((answer) => !answer());
    if (this.#lending?.isLent === true) return;
    const queue = slot.queues[0]!;
    while (!this.#isPaused && this.#underWayBytes < UNDER_WAY_MAX_BYTES && !this.#mustWait(slot)) {
      const chain = this.#waiting.shift() ?? queue.take();
      if (chain === undefined) return this.#lend(slot);
      const input = this.#read(slot, chain);
      if (input === undefined) {
        if (!slot.isBroken) this.#waiting.unshift(chain);
        return;
      }
      void this.#begin({ chain, slot, startNanos: this.#options.clock.monotonicNanos() }, input);
    }
  }

  #mustWait(slot: VirtioSlot): boolean {
    const millis = this.#options.limit?.delayMillis() ?? 0;
    if (millis <= 0) return false;
    if (this.#delay === undefined && slot.queues[0]!.hasNext) this.#counts.throttled++;
    this.#delay ??= setTimeout(() => {
      this.#delay = undefined;
      slot.again();
    }, millis).unref();
    return true;
  }

  /** What the driver has put into a request; none of it if it is larger or smaller than a request may be. */
  #read(slot: VirtioSlot, chain: Chain): Input | undefined {
    const queue = slot.queues[0]!;
    const dataBytes = chain.readableBytes - HEADER_BYTES;
    if (dataBytes < 0 || dataBytes > REQUEST_MAX_BYTES) return { data: new Uint8Array(0) };
    const header = queue.read(chain, 0, HEADER_BYTES);
    if (header === undefined) return undefined;
    if (dataBytes === 0) return { header, data: new Uint8Array(0) };
    const buffer = this.#options.takeBuffer(dataBytes);
    const data = queue.read(chain, HEADER_BYTES, dataBytes, buffer.bytes);
    if (data !== undefined) return { header, data, buffer };
    buffer[Symbol.dispose]();
    return undefined;
  }

  async #begin(request: Request, input: Input): Promise<void> {
    const { chain } = request;
    const sizeBytes = input.data.length + Math.min(chain.writableBytes, REQUEST_MAX_BYTES);
    this.#underWay++;
    this.#underWayBytes += sizeBytes;
    let answer: Answer;
    try {
      this.#options.limit?.take(sizeBytes);
      answer = await this.#execute(chain, input);
    } catch (error) {
      if (error instanceof BadRequest) this.#counts.badRequests++;
      else this.#counts.failures++;
      answer = { status: STATUS.ioError };
    }
    input.buffer?.[Symbol.dispose]();
    this.#underWayBytes -= sizeBytes;
    const finish = (): boolean => this.#answer(request, answer);
    if (!finish()) this.#answers.push(finish);
    this.#ended();
    if (!this.#isPaused && !request.slot.isBroken) this.serve(request.slot);
  }

  #ended(): void {
    this.#underWay--;
    if (this.#underWay > 0) return;
    this.#atRest?.resolve();
    this.#atRest = undefined;
  }

  /** @returns false: try again later */
  #answer({ chain, slot, startNanos }: Request, { status, data, buffer }: Answer): boolean {
    const dataBytes = Math.min(chain.writableBytes - 1, REQUEST_MAX_BYTES);
    // Without room for the status, there is nothing to be said.
    const pieces = dataBytes < 0 ? [] : [fitted(data, dataBytes), Uint8Array.of(status)];
    if (!slot.queues[0]!.complete(chain, ...pieces)) return false;
    buffer?.[Symbol.dispose]();
    const micros = (this.#options.clock.monotonicNanos() - startNanos) / 1000;
    this.#counts.latencyMicrosSum += micros;
    this.#counts.latencyMicrosMax = Math.max(this.#counts.latencyMicrosMax, micros);
    return true;
  }

  async #execute(chain: Chain, { header, data }: Input): Promise<Answer> {
    const { disk, id } = this.#options;
    if (header === undefined || chain.writableBytes < 1) throw new BadRequest();
    const sector = sectorOf(header);
    switch (typeOf(header)) {
      case TYPE.in: return this.#readDisk(chain, sector);
      case TYPE.out: {
        if (disk.isReadOnly) throw new BadRequest();
        await disk.write([data], this.#offset(sector, data.length));
        this.#counts.writes++;
        this.#counts.writtenBytes += data.length;
        return { status: STATUS.ok };
      }
      case TYPE.flush:
        await disk.flush();
        this.#counts.flushes++;
        return { status: STATUS.ok };
      case TYPE.getId:
        return { status: STATUS.ok, data: Buffer.from(id.slice(0, ID_BYTES).padEnd(ID_BYTES, '\0'), 'latin1') };
      case TYPE.discard: return this.#discard(data);
      default: return { status: STATUS.unsupported };
    }
  }

  async #readDisk(chain: Chain, sector: number): Promise<Answer> {
    const { disk, takeBuffer } = this.#options;
    const sizeBytes = chain.writableBytes - 1;
    const offset = this.#offset(sector, sizeBytes);
    const buffer = takeBuffer(sizeBytes);
    try {
      await disk.read([buffer.bytes], offset);
    } catch (error) {
      buffer[Symbol.dispose]();
      throw error;
    }
    this.#counts.reads++;
    this.#counts.readBytes += sizeBytes;
    return { status: STATUS.ok, data: buffer.bytes, buffer };
  }

  async #discard(ranges: Uint8Array): Promise<Answer> {
    const { disk } = this.#options;
    const view = new DataView(ranges.buffer, ranges.byteOffset, ranges.length);
    if (!disk.canDiscard || disk.isReadOnly) return { status: STATUS.unsupported };
    if (ranges.length === 0 || ranges.length % DISCARD_RANGE_BYTES !== 0
      || ranges.length > DISCARD_RANGES_MAX * DISCARD_RANGE_BYTES) throw new BadRequest();
    for (let at = 0; at < view.byteLength; at += DISCARD_RANGE_BYTES) {
      const sector = view.getUint32(at + 4, true) * 2 ** 32 + view.getUint32(at, true);
      const sectors = view.getUint32(at + 8, true);
      if (view.getUint32(at + 12, true) !== 0) return { status: STATUS.unsupported };
      if (sectors > DISCARD_SECTORS_MAX) throw new BadRequest();
      const offset = this.#offset(sector, sectors * SECTOR_BYTES, Infinity);
      if (sectors > 0) await disk.discard(offset, sectors * SECTOR_BYTES);
    }
    this.#counts.discards++;
    return { status: STATUS.ok };
  }

  /** Byte offset of a range that lies on the disk. */
  #offset(sector: number, sizeBytes: number, mostBytes = REQUEST_MAX_BYTES): number {
    const offset = sector * SECTOR_BYTES;
    const isEmpty = sizeBytes === 0 && mostBytes !== Infinity;
    if (sizeBytes % SECTOR_BYTES !== 0 || sizeBytes > mostBytes || isEmpty) throw new BadRequest();
    if (!(offset + sizeBytes <= this.#options.disk.sizeBytes)) throw new BadRequest();
    return offset;
  }
}

/** Exactly so many bytes: zeros where there are none. */
function fitted(data: Uint8Array | undefined, sizeBytes: number): Uint8Array {
  if (data !== undefined && data.length >= sizeBytes) return data.subarray(0, sizeBytes);
  const bytes = new Uint8Array(sizeBytes);
  if (data !== undefined) bytes.set(data);
  return bytes;
}
