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

import { DOMAIN, VCPU_ENTRY } from '../abi/domain-record.ts';
import { xOffset } from '../abi/vcpu.ts';
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
export function endSuspend({ machine }: HypervisorThread, record: DomainRecord): void {
  for (const vcpuAddress of takeWaiting(record)) machine.u64[(vcpuAddress + xOffset(0)) / 8] = CANCELLED;
  clearShutdown(record);
}

/**
 * The guest was made anew from a state in which it was suspended, and does not run yet. As in a domain that Xen has
 * just made, there are no event channels but those of store and console, under the numbers that they had, and the
 * guest has to choose again how events reach it. The host has not connected its ends yet.
 */
export function endSuspendElsewhere({ hypercalls }: HypervisorThread, record: DomainRecord): void {
  takeWaiting(record);
  const kept = [HVM_PARAM.STORE_EVTCHN, HVM_PARAM.CONSOLE_EVTCHN].map((param) => Number(getHvmParam(record, param)));
  hypercalls.channels.reset(record, kept);
  clearShutdown(record);
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
