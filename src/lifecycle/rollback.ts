// Rollback: puts a stopped domain back to a frozen state. All that can fail, for want of frames, comes first. The
// memory that the domain had goes to the caller, to be dropped when there is time; TLBs are flushed before the domain's
// vCPUs run again, so nobody uses it any more.

import type { DomainBuilder } from '../hypervisor/domain.ts';
import type { DomainRecord } from '../hypervisor/domain-record.ts';
import type { HypervisorThread } from '../hypervisor/thread.ts';
import { DOMAIN } from '../abi/domain-record.ts';
import type { FrozenDomain } from './checkpoint.ts';
import { prepareDomain, restoreDomain } from './domain-state.ts';

/**
 * @param record of a domain that is stopped, its virtual time included, with as many vCPUs as the state has, of whose
 *   grants none is in use
 * @returns the root of the p2m that it had; undefined when out of frames, and then the domain is as before
 */
export function rollBackDomain(
  thread: HypervisorThread, builder: DomainBuilder, record: DomainRecord, { state, root }: FrozenDomain,
): number | undefined {
  const prepared = prepareDomain(thread, record.domid, state, root);
  if (prepared === undefined) return undefined;
  const vcpuAddresses = Array.from({ length: record.vcpuCount }, (_, vcpuId) => record.vcpuAddress(vcpuId));
  const handle = thread.machine.u8.slice(record.address + DOMAIN.at.handle, record.address + DOMAIN.at.handle + 16);
  const old = builder.emptyDomain(record);
  restoreDomain(thread, record, state, prepared, vcpuAddresses, handle);
  return old;
}
