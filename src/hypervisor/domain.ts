// Making and unmaking domains: the record, the pages that guest and hypervisor share, and the event channels of
// console and xenstore. vCPUs' registers, the kernel in RAM and the order of tear-down belong to others.
//
//    free ──createDomain──► live, pauseCount 1 ──destroyDomain──► dying ──forgetDomain──► free
//                                                (unreachable)   (p2m being released)

import {
  ACTIVE_GRANT, CONSOLE_LOG, DOMAIN, DOMAIN_STATE, FIFO_PAGES_MAX, HELD_FRAME, HOST_DOMAINS_MAX, HOST_EVENTS,
  HOST_LISTENER, EVENT_MODE, PORT_FRAMES_MAX, VCPUS_PER_FRAME, VCPU_ENTRY,
} from '../abi/domain-record.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { sharedInfo, RUNSTATE } from '../abi/xen-shared-info.ts';
import {
  DOMID_FIRST_RESERVED, GUEST_CONSOLE_GFN, GUEST_EVTCHN_PPI, GUEST_MAX_VCPUS, GUEST_XENSTORE_GFN, HVM_PARAM,
  HVM_PARAM_CALLBACK_PPI_LOW_LEVEL, HVM_PARAM_CALLBACK_TYPE_PPI,
} from '../abi/xen.ts';
import { GRANTS_PER_FRAME } from '../abi/xen-grant-table.ts';
import { assert } from '../base/assert.ts';
import type { AuditClaims } from '../memory/audit.ts';
import type { DomainRecord } from './domain-record.ts';
import type { Environment } from './environment.ts';
import type { EventChannels } from './event-channels.ts';
import { hostEventsAddress } from './event-delivery.ts';
import type { GrantTables } from './grant-table.ts';
import { dropHeldFrame, heldMfn, holdNewFrame, mapHeldFrame } from './held-frames.ts';
import { setHvmParam } from './hvm-params.ts';

export interface DomainConfig {
  /** Addresses of the vCPU records, by vCPU number; 1 … 128. */
  readonly vcpuAddresses: readonly number[];
  /** UUID, 16 bytes. */
  readonly handle: Uint8Array;
  /** Most pages of RAM that the guest may ever have. */
  readonly maxPages: number;
  /** Type hvm: it has a frame for the registers of emulated devices, all zero. */
  readonly hasEmulatedDevices?: boolean | undefined;
}

export interface NewDomain {
  readonly domain: DomainRecord;
  /** Ring pages, kept alive by the record. */
  readonly consoleMfn: number;
  readonly xenstoreMfn: number;
  /** The host's ends of the event channels. */
  readonly consolePort: number;
  readonly xenstorePort: number;
}

export class DomainBuilder {
  readonly #environment: Environment;
  readonly #channels: EventChannels;
  readonly #grants: GrantTables;

  constructor(environment: Environment, channels: EventChannels, grants: GrantTables) {
    this.#environment = environment;
    this.#channels = channels;
    this.#grants = grants;
  }

  /** Makes domain 0, the host: once for a machine, before any guest. @returns false when out of frames */
  initializeHost(): boolean {
    const host = this.#channels.domains.record(0);
    assert(host.get(DOMAIN.at.state) === DOMAIN_STATE.free, 'domain 0 exists already');
    const { heap, memory } = this.#environment;
    const [events, network] = [heap.allocate(0), heap.allocate(0)];
    if (events === 0 || network === 0) return false;
    memory.u32[(events * FRAME_BYTES + HOST_EVENTS.at.network) / 4] = network;
    host.set(DOMAIN.at.hostEvents, events);
    host.set(DOMAIN.at.eventMode, EVENT_MODE.host);
    host.set(DOMAIN.at.state, DOMAIN_STATE.live);
    return true;
  }

  /** @returns a paused domain without RAM; undefined when there is no free id or the machine is out of frames */
  createDomain(config: DomainConfig): NewDomain | undefined {
    assert(config.handle.length === 16, 'a domain handle has 16 bytes');
    assert(config.vcpuAddresses.length >= 1 && config.vcpuAddresses.length <= GUEST_MAX_VCPUS, 'number of vCPUs');
    const domain = this.claimDomain();
    if (domain === undefined) return undefined;
    domain.set(DOMAIN.at.maxPages, config.maxPages);
    this.#environment.memory.u8.set(config.handle, domain.address + DOMAIN.at.handle);
    const complete = this.#allocateAll(domain, config) ? this.#connect(domain) : undefined;
    if (complete === undefined) this.#undo(domain);
    return complete;
  }

