// One open file of a disk: reads and writes past the host's page cache (O_DIRECT), straight from and to guest frames. A
// file system that refuses that gets the same requests through the page cache, and `isDirect` says so.
//
// Requests go to Node's pool of threads by descriptor and callback: a FileHandle costs more for each, and any number may be
// under way. What O_DIRECT cannot do (places that are no multiples of `alignBytes` in the file or in memory) goes through a
// buffer of our own; then a write reads first what is around it, and who calls sees to it that nobody else writes there.

import {
  close, closeSync, constants, fdatasync, fstat, fstatSync, ftruncate, openSync, readFileSync, readv, writev,
} from 'node:fs';
import type { BigIntStats } from 'node:fs';
import { promisify } from 'node:util';
import { assert } from '../../base/assert.ts';
import { errnoOf } from '../../base/errors.ts';
import { takeBuffer } from '../../lanes/buffers.ts';
import type { LentFile } from '../../lanes/lending.ts';
import { bytesOf, skipBytes } from '../../lanes/pieces.ts';
import type { Pieces } from '../../lanes/pieces.ts';
import { asDiskError, diskError } from './errors.ts';
import { HolePuncher } from './hole-puncher.ts';

/** What direct requests are multiples of: by the sector size of the disk under the file system. */
const ALIGN_BYTES = 4096;
const SMALL_ALIGN_BYTES = 512;
const MEMORY_ALIGN_BYTES = 512;
/** Of a file that is made. */
const MODE = 0o600;
/** A system call takes no more. */
const PIECES_MAX = 1024;

const closeFd = promisify(close);
const truncateFd = promisify(ftruncate);
const statFd = promisify(fstat) as (fd: number, options: { bigint: true }) => Promise<BigIntStats>;

export interface BlockFileStats {
  reads: number;
  writes: number;
  syncs: number;
  bounced: number;
}

export class BlockFile {
  readonly path: string;
  readonly isWritable: boolean;
  readonly #isLocal: boolean;
  readonly stats: BlockFileStats = { reads: 0, writes: 0, syncs: 0, bounced: 0 };
  #fd: number;
  #alignBytes: number;
  #isAlignmentTried = false;
  #sizeBytes: number;
  #unsynced = false;
  /** A system that has failed to write forgets it: what was lost can't be made good by asking again. */
  #syncFailure: unknown;
  #puncher: HolePuncher | undefined;
  #inUse = 0;
  #lent = 0;
  /** Descriptors of before, that other threads may be using. */
  readonly #retired: number[] = [];
  #isClosed = false;
  #idle: (() => void) | undefined;

  private constructor(path: string, fd: number, isDirect: boolean, isWritable: boolean, isLocal: boolean, sizeBytes: number) {
    this.path = path;
    this.isWritable = isWritable;
    this.#isLocal = isLocal;
    this.#fd = fd;
    this.#alignBytes = isDirect ? ALIGN_BYTES : 1;
    this.#sizeBytes = sizeBytes;
  }

  /** @throws ZazenError ZAZEN_DISK_MISSING, _UNREADABLE */
  static async open(path: string, mode: 'read' | 'write' | 'create', direct = true): Promise<BlockFile> {
    const isWritable = mode !== 'read';
    // A pipe is answered at once instead of waited for, and a terminal does not become ours.
    const flags = (isWritable ? constants.O_RDWR : constants.O_RDONLY) | constants.O_NONBLOCK | constants.O_NOCTTY
      | (mode === 'create' ? constants.O_CREAT | constants.O_EXCL : 0);
    let isDirect = direct && constants.O_DIRECT !== undefined;
    let fd: number | undefined;
    try {
      if (isDirect) {
        try {
          fd = openSync(path, flags | constants.O_DIRECT, MODE);
        } catch (error) {
          if (errnoOf(error) !== 'EINVAL') throw error;
          isDirect = false;
        }
      }
      // After EINVAL the file may have been made all the same (open(2)).
      fd ??= openSync(path, flags & ~(direct ? constants.O_EXCL : 0), MODE);
      const stat = fstatSync(fd, { bigint: true });
      if (!stat.isFile() && !stat.isBlockDevice()) {
        throw diskError('UNREADABLE', path, 'is neither a file nor a block device');
      }
      const sizeBytes = stat.isFile() ? Number(stat.size) : blockDeviceBytes(Number(stat.rdev));
      return new BlockFile(path, fd, isDirect, isWritable, isOnDisk(stat), sizeBytes);
    } catch (error) {
      if (fd !== undefined) closeSync(fd);
      throw asDiskError(path, error);
    }
  }

  /**
   * Finds out whether requests may be as small as a sector, when there is one. It does not wait for that: most files never
   * see any, and are opened quickly.
   */
  #noticeSmall(): void {
    if (this.#isAlignmentTried || this.#sizeBytes < 2 * SMALL_ALIGN_BYTES) return;
    this.#isAlignmentTried = true;
    void this.#using(() => this.#tryAlignment());
  }
  async #tryAlignment(): Promise<void> {
    using buffer = takeBuffer(SMALL_ALIGN_BYTES);
    const errno = await new Promise<string | undefined>((resolve) => {
      readv(this.#fd, [buffer.bytes], SMALL_ALIGN_BYTES, (error) => resolve(error?.code));
    });
    if (errno === undefined && this.isDirect) this.#alignBytes = SMALL_ALIGN_BYTES;
  }

