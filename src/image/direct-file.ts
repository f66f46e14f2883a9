// A file that is read and written past the host's page cache (O_DIRECT), straight from and to Wasm memories, which are
// page-aligned. Where a file system refuses that, the same calls go through the page cache and `isDirect` says so.
//
// Also here: what transfers need, memory for blocks that are not guest pages, and a bound on requests in flight.

import { constants, readvSync } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import type * as FilePromises from 'node:fs/promises';
import { PageHasher } from './checksum.ts';
import type { PageMemory } from './checksum.ts';
import { BLOCK_BYTES } from './format.ts';

/** What the image needs of a file system; a test passes one that fails. */
export type FileSystem = Pick<typeof FilePromises, 'open' | 'rename' | 'unlink' | 'readdir' | 'stat'>;

/** Largest request; also the largest number of pieces times 4 KiB, as a system call takes at most 1024 pieces. */
export const REQUEST_BYTES = 4 * 2 ** 20;
/** Node's pool has four threads by default; the fourth stays free for everybody else. */
export const REQUESTS_IN_FLIGHT = 3;

const errorCode = (error: unknown) => (error as NodeJS.ErrnoException | null)?.code;

export class DirectFile {
  readonly #files: FileSystem;
  readonly #flags: number;
  #handle: FileHandle;
  #isDirect: boolean;
  #reopening: Promise<void> | undefined;

  private constructor(files: FileSystem, handle: FileHandle, flags: number, isDirect: boolean) {
    this.#files = files;
    this.#handle = handle;
    this.#flags = flags;
    this.#isDirect = isDirect;
  }

  /** @throws what `open` of the file system throws */
  static async open(files: FileSystem, path: string, flags: number, mode?: number): Promise<DirectFile> {
    // A pipe in the place of an image is answered at once, and a terminal does not become ours.
    const plain = flags | (constants.O_NONBLOCK ?? 0) | (constants.O_NOCTTY ?? 0);
    if (constants.O_DIRECT !== undefined) {
      try {
        return new DirectFile(files, await files.open(path, plain | constants.O_DIRECT, mode), plain, true);
      } catch (error) {
        if (errorCode(error) !== 'EINVAL') throw error;
        // The file may have been made all the same (open(2), EINVAL).
        return new DirectFile(files, await files.open(path, plain & ~constants.O_EXCL, mode), plain, false);
      }
    }
    return new DirectFile(files, await files.open(path, plain, mode), plain, false);
  }

  get isDirect(): boolean {
    return this.#isDirect;
  }
  get handle(): FileHandle {
    return this.#handle;
  }

  /** Writes all buffers, one after the other, from `offset` on. */
  async write(buffers: readonly Uint8Array[], offset: number): Promise<void> {
    let left = buffers;
    while (left.length > 0) {
      const { bytesWritten } = await this.#orBuffered(() => this.#handle.writev(left, offset));
      if (bytesWritten === 0) throw Object.assign(new Error('nothing was written'), { code: 'EIO' });
      offset += bytesWritten;
      left = skipBytes(left, bytesWritten);
    }
  }

  /** Fills the buffers from `offset` on; gives the bytes read, fewer only at the end of the file. */
  async read(buffers: readonly Uint8Array[], offset: number): Promise<number> {
    let total = 0;
    for (let left = buffers; left.length > 0;) {
      const { bytesRead } = await this.#orBuffered(() => this.#handle.readv(left, offset + total));
      if (bytesRead === 0) break;
      total += bytesRead;
      left = skipBytes(left, bytesRead);
      // Behind a piece of a block a direct read cannot go on; there is nothing behind it but the end.
      if (bytesRead % 512 !== 0) break;
    }
    return total;
  }

  async close(): Promise<void> {
    await this.#handle.close();
  }

  /** Some file systems take the flag and refuse the request: then the file is opened again without it. */
  async #orBuffered<T>(request: () => Promise<T>): Promise<T> {
    try {
      return await request();
    } catch (error) {
      if (errorCode(error) !== 'EINVAL' || (!this.#isDirect && this.#reopening === undefined)) throw error;
      await (this.#reopening ??= this.#reopen());
      return request();
    }
  }

  async #reopen(): Promise<void> {
    const old = this.#handle;
    // The very same file, whatever its name means by now.
    const flags = this.#flags & ~(constants.O_CREAT | constants.O_EXCL);
    this.#handle = await this.#files.open(`/proc/self/fd/${old.fd}`, flags);
    this.#isDirect = false;
    await old.close(); // waits for requests under way
  }
}

/** As `DirectFile.read`, without leaving the calling thread, of a descriptor that any thread of the process has opened. */
export function readSync(fd: number, buffers: readonly Uint8Array[], offset: number): number {
  let total = 0;
  for (let left = buffers; left.length > 0;) {
    const bytesRead = readvSync(fd, left, offset + total);
    if (bytesRead === 0) break;
    total += bytesRead;
    left = skipBytes(left, bytesRead);
    if (bytesRead % 512 !== 0) break;
  }
  return total;
}

function skipBytes(buffers: readonly Uint8Array[], bytes: number): readonly Uint8Array[] {
  let first = 0;
  while (first < buffers.length && bytes >= buffers[first]!.length) bytes -= buffers[first++]!.length;
  if (bytes === 0) return first === 0 ? buffers : buffers.slice(first);
  return [buffers[first]!.subarray(bytes), ...buffers.slice(first + 1)];
}

/** Starts requests, a bounded number at a time; after a failure starts no more, and rethrows the first one. */
export class RequestQueue {
  readonly #running = new Set<Promise<void>>();
  #failure: { error: unknown } | undefined;

  async add(request: () => Promise<void>): Promise<void> {
    while (this.#running.size >= REQUESTS_IN_FLIGHT) await Promise.race(this.#running);
    if (this.#failure !== undefined) return this.settle();
    const running = request().catch((error: unknown) => {
      this.#failure ??= { error };
    }).finally(() => this.#running.delete(running));
    this.#running.add(running);
  }

  /** Waits for all requests. */
  async settle(): Promise<void> {
    await Promise.all(this.#running);
    if (this.#failure !== undefined) throw this.#failure.error;
  }
}

/** Aligned memory for blocks that are not in the machine memory, with its checksum function. */
export class Scratch implements PageMemory {
  static readonly sizeBytes = 4 * 2 ** 20;
  static readonly #idle: Scratch[] = [];
  readonly memory: WebAssembly.Memory;
  readonly u8: Uint8Array;
  readonly parameters = { addressType: 'i32', sizeBytes: Scratch.sizeBytes } as const;
  readonly hasher: PageHasher;

  private constructor() {
    const pages = Scratch.sizeBytes / 65536;
    this.memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
    this.u8 = new Uint8Array(this.memory.buffer);
    this.hasher = new PageHasher(this);
  }

  /** A Wasm memory takes gigabytes of address space, so that used ones are kept; to be given back. */
  static take(): Scratch {
    return Scratch.#idle.pop() ?? new Scratch();
  }
  static give(scratch: Scratch): void {
    Scratch.#idle.push(scratch);
  }
  static async use<T>(work: (scratch: Scratch) => Promise<T>): Promise<T> {
    const scratch = Scratch.take();
    try {
      return await work(scratch);
    } finally {
      Scratch.give(scratch);
    }
  }

  /** The first `count` blocks from `first` on. */
  blocks(first: number, count: number): Uint8Array {
    return this.u8.subarray(first * BLOCK_BYTES, (first + count) * BLOCK_BYTES);
  }
}
