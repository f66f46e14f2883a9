// The bytes of a layer file: header, pages of the directory and of the map. docs/formats/layer.md has every field.
//
//        0 ┌─────────────────────────────┐
//          │ header, two slots of 4 KiB  │
//     8192 ├─────────────────────────────┤
//          │ directory: 512 pairs        │  an entry: where in the file a pair of map pages is
//          │ of 4 KiB slots              │
//  4259840 ├─────────────────────────────┤  cluster 65, the first that can be used
//          │ clusters of 64 KiB: data,   │  an entry of the map, for 64 KiB of the disk: its cluster, and for each
//          │ or 8 pairs of map pages     │  4 KiB in it whether it is there, or zero, or what lies below says
//          └─────────────────────────────┘
//
// Each record has two slots and is written to them in turn, so that the one before survives a write that is cut short.
// The checksum begins with the layer's UUID: bytes that a guest has put into a cluster are never taken for a record.

import { crc32 } from 'node:zlib';
import { ENTRIES_PER_PAGE, MAP_PAGE_SPAN_BYTES, MAP_PAGE_WORD, SHARED_PAGE_WORDS, TABLES_MAX } from '../../abi/layer-map.ts';
import { diskError } from './errors.ts';

export { ALL_GRANULES, CLUSTER_BYTES, ENTRIES_PER_PAGE, GRANULES_PER_CLUSTER, GRANULE_BYTES, MAP_PAGE_SPAN_BYTES } from '../../abi/layer-map.ts';

export const PAGE_BYTES = 4096;
export const PAIR_BYTES = 2 * PAGE_BYTES;
export const DIRECTORY_PAIRS = TABLES_MAX;
export const DIRECTORY_OFFSET = PAIR_BYTES;
export const FIRST_CLUSTER = 65;
export const LAYER_SIZE_MAX_BYTES = DIRECTORY_PAIRS * ENTRIES_PER_PAGE * MAP_PAGE_SPAN_BYTES;

const MAGIC = Buffer.from('ZAZENLYR', 'latin1');
const VERSION = 1;
const BACKING_KINDS = ['none', 'raw', 'layer'] as const;
const PATH_OFFSET = 128;
export const BACKING_PATH_MAX_BYTES = 3072;
const CLEAN_FLAG = 1;

export const PAGE_KIND = { directory: 0x59524944, map: 0x2050414d } as const;
export type PageKind = (typeof PAGE_KIND)[keyof typeof PAGE_KIND];
const ENTRIES_OFFSET = 32;

/** What a layer lies on, and how to tell that it is still that. */
export type BackingReference =
  | { readonly kind: 'raw'; readonly path: string; readonly sizeBytes: number; readonly modifiedNanos: bigint }
  | { readonly kind: 'layer'; readonly path: string; readonly uuid: string; readonly generation: number };

export interface LayerHeader {
  readonly uuid: string;
  /** Of the disk, a multiple of 512. */
  readonly sizeBytes: number;
  /** Counts the times that it was opened and written to: a layer on top of it knows by that whether it has changed. */
  readonly generation: number;
  /** All records were written and durable when it was closed. */
  readonly isClean: boolean;
  readonly backing: BackingReference | undefined;
}

export interface SequencedHeader {
  readonly header: LayerHeader;
  readonly sequence: number;
}

const uuidBytes = (uuid: string): Buffer => Buffer.from(uuid.replaceAll('-', ''), 'hex');

function uuidText(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}

function checksumOf(page: Uint8Array, uuid: string): number {
  // The checksum's own place counts as zero: it is the last word of the first 32 bytes.
  return crc32(page.subarray(ENTRIES_OFFSET), crc32(page.subarray(0, CHECKSUM_OFFSET), crc32(uuidBytes(uuid))));
}
const CHECKSUM_OFFSET = 28;

// ---- header ---------------------------------------------------------------------------------------------------------

export function encodeHeader({ header, sequence }: SequencedHeader): Uint8Array {
  const page = Buffer.alloc(PAGE_BYTES);
  MAGIC.copy(page, 0);
  page.writeUInt32LE(VERSION, 8);
  page.writeUInt32LE(header.isClean ? CLEAN_FLAG : 0, 12);
  page.writeBigUInt64LE(BigInt(sequence), 16);
  uuidBytes(header.uuid).copy(page, 32);
  page.writeBigUInt64LE(BigInt(header.sizeBytes), 48);
  page.writeBigUInt64LE(BigInt(header.generation), 56);
  const { backing } = header;
  page.writeUInt32LE(BACKING_KINDS.indexOf(backing?.kind ?? 'none'), 64);
  if (backing !== undefined) {
    const path = Buffer.from(backing.path);
    page.writeUInt32LE(path.length, 68);
    path.copy(page, PATH_OFFSET);
    if (backing.kind === 'raw') {
      page.writeBigUInt64LE(BigInt(backing.sizeBytes), 72);
      page.writeBigUInt64LE(backing.modifiedNanos, 80);
    } else {
      uuidBytes(backing.uuid).copy(page, 72);
      page.writeBigUInt64LE(BigInt(backing.generation), 88);
    }
  }
  page.writeUInt32LE(checksumOf(page, header.uuid), CHECKSUM_OFFSET);
  return page;
}

