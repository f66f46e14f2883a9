// HYPERVISOR_sched_op: yielding, sleeping, shutting down, watchdogs.

import { DOMAIN, VCPU_ENTRY } from '../abi/domain-record.ts';
import { array, u32 } from '../abi/struct.ts';
import {
  ERRNO, SCHEDOP, SCHED_POLL_PORTS_MAX, SHUTDOWN, SHUTDOWN_MAX, WATCHDOG_TIMERS, schedPoll, schedRemoteShutdown,
  schedShutdown, schedWatchdog,
} from '../abi/xen.ts';
import { EVTCHNSTAT } from '../abi/xen-event-channel.ts';
import type { DomainRecord } from './domain-record.ts';
import type { Environment } from './environment.ts';
import { isSelf } from './event-channel-op.ts';
import type { EventChannels } from './event-channels.ts';
import { GuestStruct, RegisterArguments } from './guest-struct.ts';
import type { Caller, HypercallArguments } from './guest-struct.ts';

const NANOS_PER_SECOND = 1e9;

/** The call answers 0 at first, which stands if the domain goes on in a new place; see lifecycle/suspend.ts. */
function awaitResume({ domain, vcpuId }: Caller): void {
  domain.memory.u32[(domain.vcpuEntry(vcpuId) + VCPU_ENTRY.at.awaitsResume) / 4] = 1;
}

export class SchedOperations {
  readonly #environment: Environment;
  readonly #channels: EventChannels;

  constructor(environment: Environment, channels: EventChannels) {
    this.#environment = environment;
    this.#channels = channels;
  }

