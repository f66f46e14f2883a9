// A boot image: the contents of a kernel or initramfs file in frames of the host's account, to be shared by all domains
// that boot from it. It is a p2m tree of its own, whose leaf nodes (2 MiB each) domains take over as they are:
//
//   boot image             root ─► node ─┬─► leaf node (2) ─► frames of the file, one mapping each
//                                        ├─► leaf node (2) ─► …
//                                        └── zero, where 2 MiB of the file are zero
//   domain                 root ─► node ─┬─► leaf node (same)
//                                        └─► …
//
// So it costs a domain one count for 2 MiB, and nothing else before its first write there, which copies the leaf node
// and then the frame, as after a fork. A leaf node says nothing of the address that it is mapped at, so the same image
// serves at any address that is as far from a 2 MiB boundary as `offsetBytes` says; layoutDomain sees to it that a file
// has the same offset in domains of all sizes.

import { FRAME_BYTES, FRAME_WORDS, P2M_ENTRIES, P2M_KIND } from '../abi/machine-memory.ts';
import { assert } from '../base/assert.ts';
import { HOST_ACCOUNT } from '../memory/heap.ts';
import type { Heap } from '../memory/heap.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import { entryKind, entryValue } from '../memory/p2m.ts';
import type { P2m } from '../memory/p2m.ts';

/** What can be mapped at once, and so the alignment of what surrounds an image in guest memory, which must be zero. */
export const BOOT_IMAGE_ALIGN = P2M_ENTRIES * FRAME_BYTES;

export interface BootImage {
  readonly root: number;
  /** Of the contents. */
  readonly sizeBytes: number;
  /** That it takes, tables included. */
  readonly frames: number;
  /** How far above a multiple of BOOT_IMAGE_ALIGN the contents start. */
  readonly offsetBytes: number;
}

const nodeCount = (offsetBytes: number, sizeBytes: number) => Math.ceil((offsetBytes + sizeBytes) / BOOT_IMAGE_ALIGN);

/** @returns undefined, with nothing taken, when out of frames. Else the root is the caller's, to release in the end */
export function makeBootImage(p2m: P2m, heap: Heap, bytes: Uint8Array, offsetBytes: number): BootImage | undefined {
  const root = p2m.create(HOST_ACCOUNT);
  if (root === 0) return undefined;
  const complete = p2m.mapZeroRange(root, 0, nodeCount(offsetBytes, bytes.length) * P2M_ENTRIES)
    && writePages(p2m, heap, root, offsetBytes, bytes);
  if (complete) return { root, sizeBytes: bytes.length, frames: 1 + framesBelow(heap.memory, root), offsetBytes };
  p2m.release(root);
  return undefined;
}

function framesBelow(memory: MachineMemory, node: number): number {
  let frames = 0;
  for (let i = 0; i < P2M_ENTRIES; i++) {
    const entry = memory.u32[node * FRAME_WORDS + 2 * i]!;
    if (entryKind(entry) === P2M_KIND.frame) frames++;
    else if (entryKind(entry) === P2M_KIND.node) frames += 1 + framesBelow(memory, entryValue(entry));
  }
  return frames;
}

/**
 * Puts an image into a domain's memory, together with zeros up to the next multiples of BOOT_IMAGE_ALIGN on both sides.
 * @param address of the contents
 * @returns false when out of frames; part of it may then be mapped
 */
export function mapBootImage(p2m: P2m, root: number, address: number, image: BootImage): boolean {
  const { offsetBytes, sizeBytes } = image;
  assert(address % BOOT_IMAGE_ALIGN === offsetBytes, 'the image was made for another offset');
  return p2m.graft(root, (address - offsetBytes) / FRAME_BYTES, image.root, nodeCount(offsetBytes, sizeBytes));
}

/** Copies bytes into zero memory, a frame for each page that needs one. @returns false when out of frames */
export function writePages(p2m: P2m, heap: Heap, root: number, address: number, bytes: Uint8Array): boolean {
  for (let from = 0; from < bytes.length;) {
    const offset = (address + from) % FRAME_BYTES;
    const part = bytes.subarray(from, from + FRAME_BYTES - offset);
    const gfn = (address + from - offset) / FRAME_BYTES;
    if (!isZero(part) && !mapPage(p2m, heap, root, gfn, part, offset)) return false;
    from += part.length;
  }
  return true;
}

/** Maps a new frame that has `part` at `offset` and zeros elsewhere. */
function mapPage(p2m: P2m, heap: Heap, root: number, gfn: number, part: Uint8Array, offset: number): boolean {
  const mfn = heap.allocate(heap.frames.owner(root), true);
  if (mfn === 0) return false;
  const frame = heap.memory.frameBytes(mfn);
  frame.fill(0, 0, offset);
  frame.set(part, offset);
  frame.fill(0, offset + part.length);
  if (p2m.mapFrame(root, gfn, mfn)) return true;
  heap.release(mfn);
  return false;
}

const ZERO_PAGE = new Uint8Array(FRAME_BYTES);

function isZero(part: Uint8Array): boolean {
  return Buffer.compare(part, ZERO_PAGE.subarray(0, part.length)) === 0;
}
