// Suspend: the guest is told, and stops itself at a point of its own choosing. What it and the host say to each other
// about it, and how it ends; docs/suspend.md describes it for authors of kernels. Who asks whom and how long anybody
// waits is the host's (host/suspension.ts).
//
//   host                                            guest
//   ──────────────────────────────────────────────────────────────────────────────────────────────────
//   event on the port at device/suspend/event-channel ──►
//   or control/shutdown = "suspend"                   ──► (acknowledges: control/shutdown = "")
//                                                     ◄── SCHEDOP_shutdown, reason suspend
//   stops it, keeps it as long as it likes
//   resumes it: the call answers 1                    ──► goes on as if nothing had been
//   or, made anew elsewhere: it answers 0             ──► binds its events again, tells its new port
//
// In both cases its time goes on to where it would be if it had run on, as a counter does that is not turned off: a kernel
// that has suspended itself looks at it to see how long it was away.

import { DOMAIN, HELD_FRAME, VCPU_ENTRY } from '../abi/domain-record.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { xOffset } from '../abi/vcpu.ts';
import { sharedInfo } from '../abi/xen-shared-info.ts';
import { HVM_PARAM, SHUTDOWN, WATCHDOG_TIMERS } from '../abi/xen.ts';
import type { DomainRecord } from '../hypervisor/domain-record.ts';
import { getHvmParam } from '../hypervisor/hvm-params.ts';
import type { HypervisorThread } from '../hypervisor/thread.ts';
import type { Store } from '../xenstore/store.ts';
import { domainPath } from './store-entries.ts';

/** The word that asks for it, at `shutdownPath`. */
export const SUSPEND_REQUEST = 'suspend';
/** Answers of SCHEDOP_shutdown to a guest that goes on where it was; in a new place it is 0, which is there already. */
const CANCELLED = 1n;
const NANOS_PER_MILLI = 1e6;
/** A century, which is what the counter has room for. */
const TIME_MAX_NANOS = 100 * 365 * 24 * 3600 * 1e9;

export const shutdownPath = (domainId: number): string => `${domainPath(domainId)}/control/shutdown`;

type Entries = Pick<Store, 'read'>;

/** @returns the port on which the guest waits to be asked; any number below 2^32 that it has written, or undefined */
export function suspendPort(store: Entries, domainId: number): number | undefined {
  const text = store.read(`${domainPath(domainId)}/device/suspend/event-channel`) ?? '';
  const port = /^\d{1,10}$/.test(text) ? Number(text) : 0;
  return port > 0 && port < 2 ** 32 ? port : undefined;
}

/** Whether the guest says that it looks for the request in the store. */
export function watchesForSuspend(store: Entries, domainId: number): boolean {
  return store.read(`${domainPath(domainId)}/control/feature-suspend`) === '1';
}

/** Whether the guest has stopped itself, to be resumed. */
export function isSuspended(record: DomainRecord): boolean {
  return record.get(DOMAIN.at.shutdown) === SHUTDOWN.suspend + 1;
}

/** The guest goes on where it was, with all that it had. Its vCPUs are stopped; the caller lets the scheduler know. */
export function endSuspend(thread: HypervisorThread, record: DomainRecord): void {
  for (const vcpuAddress of takeWaiting(record)) thread.machine.u64[(vcpuAddress + xOffset(0)) / 8] = CANCELLED;
  clearShutdown(record);
  catchUp(thread, record);
}

/**
 * The guest was made anew from a state in which it was suspended, and does not run yet. As in a domain that Xen has
 * just made, there are no event channels but those of store and console, under the numbers that they had, and the
 * guest has to choose again how events reach it. The host has not connected its ends yet.
 */
export function endSuspendElsewhere(thread: HypervisorThread, record: DomainRecord): void {
  const { hypercalls } = thread;
  takeWaiting(record);
  const kept = [HVM_PARAM.STORE_EVTCHN, HVM_PARAM.CONSOLE_EVTCHN].map((param) => Number(getHvmParam(record, param)));
  hypercalls.channels.reset(record, kept);
  clearShutdown(record);
  catchUp(thread, record);
}

/**
 * The domain's time stood still since it suspended itself, at the moment that its wall clock says; so that is left alone
 * as long as it is suspended. If the host's has been put back meanwhile, no time has passed.
 */
function catchUp({ clock, timers, scheduling }: HypervisorThread, record: DomainRecord): void {
  const { domid } = record;
  const time = timers.time(domid);
  const awayNanos = (clock.wallMillis() - wallMillisAtZero(record)) * NANOS_PER_MILLI - time;
  // A guest may write anything there.
  if (!(awayNanos > 0 && time + awayNanos < TIME_MAX_NANOS)) return;
  timers.setTime(domid, time + awayNanos);
  for (let vcpuId = 0; vcpuId < record.vcpuCount; vcpuId++) scheduling.wake(record.vcpuAddress(vcpuId));
}

/** The wall clock that the guest sees, at the time when its counter was zero. */
function wallMillisAtZero(record: DomainRecord): number {
  const { u32 } = record.memory;
  const info = record.get(DOMAIN.at.sharedInfo + HELD_FRAME.at.mfn) * FRAME_BYTES;
  const field = (name: 'wc_sec' | 'wc_sec_hi' | 'wc_nsec'): number => u32[(info + sharedInfo.at[name]) / 4]!;
  return (field('wc_sec_hi') * 2 ** 32 + field('wc_sec')) * 1000 + field('wc_nsec') / NANOS_PER_MILLI;
}

/** Addresses of the vCPUs whose call has still to be answered. */
function takeWaiting(record: DomainRecord): number[] {
  const { u32 } = record.memory;
  const waiting: number[] = [];
  for (let vcpuId = 0; vcpuId < record.vcpuCount; vcpuId++) {
    const mark = (record.vcpuEntry(vcpuId) + VCPU_ENTRY.at.awaitsResume) / 4;
    if (u32[mark] !== 0) waiting.push(record.vcpuAddress(vcpuId));
    u32[mark] = 0;
  }
  return waiting;
}

function clearShutdown(record: DomainRecord): void {
  record.locked(() => {
    record.set(DOMAIN.at.shutdown, 0);
    record.set(DOMAIN.at.shutdownCode, 0);
  });
}

/** The guest's watchdogs have not run while it stood still. */
export function delayWatchdogs(record: DomainRecord, nanos: number): void {
  for (let id = 0; id < WATCHDOG_TIMERS; id++) {
    const field = DOMAIN.at.watchdogNanos + 8 * id;
    const due = record.getDouble(field);
    if (due !== 0) record.setDouble(field, due + nanos);
  }
}