  call(caller: Caller, args: HypercallArguments): number {
    const { scheduler } = this.#environment;
    const va = args.u64(1);
    switch (args.u32(0)) {
      case SCHEDOP.yield:
        scheduler.yield(caller.vcpu.address);
        return 0;
      case SCHEDOP.block: return this.#block(caller);
      case SCHEDOP.poll: return this.#poll(caller, va);
      case SCHEDOP.shutdown:
        return this.#withReason(caller, va, (reason) => {
          // The answer of a call within a multicall is not in x0.
          if (reason === SHUTDOWN.suspend && args instanceof RegisterArguments) awaitResume(caller);
          this.shutdown(caller.domain, reason);
        });
      case SCHEDOP.shutdown_code:
        return this.#withReason(caller, va, (reason) => caller.domain.set(DOMAIN.at.shutdownCode, reason + 1));
      case SCHEDOP.remote_shutdown: return this.#remoteShutdown(caller, va);
      case SCHEDOP.watchdog: return this.#watchdog(caller, va);
      default: return -ERRNO.ENOSYS;
    }
  }

  /**
   * Stops a domain's vCPUs; the host hears of it when they stand still: for the guest itself, its watchdog, or a fault that it cannot
   * handle. The first reason counts.
   */
  shutdown(domain: DomainRecord, reason: number): void {
    domain.locked(() => {
      if (domain.get(DOMAIN.at.shutdown) !== 0) return;
      const code = domain.get(DOMAIN.at.shutdownCode);
      domain.set(DOMAIN.at.shutdown, code === 0 ? reason + 1 : code);
    });
    this.#environment.scheduler.shutDown(domain.domid);
  }

  /** Shuts the domain down if one of its watchdogs is due. @returns when the next one is: nanoseconds, or Infinity */
  checkWatchdogs(domain: DomainRecord): number {
    const now = this.#environment.clock.monotonicNanos();
    let next = Infinity;
    for (let id = 0; id < WATCHDOG_TIMERS; id++) {
      const due = domain.getDouble(DOMAIN.at.watchdogNanos + 8 * id);
      if (due === 0) continue;
      if (due > now) next = Math.min(next, due);
      else {
        domain.setDouble(DOMAIN.at.watchdogNanos + 8 * id, 0);
        this.shutdown(domain, SHUTDOWN.watchdog);
      }
    }
    return next;
  }

  #block(caller: Caller): number {
    const { scheduler } = this.#environment;
    scheduler.block(caller.vcpu.address, undefined);
    if (this.#channels.delivery.upcallPending(caller.domain, caller.vcpuId)) scheduler.wake(caller.vcpu.address);
    return 0;
  }

  /** Sleeps until one of some ports is pending, masked or not. Waking too early is allowed: guests look again. */
  #poll(caller: Caller, va: bigint): number {
    const { guest, scheduler } = this.#environment;
    const { domain } = caller;
    const poll = GuestStruct.read(guest, caller, va, schedPoll);
    if (poll === undefined) return -ERRNO.EFAULT;
    const count = poll.u32(schedPoll.at.nr_ports);
    if (count > SCHED_POLL_PORTS_MAX) return -ERRNO.EINVAL;
    const ports = GuestStruct.read(guest, caller, poll.u64(schedPoll.at.ports), array(u32, count));
    if (ports === undefined) return -ERRNO.EFAULT;
    const timeoutNanos = poll.number(schedPoll.at.timeout);
    // Nobody raises an event between our look at the ports and our going to sleep: that takes the lock, too.
    return domain.locked(() => {
      for (let i = 0; i < count; i++) {
        const port = ports.u32(4 * i);
        if (domain.portState(port) === EVTCHNSTAT.closed) return -ERRNO.EINVAL;
        if (this.#channels.delivery.isPending(domain, port)) return 0;
      }
      const polling = (domain.vcpuEntry(caller.vcpuId) + VCPU_ENTRY.at.polling) / 4;
      if (Atomics.exchange(domain.memory.u32, polling, 1) === 0) {
        domain.set(DOMAIN.at.pollers, domain.get(DOMAIN.at.pollers) + 1);
      }
      scheduler.block(caller.vcpu.address, timeoutNanos === 0 ? undefined : timeoutNanos);
      return 0;
    });
  }

  #withReason(caller: Caller, va: bigint, then: (reason: number) => void): number {
    const args = GuestStruct.read(this.#environment.guest, caller, va, schedShutdown);
    if (args === undefined) return -ERRNO.EFAULT;
    const reason = args.u32(schedShutdown.at.reason);
    if (reason > SHUTDOWN_MAX) return -ERRNO.EINVAL;
    then(reason);
    return 0;
  }

  #remoteShutdown(caller: Caller, va: bigint): number {
    const args = GuestStruct.read(this.#environment.guest, caller, va, schedRemoteShutdown);
    if (args === undefined) return -ERRNO.EFAULT;
    const reason = args.u32(schedRemoteShutdown.at.reason);
    if (!isSelf(caller, args.u16(schedRemoteShutdown.at.domain_id))) return -ERRNO.EPERM;
    if (reason > SHUTDOWN_MAX) return -ERRNO.EINVAL;
    this.shutdown(caller.domain, reason);
    return 0;
  }

  /** Id 0 takes a free watchdog; timeout 0 stops one. @returns the id of a new one, or 0 */
  #watchdog(caller: Caller, va: bigint): number {
    const args = GuestStruct.read(this.#environment.guest, caller, va, schedWatchdog);
    if (args === undefined) return -ERRNO.EFAULT;
    const id = args.u32(schedWatchdog.at.id);
    const timeoutSeconds = args.u32(schedWatchdog.at.timeout);
    const { domain } = caller;
    const due = timeoutSeconds === 0 ? 0 :
      this.#environment.clock.monotonicNanos() + timeoutSeconds * NANOS_PER_SECOND;
    const at = (index: number) => DOMAIN.at.watchdogNanos + 8 * index;
    return domain.locked(() => {
      if (id > WATCHDOG_TIMERS) return -ERRNO.EINVAL;
      if (id !== 0) {
        if (domain.getDouble(at(id - 1)) === 0) return -ERRNO.EINVAL;
        domain.setDouble(at(id - 1), due);
        return 0;
      }
      if (due === 0) return -ERRNO.EINVAL;
      for (let index = 0; index < WATCHDOG_TIMERS; index++) {
        if (domain.getDouble(at(index)) !== 0) continue;
        domain.setDouble(at(index), due);
        return index + 1;
      }
      return -ERRNO.ENOSPC;
    });
  }
}
