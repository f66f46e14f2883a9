// Frames that a domain record holds: pages of the guest's that the hypervisor works on (vcpu_info, FIFO control blocks
// and event arrays), and pages of the hypervisor's that the guest may map (shared_info, grant table). The record's
// claim is a pin, so a page stays alive whatever the guest does with its address space, and the guest's own writes go
// on to the same frame. At most one p2m entry maps a frame of the second kind: with two, a write would copy it.

import { DOMAIN, HELD_FRAME, NO_GFN } from '../abi/domain-record.ts';
import { GFN_LIMIT, P2M_KIND } from '../abi/machine-memory.ts';
import { ERRNO } from '../abi/xen.ts';
import { assert } from '../base/assert.ts';
import { OUT_OF_FRAMES, PAGE_LOST, entryKind, entryValue } from '../memory/p2m.ts';
import type { DomainRecord } from './domain-record.ts';
import type { Environment } from './environment.ts';

/** MFN held at `at` (an address in machine memory), 0: none. */
export function heldMfn({ memory }: Environment, at: number): number {
  return memory.u32[(at + HELD_FRAME.at.mfn) / 4]!;
}

/** Says in a record which frame it holds; pins and mappings are the caller's. */
export function writeHeldFrame({ memory }: Environment, at: number, mfn: number, gfn: number): void {
  memory.u32[(at + HELD_FRAME.at.gfn) / 4] = gfn;
  Atomics.store(memory.u32, (at + HELD_FRAME.at.mfn) / 4, mfn);
}

/**
 * Holds a page of guest memory, for writing. The caller settles the p2m afterwards.
 * @returns 0 or a negative errno
 */
export function holdGuestFrame(environment: Environment, record: DomainRecord, at: number, gfn: number): number {
  assert(heldMfn(environment, at) === 0, 'a frame is held there already');
  if (!(gfn < GFN_LIMIT)) return -ERRNO.EINVAL;
  const mfn = environment.p2m.pinForWrite(record.get(DOMAIN.at.p2mRoot), gfn);
  if (mfn <= 0) return mfn === OUT_OF_FRAMES || mfn === PAGE_LOST ? -ERRNO.ENOMEM : -ERRNO.EINVAL;
  writeHeldFrame(environment, at, mfn, gfn);
  return 0;
}

/** Holds a new frame, all zero, that is not mapped anywhere. @returns its MFN, 0 when out of frames */
export function holdNewFrame(environment: Environment, record: DomainRecord, at: number): number {
  assert(heldMfn(environment, at) === 0, 'a frame is held there already');
  const mfn = environment.heap.allocate(record.domid);
  if (mfn === 0) return 0;
  environment.heap.frames.mappingToPin(mfn);
  writeHeldFrame(environment, at, mfn, NO_GFN);
  return mfn;
}

export function dropHeldFrame(environment: Environment, at: number): void {
  const mfn = heldMfn(environment, at);
  if (mfn === 0) return;
  writeHeldFrame(environment, at, 0, 0);
  environment.heap.unpin(mfn);
}

/**
 * Puts a frame held by `holdNewFrame` at a GFN, and takes it away from where it was. With the domain's lock; the
 * caller settles the p2m afterwards.
 * @returns 0 or a negative errno
 */
export function mapHeldFrame(environment: Environment, record: DomainRecord, at: number, gfn: number): number {
  const { memory, heap, p2m } = environment;
  const root = record.get(DOMAIN.at.p2mRoot);
  const mfn = heldMfn(environment, at);
  if (!(gfn < GFN_LIMIT)) return -ERRNO.EINVAL;
  const isAt = (place: number) => {
    const entry = p2m.lookup(root, place);
    return entryKind(entry) === P2M_KIND.frame && entryValue(entry) === mfn;
  };
  const before = memory.u32[(at + HELD_FRAME.at.gfn) / 4]!;
  if (before === gfn && isAt(gfn)) return 0;
  if (before !== NO_GFN && isAt(before) && !p2m.unmap(root, before)) return -ERRNO.ENOMEM;
  // A checkpoint may hold mappings of it, which whoever has time drops.
  assert(heap.frames.retainPinned(mfn), 'a held frame is mapped too often');
  if (!p2m.mapFrame(root, gfn, mfn)) {
    heap.frames.mappingToPin(mfn);
    heap.unpin(mfn);
    writeHeldFrame(environment, at, mfn, NO_GFN);
    return -ERRNO.ENOMEM;
  }
  writeHeldFrame(environment, at, mfn, gfn);
  return 0;
}
