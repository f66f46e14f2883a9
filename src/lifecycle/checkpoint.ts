// Checkpoint: freezes the state of a stopped domain and lets it go on. The frozen memory is a second p2m over the same
// frames; from then on the domain copies what it writes. What the guest's size is, or how much of it is dirty, does not
// matter: the root is one frame, and only the few frames that the hypervisor itself writes are copied at once.
//
//   domain's root ──┬─► nodes ─► frames           domain's root' ─► copies of nodes ─► copies of held frames
//                   │                      ──►           └────────┐
//                   └─ held frames (pins)         frozen root ────┴─► nodes ─► frames

import { DOMAIN } from '../abi/domain-record.ts';
import type { DomainRecord } from '../hypervisor/domain-record.ts';
import type { HypervisorThread } from '../hypervisor/thread.ts';
import { HOST_ACCOUNT } from '../memory/heap.ts';
import { holdExclusively, saveDomain } from './domain-state.ts';
import type { DomainState } from './domain-state.ts';

/** A domain's state and memory at one moment. Whoever has it releases the root. */
export interface FrozenDomain {
  readonly root: number;
  readonly state: DomainState;
}

/**
 * Takes the state of a domain that runs on, for nothing but to have it, and the code that takes it, in the processor's caches
 * when the domain is stopped: copying what comes from memory takes five times as long. What is read half-way in a change
 * goes nowhere.
 */
export function lookOver(thread: HypervisorThread, record: DomainRecord): void {
  record.locked(() => saveDomain(thread, record));
}

/**
 * Of a domain that is stopped, its virtual time included. Whoever uses a grant of it would go on writing to what is frozen.
 * @returns undefined when out of frames, 'busy' when a back end uses grants; the domain is as before
 */
export function freezeDomain(thread: HypervisorThread, record: DomainRecord): FrozenDomain | 'busy' | undefined {
  const { p2m, hypercalls: { grants } } = thread;
  const frozen = grants.whileUnused(record, () => {
    const state = saveDomain(thread, record);
    const root = p2m.share(record.get(DOMAIN.at.p2mRoot), HOST_ACCOUNT);
    if (root === 0) return undefined;
    return { state, root, isComplete: holdExclusively(thread, record, state) };
  });
  if (frozen === undefined || frozen === 'busy') return frozen;
  // Write translations are stale even if no frame was exchanged: what they lead to is shared now.
  thread.safePoints.flushTlbs(record.domid);
  p2m.releaseStale();
  if (frozen.isComplete) return { root: frozen.root, state: frozen.state };
  // At once, so that what is held and was not exchanged is the domain's alone again when it goes on.
  p2m.release(frozen.root);
  thread.heap.tearDown.finish();
  return undefined;
}