/** Whether the file claims to be a layer. */
export function isLayer(start: Uint8Array): boolean {
  return [0, PAGE_BYTES].some((at) => MAGIC.equals(start.subarray(at, at + MAGIC.length)));
}

/** @param slots the first 8 KiB @throws ZazenError ZAZEN_DISK_FORMAT, _DAMAGED */
export function decodeHeader(slots: Uint8Array, path: string): SequencedHeader {
  if (!isLayer(slots)) throw diskError('FORMAT', path, 'is not a layer', { hint: 'give its format as raw' });
  const found = [0, 1].map((slot) => decodeSlot(Buffer.from(slots.buffer, slots.byteOffset + slot * PAGE_BYTES, PAGE_BYTES)));
  const versions = found.flatMap((slot) => typeof slot === 'number' ? [slot] : []);
  const headers = found.flatMap((slot) => typeof slot === 'object' ? [slot] : []);
  const newest = headers.toSorted((a, b) => b.sequence - a.sequence)[0];
  if (newest !== undefined) return newest;
  if (versions.length > 0) throw diskError('FORMAT', path, `is a layer of version ${versions[0]}, and only ${VERSION} is known`);
  throw diskError('DAMAGED', path, 'the header of the layer is damaged');
}

/** @returns the version if it is another one; undefined if it is none, or damaged */
function decodeSlot(page: Buffer): SequencedHeader | number | undefined {
  if (!MAGIC.equals(page.subarray(0, MAGIC.length))) return undefined;
  const uuid = uuidText(page.subarray(32, 48));
  if (page.readUInt32LE(CHECKSUM_OFFSET) !== checksumOf(page, uuid)) return undefined;
  const version = page.readUInt32LE(8);
  if (version !== VERSION) return version;
  const sizeBytes = Number(page.readBigUInt64LE(48));
  const kind = BACKING_KINDS[page.readUInt32LE(64)];
  const pathBytes = page.readUInt32LE(68);
  if (sizeBytes > LAYER_SIZE_MAX_BYTES || sizeBytes % 512 !== 0 || kind === undefined || pathBytes > BACKING_PATH_MAX_BYTES) {
    return undefined;
  }
  const header = {
    uuid, sizeBytes, generation: Number(page.readBigUInt64LE(56)), isClean: (page.readUInt32LE(12) & CLEAN_FLAG) !== 0,
    backing: decodeBacking(page, kind, page.toString('utf8', PATH_OFFSET, PATH_OFFSET + pathBytes)),
  };
  return { header, sequence: Number(page.readBigUInt64LE(16)) };
}

function decodeBacking(page: Buffer, kind: (typeof BACKING_KINDS)[number], path: string): BackingReference | undefined {
  if (kind === 'none') return undefined;
  if (kind === 'raw') {
    return { kind, path, sizeBytes: Number(page.readBigUInt64LE(72)), modifiedNanos: page.readBigUInt64LE(80) };
  }
  return { kind, path, uuid: uuidText(page.subarray(72, 88)), generation: Number(page.readBigUInt64LE(88)) };
}

// ---- pages of directory and map ---------------------------------------------------------------------------------------

/** 508 entries of 8 bytes each, as one reads and writes them. */
export class EntryPage {
  readonly kind: PageKind;
  readonly index: number;
  /** Where in the file its two slots are; 0: it has no place yet. */
  offset: number;
  sequence: number;
  /** Both views are of the same page: a directory entry is the number of a pair, a map entry a u32 and two u16. */
  #u32: Uint32Array;
  #u16: Uint16Array;

