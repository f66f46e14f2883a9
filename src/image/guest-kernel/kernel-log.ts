// The kernel's log, as it lies in memory: the lockless ring of Linux since 5.10 (kernel/printk/printk_ringbuffer.c).
// What the fields' offsets are, the kernel tells in VMCOREINFO.
//
//   descriptors, 2^count_bits              infos                  text ring, 2^size_bits bytes
//   ┌───────────┬──────────────────┐       ┌──────────────┐       ┌─────┬──────────────┬──
//   │ state_var │ text_blk_lpos ───┼──┐    │ seq, ts_nsec │  ┌───►│ id  │ text         │
//   │ state, id │ begin, next      │  └────│ text_len …   │──┘    └─────┴──────────────┴──
//   └───────────┴──────────────────┘       └──────────────┘
//
// Positions in the ring count bytes for ever; their low bits are the place. A text that does not fit before the end of
// the ring lies at its start. Records being written when the guest stopped are left out, as the kernel's readers do.

import { guestKernelError } from './vmcoreinfo.ts';
import type { Vmcoreinfo } from './vmcoreinfo.ts';
import type { GuestMemory } from './guest-memory.ts';

export interface LogRecord {
  readonly sequence: bigint;
  /** Since the kernel's start. */
  readonly timeNanos: bigint;
  /** 0 (emergency) to 7 (debug). */
  readonly level: number;
  readonly facility: number;
  /** Whatever was logged, as Latin-1 or UTF-8; lines are separated by LF. */
  readonly text: string;
}

const COUNT_BITS_MAX = 20;
const SIZE_BITS_MAX = 25;
const STATE_SHIFT = 62n;
const COMMITTED = 1n;
const FINALIZED = 2n;
const ID_MASK = (1n << STATE_SHIFT) - 1n;
/** Before each text in the ring. */
const BLOCK_ID_BYTES = 8;

/** @throws ZazenError ZAZEN_GUEST_KERNEL; as the image's reads */
export function readKernelLog(memory: GuestMemory, info: Vmcoreinfo): LogRecord[] {
  const ring = readRing(memory, info);
  const records: LogRecord[] = [];
  let textLength = 0;
  const count = BigInt(ring.descriptors.length);
  // The head's distance from the tail is bounded by the number of descriptors, whatever the guest says.
  for (let id = ring.tail, n = 0n; n < count; n++, id = (id + 1n) & ID_MASK) {
    const record = ring.descriptors.record(id);
    textLength += record?.text.length ?? 0;
    if (textLength > ring.textBytes) throw guestKernelError(memory.path, 'the texts of its log overlap');
    if (record !== undefined) records.push(record);
    if (id === ring.head) break;
  }
  return records;
}

function readRing(memory: GuestMemory, info: Vmcoreinfo) {
  const at = memory.u64(info.symbol('prb'));
  const ring = memory.view(at, info.size('printk_ringbuffer'));
  const field = (view: DataView, base: number, name: string) => viewed(memory, view, base + info.offset(name));
  const descriptorRing = info.offset('printk_ringbuffer.desc_ring');
  const dataRing = info.offset('printk_ringbuffer.text_data_ring');
  const bits = (base: number, name: string, max: number): number => {
    const value = Number(field(ring, base, name) & 0xffff_ffffn); // an unsigned int
    if (value < 1 || value > max) throw guestKernelError(memory.path, 'its log has an impossible size');
    return value;
  };
  const countBits = bits(descriptorRing, 'prb_desc_ring.count_bits', COUNT_BITS_MAX);
  const sizeBits = bits(dataRing, 'prb_data_ring.size_bits', SIZE_BITS_MAX);
  const table = (address: bigint, name: string): DataView => memory.view(address, info.size(name) * 2 ** countBits);
  const descriptors = table(field(ring, descriptorRing, 'prb_desc_ring.descs'), 'prb_desc');
  const infos = table(field(ring, descriptorRing, 'prb_desc_ring.infos'), 'printk_info');
  const text = memory.read(field(ring, dataRing, 'prb_data_ring.data'), 2 ** sizeBits);
  return {
    textBytes: text.length,
    tail: field(ring, descriptorRing, 'prb_desc_ring.tail_id') & ID_MASK,
    head: field(ring, descriptorRing, 'prb_desc_ring.head_id') & ID_MASK,
    descriptors: {
      length: 2 ** countBits,
      record(id: bigint): LogRecord | undefined {
        const index = Number(id & ((1n << BigInt(countBits)) - 1n));
        const descriptor = index * info.size('prb_desc');
        const state = field(descriptors, descriptor, 'prb_desc.state_var');
        const kind = state >> STATE_SHIFT;
        if ((state & ID_MASK) !== id || kind !== COMMITTED && kind !== FINALIZED) return undefined;
        const block = descriptor + info.offset('prb_desc.text_blk_lpos');
        const begin = field(descriptors, block, 'prb_data_blk_lpos.begin');
        const next = field(descriptors, block, 'prb_data_blk_lpos.next');
        const entry = index * info.size('printk_info');
        const lengthAt = entry + info.offset('printk_info.text_len');
        if (lengthAt + 4 > infos.byteLength) throw guestKernelError(memory.path, 'its log has an impossible layout');
        const bytes = textOf(text, sizeBits, begin, next).subarray(0, infos.getUint16(lengthAt, true));
        return {
          sequence: field(infos, entry, 'printk_info.seq'),
          timeNanos: field(infos, entry, 'printk_info.ts_nsec'),
          // text_len is followed by facility, flags (5 bits) and level (3 bits).
          facility: infos.getUint8(lengthAt + 2),
          level: infos.getUint8(lengthAt + 3) >>> 5,
          text: decodeText(bytes),
        };
      },
    },
  };
}

/** 64 bits of a structure; what the guest says of offsets is checked here. */
function viewed(memory: GuestMemory, view: DataView, at: number): bigint {
  if (at + 8 > view.byteLength) throw guestKernelError(memory.path, 'its log has an impossible layout');
  return view.getBigUint64(at, true);
}

/** Between two positions. A position that is odd says that there is no text. */
function textOf(ring: Uint8Array, sizeBits: number, begin: bigint, next: bigint): Uint8Array {
  const mask = (1n << BigInt(sizeBits)) - 1n;
  if ((begin & 1n) === 1n || next <= begin || next - begin > mask + mask) return ring.subarray(0, 0);
  const isWrapped = begin >> BigInt(sizeBits) !== (next - 1n) >> BigInt(sizeBits);
  const start = isWrapped ? 0 : Number(begin & mask);
  const end = Number((next - 1n) & mask) + 1;
  return ring.subarray(Math.min(start + BLOCK_ID_BYTES, end), end);
}

function decodeText(bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    return new TextDecoder('latin1').decode(bytes);
  }
}

/** Lines as `dmesg` shows them: `[    1.234567] text`, each line of a text for itself. */
export function formatLog(records: readonly LogRecord[]): string {
  return records.map(({ timeNanos, text }) => {
    const micros = timeNanos / 1000n;
    const seconds = String(micros / 1_000_000n).padStart(5);
    const prefix = `[${seconds}.${String(micros % 1_000_000n).padStart(6, '0')}] `;
    return text.split('\n').map((line) => `${prefix}${line}\n`).join('');
  }).join('');
}

