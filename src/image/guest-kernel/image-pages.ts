// The pages of an open image, for readers of the guest's kernel.

import { FRAME_BYTES } from '../../abi/machine-memory.ts';
import type { Scratch } from '../direct-file.ts';
import type { Image } from '../image.ts';
import type { GuestPages } from './guest-memory.ts';

/** @param scratch holds the pages on their way */
export function imagePages(image: Image, scratch: Scratch): GuestPages {
  return {
    path: image.path,
    banks: image.banks,
    read(gfn, count) {
      image.readPagesSync(scratch, gfn, Uint32Array.from({ length: count }, (_, k) => k));
      return scratch.u8.slice(0, count * FRAME_BYTES);
    },
  };
}
