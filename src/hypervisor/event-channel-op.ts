// HYPERVISOR_event_channel_op: a guest's arguments for event-channels.ts.

import { DOMID_SELF, ERRNO } from '../abi/xen.ts';
import {
  EVTCHNOP, EVTCHNSTAT, EVTCHN_FIFO_LINK_BITS, evtchnAllocUnbound, evtchnBindInterdomain, evtchnBindIpi,
  evtchnBindVcpu, evtchnBindVirq, evtchnExpandArray, evtchnInitControl, evtchnPort, evtchnReset, evtchnSetPriority,
  evtchnStatus,
} from '../abi/xen-event-channel.ts';
import type { Struct } from '../abi/struct.ts';
import { settleP2m } from './environment.ts';
import type { Environment } from './environment.ts';
import type { EventChannels } from './event-channels.ts';
import { GuestStruct } from './guest-struct.ts';
import type { Caller, HypercallArguments } from './guest-struct.ts';

interface Operation {
  readonly type: Struct;
  /** The structure goes back to the guest when the answer is not negative. */
  readonly writesBack?: boolean;
  /** @returns 0 or a negative errno */
  readonly run: (channels: EventChannels, caller: Caller, args: GuestStruct) => number;
}

export const isSelf = (caller: Caller, domid: number): boolean =>
  domid === DOMID_SELF || domid === caller.domain.domid;

const named = (caller: Caller, domid: number) => (domid === DOMID_SELF ? caller.domain.domid : domid);

/** Puts a new port into the structure, or hands the error on. */
function answerPort(args: GuestStruct, offset: number, port: number): number {
  if (port < 0) return port;
  args.set32(offset, port);
  return 0;
}

function status(channels: EventChannels, caller: Caller, args: GuestStruct): number {
  if (!isSelf(caller, args.u16(evtchnStatus.at.dom))) return -ERRNO.EPERM;
  const found = channels.status(caller.domain, args.u32(evtchnStatus.at.port));
  if (found === undefined) return -ERRNO.EINVAL;
  args.set32(evtchnStatus.at.status, found.status);
  args.set32(evtchnStatus.at.vcpu, found.vcpu);
  if (found.status === EVTCHNSTAT.virq) args.set32(evtchnStatus.at.uDom, found.remote);
  else args.set16(evtchnStatus.at.uDom, found.remote);
  if (found.status === EVTCHNSTAT.interdomain) args.set32(evtchnStatus.at.uPort, found.remotePort);
  return 0;
}

const operations: Readonly<Record<number, Operation>> = {
  [EVTCHNOP.alloc_unbound]: {
    type: evtchnAllocUnbound,
    writesBack: true,
    run: (channels, caller, args) => {
      if (!isSelf(caller, args.u16(evtchnAllocUnbound.at.dom))) return -ERRNO.EPERM;
      const remote = named(caller, args.u16(evtchnAllocUnbound.at.remote_dom));
      return answerPort(args, evtchnAllocUnbound.at.port, channels.allocUnbound(caller.domain, remote));
    },
  },
  [EVTCHNOP.bind_interdomain]: {
    type: evtchnBindInterdomain,
    writesBack: true,
    run: (channels, caller, args) => {
      const remote = named(caller, args.u16(evtchnBindInterdomain.at.remote_dom));
      const port = channels.bindInterdomain(caller.domain, remote, args.u32(evtchnBindInterdomain.at.remote_port));
      return answerPort(args, evtchnBindInterdomain.at.local_port, port);
    },
  },
  [EVTCHNOP.bind_virq]: {
    type: evtchnBindVirq,
    writesBack: true,
    run: (channels, caller, args) => answerPort(args, evtchnBindVirq.at.port,
      channels.bindVirq(caller.domain, args.u32(evtchnBindVirq.at.virq), args.u32(evtchnBindVirq.at.vcpu))),
  },
  [EVTCHNOP.bind_ipi]: {
    type: evtchnBindIpi,
    writesBack: true,
    run: (channels, caller, args) => answerPort(args, evtchnBindIpi.at.port,
      channels.bindIpi(caller.domain, args.u32(evtchnBindIpi.at.vcpu))),
  },
  [EVTCHNOP.close]: {
    type: evtchnPort,
    run: (channels, caller, args) => channels.close(caller.domain, args.u32(evtchnPort.at.port)),
  },
  [EVTCHNOP.send]: {
    type: evtchnPort,
    run: (channels, caller, args) => channels.send(caller.domain, args.u32(evtchnPort.at.port)),
  },
  [EVTCHNOP.unmask]: {
    type: evtchnPort,
    run: (channels, caller, args) => channels.unmask(caller.domain, args.u32(evtchnPort.at.port)),
  },
  [EVTCHNOP.status]: { type: evtchnStatus, writesBack: true, run: status },
  [EVTCHNOP.bind_vcpu]: {
    type: evtchnBindVcpu,
    run: (channels, caller, args) => channels.bindVcpu(caller.domain, args.u32(evtchnBindVcpu.at.port),
      args.u32(evtchnBindVcpu.at.vcpu)),
  },
  [EVTCHNOP.reset]: {
    type: evtchnReset,
    run: (channels, caller, args) => {
      if (!isSelf(caller, args.u16(evtchnReset.at.dom))) return -ERRNO.EPERM;
      channels.reset(caller.domain);
      return 0;
    },
  },
  [EVTCHNOP.init_control]: {
    type: evtchnInitControl,
    writesBack: true,
    run: (channels, caller, args) => {
      args.set8(evtchnInitControl.at.link_bits, EVTCHN_FIFO_LINK_BITS);
      return channels.initControl(caller.domain, args.u32(evtchnInitControl.at.vcpu),
        args.number(evtchnInitControl.at.control_gfn), args.u32(evtchnInitControl.at.offset));
    },
  },
  [EVTCHNOP.expand_array]: {
    type: evtchnExpandArray,
    run: (channels, caller, args) =>
      channels.expandArray(caller.domain, args.number(evtchnExpandArray.at.array_gfn)),
  },
  [EVTCHNOP.set_priority]: {
    type: evtchnSetPriority,
    run: (channels, caller, args) => channels.setPriority(caller.domain, args.u32(evtchnSetPriority.at.port),
      args.u32(evtchnSetPriority.at.priority)),
  },
  // No guest has physical interrupts.
  [EVTCHNOP.bind_pirq]: { type: evtchnPort, run: () => -ERRNO.EINVAL },
};

export function eventChannelOp(
  environment: Environment, channels: EventChannels, caller: Caller, args: HypercallArguments,
): number {
  const operation = operations[args.u32(0)];
  if (operation === undefined) return -ERRNO.ENOSYS;
  const va = args.u64(1);
  const structure = GuestStruct.read(environment.guest, caller, va, operation.type, operation.writesBack);
  if (structure === undefined) return -ERRNO.EFAULT;
  const result = operation.run(channels, caller, structure);
  settleP2m(environment, caller.domain.domid);
  if (result < 0 || operation.writesBack !== true) return result;
  return structure.write(environment.guest, caller, va) ? result : -ERRNO.EFAULT;
}
