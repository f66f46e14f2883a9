// Restore: an image becomes a frozen domain again, from which domains are forked: one, or as many as are wanted. All
// pages are read first, in large requests with several in flight; zero pages cost nothing.

import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { ZazenError } from '../base/errors.ts';
import type { HypervisorThread } from '../hypervisor/thread.ts';
import type { Image } from '../image/image.ts';
import { HOST_ACCOUNT } from '../memory/heap.ts';
import type { FrozenDomain } from './checkpoint.ts';
import { decodeState } from './image-state.ts';

/** Pages that are read at once: 4 MiB. Most pieces of a guest's memory are smaller. */
const CHUNK_PAGES = 1024;
const CHUNKS_IN_FLIGHT = 8;

export interface RestoreProgress {
  readonly pagesDone: number;
  readonly pageCount: number;
}

export interface RestoreOptions {
  readonly onProgress?: ((progress: RestoreProgress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * @returns whoever has it releases the root
 * @throws ZazenError ZAZEN_IMAGE_*, ZAZEN_HOST_OUT_OF_MEMORY, and then nothing is kept; the signal's reason
 */
export async function thawImage(thread: HypervisorThread, image: Image, options: RestoreOptions = {}): Promise<FrozenDomain> {
  const state = decodeState(image);
  const root = thread.p2m.create(HOST_ACCOUNT);
  if (root === 0) throw outOfMemory(image);
  try {
    for (const { guestAddress, sizeBytes } of image.banks) {
      const isMapped = thread.p2m.mapZeroRange(root, guestAddress / FRAME_BYTES, sizeBytes / FRAME_BYTES);
      if (!isMapped) throw outOfMemory(image);
    }
    await readPages(thread, image, root, options);
    return { root, state };
  } catch (error) {
    thread.p2m.release(root);
    throw error;
  }
}

function outOfMemory(image: Image): ZazenError {
  return new ZazenError('ZAZEN_HOST_OUT_OF_MEMORY', `the host has no memory left for the guest of image ${image.path}`,
    { hint: 'destroy a domain or a checkpoint, or start the host with more memory' });
}

async function readPages(thread: HypervisorThread, image: Image, root: number, options: RestoreOptions): Promise<void> {
  const chunks: Chunk[] = [];
  for (const { gfn, count } of image.runs()) {
    for (let done = 0; done < count; done += CHUNK_PAGES) {
      chunks.push({ gfn: gfn + done, count: Math.min(CHUNK_PAGES, count - done) });
    }
  }
  const pageCount = chunks.reduce((sum, chunk) => sum + chunk.count, 0);
  let pagesDone = 0;
  let next = 0;
  /** The first failure ends all readers. */
  const failures: unknown[] = [];
  const readNext = async (): Promise<void> => {
    try {
      for (let chunk = chunks[next++]; chunk !== undefined && failures.length === 0; chunk = chunks[next++]) {
        options.signal?.throwIfAborted();
        await readChunk(thread, image, root, chunk);
        pagesDone += chunk.count;
        options.onProgress?.({ pagesDone, pageCount });
      }
    } catch (error) {
      failures.push(error);
    }
  };
  // All of them end before anything is given back: a read that is under way writes to its frames.
  await Promise.all(Array.from({ length: CHUNKS_IN_FLIGHT }, readNext));
  if (failures.length > 0) throw failures[0];
}

interface Chunk {
  readonly gfn: number;
  readonly count: number;
}

/** Reads pages into new frames and maps them. If it fails, none of its frames is kept but those that are mapped. */
async function readChunk({ heap, p2m, machine }: HypervisorThread, image: Image, root: number, { gfn, count }: Chunk): Promise<void> {
  const mfns = new Uint32Array(count);
  let mapped = 0;
  try {
    for (let i = 0; i < count; i++) {
      mfns[i] = heap.allocate(HOST_ACCOUNT, true);
      if (mfns[i] === 0) throw outOfMemory(image);
    }
    await image.readPages(machine, gfn, mfns);
    for (; mapped < count; mapped++) if (!p2m.mapFrame(root, gfn + mapped, mfns[mapped]!)) throw outOfMemory(image);
  } catch (error) {
    for (const mfn of mfns.subarray(mapped)) if (mfn !== 0) heap.release(mfn);
    throw error;
  }
}
