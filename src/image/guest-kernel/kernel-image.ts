// Finds things in the kernel's image by what they look like: its types, which no note tells the place of. The image
// lies in one piece from `_stext` on; at most 128 MiB of it are looked at.

import { BTF_HEADER_BYTES, BTF_MAGIC, Btf, btfBytes } from './btf.ts';
import { CLUSTER_BYTES } from './guest-memory.ts';
import type { GuestMemory } from './guest-memory.ts';
import { guestKernelError } from './vmcoreinfo.ts';
import type { Vmcoreinfo } from './vmcoreinfo.ts';
import { ZazenError } from '../../base/errors.ts';

const IMAGE_BYTES_MAX = 2 ** 27;
/** A guest full of what is looked for does not keep its reader busy. */
const PLACES_MAX = 4096;
const TYPES_PLACES_MAX = 16;

/** Physical addresses in the kernel's image where `pattern`, at most 64 bytes long, stands; in ascending order. */
export function* findInImage(memory: GuestMemory, info: Vmcoreinfo, pattern: Uint8Array): Generator<number> {
  const start = memory.imageAddress(info.symbol('_stext'));
  let rest = Buffer.alloc(0);
  let places = 0;
  for (let at = start; at < start + IMAGE_BYTES_MAX; at += CLUSTER_BYTES) {
    const bytes = memory.physical(at, CLUSTER_BYTES);
    if (bytes === undefined) return; // the end of the guest's memory
    const window = Buffer.concat([rest, bytes]);
    for (let found = window.indexOf(pattern); found >= 0; found = window.indexOf(pattern, found + 1)) {
      if (places++ === PLACES_MAX) return;
      yield at - rest.length + found;
    }
    rest = Buffer.from(window.subarray(window.length - pattern.length + 1));
  }
}

/**
 * The types of the kernel itself; modules have theirs elsewhere.
 * @throws ZazenError ZAZEN_GUEST_KERNEL if it has none
 */
export function findTypes(memory: GuestMemory, info: Vmcoreinfo): Btf {
  for (const address of findInImage(memory, info, BTF_MAGIC).take(TYPES_PLACES_MAX)) {
    const header = memory.physical(address, BTF_HEADER_BYTES);
    const sizeBytes = header === undefined ? undefined : btfBytes(header);
    const bytes = sizeBytes === undefined ? undefined : memory.physical(address, sizeBytes);
    if (bytes === undefined) continue;
    try {
      const types = new Btf(memory.path, bytes);
      if (types.has('task_struct')) return types;
    } catch (error) {
      if (!(error instanceof ZazenError)) throw error; // not what it looked like
    }
  }
  throw guestKernelError(memory.path, 'it carries no description of its types',
    'it must be built with CONFIG_DEBUG_INFO_BTF');
}
