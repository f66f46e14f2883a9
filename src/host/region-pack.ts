// A file of compiled regions, little-endian as this machine is. Written once, whole; read by its index, and a region's code when it is wanted.
//
//      0 ┌──────────────────────────────────────┐
//        │ magic, regions, bytes of the index,  │ u32 each
//        │ checksum of the index and of these   │ u32: CRC-32 of the 48 bytes around it and the index
//     16 │ version of the emitter               │ 32 bytes
//     48 ├──────────────────────────────────────┤
//        │ index, for each region:              │
//        │   entry, instructions, runs, hints   │ u16 each; bit 15 of the first: calls are followed
//        │   day of last use, bytes of code,    │ u32 each; days since 1970
//        │   checksum of the code               │ u32
//        │   runs × (first place, count)        │ u16 each: where its instructions stand in the page
//        │   instructions × word                │ u32
//        │   hints × offset                     │ u32: FunctionBody.unlikely
//        ├──────────────────────────────────────┤
//        │ code of each region, in this order   │ FunctionBody.bytes
//        └──────────────────────────────────────┘

import { closeSync, constants, fstatSync, openSync, readSync, writeSync } from 'node:fs';
import { crc32 } from 'node:zlib';
import type { StoredRegion } from '../cpu/jit/region-store.ts';
import type { FunctionBody } from '../wasm/function.ts';

/** 'ZZR1' */
const MAGIC = 0x3152_5a5a;
const HEAD_BYTES = 48;
const FIXED_BYTES = 20;
const CHECKSUM_AT = 12;
const VERSION_AT = 16;
/** In the word that has the entry. */
const FOLLOWS_CALLS = 0x8000;
const INDEX_MAX_BYTES = 64 * 2 ** 20;

/** A region in a pack, or for one. */
export interface PackedRegion extends StoredRegion {
  /** Of its last use, since 1970. */
  readonly day: number;
  /** Of index and code. */
  readonly sizeBytes: number;
  /** Its entry in an index, but for the day: of equal regions with equal code the same. */
  readonly identity: string;
}

/** Runs of places beside each other: [first, count, first, count …]. */
function runsOf(indices: readonly number[]): number[] {
  const runs: number[] = [];
  for (const index of indices) {
    const [first = -1, count = 0] = runs.slice(-2);
    if (index === first + count) runs[runs.length - 1]!++;
    else runs.push(index, 1);
  }
  return runs;
}

function indicesOf(runs: Uint16Array): number[] {
  const indices: number[] = [];
  for (let run = 0; run < runs.length; run += 2) for (let i = 0; i < runs[run + 1]!; i++) indices.push(runs[run]! + i);
  return indices;
}

function indexEntry({ entry, indices, words, followsCalls }: StoredRegion, { bytes, unlikely }: FunctionBody, day: number): Buffer {
  const runs = runsOf(indices);
  const out = Buffer.alloc(FIXED_BYTES + 2 * runs.length + 4 * (words.length + unlikely.length));
  [followsCalls ? entry | FOLLOWS_CALLS : entry, words.length, runs.length / 2, unlikely.length].forEach((value, i) => out.writeUInt16LE(value, 2 * i));
  [day, bytes.length, crc32(bytes)].forEach((value, i) => out.writeUInt32LE(value, 8 + 4 * i));
  let at = FIXED_BYTES;
  for (const value of runs) at = out.writeUInt16LE(value, at);
  for (const value of words) at = out.writeUInt32LE(value, at);
  for (const value of unlikely) at = out.writeUInt32LE(value, at);
  return out;
}

function writeAll(fd: number, bytes: Buffer): void {
  for (let done = 0; done < bytes.length;) done += writeSync(fd, bytes, done);
}

/** In memory of its own, from its beginning: what is aligned in the file is aligned there. */
function readAt(fd: number, position: number, length: number): Buffer | undefined {
  const bytes = Buffer.allocUnsafeSlow(length);
  for (let done = 0; done < length;) {
    const read = readSync(fd, bytes, done, length - done, position + done);
    if (read === 0) return undefined;
    done += read;
  }
  return bytes;
}

/** A file that stays open: it may lose its name, and its regions can still be read. */
export class Pack {
  readonly #fd: number;
  readonly #sizeBytes: number;
  readonly regions: readonly PackedRegion[];

  private constructor(fd: number, sizeBytes: number, index: Buffer, count: number) {
    this.#fd = fd;
    this.#sizeBytes = sizeBytes;
    this.regions = this.#parse(index, count);
  }

