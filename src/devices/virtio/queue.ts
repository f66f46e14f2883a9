// A virtqueue in the split layout (OASIS Virtual I/O Device 1.2, 2.7), the device's end, in the host's thread or in one that
// it was lent to. All of it lies in the guest's memory, which the guest can change at any moment, so everything is read once and checked, and
// only what was read is used:
//
//   available ring ──► head ──► descriptors (or one indirect table) ──► Chain: where to read, where to write
//   used ring      ◄── head, bytes written
//
// With VIRTIO_F_EVENT_IDX each side says in its ring which element the other is to tell of, if it is told of any: the
// driver at the end of the available ring, the device at the end of the used ring. This one asks for the next request
// when it has looked for one and found none; while it has, a busy driver need not notify.
//
// A driver that breaks the rules (an index that jumps, a loop, a table in a table, an address that is no memory, a
// buffer that is given twice) gets the status bit DEVICE_NEEDS_RESET and no more service until it resets the device.

import { VIRTIO_QUEUE, VIRTIO_QUEUE_NUM_MAX, VIRTIO_STATUS } from '../../abi/emulated-devices.ts';
import type { GuestRange } from '../../hypervisor/guest-ram.ts';
import type { QueueSlot } from './queue-slot.ts';

const Q = VIRTIO_QUEUE.at;
const DESCRIPTOR_BYTES = 16;
const DESC_F = { next: 1, write: 2, indirect: 4 } as const;
const AVAIL_F_NO_INTERRUPT = 1;
/** Descriptors in a chain, those of an indirect table included. */
const CHAIN_MAX = 1024;
const WORD_BYTES = 2;
const USED_ELEMENT_BYTES = 8;
/** Flags and index come before the elements of a ring. */
const RING_HEADER_BYTES = 4;

/** A request of the driver's: memory to read, then memory to write. */
export interface Chain {
  readonly head: number;
  readonly readable: readonly GuestRange[];
  readonly writable: readonly GuestRange[];
  readonly readableBytes: number;
  readonly writableBytes: number;
}

/** A request that is done, and what is put at the start of what can be written. */
export interface Completion {
  readonly chain: Chain;
  readonly pieces: readonly Uint8Array[];
}

interface Descriptor {
  readonly address: number;
  readonly sizeBytes: number;
  readonly flags: number;
  readonly next: number;
}

/** Thrown inside this file only. */
const BROKEN = Symbol('a driver broke the rules');
const LATER = Symbol('a page cannot be had now');

const scratch = new DataView(new ArrayBuffer(DESCRIPTOR_BYTES));
const scratchBytes = new Uint8Array(scratch.buffer);

export class VirtQueue {
  readonly #slot: QueueSlot;
  /** Offset of its registers in the frame of devices. */
  readonly #at: number;
  readonly #inFlight = new Map<number, Chain>();
  /** Heads that were taken before the state that the device goes on from was saved. */
  readonly #replays: number[] = [];
  /** Looked at, and still in the available ring. */
  #peeked: Chain | undefined;
  /** The place in the available ring that the driver was asked to tell of. */
  #askedFor: number | undefined;

  constructor(slot: QueueSlot, at: number) {
    this.#slot = slot;
    this.#at = at;
  }