  /** Gives the guest untouched memory. @returns false when out of frames for the p2m */
  addRam(domain: DomainRecord, gfn: number, pages: number): boolean {
    if (!this.#environment.p2m.mapZeroRange(domain.get(DOMAIN.at.p2mRoot), gfn, pages)) return false;
    domain.set(DOMAIN.at.pages, domain.get(DOMAIN.at.pages) + pages);
    domain.set(DOMAIN.at.maxGfn, Math.max(domain.get(DOMAIN.at.maxGfn), gfn + pages - 1));
    return true;
  }

  /**
   * Says what the time was when the guest's monotonic clock was zero, from which it computes its wall clock; on
   * creation, and again whenever the guest has been stopped for long.
   */
  setWallClock(domain: DomainRecord, wallMillis: number): void {
    const base = heldMfn(this.#environment, domain.address + DOMAIN.at.sharedInfo) * FRAME_BYTES;
    const { u32 } = this.#environment.memory;
    const seconds = Math.floor(wallMillis / 1000);
    const version = (base + sharedInfo.at.wc_version) / 4;
    Atomics.or(u32, version, 1);
    Atomics.store(u32, (base + sharedInfo.at.wc_sec) / 4, seconds % 2 ** 32);
    Atomics.store(u32, (base + sharedInfo.at.wc_sec_hi) / 4, Math.floor(seconds / 2 ** 32));
    Atomics.store(u32, (base + sharedInfo.at.wc_nsec) / 4, Math.floor((wallMillis - seconds * 1000) * 1e6));
    Atomics.add(u32, version, 1);
  }

  /**
   * Makes a domain unreachable whose vCPUs do not run any more, and frees what the record holds. Grants that backends
   * still use stay good until they unmap them.
   * @returns the root of its p2m, for `P2m.release`; 0: none. Then `forgetDomain`
   */
  destroyDomain(domain: DomainRecord): number {
    domain.locked(() => domain.set(DOMAIN.at.state, DOMAIN_STATE.dying));
    return this.emptyDomain(domain);
  }

  /**
   * Takes from a domain whose vCPUs do not run all that it holds: its channels are closed, its tables freed.
   * @returns the root of its p2m, which is the caller's now; 0: none
   */
  emptyDomain(domain: DomainRecord): number {
    this.#channels.reset(domain);
    return domain.locked(() => {
      const { at } = DOMAIN;
      this.#channels.releaseTables(domain);
      this.#grants.release(domain);
      for (const field of [at.sharedInfo, at.console, at.xenstore]) {
        dropHeldFrame(this.#environment, domain.address + field);
      }
      for (let vcpuId = 0; vcpuId < domain.vcpuCount; vcpuId++) {
        dropHeldFrame(this.#environment, domain.vcpuEntry(vcpuId) + VCPU_ENTRY.at.info);
      }
      domain.set(at.vcpuCount, 0);
      for (let i = 0; i < VCPU_FRAMES; i++) this.#releaseField(domain, at.vcpuFrames + 4 * i);
      for (const field of [at.consoleLog, at.emulated]) this.#releaseField(domain, field);
      const root = domain.get(at.p2mRoot);
      domain.set(at.p2mRoot, 0);
      return root;
    });
  }

  /** A domain without anything, paused, for a saved state to be put into; undefined when there is no free id. */
  claimDomain(): DomainRecord | undefined {
    const domain = this.#claimId();
    if (domain === undefined) return undefined;
    this.#clear(domain);
    domain.set(DOMAIN.at.pauseCount, 1);
    return domain;
  }

  /** The id may be used again, when the memory charged to it has been taken apart. */
  forgetDomain(domain: DomainRecord): void {
    assert(domain.get(DOMAIN.at.state) === DOMAIN_STATE.dying, 'a domain that is not dying cannot be forgotten');
    domain.set(DOMAIN.at.state, DOMAIN_STATE.free);
  }

  /** What a domain holds, for memory/audit.ts. */
  claims(domain: DomainRecord): Required<Pick<AuditClaims, 'roots' | 'held' | 'pins'>> {
    const { at } = DOMAIN;
    const root = domain.get(at.p2mRoot);
    const held = [domain.get(at.consoleLog), domain.get(at.emulated)];
    if (domain.get(at.hostEvents) !== 0) {
      for (const listener of [HOST_LISTENER.main, HOST_LISTENER.network]) held.push(hostEventsAddress(domain, listener) / FRAME_BYTES);
    }
    const pins: number[] = [];
    const addHeld = (address: number) => pins.push(heldMfn(this.#environment, address));
    for (let i = 0; i < PORT_FRAMES_MAX; i++) held.push(domain.get(at.portFrames + 4 * i));
    for (let i = 0; i < VCPU_FRAMES; i++) held.push(domain.get(at.vcpuFrames + 4 * i));
    for (const field of [at.sharedInfo, at.console, at.xenstore]) addHeld(domain.address + field);
    for (let i = 0; i < FIFO_PAGES_MAX; i++) addHeld(domain.address + at.fifoArray + i * HELD_FRAME.sizeBytes);
    for (let i = 0; i < domain.get(at.grantFrames); i++) {
      addHeld(this.#grants.frameAt(domain, i));
      held.push(domain.get(at.activeFrames + 4 * i));
      pins.push(...this.#grantPins(domain.get(at.activeFrames + 4 * i)));
    }
    for (let vcpuId = 0; vcpuId < domain.vcpuCount; vcpuId++) {
      addHeld(domain.vcpuEntry(vcpuId) + VCPU_ENTRY.at.info);
      addHeld(domain.vcpuEntry(vcpuId) + VCPU_ENTRY.at.control);
    }
    const isFrame = (mfn: number) => mfn !== 0;
    return { roots: [root].filter(isFrame), held: held.filter(isFrame), pins: pins.filter(isFrame) };
  }

  /** One pin for each use of the grants in a frame of active grants. */
  #grantPins(frame: number): number[] {
    const { u16, u32 } = this.#environment.memory;
    const pins: number[] = [];
    for (let i = 0; i < GRANTS_PER_FRAME; i++) {
      const active = frame * FRAME_BYTES + i * ACTIVE_GRANT.sizeBytes;
      const uses = u16[(active + ACTIVE_GRANT.at.readers) / 2]! + u16[(active + ACTIVE_GRANT.at.writers) / 2]!;
      for (let use = 0; use < uses; use++) pins.push(u32[(active + ACTIVE_GRANT.at.mfn) / 4]!);
    }
    return pins;
  }

  /** Takes the next free id, in turn, so that an id is not soon used again; none whose tree is still being released. */
  #claimId(): DomainRecord | undefined {
    const { memory } = this.#environment;
    const count = Math.min(memory.parameters.domainCount, HOST_DOMAINS_MAX, DOMID_FIRST_RESERVED);
    const host = this.#channels.domains.record(0);
    const next = (host.get(DOMAIN.at.hostEvents) * FRAME_BYTES + HOST_EVENTS.at.nextDomid) / 4;
    for (let attempt = 1; attempt < count; attempt++) {
      const domid = 1 + (Atomics.add(memory.u32, next, 1) >>> 0) % (count - 1);
      if (this.#environment.heap.tearDown.isReleasing(domid)) continue;
      const record = this.#channels.domains.record(domid);
      const state = (record.address + DOMAIN.at.state) / 4;
      const { free, building } = DOMAIN_STATE;
      if (Atomics.compareExchange(memory.u32, state, free, building) === free) return record;
    }
    return undefined;
  }

  /** Everything but lock and state is zero; the incarnation counts on. */
  #clear(domain: DomainRecord): void {
    const incarnation = domain.get(DOMAIN.at.incarnation);
    const { address } = domain;
    this.#environment.memory.u8.fill(0, address + DOMAIN.at.incarnation, address + DOMAIN.sizeBytes);
    domain.set(DOMAIN.at.incarnation, incarnation + 1);
  }

  #allocateAll(domain: DomainRecord, { vcpuAddresses, hasEmulatedDevices = false }: DomainConfig): boolean {
    const { heap, p2m } = this.#environment;
    const allocate = (field: number) => {
      const mfn = heap.allocate(domain.domid);
      domain.set(field, mfn);
      return mfn !== 0;
    };
    for (let i = 0; i * VCPUS_PER_FRAME < vcpuAddresses.length; i++) {
      if (!allocate(DOMAIN.at.vcpuFrames + 4 * i)) return false;
    }
    domain.set(DOMAIN.at.vcpuCount, vcpuAddresses.length);
    for (const [vcpuId, address] of vcpuAddresses.entries()) this.#initializeVcpu(domain, vcpuId, address);
    const root = p2m.create(domain.domid);
    domain.set(DOMAIN.at.p2mRoot, root);
    if (root === 0 || !allocate(DOMAIN.at.consoleLog) || !this.#grants.grow(domain, 1)) return false;
    if (hasEmulatedDevices && !allocate(DOMAIN.at.emulated)) return false;
    const held = (field: number) => holdNewFrame(this.#environment, domain, domain.address + field) !== 0;
    const map = (field: number, gfn: number) =>
      held(field) && mapHeldFrame(this.#environment, domain, domain.address + field, gfn) === 0;
    return held(DOMAIN.at.sharedInfo) && map(DOMAIN.at.console, GUEST_CONSOLE_GFN) &&
      map(DOMAIN.at.xenstore, GUEST_XENSTORE_GFN);
  }

  #initializeVcpu(domain: DomainRecord, vcpuId: number, address: number): void {
    const { u32, f64 } = this.#environment.memory;
    const entry = domain.vcpuEntry(vcpuId);
    u32[(entry + VCPU_ENTRY.at.address) / 4] = address;
    u32[(entry + VCPU_ENTRY.at.runstate) / 4] = RUNSTATE.offline;
    f64[(entry + VCPU_ENTRY.at.runstateEntryNanos) / 8] = this.#environment.clock.monotonicNanos();
  }

  /** The event channels of console and xenstore, and the parameters through which the guest finds them. */
  #connect(domain: DomainRecord): NewDomain | undefined {
    domain.set(DOMAIN.at.state, DOMAIN_STATE.live);
    const host = this.#channels.domains.record(0);
    const ends = [HVM_PARAM.STORE_EVTCHN, HVM_PARAM.CONSOLE_EVTCHN].map((param) => {
      const port = this.#channels.allocUnbound(domain, 0);
      setHvmParam(domain, param, BigInt(Math.max(0, port)));
      return port < 0 ? port : this.#channels.bindInterdomain(host, domain.domid, port);
    });
    const [xenstorePort, consolePort] = ends as [number, number];
    if (xenstorePort < 0 || consolePort < 0) {
      for (const port of ends) if (port > 0) this.#channels.close(host, port);
      return undefined;
    }
    setHvmParam(domain, HVM_PARAM.STORE_PFN, BigInt(GUEST_XENSTORE_GFN));
    setHvmParam(domain, HVM_PARAM.CONSOLE_PFN, BigInt(GUEST_CONSOLE_GFN));
    setHvmParam(domain, HVM_PARAM.CALLBACK_IRQ,
      HVM_PARAM_CALLBACK_TYPE_PPI | HVM_PARAM_CALLBACK_PPI_LOW_LEVEL | BigInt(GUEST_EVTCHN_PPI));
    const mfn = (field: number) => heldMfn(this.#environment, domain.address + field);
    return {
      domain, consolePort, xenstorePort, consoleMfn: mfn(DOMAIN.at.console), xenstoreMfn: mfn(DOMAIN.at.xenstore),
    };
  }

  #undo(domain: DomainRecord): void {
    const root = this.destroyDomain(domain);
    if (root !== 0) this.#environment.p2m.release(root);
    this.forgetDomain(domain);
  }

  #releaseField(domain: DomainRecord, field: number): void {
    const mfn = domain.get(field);
    if (mfn === 0) return;
    domain.set(field, 0);
    this.#environment.heap.release(mfn);
  }
}

const VCPU_FRAMES = Math.ceil(GUEST_MAX_VCPUS / VCPUS_PER_FRAME);
assert(CONSOLE_LOG.sizeBytes <= FRAME_BYTES, 'the console log is larger than its frame');
