// How long each vCPU has run, waited for a pCPU, slept, or been offline: the guest's "stolen time". The account is in
// the vCPU's entry of the domain record; a guest may register a place for a copy (a virtual address, as Linux does).

import { DOMAIN, VCPU_ENTRY } from '../abi/domain-record.ts';
import { RUNSTATE, XEN_RUNSTATE_UPDATE, vcpuRunstateInfo } from '../abi/xen-shared-info.ts';
import { VMASST_TYPE_RUNSTATE_UPDATE_FLAG } from '../abi/xen.ts';
import type { DomainRecord } from './domain-record.ts';
import type { Environment } from './environment.ts';
import { GuestStruct } from './guest-struct.ts';
import type { Caller } from './guest-struct.ts';

const { at } = vcpuRunstateInfo;
const STATES = Object.keys(RUNSTATE).length;

/** Notes that a vCPU changes its state; by the thread that changes it. @param state one of RUNSTATE */
export function enterRunstate(domain: DomainRecord, vcpuId: number, state: number, nowNanos: number): void {
  const { u32, f64 } = domain.memory;
  const entry = domain.vcpuEntry(vcpuId);
  const since = (entry + VCPU_ENTRY.at.runstateEntryNanos) / 8;
  const old = u32[(entry + VCPU_ENTRY.at.runstate) / 4]!;
  f64[(entry + VCPU_ENTRY.at.runstateNanos) / 8 + old]! += Math.max(0, nowNanos - f64[since]!);
  f64[since] = nowNanos;
  u32[(entry + VCPU_ENTRY.at.runstate) / 4] = state;
}

/** The account as of now, as the guest sees it. */
export function runstateInfo(domain: DomainRecord, vcpuId: number, nowNanos: number): GuestStruct {
  const { u32, f64 } = domain.memory;
  const entry = domain.vcpuEntry(vcpuId);
  const state = u32[(entry + VCPU_ENTRY.at.runstate) / 4]!;
  const since = f64[(entry + VCPU_ENTRY.at.runstateEntryNanos) / 8]!;
  const info = GuestStruct.blank(vcpuRunstateInfo);
  info.set32(at.state, state);
  info.setNumber(at.state_entry_time, toNanos(since));
  for (let i = 0; i < STATES; i++) {
    const running = i === state ? Math.max(0, nowNanos - since) : 0;
    info.setNumber(at.time + 8 * i, toNanos(f64[(entry + VCPU_ENTRY.at.runstateNanos) / 8 + i]! + running));
  }
  return info;
}

const toNanos = (nanos: number) => Math.max(0, Math.floor(nanos));

/** Brings the guest's copy up to date: call it on the vCPU's own pCPU, whenever the vCPU starts to run. */
export function publishRunstate({ guest, memory, clock }: Environment, caller: Caller): void {
  const { domain, vcpuId } = caller;
  const va = memory.u64[(domain.vcpuEntry(vcpuId) + VCPU_ENTRY.at.runstateArea) / 8]!;
  if (va === 0n) return;
  const info = runstateInfo(domain, vcpuId, clock.monotonicNanos());
  const isMarked = (domain.get(DOMAIN.at.vmAssist) & (1 << VMASST_TYPE_RUNSTATE_UPDATE_FLAG)) !== 0;
  // The only vCPU that could be reading is this one.
  if (!isMarked || domain.vcpuCount === 1) {
    info.write(guest, caller, va);
    return;
  }
  const since = info.u64(at.state_entry_time);
  // Other vCPUs may be reading: they see the flag as long as the rest is not of one piece.
  const time = GuestStruct.blank(vcpuRunstateInfo);
  time.set64(0, since | XEN_RUNSTATE_UPDATE);
  guest.copyToGuest(caller.vcpu, va + BigInt(at.state_entry_time), time.bytes(0, 8));
  info.set64(at.state_entry_time, since | XEN_RUNSTATE_UPDATE);
  info.write(guest, caller, va);
  time.set64(0, since);
  guest.copyToGuest(caller.vcpu, va + BigInt(at.state_entry_time), time.bytes(0, 8));
}