  /** Heads that were taken and not completed; with them, a saved queue goes on. */
  get inFlight(): number[] {
    return [...this.#replays, ...this.#inFlight.keys()];
  }

  /** Nothing that was taken is completed any more; instead these are taken again. */
  restart(heads: readonly number[] = []): void {
    this.#inFlight.clear();
    this.#peeked = undefined;
    this.#replays.splice(0, Infinity, ...heads);
    this.#askedFor = undefined;
  }

  /** Whether `take` would have something, if the driver keeps the rules. */
  get hasNext(): boolean {
    return this.#guarded(() => this.#isUsable && (this.#replays.length > 0 || this.#awaited() > 0)) ?? false;
  }

  /** The next request, to be completed at some time; undefined when there is none now. */
  take(): Chain | undefined {
    return this.#guarded(() => {
      if (!this.#isUsable) return undefined;
      const isReplay = this.#replays.length > 0;
      if (!isReplay && this.#awaited() === 0) return undefined;
      const head = isReplay ? this.#replays[0]! : this.#nextHead();
      check(head < this.#num && !this.#inFlight.has(head));
      const chain = this.#readChain(head);
      if (isReplay) this.#replays.shift();
      else this.#advance();
      this.#inFlight.set(head, chain);
      return chain;
    });
  }

  /** For who takes none: as `take`, and the request stays in the available ring until it is completed. */
  peek(): Chain | undefined {
    return this.#guarded(() => {
      if (!this.#isUsable || this.#awaited() === 0) return undefined;
      const head = this.#nextHead();
      check(head < this.#num);
      const chain = this.#readChain(head);
      this.#inFlight.clear();
      this.#inFlight.set(head, chain);
      this.#peeked = chain;
      return chain;
    });
  }

  /** How many requests wait to be taken; undefined: that cannot be said. */
  get waiting(): number | undefined {
    return this.#guarded(() => (this.#isUsable ? this.#replays.length + this.#available() : undefined));
  }

  /** Nothing was taken, and nothing waits: another thread may look after it from here on. */
  get isIdle(): boolean {
    return this.#inFlight.size === 0 && this.waiting === 0;
  }

  /**
   * Copies what the driver has put into a request, as far as it goes.
   * @returns undefined when that is not to be had; try again later
   */
  read(
    chain: Chain, fromBytes: number, sizeBytes: number, bytes: Uint8Array = new Uint8Array(sizeBytes),
  ): Uint8Array | undefined {
    // Of a driver that has reset the device, there is nothing to be had any more.
    if (this.#inFlight.get(chain.head) !== chain) return undefined;
    return this.#guarded(() => {
      let done = 0;
      for (const range of slice(chain.readable, fromBytes, sizeBytes)) {
        this.#must(this.#slot.ram.read(range, bytes.subarray(done, done + range.sizeBytes)));
        done += range.sizeBytes;
      }
      return bytes;
    });
  }

  /**
   * Gives a request back, with `pieces` put at the start of what can be written.
   * @returns false when a page cannot be had now: nothing was done, and it must be tried again
   */
  complete(chain: Chain, ...pieces: readonly Uint8Array[]): boolean {
    return this.completeTogether([{ chain, pieces }]);
  }

  /** The same for several at once, of which the driver sees all or none. */
  completeTogether(requests: readonly Completion[]): boolean {
    // After a reset, or when the domain was put back, the requests are nobody's.
    if (!requests.every(({ chain }) => this.#inFlight.get(chain.head) === chain)) return true;
    const done = this.#slot.isReset || this.#guarded(() => this.#complete(requests));
    if (done !== true && !this.#slot.isBroken) return false;
    for (const { chain } of requests) this.#inFlight.delete(chain.head);
    return true;
  }

  /** Whether the driver can give no more before it gets something back, when each of its requests is one descriptor. */
  get isExhausted(): boolean {
    return this.#guarded(() => this.#inFlight.size >= this.#num) ?? true;
  }

  #complete(requests: readonly Completion[]): true {
    const { ram, frame } = this.#slot;
    const driver = this.#address(Q.driver, WORD_BYTES);
    const device = this.#address(Q.device, RING_HEADER_BYTES);
    const index = this.#get(Q.usedIndex) & 0xffff;
    const elements = requests.map((_, i) =>
      ({ address: device + RING_HEADER_BYTES + USED_ELEMENT_BYTES * ((index + i) % this.#num), sizeBytes: USED_ELEMENT_BYTES }));
    const hasEventIndex = this.#slot.hasEventIndex;
    const wish = hasEventIndex ? driver + RING_HEADER_BYTES + WORD_BYTES * this.#num : driver;
    const ring = this.#must(ram.pinForWrite([
      ...elements, { address: device + WORD_BYTES, sizeBytes: WORD_BYTES }, { address: wish, sizeBytes: WORD_BYTES },
    ]));
    const sizes = requests.map(({ pieces }) => pieces.reduce((sum, piece) => sum + piece.length, 0));
    const data = ram.pinForWrite(requests.flatMap(({ chain }, i) => slice(chain.writable, 0, sizes[i]!)));
    if (typeof data === 'string') {
      ring.unpin();
      return this.#must(data);
    }
    const count = requests.length;
    this.#slot.locked(() => {
      if (!this.#isUsable || this.#slot.isReset) return;
      let done = 0;
      for (const [i, { chain, pieces }] of requests.entries()) {
        for (const piece of pieces) {
          data.write(piece, done);
          done += piece.length;
        }
        scratch.setUint32(0, chain.head, true);
        scratch.setUint32(4, sizes[i]!, true);
        ring.write(scratchBytes.subarray(0, USED_ELEMENT_BYTES), USED_ELEMENT_BYTES * i);
      }
      if (requests[0]!.chain === this.#peeked) this.#advance();
      this.#set(Q.usedIndex, (index + count) & 0xffff);
      const { u16 } = frame.machine;
      Atomics.store(u16, ring.addressOf(-2) / 2, index + count);
      const wished = Atomics.load(u16, ring.addressOf(-1) / 2);
      const isWished = hasEventIndex ? ((wished - index) & 0xffff) < count : (wished & AVAIL_F_NO_INTERRUPT) === 0;
      if (isWished) this.#slot.interrupt();
    });
    data.unpin();
    ring.unpin();
    return true;
  }

  // ---- what the driver said

  get #isUsable(): boolean {
    const { status } = this.#slot;
    const isOn = (status & VIRTIO_STATUS.driverOk) !== 0 && (status & VIRTIO_STATUS.deviceNeedsReset) === 0;
    return isOn && this.#get(Q.ready) !== 0;
  }

  /** Of a queue that is ready, which the registers hold to be a power of two; an image may say anything. */
  get #num(): number {
    const num = this.#get(Q.num);
    check(num > 0 && num <= VIRTIO_QUEUE_NUM_MAX);
    return num;
  }

  /** How many requests wait. */
  #available(): number {
    const index = this.#must(this.#slot.ram.load16(this.#address(Q.driver, WORD_BYTES) + WORD_BYTES));
    const count = (index - this.#get(Q.lastAvail)) & 0xffff;
    check(count <= this.#num);
    return count;
  }

  /** The same; if there are none, the driver has been asked to tell of the next one, if it needs to be. */
  #awaited(): number {
    const waiting = this.#available();
    const next = this.#get(Q.lastAvail) & 0xffff;
    if (waiting > 0 || next === this.#askedFor || !this.#slot.hasEventIndex) return waiting;
    const address = this.#address(Q.device, RING_HEADER_BYTES) + RING_HEADER_BYTES + USED_ELEMENT_BYTES * this.#num;
    const wish = this.#must(this.#slot.ram.pinForWrite([{ address, sizeBytes: WORD_BYTES }]));
    this.#slot.locked(() => {
      if (this.#slot.isReset) return;
      Atomics.store(this.#slot.frame.machine.u16, wish.addressOf(-1) / 2, next);
      this.#askedFor = next;
    });
    wish.unpin();
    // Those that came before it was asked.
    return this.#available();
  }

  #advance(): void {
    this.#set(Q.lastAvail, (this.#get(Q.lastAvail) + 1) & 0xffff);
  }

  #nextHead(): number {
    const place = (this.#get(Q.lastAvail) & 0xffff) % this.#num;
    const ring = this.#address(Q.driver, WORD_BYTES) + RING_HEADER_BYTES;
    return this.#must(this.#slot.ram.load16(ring + WORD_BYTES * place));
  }

  #readChain(head: number): Chain {
    const readable: GuestRange[] = [];
    const writable: GuestRange[] = [];
    let [readableBytes, writableBytes, count] = [0, 0, 0];
    const add = ({ address, sizeBytes, flags }: Descriptor): void => {
      check(++count <= CHAIN_MAX);
      if ((flags & DESC_F.write) !== 0) {
        writable.push({ address, sizeBytes });
        writableBytes += sizeBytes;
      } else {
        check(writable.length === 0);
        readable.push({ address, sizeBytes });
        readableBytes += sizeBytes;
      }
    };
    const address = this.#address(Q.desc, DESCRIPTOR_BYTES);
    this.#walk(this.#num, head, (index) => this.#descriptor(address + DESCRIPTOR_BYTES * index), (descriptor) => {
      if ((descriptor.flags & DESC_F.indirect) === 0) return add(descriptor);
      check(this.#slot.hasIndirect && (descriptor.flags & DESC_F.next) === 0);
      const table = this.#indirectTable(descriptor);
      this.#walk(table.byteLength / DESCRIPTOR_BYTES, 0, (index) => descriptorAt(table, DESCRIPTOR_BYTES * index), (inner) => {
        check((inner.flags & DESC_F.indirect) === 0);
        add(inner);
      });
    });
    return { head, readable, writable, readableBytes, writableBytes };
  }

  /** Copied at once: most of it is used. */
  #indirectTable({ address, sizeBytes }: Descriptor): DataView {
    check(sizeBytes > 0 && sizeBytes % DESCRIPTOR_BYTES === 0 && sizeBytes <= CHAIN_MAX * DESCRIPTOR_BYTES);
    const bytes = new Uint8Array(sizeBytes);
    this.#must(this.#slot.ram.read({ address, sizeBytes }, bytes));
    return new DataView(bytes.buffer);
  }

  /** Follows a chain from one descriptor of a table on, no longer than the table is. */
  #walk(count: number, first: number, descriptorOf: (index: number) => Descriptor, visit: (descriptor: Descriptor) => void): void {
    let index = first;
    for (let steps = 0; ; steps++) {
      check(index < count && steps < count);
      const descriptor = descriptorOf(index);
      visit(descriptor);
      if ((descriptor.flags & DESC_F.next) === 0) return;
      index = descriptor.next;
    }
  }

  #descriptor(address: number): Descriptor {
    this.#must(this.#slot.ram.read({ address, sizeBytes: DESCRIPTOR_BYTES }, scratchBytes));
    return descriptorAt(scratch, 0);
  }

  #address(field: number, align: number): number {
    const address = this.#get(field + 4) * 2 ** 32 + this.#get(field);
    check(address % align === 0);
    return address;
  }
  #get(field: number): number {
    return this.#slot.frame.get(this.#at + field);
  }
  #set(field: number, value: number): void {
    this.#slot.frame.set(this.#at + field, value);
  }

  #must<T>(answer: T): Exclude<T, 'fault' | 'later'> {
    if (answer === 'fault') throw BROKEN;
    if (answer === 'later') throw LATER;
    return answer as Exclude<T, 'fault' | 'later'>;
  }

  #guarded<T>(body: () => T): T | undefined {
    try {
      return body();
    } catch (error) {
      if (error === BROKEN) this.#slot.markBroken();
      else if (error === LATER) this.#slot.tryLater();
      else throw error;
      return undefined;
    }
  }
}

function descriptorAt(bytes: DataView, at: number): Descriptor {
  return {
    address: bytes.getUint32(at + 4, true) * 2 ** 32 + bytes.getUint32(at, true),
    sizeBytes: bytes.getUint32(at + 8, true),
    flags: bytes.getUint16(at + 12, true),
    next: bytes.getUint16(at + 14, true),
  };
}

function check(holds: boolean): asserts holds {
  if (!holds) throw BROKEN;
}

/** The part of some ranges that begins after so many bytes and is so many bytes long, or shorter if they end. */
export function slice(ranges: readonly GuestRange[], fromBytes: number, sizeBytes: number): GuestRange[] {
  const parts: GuestRange[] = [];
  let skip = fromBytes;
  let left = sizeBytes;
  for (const range of ranges) {
    const within = Math.min(skip, range.sizeBytes);
    skip -= within;
    const length = Math.min(left, range.sizeBytes - within);
    if (length > 0) parts.push({ address: range.address + within, sizeBytes: length });
    left -= length;
  }
  return parts;
}
