// Hypercalls: number in x16, arguments in x0-x4, result in x0, as xen.ts says. One Hypercalls serves all vCPUs that a
// thread runs. Everything in an argument is a guest's word; whatever it says, the answer is a number in x0.
//
// A call that needs a page which is not to be had now (GuestAccess) leaves no answer but arguments with which it goes on:
// the vCPU stops before the HVC and makes it again. Those that work on lists say in their arguments, as Xen's do, which
// element comes next; all others have done nothing by then.

import { DOMAIN } from '../abi/domain-record.ts';
import { xOffset } from '../abi/vcpu.ts';
import { ERRNO, HYPERVISOR, VMASST_CMD, VMASST_TYPE_RUNSTATE_UPDATE_FLAG, multicallEntry } from '../abi/xen.ts';
import { consoleIo } from './console-io.ts';
import { DomainTable } from './domain-record.ts';
import type { Environment } from './environment.ts';
import { eventChannelOp } from './event-channel-op.ts';
import { EventChannels } from './event-channels.ts';
import { grantTableOp } from './grant-table-op.ts';
import { GrantTables } from './grant-table.ts';
import { GuestStruct, RegisterArguments } from './guest-struct.ts';
import type { Caller, HypercallArguments } from './guest-struct.ts';
import { hvmOp } from './hvm-params.ts';
import { MemoryOperations } from './memory-ops.ts';
import { SchedOperations } from './sched-ops.ts';
import { vcpuOp } from './vcpu-ops.ts';
import { xenVersion } from './version.ts';

const X0 = xOffset(0);
const X16 = xOffset(16);
/** Hypercall numbers end below this; a number is looked at as a whole 64-bit register. */
const NUMBER_MAX = 63;
/** Calls of one multicall, between which nobody else gets his turn. */
const MULTICALL_MAX = 1024;

export class Hypercalls {
  readonly domains: DomainTable;
  readonly channels: EventChannels;
  readonly grants: GrantTables;
  readonly sched: SchedOperations;
  readonly #environment: Environment;
  readonly #memory: MemoryOperations;

  constructor(environment: Environment) {
    this.#environment = environment;
    this.domains = new DomainTable(environment.memory);
    this.channels = new EventChannels(environment, this.domains);
    this.grants = new GrantTables(environment, this.domains);
    this.sched = new SchedOperations(environment, this.channels);
    this.#memory = new MemoryOperations(environment, this.grants);
  }

  /** Serves the hypercall that a vCPU has in its registers. */
  serve(caller: Caller): void {
    const number = caller.vcpu.getDouble(X16);
    const result = this.call(caller, number, new RegisterArguments(caller.vcpu));
    if (this.#environment.guest.mustRetry()) return;
    caller.vcpu.setHalves(X0, result % 2 ** 32, Math.floor(result / 2 ** 32));
  }

  /** @returns what goes into x0: a whole number below 2^53, negative for an error */
  call(caller: Caller, number: number, args: HypercallArguments): number {
    if (number > NUMBER_MAX) return -ERRNO.ENOSYS;
    switch (number) {
      case HYPERVISOR.event_channel_op: return eventChannelOp(this.#environment, this.channels, caller, args);
      case HYPERVISOR.sched_op: return this.sched.call(caller, args);
      case HYPERVISOR.vcpu_op: return vcpuOp(this.#environment, this.channels.delivery, caller, args);
      case HYPERVISOR.grant_table_op: return grantTableOp(this.#environment, this.grants, caller, args);
      case HYPERVISOR.memory_op: return this.#memory.call(caller, args);
      case HYPERVISOR.hvm_op: return hvmOp(this.#environment, caller, args);
      case HYPERVISOR.xen_version: return xenVersion(this.#environment, caller, args);
      case HYPERVISOR.console_io: return consoleIo(this.#environment, this.domains.record(0), caller, args);
      case HYPERVISOR.vm_assist: return vmAssist(caller, args);
      case HYPERVISOR.multicall: return this.#multicall(caller, args);
      default: return -ERRNO.ENOSYS;
    }
  }

  #multicall(caller: Caller, args: HypercallArguments): number {
    const { guest } = this.#environment;
    const start = args.u64(0);
    const count = args.u32(1);
    if (count > MULTICALL_MAX) return -ERRNO.EINVAL;
    for (let i = 0; i < count; i++) {
      const va = start + BigInt(i * multicallEntry.sizeBytes);
      const entry = GuestStruct.readToAnswer(guest, caller, va, multicallEntry);
      const result = entry === undefined ? -ERRNO.EFAULT : this.#callOfEntry(caller, entry);
      if (guest.mustRetry()) {
        args.set(0, va);
        args.set(1, BigInt(count - i));
        // What is called may have got further in a list of its own.
        entry?.write(guest, caller, va);
        return 0;
      }
      if (entry === undefined) return result;
      entry.set64(multicallEntry.at.result, BigInt(result));
      if (!entry.write(guest, caller, va)) return -ERRNO.EFAULT;
    }
    return 0;
  }

  #callOfEntry(caller: Caller, entry: GuestStruct): number {
    const number = entry.number(multicallEntry.at.op);
    return number === HYPERVISOR.multicall ? -ERRNO.EINVAL : this.call(caller, number, new EntryArguments(entry));
  }
}

class EntryArguments implements HypercallArguments {
  readonly #entry: GuestStruct;

  constructor(entry: GuestStruct) {
    this.#entry = entry;
  }

  u32(index: number): number {
    return this.#entry.u32(multicallEntry.at.args + 8 * index);
  }

  number(index: number): number {
    return this.#entry.number(multicallEntry.at.args + 8 * index);
  }

  u64(index: number): bigint {
    return this.#entry.u64(multicallEntry.at.args + 8 * index);
  }

  set(index: number, value: bigint): void {
    this.#entry.set64(multicallEntry.at.args + 8 * index, value);
  }
}

/** Arm guests have one thing to choose: whether writes to a runstate area are marked. */
function vmAssist({ domain }: Caller, args: HypercallArguments): number {
  if (args.u32(1) !== VMASST_TYPE_RUNSTATE_UPDATE_FLAG) return -ERRNO.EINVAL;
  const bit = 1 << VMASST_TYPE_RUNSTATE_UPDATE_FLAG;
  const index = (domain.address + DOMAIN.at.vmAssist) / 4;
  if (args.u32(0) === VMASST_CMD.enable) Atomics.or(domain.memory.u32, index, bit);
  else if (args.u32(0) === VMASST_CMD.disable) Atomics.and(domain.memory.u32, index, ~bit);
  else return -ERRNO.ENOSYS;
  return 0;
}
