// Restore: an image becomes a frozen domain again, from which domains are forked: one, or as many as are wanted. All
// pages are read first, in large requests with several in flight; zero pages cost nothing.

import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { ZazenError } from '../base/errors.ts';
import type { HypervisorThread } from '../hypervisor/thread.ts';
import type { Image } from '../image/image.ts';
import { HOST_ACCOUNT } from '../memory/heap.ts';
import type { FrozenDomain } from './checkpoint.ts';
import { decodeState } from './image-state.ts';

/** Pages that are read at once: 16 MiB. */
const CHUNK_PAGES = 4096;

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
  const { heap, p2m, machine } = thread;
  const runs = [...image.runs()];
  const pageCount = runs.reduce((sum, run) => sum + run.count, 0);
  let pagesDone = 0;
  for (const { gfn: firstGfn, count } of runs) {
    for (let done = 0; done < count; done += CHUNK_PAGES) {
      options.signal?.throwIfAborted();
      const gfn = firstGfn + done;
      const mfns = new Uint32Array(Math.min(CHUNK_PAGES, count - done));
      let mapped = 0;
      try {
        for (let i = 0; i < mfns.length; i++) {
          mfns[i] = heap.allocate(HOST_ACCOUNT, true);
          if (mfns[i] === 0) throw outOfMemory(image);
        }
        await image.readPages(machine, gfn, mfns);
        for (; mapped < mfns.length; mapped++) if (!p2m.mapFrame(root, gfn + mapped, mfns[mapped]!)) throw outOfMemory(image);
      } catch (error) {
        for (const mfn of mfns.subarray(mapped)) if (mfn !== 0) heap.release(mfn);
        throw error;
      }
      pagesDone += mfns.length;
      options.onProgress?.({ pagesDone, pageCount });
    }
  }
}
