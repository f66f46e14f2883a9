// HYPERVISOR_memory_op: the guest changes what is where in its physical address space.
//
// Nobody else gets his turn during a call, so it does a bounded amount of work and then answers with how many extents it
// has done, as it also does when memory runs out. Where it goes on when it is made again, a call says as Xen's do: the
// number of the first extent stands above the operation's.

import { DOMAIN } from '../abi/domain-record.ts';
import { GFN_LIMIT, P2M_KIND } from '../abi/machine-memory.ts';
import { ERRNO } from '../abi/xen.ts';
import { GRANT_FRAMES_MAX } from '../abi/xen-grant-table.ts';
import {
  XENMAPSPACE, XENMEM, xenAddToPhysmap, xenAddToPhysmapBatch, xenMemoryReservation, xenRemoveFromPhysmap,
} from '../abi/xen-memory.ts';
import { array, u16, u32, u64 } from '../abi/struct.ts';
import { entryKind } from '../memory/p2m.ts';
import type { DomainRecord } from './domain-record.ts';
import { settleP2m } from './environment.ts';
import type { Environment } from './environment.ts';
import { isSelf } from './event-channel-op.ts';
import type { GrantTables } from './grant-table.ts';
import { GuestStruct } from './guest-struct.ts';
import type { Caller, HypercallArguments } from './guest-struct.ts';
import { mapHeldFrame } from './held-frames.ts';

const PAGES_PER_CALL = 32768;
const OPERATION_BITS = 6;
/** What Xen lets guests without devices ask for: 2 MiB. */
const EXTENT_ORDER_MAX = 9;

const RESERVATIONS: ReadonlySet<number> =
  new Set([XENMEM.increase_reservation, XENMEM.decrease_reservation, XENMEM.populate_physmap]);

export class MemoryOperations {
  readonly #environment: Environment;
  readonly #grants: GrantTables;

  constructor(environment: Environment, grants: GrantTables) {
    this.#environment = environment;
    this.#grants = grants;
  }

  call(caller: Caller, args: HypercallArguments): number {
    const command = args.u32(0);
    const operation = command % 2 ** OPERATION_BITS;
    const result = RESERVATIONS.has(operation) ? this.#reservation(caller, operation, command >>> OPERATION_BITS, args)
      : this.#run(caller, command, args.u64(1));
    settleP2m(this.#environment, caller.domain.domid);
    return result;
  }

  #run(caller: Caller, operation: number, va: bigint): number {
    const { domain } = caller;
    switch (operation) {
      case XENMEM.maximum_ram_page: return this.#environment.memory.frameEnd - 1;
      case XENMEM.current_reservation: return this.#ofSelf(caller, va, () => domain.get(DOMAIN.at.pages));
      case XENMEM.maximum_reservation: return this.#ofSelf(caller, va, () => domain.get(DOMAIN.at.maxPages));
      case XENMEM.maximum_gpfn: return this.#ofSelf(caller, va, () => domain.get(DOMAIN.at.maxGfn));
      case XENMEM.add_to_physmap: return this.#addToPhysmap(caller, va);
      case XENMEM.add_to_physmap_batch: return this.#addBatch(caller, va);
      case XENMEM.remove_from_physmap: return this.#removeFromPhysmap(caller, va);
      default: return -ERRNO.ENOSYS;
    }
  }

  #ofSelf(caller: Caller, va: bigint, answer: () => number): number {
    const domid = GuestStruct.read(this.#environment.guest, caller, va, u16);
    if (domid === undefined) return -ERRNO.EFAULT;
    return isSelf(caller, domid.u16(0)) ? answer() : -ERRNO.EPERM;
  }

  // ---- Reservation --------------------------------------------------------------------------------------------------

