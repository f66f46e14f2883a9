// Rollback: puts a stopped domain back to a frozen state. Two ways, with the same outcome:
//
//   in place   what differs from the frozen memory is put back page by page, in the tables that the domain has; costs
//              what was dirtied since, and needs no frame
//   anew       the domain gets a new share of the frozen memory, and what it had goes to the caller to be dropped when
//              there is time; when much is dirty, or the guest has rearranged what the hypervisor works on
//
// All that can fail, for want of frames, comes before anything is given up. TLBs are flushed before the domain's vCPUs
// run again, so nobody uses what was replaced.

import { DOMAIN } from '../abi/domain-record.ts';
import type { DomainBuilder } from '../hypervisor/domain.ts';
import type { DomainRecord } from '../hypervisor/domain-record.ts';
import type { HypervisorThread } from '../hypervisor/thread.ts';
import type { FrozenDomain } from './checkpoint.ts';
import { prepareDomain, restoreDomain, revertDomain } from './domain-state.ts';
import type { Differences } from './domain-state.ts';

const HANDLE_BYTES = 16;

export interface RolledBack {
  /** Of the p2m that the domain had and has not any more; 0: none. */
  readonly oldRoot: number;
  /** Its channels to console and store are as they were; otherwise they wait for their other ends. */
  readonly isConnected: boolean;
}

/**
 * @param record of a domain that is stopped, its virtual time included, with as many vCPUs as the state has, of whose
 *   grants none is in use
 * @param found what differs from the frozen memory, as `findDifferences` says it while the domain is being stopped
 * @returns undefined when out of frames, and then the domain is as before
 */
export function rollBackDomain(
  thread: HypervisorThread, builder: DomainBuilder, record: DomainRecord, { state, root }: FrozenDomain,
  found: Differences,
): RolledBack | undefined {
  const vcpuAddresses = Array.from({ length: record.vcpuCount }, (_, vcpuId) => record.vcpuAddress(vcpuId));
  const handleAt = record.address + DOMAIN.at.handle;
  const handle = thread.machine.u8.slice(handleAt, handleAt + HANDLE_BYTES);
  const reverted = revertDomain(thread, record, state, root, found);
  if (reverted !== undefined) {
    restoreDomain(thread, record, state, reverted, vcpuAddresses, handle);
    thread.p2m.releaseStale();
    return { oldRoot: 0, isConnected: reverted.isConnected };
  }
  const prepared = prepareDomain(thread, record.domid, state, root);
  if (prepared === undefined) return undefined;
  const oldRoot = builder.emptyDomain(record);
  restoreDomain(thread, record, state, prepared, vcpuAddresses, handle);
  return { oldRoot, isConnected: false };
}