  constructor(kind: PageKind, index: number, offset: number, sequence = 0, entries?: Uint8Array) {
    this.kind = kind;
    this.index = index;
    this.offset = offset;
    this.sequence = sequence;
    this.#u32 = new Uint32Array(SHARED_PAGE_WORDS);
    this.#u16 = new Uint16Array(this.#u32.buffer);
    if (entries !== undefined) new Uint8Array(this.#u32.buffer).set(entries);
  }

  /** From now on it is there, for other threads as well. @param isThere what it says is there already */
  moveTo(words: Uint32Array, isThere: boolean): void {
    if (!isThere) words.set(this.#u32);
    this.#u32 = words;
    this.#u16 = new Uint16Array(words.buffer, words.byteOffset, 2 * words.length);
  }

  get isDirty(): boolean {
    return this.#u32[MAP_PAGE_WORD.dirty] !== 0;
  }
  set isDirty(isDirty: boolean) {
    this.#u32[MAP_PAGE_WORD.dirty] = Number(isDirty);
  }

  /** Those that say anything. Most pages have few, and a layer is opened by code that has not run often. */
  used(): number[] {
    const words = this.#u32;
    const used: number[] = [];
    for (let word = 0; word < 2 * ENTRIES_PER_PAGE; word += 2) if ((words[word]! | words[word + 1]!) !== 0) used.push(word / 2);
    return used;
  }

  /** Offset of a pair of map pages; 0: there is none. */
  place(entry: number): number {
    return this.#u32[2 * entry]! * PAIR_BYTES;
  }
  setPlace(entry: number, offset: number): void {
    this.#u32[2 * entry] = offset / PAIR_BYTES;
    this.isDirty = true;
  }

  /** Cluster that holds the granules that are there; 0: none. */
  cluster(entry: number): number {
    return this.#u32[2 * entry]!;
  }
  /** A bit for each granule of which the data is here. */
  present(entry: number): number {
    return this.#u16[4 * entry + 2]!;
  }
  /** A bit for each granule that is zero, whatever lies below says. */
  zero(entry: number): number {
    return this.#u16[4 * entry + 3]!;
  }
  set(entry: number, cluster: number, present: number, zero: number): void {
    this.#u32[2 * entry] = cluster;
    this.#u16[4 * entry + 2] = present;
    this.#u16[4 * entry + 3] = zero;
    this.isDirty = true;
  }

  /** As it goes into slot `sequence % 2`. */
  encode(uuid: string): Uint8Array {
    const page = new Uint8Array(PAGE_BYTES);
    const view = new DataView(page.buffer);
    view.setUint32(0, this.kind, true);
    view.setUint32(4, this.index, true);
    view.setBigUint64(8, BigInt(this.sequence), true);
    page.set(new Uint8Array(this.#u32.buffer, this.#u32.byteOffset, 8 * ENTRIES_PER_PAGE), ENTRIES_OFFSET);
    // A cluster that is still being written to for the first time does not count.
    for (let entry = 0; this.kind === PAGE_KIND.map && entry < ENTRIES_PER_PAGE; entry++) {
      if (this.present(entry) === 0) view.setUint32(ENTRIES_OFFSET + 8 * entry, 0, true);
    }
    view.setUint32(CHECKSUM_OFFSET, checksumOf(page, uuid), true);
    return page;
  }
}

const EMPTY_PAGE = Buffer.alloc(PAGE_BYTES);

/**
 * The newer of two slots.
 * @param isStrict a slot that is neither empty nor right is damage, not a write that was cut short
 * @returns a page of sequence 0 when both slots are empty; undefined when it is damaged
 */
export function decodePage(
  slots: Uint8Array, kind: PageKind, index: number, offset: number, uuid: string, isStrict: boolean,
): EntryPage | undefined {
  let newest: EntryPage | undefined;
  let empty = 0;
  let isTorn = false;
  for (let slot = 0; slot < 2; slot++) {
    const page = slots.subarray(slot * PAGE_BYTES, (slot + 1) * PAGE_BYTES);
    const view = new DataView(page.buffer, page.byteOffset);
    const sequence = Number(view.getBigUint64(8, true));
    if (view.getUint32(0, true) === kind && view.getUint32(4, true) === index && sequence % 2 === slot
      && view.getUint32(CHECKSUM_OFFSET, true) === checksumOf(page, uuid)) {
      if (newest === undefined || sequence > newest.sequence) {
        newest = new EntryPage(kind, index, offset, sequence, page.subarray(ENTRIES_OFFSET));
      }
    } else if (EMPTY_PAGE.equals(page)) empty++;
    else if (isStrict) return undefined;
    else isTorn = true;
  }
  // Both slots have been written when the newer one has been for the second time, and a map page that has a place at least once.
  const isLost = kind === PAGE_KIND.map ? empty === 2 : false;
  if (isStrict && (isLost || (empty > 0 && newest !== undefined && newest.sequence > 1))) return undefined;
  if (newest === undefined && empty === 2) {
    const page = new EntryPage(kind, index, offset);
    page.isDirty = isLost;
    return page;
  }
  // The next flush puts the other slot right.
  if (newest !== undefined) newest.isDirty = isTorn;
  return newest;
}