  #reservation(caller: Caller, operation: number, first: number, registers: HypercallArguments): number {
    const { guest } = this.#environment;
    const args = GuestStruct.read(guest, caller, registers.u64(1), xenMemoryReservation);
    if (args === undefined) return -ERRNO.EFAULT;
    const { at } = xenMemoryReservation;
    if (!isSelf(caller, args.u16(at.domid))) return -ERRNO.EPERM;
    const order = args.u32(at.extent_order);
    // Memory without a place in the guest's address space is of no use to a guest that has only that.
    if (operation === XENMEM.increase_reservation || order > EXTENT_ORDER_MAX) return 0;
    const extents = Math.min(args.number(at.nr_extents), first + Math.floor(PAGES_PER_CALL / 2 ** order));
    const start = args.u64(at.extent_start);
    for (let done = first; done < extents; done++) {
      const extent = GuestStruct.read(guest, caller, start + BigInt(8 * done), u64);
      if (guest.mustRetry()) registers.set(0, BigInt(done * 2 ** OPERATION_BITS + operation));
      if (extent === undefined) return done === 0 ? -ERRNO.EFAULT : done;
      const gfn = extent.number(0);
      const change = operation === XENMEM.decrease_reservation ? this.#unpopulate : this.#populate;
      if (!caller.domain.locked(() => change.call(this, caller.domain, gfn, 2 ** order))) return done;
    }
    return Math.max(extents, first);
  }

  #populate(domain: DomainRecord, gfn: number, count: number): boolean {
    if (!(gfn + count <= GFN_LIMIT) || gfn % count !== 0) return false;
    const pages = domain.get(DOMAIN.at.pages) + count - this.#countMemory(domain, gfn, count);
    if (pages > domain.get(DOMAIN.at.maxPages)) return false;
    if (!this.#environment.p2m.mapZeroRange(domain.get(DOMAIN.at.p2mRoot), gfn, count)) return false;
    domain.set(DOMAIN.at.pages, pages);
    raiseMaxGfn(domain, gfn + count - 1);
    return true;
  }

  #unpopulate(domain: DomainRecord, gfn: number, count: number): boolean {
    if (!(gfn + count <= GFN_LIMIT)) return false;
    const memory = this.#countMemory(domain, gfn, count);
    if (memory === 0) return false;
    if (!this.#environment.p2m.unmap(domain.get(DOMAIN.at.p2mRoot), gfn, count)) return false;
    domain.set(DOMAIN.at.pages, Math.max(0, domain.get(DOMAIN.at.pages) - memory));
    return true;
  }

  #countMemory(domain: DomainRecord, gfn: number, count: number): number {
    const root = domain.get(DOMAIN.at.p2mRoot);
    let memory = 0;
    for (let i = 0; i < count; i++) {
      if (entryKind(this.#environment.p2m.lookup(root, gfn + i)) !== P2M_KIND.absent) memory++;
    }
    return memory;
  }

  // ---- Physmap ------------------------------------------------------------------------------------------------------

  #addToPhysmap(caller: Caller, va: bigint): number {
    const args = GuestStruct.read(this.#environment.guest, caller, va, xenAddToPhysmap);
    if (args === undefined) return -ERRNO.EFAULT;
    const { at } = xenAddToPhysmap;
    if (!isSelf(caller, args.u16(at.domid))) return -ERRNO.EPERM;
    return this.#add(caller.domain, args.u32(at.space), args.number(at.idx), args.number(at.gpfn));
  }

  #add(domain: DomainRecord, space: number, index: number, gfn: number): number {
    if (!(gfn < GFN_LIMIT)) return -ERRNO.EINVAL;
    switch (space) {
      case XENMAPSPACE.shared_info:
        if (index !== 0) return -ERRNO.EINVAL;
        return this.#map(domain, () => domain.address + DOMAIN.at.sharedInfo, gfn);
      case XENMAPSPACE.grant_table:
        if (!(index < GRANT_FRAMES_MAX)) return -ERRNO.EINVAL;
        return this.#map(domain, () =>
          (this.#grants.grow(domain, index + 1) ? this.#grants.frameAt(domain, index) : 0), gfn);
      case XENMAPSPACE.gmfn:
      case XENMAPSPACE.gmfn_range: return -ERRNO.ENOSYS;
      case XENMAPSPACE.gmfn_foreign: return -ERRNO.EPERM;
      default: return -ERRNO.ENOSYS;
    }
  }

  /** @param held gives the address of the held frame, 0 when out of frames; called with the lock */
  #map(domain: DomainRecord, held: () => number, gfn: number): number {
    return domain.locked(() => {
      const at = held();
      if (at === 0) return -ERRNO.ENOMEM;
      const result = mapHeldFrame(this.#environment, domain, at, gfn);
      if (result === 0) raiseMaxGfn(domain, gfn);
      return result;
    });
  }

  #addBatch(caller: Caller, va: bigint): number {
    const { guest } = this.#environment;
    const args = GuestStruct.read(guest, caller, va, xenAddToPhysmapBatch);
    if (args === undefined) return -ERRNO.EFAULT;
    const { at } = xenAddToPhysmapBatch;
    if (!isSelf(caller, args.u16(at.domid))) return -ERRNO.EPERM;
    const size = args.u16(at.size);
    const indexes = GuestStruct.read(guest, caller, args.u64(at.idxs), array(u64, size));
    const gfns = GuestStruct.read(guest, caller, args.u64(at.gpfns), array(u64, size));
    if (indexes === undefined || gfns === undefined) return -ERRNO.EFAULT;
    const errors = GuestStruct.blank(array(u32, size));
    for (let i = 0; i < size; i++) {
      errors.set32(4 * i, this.#add(caller.domain, args.u16(at.space), indexes.number(8 * i), gfns.number(8 * i)));
    }
    // What is where it is to be is put there once more, with the same answers.
    return errors.write(guest, caller, args.u64(at.errs), true) ? 0 : -ERRNO.EFAULT;
  }

  #removeFromPhysmap(caller: Caller, va: bigint): number {
    const args = GuestStruct.read(this.#environment.guest, caller, va, xenRemoveFromPhysmap);
    if (args === undefined) return -ERRNO.EFAULT;
    if (!isSelf(caller, args.u16(xenRemoveFromPhysmap.at.domid))) return -ERRNO.EPERM;
    const { domain } = caller;
    const gfn = args.number(xenRemoveFromPhysmap.at.gpfn);
    return domain.locked(() => {
      const root = domain.get(DOMAIN.at.p2mRoot);
      if (entryKind(this.#environment.p2m.lookup(root, gfn)) === P2M_KIND.absent) return -ERRNO.EINVAL;
      return this.#environment.p2m.unmap(root, gfn) ? 0 : -ERRNO.ENOMEM;
    });
  }
}

function raiseMaxGfn(domain: DomainRecord, gfn: number): void {
  if (gfn > domain.get(DOMAIN.at.maxGfn)) domain.set(DOMAIN.at.maxGfn, gfn);
}