  get isDirect(): boolean {
    return this.#alignBytes > 1;
  }
  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** What tells whether the file is still the one that somebody meant: its size, and when it was last written. */
  async identity(): Promise<{ sizeBytes: number; modifiedNanos: bigint }> {
    const { size, mtimeNs } = await statFd(this.#fd, { bigint: true });
    return { sizeBytes: Number(size), modifiedNanos: mtimeNs };
  }

  /** Fills the pieces; what lies behind the end of the file reads as zero. */
  read(pieces: Pieces, offset: number): Promise<void> {
    return this.#using(() => this.#read(pieces, offset));
  }

  async #read(pieces: Pieces, offset: number): Promise<void> {
    this.stats.reads++;
    if (!this.#isAligned(pieces, offset)) return this.#bouncedRead(pieces, offset);
    let left = pieces;
    while (left.length > 0) {
      const now = left.length > PIECES_MAX ? left.slice(0, PIECES_MAX) : left;
      const bytesRead = await this.#transfer(readv, now, offset);
      if (bytesRead === 0) {
        for (const piece of left) piece.fill(0);
        return;
      }
      offset += bytesRead;
      left = skipBytes(left, bytesRead);
      // A direct read that ends off the grid has met the end of the file.
      if (left.length > 0 && !this.#isAligned(left, offset)) {
        for (const piece of left) piece.fill(0);
        return;
      }
    }
  }

  /** Writes all pieces. Nothing may be written to the blocks around an unaligned place meanwhile. */
  write(pieces: Pieces, offset: number): Promise<void> {
    return this.#using(() => this.#write(pieces, offset));
  }

  async #write(pieces: Pieces, offset: number): Promise<void> {
    this.stats.writes++;
    this.#unsynced = true;
    if (!this.#isAligned(pieces, offset)) return this.#bouncedWrite(pieces, offset);
    let left = pieces;
    let at = offset;
    while (left.length > 0) {
      const now = left.length > PIECES_MAX ? left.slice(0, PIECES_MAX) : left;
      const bytesWritten = await this.#transfer(writev, now, at);
      if (bytesWritten === 0) throw Object.assign(new Error('nothing was written'), { code: 'EIO' });
      at += bytesWritten;
      left = skipBytes(left, bytesWritten);
    }
    this.#sizeBytes = Math.max(this.#sizeBytes, at);
  }

  /** What was written before the call survives whatever happens after it. */
  sync(): Promise<void> {
    return this.#using(() => this.#sync());
  }

  /** @throws the system's error, if something that counted as written is lost */
  checkNothingLost(): void {
    if (this.#syncFailure !== undefined) throw this.#syncFailure;
  }

  async #sync(): Promise<void> {
    this.checkNothingLost();
    if (!this.#unsynced) return;
    this.#unsynced = false;
    this.stats.syncs++;
    try {
      await new Promise<void>((resolve, reject) => {
        fdatasync(this.#fd, (error) => error === null ? resolve() : reject(error));
      });
    } catch (error) {
      this.#syncFailure = error;
      throw error;
    }
  }

  get canPunch(): boolean {
    return this.isWritable && HolePuncher.isAvailable;
  }

  /** Gives the space of a part of the file back, which reads as zero from then on. @returns false when that was not possible */
  async punch(offset: number, sizeBytes: number): Promise<boolean> {
    let isDone = false;
    await this.#using(async () => {
      this.#unsynced = true;
      this.#puncher ??= new HolePuncher(this.#fd);
      isDone = await this.#puncher.punch(offset, sizeBytes);
    });
    return isDone;
  }

  /** Another thread has written up to there. */
  grown(sizeBytes: number): void {
    this.#sizeBytes = Math.max(this.#sizeBytes, sizeBytes);
  }

  truncate(sizeBytes: number): Promise<void> {
    return this.#using(async () => {
      await truncateFd(this.#fd, sizeBytes);
      this.#sizeBytes = sizeBytes;
      this.#unsynced = true;
    });
  }

  async #using(work: () => Promise<void>): Promise<void> {
    assert(!this.#isClosed || this.#inUse > 0, 'the file is open');
    this.#inUse++;
    try {
      await work();
    } finally {
      this.#unuse();
    }
  }
  #unuse(): void {
    if (--this.#inUse === 0) this.#idle?.();
  }

