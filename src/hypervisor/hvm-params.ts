// HYPERVISOR_hvm_op: parameters through which a guest finds its console and xenstore pages and event channels. They
// are set when the domain is made; the guest itself may only say how it wants its events delivered, to which an Arm
// guest has no choice but the PPI, so that a set of the same value is all that succeeds.

import { DOMAIN } from '../abi/domain-record.ts';
import { ERRNO, HVMOP, HVM_NR_PARAMS, HVM_PARAM, xenHvmParam } from '../abi/xen.ts';
import type { DomainRecord } from './domain-record.ts';
import type { Environment } from './environment.ts';
import { isSelf } from './event-channel-op.ts';
import { GuestStruct } from './guest-struct.ts';
import type { Caller, HypercallArguments } from './guest-struct.ts';

export function getHvmParam(domain: DomainRecord, index: number): bigint {
  return domain.memory.u64[(domain.address + DOMAIN.at.hvmParams) / 8 + index]!;
}

export function setHvmParam(domain: DomainRecord, index: number, value: bigint): void {
  domain.memory.u64[(domain.address + DOMAIN.at.hvmParams) / 8 + index] = value;
}

export function hvmOp(environment: Environment, caller: Caller, args: HypercallArguments): number {
  const operation = args.u32(0);
  if (operation !== HVMOP.get_param && operation !== HVMOP.set_param) return -ERRNO.ENOSYS;
  const va = args.u64(1);
  const param = GuestStruct.readToAnswer(environment.guest, caller, va, xenHvmParam);
  if (param === undefined) return -ERRNO.EFAULT;
  const index = param.u32(xenHvmParam.at.index);
  if (index >= HVM_NR_PARAMS) return -ERRNO.EINVAL;
  if (!isSelf(caller, param.u16(xenHvmParam.at.domid))) return -ERRNO.EPERM;
  const value = getHvmParam(caller.domain, index);
  if (operation === HVMOP.set_param) {
    if (index !== HVM_PARAM.CALLBACK_IRQ) return -ERRNO.EPERM;
    return param.u64(xenHvmParam.at.value) === value ? 0 : -ERRNO.EINVAL;
  }
  param.set64(xenHvmParam.at.value, value);
  return param.write(environment.guest, caller, va) ? 0 : -ERRNO.EFAULT;
}
