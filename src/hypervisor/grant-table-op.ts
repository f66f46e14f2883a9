// HYPERVISOR_grant_table_op: arrays of small structures, each answered with a status of its own.
//
// Version 1 only. A guest may grant pages to the host and to other guests, and copy from and to what was granted to
// it. Mapping a foreign page into a guest's own address space is refused: a frame that two p2m trees map is copied at
// the next write, which would tear a shared ring apart; backends live in the host, which needs no such mapping.

import { DOMAIN, HELD_FRAME } from '../abi/domain-record.ts';
import { FRAME_BYTES, GFN_LIMIT } from '../abi/machine-memory.ts';
import type { Struct } from '../abi/struct.ts';
import { DOMID_SELF, ERRNO, GUEST_GNTTAB_BASE } from '../abi/xen.ts';
import {
  GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GNTST, GNTTABOP, GRANT_FRAMES_MAX, gnttabCopy, gnttabCopySide,
  gnttabGetVersion, gnttabMapGrantRef, gnttabQuerySize, gnttabSetVersion, gnttabSetupTable, gnttabSwapGrantRef,
  gnttabUnmapAndReplace, gnttabUnmapGrantRef,
} from '../abi/xen-grant-table.ts';
import { OUT_OF_FRAMES, PAGE_LOST } from '../memory/p2m.ts';
import type { Environment } from './environment.ts';
import { settleP2m } from './environment.ts';
import { isSelf } from './event-channel-op.ts';
import type { GrantTables } from './grant-table.ts';
import { GuestStruct } from './guest-struct.ts';
import type { Caller, HypercallArguments } from './guest-struct.ts';

/** More structures than this in one call are refused: nobody else gets his turn between them. */
const COUNT_MAX = 4096;

interface Context {
  readonly environment: Environment;
  readonly grants: GrantTables;
  readonly caller: Caller;
}

interface Operation {
  readonly type: Struct;
  /** Fills in the structure's status. @returns 0, or a negative errno that ends the call */
  readonly run: (context: Context, args: GuestStruct) => number;
}

/** An operation that does nothing but say so in its status. */
const refuses = (type: Struct<'status'>, status: number): Operation => ({
  type,
  run: (_context, args) => {
    args.set16(type.at.status, status);
    return 0;
  },
});

function setupTable({ environment, grants, caller }: Context, args: GuestStruct): number {
  const at = gnttabSetupTable.at;
  const frames = args.u32(at.nr_frames);
  const status = !isSelf(caller, args.u16(at.dom)) ? GNTST.permission_denied :
    caller.domain.locked(() => grants.grow(caller.domain, frames)) ? GNTST.okay : GNTST.general_error;
  args.set16(at.status, status);
  if (status !== GNTST.okay) return 0;
  // Where the guest has mapped the frames, or where it will in the region that the device tree names.
  const list = new BigUint64Array(frames);
  for (let i = 0; i < frames; i++) {
    const gfn = caller.domain.get(DOMAIN.at.grants + i * HELD_FRAME.sizeBytes + HELD_FRAME.at.gfn);
    list[i] = BigInt(gfn < GFN_LIMIT ? gfn : GUEST_GNTTAB_BASE / FRAME_BYTES + i);
  }
  const bytes = new Uint8Array(list.buffer);
  const written = environment.guest.copyToGuest(caller.vcpu, args.u64(at.frame_list), bytes, true);
  return written ? 0 : -ERRNO.EFAULT;
}

function querySize({ caller }: Context, args: GuestStruct): number {
  const at = gnttabQuerySize.at;
  const isMine = isSelf(caller, args.u16(at.dom));
  args.set32(at.nr_frames, isMine ? caller.domain.get(DOMAIN.at.grantFrames) : 0);
  args.set32(at.max_nr_frames, isMine ? GRANT_FRAMES_MAX : 0);
  args.set16(at.status, isMine ? GNTST.okay : GNTST.permission_denied);
  return 0;
}

/** One side of a copy: a frame that stays until `done`. */
interface Side {
  readonly mfn: number;
  readonly done: () => void;
}