  /** A new file. @returns how many regions were written: the code of some may be lost */
  static write(path: string, version: Uint8Array, regions: Iterable<{ region: StoredRegion; day: number }>): number {
    const entries: Buffer[] = [];
    const codes: Uint8Array[] = [];
    for (const { region, day } of regions) {
      const body = region.body();
      if (body === undefined) continue;
      entries.push(indexEntry(region, body, day));
      codes.push(body.bytes);
    }
    const index = Buffer.concat(entries);
    const head = Buffer.alloc(HEAD_BYTES);
    [MAGIC, entries.length, index.length].forEach((value, i) => head.writeUInt32LE(value, 4 * i));
    head.set(version, VERSION_AT);
    head.writeUInt32LE(crc32(index, crc32(head)), CHECKSUM_AT);
    const fd = openSync(path, 'wx', 0o600);
    try {
      writeAll(fd, Buffer.concat([head, index, ...codes]));
    } finally {
      closeSync(fd);
    }
    return entries.length;
  }

  close(): void {
    closeSync(this.#fd);
  }

  /**
   * @param uid the file's owner must be this one
   * @returns undefined when the file is damaged, somebody else's, or of another version
   * @throws an error with a `code` when the system does not let it be read
   */
  static open(path: string, version: Uint8Array, uid: number): Pack | undefined {
    const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    const pack = Pack.#read(fd, version, uid);
    if (pack === undefined) closeSync(fd);
    return pack;
  }
  static #read(fd: number, version: Uint8Array, uid: number): Pack | undefined {
    const status = fstatSync(fd);
    if (!status.isFile() || status.uid !== uid || status.size < HEAD_BYTES) return undefined;
    const head = readAt(fd, 0, HEAD_BYTES);
    if (head === undefined || head.readUInt32LE(0) !== MAGIC) return undefined;
    if (head.compare(version, 0, version.length, VERSION_AT, HEAD_BYTES) !== 0) return undefined;
    const [count, indexBytes, checksum] = [head.readUInt32LE(4), head.readUInt32LE(8), head.readUInt32LE(CHECKSUM_AT)];
    if (indexBytes > INDEX_MAX_BYTES || HEAD_BYTES + indexBytes > status.size) return undefined;
    const index = readAt(fd, HEAD_BYTES, indexBytes);
    if (index === undefined) return undefined;
    head.writeUInt32LE(0, CHECKSUM_AT);
    if (crc32(index, crc32(head)) !== checksum) return undefined;
    return new Pack(fd, status.size, index, count);
  }

  /** Nothing of it is copied, for most of it is not looked at before some page has the word at the entry. */
  #parse(index: Buffer, count: number): PackedRegion[] {
    const u16 = new Uint16Array(index.buffer, 0, index.length >>> 1);
    const u32 = new Uint32Array(index.buffer, 0, index.length >>> 2);
    const regions: PackedRegion[] = [];
    let position = HEAD_BYTES + index.length;
    for (let at = 0; regions.length < count;) {
      const start = at;
      const [entry, instructions, runs, hints] = [u16[at / 2]!, u16[at / 2 + 1]!, u16[at / 2 + 2]!, u16[at / 2 + 3]!];
      const [day, length, checksum] = [u32[at / 4 + 2]!, u32[at / 4 + 3]!, u32[at / 4 + 4]!];
      const wordsAt = at + FIXED_BYTES + 4 * runs;
      at = wordsAt + 4 * (instructions + hints);
      const place = { position, length, checksum };
      const end = at;
      regions.push({
        entry: entry & ~FOLLOWS_CALLS, followsCalls: (entry & FOLLOWS_CALLS) !== 0, day, indices: indicesOf(u16.subarray((start + FIXED_BYTES) / 2, wordsAt / 2)),
        words: u32.subarray(wordsAt / 4, wordsAt / 4 + instructions), sizeBytes: end - start + length,
        get identity() { return index.toString('latin1', start, start + 8) + index.toString('latin1', start + 12, end); },
        body: () => this.#code(place, [...u32.subarray(wordsAt / 4 + instructions, end / 4)]),
      });
      position += length;
    }
    return regions;
  }

  #code({ position, length, checksum }: { position: number; length: number; checksum: number }, unlikely: readonly number[]): FunctionBody | undefined {
    if (position + length > this.#sizeBytes) return undefined;
    const bytes = readAt(this.#fd, position, length);
    return bytes === undefined || crc32(bytes) !== checksum ? undefined : { bytes, unlikely };
  }
}
