// HYPERVISOR_vcpu_op. Guests on Arm start vCPUs through PSCI and take timers from the generic timer, so initialise
// and the timer operations do not exist here, as in Xen.

import { HELD_FRAME, VCPU_ENTRY } from '../abi/domain-record.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { vcpuInfo } from '../abi/xen-shared-info.ts';
import { ERRNO, VCPUOP, vcpuRegisterRunstateMemoryArea, vcpuRegisterVcpuInfo } from '../abi/xen.ts';
import { settleP2m } from './environment.ts';
import type { Environment } from './environment.ts';
import { vcpuInfoAddress } from './event-delivery.ts';
import type { EventDelivery } from './event-delivery.ts';
import { GuestStruct } from './guest-struct.ts';
import type { Caller, HypercallArguments } from './guest-struct.ts';
import { heldMfn, holdGuestFrame } from './held-frames.ts';
import { publishRunstate, runstateInfo } from './runstate.ts';

export function vcpuOp(
  environment: Environment, delivery: EventDelivery, caller: Caller, args: HypercallArguments,
): number {
  const { guest, scheduler, clock } = environment;
  const { domain } = caller;
  const vcpuId = args.u32(1);
  if (!(vcpuId < domain.vcpuCount)) return -ERRNO.ENOENT;
  const va = args.u64(2);
  const address = domain.vcpuAddress(vcpuId);
  switch (args.u32(0)) {
    case VCPUOP.up: return scheduler.setOnline(address, true) ? 0 : -ERRNO.EINVAL;
    case VCPUOP.down: return scheduler.setOnline(address, false) ? 0 : -ERRNO.EINVAL;
    case VCPUOP.is_up: return Number(scheduler.isOnline(address));
    case VCPUOP.get_runstate_info:
      return runstateInfo(domain, vcpuId, clock.monotonicNanos()).write(guest, caller, va, true) ? 0 : -ERRNO.EFAULT;
    case VCPUOP.register_runstate_memory_area: return registerRunstateArea(environment, caller, vcpuId, va);
    case VCPUOP.register_vcpu_info: return registerVcpuInfo(environment, delivery, caller, vcpuId, va);
    default: return -ERRNO.ENOSYS;
  }
}

function registerRunstateArea(environment: Environment, caller: Caller, vcpuId: number, va: bigint): number {
  const { guest, memory, clock } = environment;
  const { domain } = caller;
  const area = GuestStruct.read(guest, caller, va, vcpuRegisterRunstateMemoryArea);
  if (area === undefined) return -ERRNO.EFAULT;
  const place = area.u64(vcpuRegisterRunstateMemoryArea.at.addr);
  memory.u64[(domain.vcpuEntry(vcpuId) + VCPU_ENTRY.at.runstateArea) / 8] = place;
  if (place === 0n) return 0;
  if (vcpuId === caller.vcpuId) publishRunstate(environment, caller);
  else runstateInfo(domain, vcpuId, clock.monotonicNanos()).write(guest, caller, place);
  return 0;
}

/** Once for each vCPU; what the old vcpu_info says goes along. */
function registerVcpuInfo(
  environment: Environment, delivery: EventDelivery, caller: Caller, vcpuId: number, va: bigint,
): number {
  const { guest, memory } = environment;
  const { domain } = caller;
  const args = GuestStruct.read(guest, caller, va, vcpuRegisterVcpuInfo);
  if (args === undefined) return -ERRNO.EFAULT;
  const gfn = args.number(vcpuRegisterVcpuInfo.at.mfn);
  const offset = args.u32(vcpuRegisterVcpuInfo.at.offset);
  if (offset > FRAME_BYTES - vcpuInfo.sizeBytes || offset % vcpuInfo.alignBytes !== 0) return -ERRNO.EINVAL;
  const result = domain.locked(() => {
    const entry = domain.vcpuEntry(vcpuId);
    if (heldMfn(environment, entry + VCPU_ENTRY.at.info) !== 0) return -ERRNO.EINVAL;
    const old = vcpuInfoAddress(domain, vcpuId);
    const before = old === 0 ? new Uint8Array(vcpuInfo.sizeBytes) : memory.u8.slice(old, old + vcpuInfo.sizeBytes);
    // The offset first: events use the new place as soon as its frame is there.
    memory.u32[(entry + VCPU_ENTRY.at.infoOffset) / 4] = offset;
    const held = holdGuestFrame(environment, domain, entry + VCPU_ENTRY.at.info, gfn);
    if (held < 0) return held;
    before[vcpuInfo.at.evtchn_upcall_pending] = 0;
    const mfn = memory.u32[(entry + VCPU_ENTRY.at.info + HELD_FRAME.at.mfn) / 4]!;
    memory.u8.set(before, mfn * FRAME_BYTES + offset);
    // The guest may have seen nothing yet of what came before: it looks at everything once.
    delivery.markAllPending(domain, vcpuId);
    return 0;
  });
  settleP2m(environment, domain.domid);
  return result;
}
