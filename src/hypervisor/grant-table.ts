// Grant tables: how a domain lets another one, mostly the host's backends, use some of its pages. The guest writes
// the table; what is in use is kept in a table of our own that it cannot see.
//
// While a grant is in use its frame is pinned, once for each use. So a backend may go on with a frame whatever the
// guest does meanwhile: takes the page out of its address space, rewrites the entry, or is destroyed.

import { ACTIVE_GRANT, DOMAIN, HELD_FRAME } from '../abi/domain-record.ts';
import { FRAME_BYTES, FRAME_WORDS } from '../abi/machine-memory.ts';
import {
  GNTST, GRANTS_PER_FRAME, GRANT_FRAMES_MAX, GTF_PERMIT_ACCESS, GTF_READING, GTF_READONLY, GTF_TYPE_MASK, GTF_WRITING,
  grantEntryV1,
} from '../abi/xen-grant-table.ts';
import { PAGE_LOST, READ_ONLY } from '../memory/p2m.ts';
import { backOff } from '../memory/spin.ts';
import type { DomainRecord, DomainTable } from './domain-record.ts';
import { settleP2m } from './environment.ts';
import type { Environment } from './environment.ts';
import { dropHeldFrame, heldMfn, holdNewFrame } from './held-frames.ts';

/** A grant in use. The frame may be used until `unmap`, even when the domain is gone. */
export interface GrantMapping {
  readonly domid: number;
  readonly ref: number;
  readonly write: boolean;
  readonly mfn: number;
  readonly incarnation: number;
}

/** A guest that changes an entry more often than this while we look at it does not get the grant used. */
const ENTRY_ATTEMPTS = 16;
const USES_MAX = 0xffff;
/** Grants that are taken or given back before others get the domain's lock: some ten microseconds. */
const LOCKED_TOGETHER = 32;
/** Some ten milliseconds: the other guest's thread may be off its core. */
const UNUSED_ATTEMPTS = 400;

export class GrantTables {
  readonly #environment: Environment;
  readonly #domains: DomainTable;

  constructor(environment: Environment, domains: DomainTable) {
    this.#environment = environment;
    this.#domains = domains;
  }

  /**
   * Starts using a grant of `domid` to `user`.
   * @returns the mapping, or a negative GNTST: bad_domain, bad_gntref (no such grant for this user), general_error
   *   (a write to a read-only grant, too many uses), bad_page (no memory there), eagain (out of frames, or the page
   *   has yet to be read from an image)
   */
  map(domid: number, ref: number, write: boolean, user = 0): GrantMapping | number {
    const mapped = this.mapAll(domid, [ref], write, user);
    return typeof mapped === 'number' ? mapped : mapped[0]!;
  }