function openSide(context: Context, args: GuestStruct, at: number, isGrant: boolean, write: boolean): Side | number {
  const { environment: { heap, p2m }, grants, caller } = context;
  const domid = args.u16(at + gnttabCopySide.domid);
  const of = domid === DOMID_SELF ? caller.domain.domid : domid;
  if (isGrant) {
    const mapping = grants.map(of, args.u32(at + gnttabCopySide.ref), write, caller.domain.domid);
    return typeof mapping === 'number' ? mapping : { mfn: mapping.mfn, done: () => grants.unmap(mapping) };
  }
  if (of !== caller.domain.domid) return GNTST.permission_denied;
  const root = caller.domain.get(DOMAIN.at.p2mRoot);
  const gfn = args.number(at + gnttabCopySide.ref);
  const mfn = write ? p2m.pinForWrite(root, gfn) : p2m.pinForRead(root, gfn);
  settleP2m(context.environment, caller.domain.domid);
  if (mfn > 0) return { mfn, done: () => heap.unpin(mfn) };
  return write && (mfn === OUT_OF_FRAMES || mfn === PAGE_LOST) ? GNTST.eagain : GNTST.bad_page;
}

function copyStatus(context: Context, args: GuestStruct): number {
  const at = gnttabCopy.at;
  const flags = args.u16(at.flags);
  const sizeBytes = args.u16(at.len);
  const from = args.u16(at.source + gnttabCopySide.offset);
  const to = args.u16(at.dest + gnttabCopySide.offset);
  if (from + sizeBytes > FRAME_BYTES || to + sizeBytes > FRAME_BYTES) return GNTST.bad_copy_arg;
  const source = openSide(context, args, at.source, (flags & GNTCOPY_SOURCE_GREF) !== 0, false);
  if (typeof source === 'number') return source;
  const dest = openSide(context, args, at.dest, (flags & GNTCOPY_DEST_GREF) !== 0, true);
  if (typeof dest !== 'number') {
    const start = source.mfn * FRAME_BYTES + from;
    context.environment.memory.u8.copyWithin(dest.mfn * FRAME_BYTES + to, start, start + sizeBytes);
    dest.done();
  }
  source.done();
  return typeof dest === 'number' ? dest : GNTST.okay;
}

const operations: Readonly<Record<number, Operation>> = {
  [GNTTABOP.map_grant_ref]: refuses(gnttabMapGrantRef, GNTST.permission_denied),
  [GNTTABOP.unmap_grant_ref]: refuses(gnttabUnmapGrantRef, GNTST.bad_handle),
  [GNTTABOP.unmap_and_replace]: refuses(gnttabUnmapAndReplace, GNTST.bad_handle),
  [GNTTABOP.setup_table]: { type: gnttabSetupTable, run: setupTable },
  [GNTTABOP.query_size]: { type: gnttabQuerySize, run: querySize },
  [GNTTABOP.copy]: {
    type: gnttabCopy,
    run: (context, args) => {
      args.set16(gnttabCopy.at.status, copyStatus(context, args));
      return 0;
    },
  },
  [GNTTABOP.swap_grant_ref]: {
    type: gnttabSwapGrantRef,
    run: ({ grants, caller: { domain } }, args) => {
      const { ref_a: a, ref_b: b, status } = gnttabSwapGrantRef.at;
      args.set16(status, domain.locked(() => grants.swap(domain, args.u32(a), args.u32(b))));
      return 0;
    },
  },
  [GNTTABOP.get_version]: {
    type: gnttabGetVersion,
    run: ({ caller }, args) => {
      if (!isSelf(caller, args.u16(gnttabGetVersion.at.dom))) return -ERRNO.EPERM;
      args.set32(gnttabGetVersion.at.version, 1);
      return 0;
    },
  },
  [GNTTABOP.set_version]: {
    type: gnttabSetVersion,
    run: (_context, args) => {
      const version = args.u32(gnttabSetVersion.at.version);
      args.set32(gnttabSetVersion.at.version, 1);
      return version === 1 ? 0 : version === 2 ? -ERRNO.ENOSYS : -ERRNO.EINVAL;
    },
  },
};

export function grantTableOp(
  environment: Environment, grants: GrantTables, caller: Caller, args: HypercallArguments,
): number {
  const operation = operations[args.u32(0)];
  if (operation === undefined) return -ERRNO.ENOSYS;
  const start = args.u64(1);
  const count = args.u32(2);
  if (count > COUNT_MAX) return -ERRNO.EINVAL;
  const { guest } = environment;
  const context = { environment, grants, caller };
  for (let i = 0; i < count; i++) {
    const va = start + BigInt(i * operation.type.sizeBytes);
    const structure = GuestStruct.readToAnswer(guest, caller, va, operation.type);
    const result = structure === undefined ? -ERRNO.EFAULT : operation.run(context, structure);
    if (guest.mustRetry()) {
      args.set(1, va);
      args.set(2, BigInt(count - i));
      return 0;
    }
    if (structure === undefined) return result;
    if (!structure.write(guest, caller, va)) return -ERRNO.EFAULT;
    if (result < 0) return result;
  }
  return 0;
}