  /**
   * For another thread, which reads and writes inside the file, in multiples of `alignBytes`, until it is given back.
   * @returns undefined when something that was written is lost: from then on errors are said at once
   */
  lend(): LentFile | undefined {
    assert(!this.#isClosed, 'the file is open');
    if (this.#syncFailure !== undefined) return undefined;
    this.#inUse++;
    this.#lent++;
    return {
      fd: this.#fd, chain: 0, isOwn: this.isWritable, isVolatile: false, alignBytes: this.#alignBytes, sizeBytes: this.#sizeBytes, isWritable: this.isWritable,
      isLocal: this.#isLocal,
      giveBack: (wasWritten, isLost = false) => {
        this.#unsynced ||= wasWritten;
        if (isLost) this.#syncFailure ??= Object.assign(new Error('a write has failed after it was answered'), { code: 'EIO' });
        this.#lent--;
        this.#unuse();
      },
    };
  }

  /** When all that was begun has ended: the number of a closed descriptor may be another file's at once. */
  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    if (this.#inUse > 0) await new Promise<void>((resolve) => { this.#idle = resolve; });
    this.#puncher?.close();
    for (const fd of this.#retired) await closeFd(fd);
    await closeFd(this.#fd);
  }

  /** Smallest unit that is written without reading what is around it. */
  get alignBytes(): number {
    return this.#alignBytes;
  }

  #isAligned(pieces: Pieces, offset: number): boolean {
    if (this.#alignBytes === 1) return true;
    if (offset % this.#alignBytes !== 0) return false;
    let bytes = 0;
    for (const piece of pieces) {
      if (piece.byteOffset % MEMORY_ALIGN_BYTES !== 0 || piece.length % MEMORY_ALIGN_BYTES !== 0) return false;
      bytes += piece.length;
    }
    return bytes % this.#alignBytes === 0;
  }

  async #transfer(call: typeof readv | typeof writev, pieces: Pieces, offset: number): Promise<number> {
    const wasDirect = this.isDirect;
    try {
      return await this.#ask(call, pieces, offset);
    } catch (error) {
      if (errnoOf(error) !== 'EINVAL' || !wasDirect) throw error;
      // The file system took the flag and refuses the request: the same file once more, without it.
      if (this.isDirect) this.#withoutDirect();
      return this.#ask(call, pieces, offset);
    }
  }

  #ask(call: typeof readv | typeof writev, pieces: Pieces, offset: number): Promise<number> {
    return new Promise<number>((resolve, reject) => {
      call(this.#fd, pieces as Uint8Array[], offset, (error, bytes) => {
        if (error === null) resolve(bytes);
        else reject(error);
      });
    });
  }

  #withoutDirect(): void {
    const flags = (this.isWritable ? constants.O_RDWR : constants.O_RDONLY) | constants.O_NONBLOCK;
    const old = this.#fd;
    this.#fd = openSync(`/proc/self/fd/${old}`, flags);
    this.#alignBytes = 1;
    if (this.#lent > 0) return void this.#retired.push(old);
    // Requests under way have been handed to the system with the old descriptor; it must outlive them.
    setTimeout(() => close(old, () => {}), OLD_DESCRIPTOR_MILLIS).unref();
  }

  async #bouncedRead(pieces: Pieces, offset: number): Promise<void> {
    this.stats.bounced++;
    this.#noticeSmall();
    const { start, sizeBytes } = this.#around(pieces, offset);
    using buffer = takeBuffer(sizeBytes);
    await this.read([buffer.bytes], start);
    let at = offset - start;
    for (const piece of pieces) {
      piece.set(buffer.bytes.subarray(at, at + piece.length));
      at += piece.length;
    }
  }

  async #bouncedWrite(pieces: Pieces, offset: number): Promise<void> {
    this.stats.bounced++;
    this.#noticeSmall();
    const { start, sizeBytes, end } = this.#around(pieces, offset);
    const fileBytes = this.#sizeBytes;
    using buffer = takeBuffer(sizeBytes);
    if (start !== offset || start + sizeBytes !== end) await this.read([buffer.bytes], start);
    let at = offset - start;
    for (const piece of pieces) {
      buffer.bytes.set(piece, at);
      at += piece.length;
    }
    await this.write([buffer.bytes], start);
    // The last block may reach beyond a file that ends off the grid: it keeps its size.
    if (start + sizeBytes > fileBytes && end <= fileBytes) await this.truncate(fileBytes);
  }

  #around(pieces: Pieces, offset: number): { start: number; end: number; sizeBytes: number } {
    const end = offset + bytesOf(pieces);
    const start = Math.floor(offset / this.#alignBytes) * this.#alignBytes;
    return { start, end, sizeBytes: Math.ceil(end / this.#alignBytes) * this.#alignBytes - start };
  }
}

const OLD_DESCRIPTOR_MILLIS = 60_000;

/** File systems that are on no disk (of other machines, in programs, in memory) have devices without a driver: major 0. */
function isOnDisk(stat: BigIntStats): boolean {
  return stat.isBlockDevice() || majorOf(Number(stat.dev)) !== 0;
}
const majorOf = (device: number): number => ((device >>> 8) & 0xfff) | (Math.floor(device / 2 ** 32) & 0xfffff000);

/** Node has no ioctl to ask with. */
function blockDeviceBytes(device: number): number {
  const minor = (device & 0xff) | ((device >>> 12) & 0xfff00);
  return Number(readFileSync(`/sys/dev/block/${majorOf(device)}:${minor}/size`, 'latin1')) * 512;
}