  /** Several grants of one domain, all of them or none. @returns otherwise what `map` says of the first that cannot be used */
  mapAll(domid: number, refs: readonly number[], write: boolean, user = 0): GrantMapping[] | number {
    const domain = this.#domains.live(domid);
    if (domain === undefined) return GNTST.bad_domain;
    const mapped: GrantMapping[] = [];
    let status: number = GNTST.okay;
    while (status === GNTST.okay && mapped.length < refs.length) {
      const end = Math.min(refs.length, mapped.length + LOCKED_TOGETHER);
      status = domain.locked(() => (domain.isLive ? this.#useEach(domain, refs, end, write, user, mapped) : GNTST.bad_domain));
      settleP2m(this.#environment, domid);
    }
    if (status === GNTST.okay) return mapped;
    this.unmapAll(mapped);
    return status;
  }

  unmap(mapping: GrantMapping): void {
    this.unmapAll([mapping]);
  }

  /** @param mappings of one domain */
  unmapAll(mappings: readonly GrantMapping[]): void {
    for (let from = 0; from < mappings.length; from += LOCKED_TOGETHER) {
      const some = from === 0 && mappings.length <= LOCKED_TOGETHER ? mappings : mappings.slice(from, from + LOCKED_TOGETHER);
      const domain = this.#domains.record(some[0]!.domid);
      domain.locked(() => {
        const incarnation = domain.get(DOMAIN.at.incarnation);
        for (const mapping of some) if (mapping.incarnation === incarnation) this.#unuse(domain, mapping);
      });
      for (const { mfn } of some) this.#environment.heap.unpin(mfn);
    }
  }

  /** Makes the table at least this big. With the lock. @returns false when it may not be, or out of frames */
  grow(domain: DomainRecord, frames: number): boolean {
    if (!(frames <= GRANT_FRAMES_MAX)) return false;
    for (let index = domain.get(DOMAIN.at.grantFrames); index < frames; index++) {
      const active = this.#environment.heap.allocate(domain.domid);
      if (active === 0) return false;
      if (holdNewFrame(this.#environment, domain, this.frameAt(domain, index)) === 0) {
        this.#environment.heap.release(active);
        return false;
      }
      domain.set(DOMAIN.at.activeFrames + 4 * index, active);
      domain.set(DOMAIN.at.grantFrames, index + 1);
    }
    return true;
  }

  /** Address of the HELD_FRAME of a frame of the table. */
  frameAt(domain: DomainRecord, index: number): number {
    return domain.address + DOMAIN.at.grants + index * HELD_FRAME.sizeBytes;
  }

  /** How many grants of the domain are in use, counting each use. */
  usesOf(domain: DomainRecord): number {
    return domain.locked(() => this.#usesOf(domain));
  }

  /**
   * Runs `body` with the domain's lock, while no grant of the domain is in use. What other guests use, to copy, they give
   * back within microseconds; that is waited for.
   * @returns what it answers, or 'busy': a back end uses some
   */
  whileUnused<T>(domain: DomainRecord, body: () => T): T | 'busy' {
    for (let attempt = 0; attempt < UNUSED_ATTEMPTS; attempt++) {
      const done = domain.locked(() => (this.#usesOf(domain) === 0 ? { answer: body() } : undefined));
      if (done !== undefined) return done.answer;
      backOff(attempt);
    }
    return 'busy';
  }

  #usesOf(domain: DomainRecord): number {
    const { u32 } = this.#environment.memory;
    let uses = 0;
    for (let index = 0; index < domain.get(DOMAIN.at.grantFrames); index++) {
      const first = domain.get(DOMAIN.at.activeFrames + 4 * index) * FRAME_WORDS;
      // Readers and writers are one word.
      for (let at = first; at < first + FRAME_WORDS; at += ACTIVE_GRANT.sizeBytes / 4) {
        const word = u32[at + ACTIVE_GRANT.at.readers / 4]!;
        uses += (word & 0xffff) + (word >>> 16);
      }
    }
    return uses;
  }

  /** Exchanges two entries that are not in use. With the lock. @returns GNTST */
  swap(domain: DomainRecord, a: number, b: number): number {
    if (!(a < this.#limit(domain) && b < this.#limit(domain))) return GNTST.bad_gntref;
    if (this.#active(domain, a, true) !== 0 || this.#active(domain, b, true) !== 0) return GNTST.eagain;
    const { u64 } = this.#environment.memory;
    const entryA = this.#entry(domain, a) / 8;
    const entryB = this.#entry(domain, b) / 8;
    const old = u64[entryA]!;
    u64[entryA] = u64[entryB]!;
    u64[entryB] = old;
    return GNTST.okay;
  }

  /** Frees the tables of a domain that is dying or put back. Mappings stay good, and are nobody's business but their own. */
  release(domain: DomainRecord): void {
    this.forgetUses(domain);
    for (let index = 0; index < domain.get(DOMAIN.at.grantFrames); index++) {
      dropHeldFrame(this.#environment, this.frameAt(domain, index));
      this.#environment.heap.release(domain.get(DOMAIN.at.activeFrames + 4 * index));
      domain.set(DOMAIN.at.activeFrames + 4 * index, 0);
    }
    domain.set(DOMAIN.at.grantFrames, 0);
  }

  /** The domain's table of what is in use is about to go, or to be empty: what is in use now is not counted there. */
  forgetUses(domain: DomainRecord): void {
    domain.set(DOMAIN.at.incarnation, domain.get(DOMAIN.at.incarnation) + 1);
  }

  #limit(domain: DomainRecord): number {
    return domain.get(DOMAIN.at.grantFrames) * GRANTS_PER_FRAME;
  }

  #entry(domain: DomainRecord, ref: number): number {
    const mfn = heldMfn(this.#environment, this.frameAt(domain, Math.floor(ref / GRANTS_PER_FRAME)));
    return mfn * FRAME_BYTES + (ref % GRANTS_PER_FRAME) * grantEntryV1.sizeBytes;
  }

  /** Address of a grant's ACTIVE_GRANT. @param ifInUse 0 when it is not in use */
  #active(domain: DomainRecord, ref: number, ifInUse = false): number {
    const frame = domain.get(DOMAIN.at.activeFrames + 4 * Math.floor(ref / GRANTS_PER_FRAME));
    const at = frame * FRAME_BYTES + (ref % GRANTS_PER_FRAME) * ACTIVE_GRANT.sizeBytes;
    return ifInUse && this.#environment.memory.u32[(at + ACTIVE_GRANT.at.mfn) / 4] === 0 ? 0 : at;
  }

  #count(active: number, offset: number): number {
    return this.#environment.memory.u16[(active + offset) / 2]!;
  }

  /** Adds the mappings of more refs, up to one. @returns GNTST.okay, or of the first that cannot be used */
  #useEach(domain: DomainRecord, refs: readonly number[], end: number, write: boolean, user: number, mapped: GrantMapping[]): number {
    while (mapped.length < end) {
      const mapping = this.#use(domain, refs[mapped.length]!, write, user);
      if (typeof mapping === 'number') return mapping;
      mapped.push(mapping);
    }
    return GNTST.okay;
  }

  #use(domain: DomainRecord, ref: number, write: boolean, user: number): GrantMapping | number {
    if (!(ref >= 0 && ref < this.#limit(domain))) return GNTST.bad_gntref;
    const { u16, u32 } = this.#environment.memory;
    const active = this.#active(domain, ref);
    const field = write ? ACTIVE_GRANT.at.writers : ACTIVE_GRANT.at.readers;
    if (this.#count(active, field) === USES_MAX) return GNTST.general_error;
    const entry = this.#entry(domain, ref);
    const marked = this.#mark(entry, write, user);
    if (marked < 0) return marked;
    const mfn = this.#pin(domain, active, u32[(entry + grantEntryV1.at.frame) / 4]!, write);
    if (mfn <= 0) {
      this.#unmark(entry, active);
      return mfn;
    }
    u32[(active + ACTIVE_GRANT.at.mfn) / 4] = mfn;
    u16[(active + field) / 2]!++;
    return { domid: domain.domid, ref, write, mfn, incarnation: domain.get(DOMAIN.at.incarnation) };
  }

  /** Checks an entry and says in it, in one atomic step, that it is in use. */
  #mark(entry: number, write: boolean, user: number): number {
    const { u32 } = this.#environment.memory;
    for (let attempt = 0; attempt < ENTRY_ATTEMPTS; attempt++) {
      const word = Atomics.load(u32, entry / 4);
      if ((word & GTF_TYPE_MASK) !== GTF_PERMIT_ACCESS || word >>> 16 !== user) return GNTST.bad_gntref;
      if (write && (word & GTF_READONLY) !== 0) return GNTST.general_error;
      const marked = (word | GTF_READING | (write ? GTF_WRITING : 0)) >>> 0;
      if (Atomics.compareExchange(u32, entry / 4, word, marked) === word) return GNTST.okay;
    }
    return GNTST.general_error;
  }

  /** Takes back what no use needs any more. */
  #unmark(entry: number, active: number): void {
    const { u32 } = this.#environment.memory;
    if (this.#count(active, ACTIVE_GRANT.at.writers) !== 0) return;
    Atomics.and(u32, entry / 4, ~GTF_WRITING);
    if (this.#count(active, ACTIVE_GRANT.at.readers) !== 0) return;
    Atomics.and(u32, entry / 4, ~GTF_READING);
    u32[(active + ACTIVE_GRANT.at.mfn) / 4] = 0;
  }

  /**
   * Pins the frame of a use: the one that the grant has in use, or the guest's. A reader, too, gets the frame that
   * the guest writes to, never a shared one, so that it sees what the guest writes later.
   * @returns its MFN, or a negative GNTST
   */
  #pin(domain: DomainRecord, active: number, gfn: number, write: boolean): number {
    const { heap, p2m, memory } = this.#environment;
    const inUse = memory.u32[(active + ACTIVE_GRANT.at.mfn) / 4]!;
    const isWritten = this.#count(active, ACTIVE_GRANT.at.writers) !== 0;
    const root = domain.get(DOMAIN.at.p2mRoot);
    if (inUse !== 0 && (isWritten || !write || p2m.frameForWrite(root, gfn) === inUse)) {
      return heap.pin(inUse) ? inUse : GNTST.general_error;
    }
    if (inUse !== 0) return GNTST.general_error;
    const mfn = p2m.pinForWrite(root, gfn);
    if (mfn > 0) return mfn;
    if (mfn === READ_ONLY) return (write ? 0 : p2m.pinForRead(root, gfn)) || GNTST.bad_page;
    return mfn === 0 || mfn === PAGE_LOST ? GNTST.eagain : GNTST.bad_page;
  }

  #unuse(domain: DomainRecord, { ref, write }: GrantMapping): void {
    const active = this.#active(domain, ref);
    const { u16 } = this.#environment.memory;
    u16[(active + (write ? ACTIVE_GRANT.at.writers : ACTIVE_GRANT.at.readers)) / 2]!--;
    this.#unmark(this.#entry(domain, ref), active);
  }
}
