// Fork: a new domain from a frozen state. It shares all memory with the state until one of them writes, and costs a
// root, the paths to the few frames that the hypervisor writes for it, and those frames.

import { DOMAIN, DOMAIN_STATE } from '../abi/domain-record.ts';
import type { DomainBuilder } from '../hypervisor/domain.ts';
import type { DomainRecord } from '../hypervisor/domain-record.ts';
import type { HypervisorThread } from '../hypervisor/thread.ts';
import type { FrozenDomain } from './checkpoint.ts';
import { prepareDomain, restoreDomain } from './domain-state.ts';

/**
 * @param vcpuAddresses of vCPU records that nobody has, as many as the state has vCPUs
 * @param handle UUID, 16 bytes
 * @returns a domain that is paused once, whose virtual time stands still, and whose ports to the host wait for it;
 *   undefined when there is no free id or the machine is out of frames
 */
export function forkDomain(
  thread: HypervisorThread, builder: DomainBuilder, { state, root }: FrozenDomain,
  vcpuAddresses: readonly number[], handle: Uint8Array,
): DomainRecord | undefined {
  const record = builder.claimDomain();
  if (record === undefined) return undefined;
  const prepared = prepareDomain(thread, record.domid, state, root);
  if (prepared === undefined) {
    record.set(DOMAIN.at.state, DOMAIN_STATE.dying);
    builder.forgetDomain(record);
    return undefined;
  }
  // From here on the vCPUs are this domain's: whatever is asked by their addresses, its share of the pCPUs first.
  thread.gic.resetDomain(record.domid, vcpuAddresses);
  for (const address of vcpuAddresses) thread.scheduling.attach(address);
  restoreDomain(thread, record, state, prepared, vcpuAddresses, handle);
  record.locked(() => record.set(DOMAIN.at.state, DOMAIN_STATE.live));
  return record;
}
