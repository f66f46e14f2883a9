// Event channels: the port table of each domain and what is done with ports, for guests (event-channel-op.ts) and for
// the host as domain 0 (host-ports.ts) alike. Numbers may come from guests. Answers are 0 or a port, or a negative
// errno. Every method takes the locks it needs.

import {
  DOMAIN, EVENT_MODE, FIFO_PAGES_MAX, HELD_FRAME, PORT, PORTS_PER_FRAME, PORT_LIMIT, VCPU_ENTRY,
} from '../abi/domain-record.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { ERRNO } from '../abi/xen.ts';
import {
  EVTCHNSTAT, EVTCHN_2L_NR_CHANNELS, EVTCHN_FIFO_MAX_QUEUES, EVTCHN_FIFO_PRIORITY_DEFAULT, EVTCHN_FIFO_PRIORITY_MIN,
  EVTCHN_FIFO_WORDS_PER_PAGE, NR_VIRQS, PER_VCPU_VIRQS, evtchnFifoControlBlock,
} from '../abi/xen-event-channel.ts';
import { DomainTable, lockedBoth } from './domain-record.ts';
import type { DomainRecord } from './domain-record.ts';
import type { Environment } from './environment.ts';
import { EventDelivery, laneOf, ringDiskThread } from './event-delivery.ts';
import { dropHeldFrame, holdGuestFrame } from './held-frames.ts';

export interface PortStatus {
  readonly status: number;
  readonly vcpu: number;
  /** Domain at the other end, or number of the VIRQ. */
  readonly remote: number;
  readonly remotePort: number;
}

export class EventChannels {
  readonly domains: DomainTable;
  readonly delivery: EventDelivery;
  /**
   * Where a thread looks after disks' rings itself: told of an event for one, by its number. It holds no lock.
   * @returns false when the disk thread is to look
   */
  serveLane: ((lane: number) => boolean) | undefined;
  readonly #environment: Environment;

  constructor(environment: Environment, domains: DomainTable) {
    this.#environment = environment;
    this.domains = domains;
    this.delivery = new EventDelivery(environment);
  }

  // ---- Making channels ----------------------------------------------------------------------------------------------

  /** A port that `remote` may bind to. */
  allocUnbound(domain: DomainRecord, remote: number): number {
    if (this.domains.live(remote) === undefined) return -ERRNO.ESRCH;
    return domain.locked(() => this.#allocate(domain, EVTCHNSTAT.unbound, 0, remote));
  }

  /**
   * Connects to a port of `remoteDomid` that waits for this domain. The new port starts pending, as Xen's do.
   * @param vcpuId who is notified; of domain 0, a HOST_LISTENER
   */
  bindInterdomain(domain: DomainRecord, remoteDomid: number, remotePort: number, vcpuId = 0): number {
    const remote = this.domains.live(remoteDomid);
    if (remote === undefined) return -ERRNO.ESRCH;
    return lockedBoth(domain, remote, () => {
      const remoteAt = remote.port(remotePort);
      if (remoteAt === 0 || remote.portState(remotePort) !== EVTCHNSTAT.unbound ||
        this.#field(remoteAt, PORT.at.remote) !== domain.domid) return -ERRNO.EINVAL;
      const port = this.#allocate(domain, EVTCHNSTAT.interdomain, vcpuId, remoteDomid);
      if (port < 0) return port;
      this.#setField(domain.port(port), PORT.at.remotePort, remotePort);
      this.#setField(remoteAt, PORT.at.remotePort, port);
      this.#setState(remoteAt, EVTCHNSTAT.interdomain);
      this.delivery.raise(domain, port);
      return port;
    });
  }

  /**
   * Connects a port that waits for its other end with one at the other end that waits for it, both as they are: the
   * host's ends of a domain that was put back to an earlier state. @returns false unless both wait for each other
   */
  join(a: DomainRecord, aPort: number, b: DomainRecord, bPort: number): boolean {
    const waits = (domain: DomainRecord, port: number, remote: DomainRecord) =>
      domain.portState(port) === EVTCHNSTAT.unbound && this.#field(domain.port(port), PORT.at.remote) === remote.domid;
    return lockedBoth(a, b, () => {
      if (!waits(a, aPort, b) || !waits(b, bPort, a)) return false;
      for (const [at, remotePort] of [[a.port(aPort), bPort], [b.port(bPort), aPort]] as const) {
        this.#setField(at, PORT.at.remotePort, remotePort);
        this.#setState(at, EVTCHNSTAT.interdomain);
      }
      return true;
    });
  }

  bindVirq(domain: DomainRecord, virq: number, vcpuId: number): number {
    if (!(virq < NR_VIRQS) || (vcpuId !== 0 && !PER_VCPU_VIRQS.has(virq))) return -ERRNO.EINVAL;
    if (!(vcpuId < domain.vcpuCount)) return -ERRNO.ENOENT;
    return domain.locked(() => {
      const slot = domain.vcpuEntry(vcpuId) + VCPU_ENTRY.at.virqPorts + 4 * virq;
      if (this.#field(slot, 0) !== 0) return -ERRNO.EEXIST;
      const port = this.#allocate(domain, EVTCHNSTAT.virq, vcpuId, virq);
      if (port > 0) this.#setField(slot, 0, port);
      return port;
    });
  }

  bindIpi(domain: DomainRecord, vcpuId: number): number {
    if (!(vcpuId < domain.vcpuCount)) return -ERRNO.ENOENT;
    return domain.locked(() => this.#allocate(domain, EVTCHNSTAT.ipi, vcpuId, 0));
  }

  /** Says which vCPU is notified; not for IPIs and per-vCPU VIRQs. */
  bindVcpu(domain: DomainRecord, port: number, vcpuId: number): number {
    if (!(vcpuId < domain.vcpuCount)) return -ERRNO.ENOENT;
    return domain.locked(() => {
      const at = domain.port(port);
      const state = domain.portState(port);
      const isGlobal = state === EVTCHNSTAT.unbound || state === EVTCHNSTAT.interdomain ||
        (state === EVTCHNSTAT.virq && !PER_VCPU_VIRQS.has(this.#field(at, PORT.at.remote)));
      if (!isGlobal) return -ERRNO.EINVAL;
      domain.memory.u16[(at + PORT.at.vcpu) / 2] = vcpuId;
      return 0;
    });
  }

  /** The other end of an interdomain channel goes back to waiting for this domain. */
  close(domain: DomainRecord, port: number): number {
    for (;;) {
      const peer = domain.locked(() => this.#peer(domain, port));
      if (peer === undefined) {
        const result = domain.locked(() => this.#closeAlone(domain, port));
        if (result !== BUSY) return result;
        continue;
      }
      const closed = lockedBoth(domain, peer.domain, () => {
        const now = this.#peer(domain, port);
        if (now?.domain !== peer.domain || now.port !== peer.port) return false;
        this.#setState(peer.domain.port(peer.port), EVTCHNSTAT.unbound);
        this.#setField(peer.domain.port(peer.port), PORT.at.remotePort, 0);
        this.#free(domain, port);
        return true;
      });
      if (closed) return 0;
    }
  }

  /**
   * Whether a domain's channels to other domains are those that its port tables had at another time, each of them the
   * host's end of one of `ports`, and all of them still there.
   */
  isConnectedAs(domain: DomainRecord, tables: readonly (Uint8Array | undefined)[], ports: readonly number[]): boolean {
    const { u8 } = domain.memory;
    const host = this.domains.record(0);
    const { interdomain } = EVTCHNSTAT;
    return tables.every((saved, index) => {
      const table = domain.get(DOMAIN.at.portFrames + 4 * index) * FRAME_BYTES;
      if (saved === undefined || table === 0) return saved === undefined && table === 0;
      const view = new DataView(saved.buffer, saved.byteOffset, saved.length);
      for (let i = 0, at = 0; i < PORTS_PER_FRAME; i++, at += PORT.sizeBytes) {
        const state = u8[table + at + PORT.at.state]!;
        const savedState = saved[at + PORT.at.state]!;
        if (state !== interdomain && savedState !== interdomain) continue;
        const port = index * PORTS_PER_FRAME + i;
        const hostPort = this.#field(table + at, PORT.at.remotePort);
        const isSame = state === savedState && ports.includes(port)
          && this.#field(table + at, PORT.at.remote) === 0 && view.getUint32(at + PORT.at.remote, true) === 0
          && view.getUint32(at + PORT.at.remotePort, true) === hostPort;
        if (!isSame || host.portState(hostPort) !== interdomain) return false;
        const other = host.port(hostPort);
        if (this.#field(other, PORT.at.remote) !== domain.domid || this.#field(other, PORT.at.remotePort) !== port) return false;
      }
      return true;
    });
  }

  /** Closes all ports that have another end. */
  disconnect(domain: DomainRecord): void {
    this.#closeAll(domain, (_port, state) => state === EVTCHNSTAT.interdomain);
  }

  #closeAll(domain: DomainRecord, which: (port: number, state: number) => boolean): void {
    const { u8 } = domain.memory;
    for (let index = 0; index < PORT_LIMIT / PORTS_PER_FRAME; index++) {
      const mfn = domain.get(DOMAIN.at.portFrames + 4 * index);
      if (mfn === 0) continue;
      for (let i = 0; i < PORTS_PER_FRAME; i++) {
        const port = index * PORTS_PER_FRAME + i;
        const state = u8[mfn * FRAME_BYTES + i * PORT.sizeBytes + PORT.at.state]!;
        if (state !== EVTCHNSTAT.closed && which(port, state)) this.close(domain, port);
      }
    }
  }

  /** Closes all ports but those in `kept`, and goes back to two-level events. */
  reset(domain: DomainRecord, kept: readonly number[] = []): void {
    this.#closeAll(domain, (port) => !kept.includes(port));
    domain.locked(() => {
      if (domain.get(DOMAIN.at.eventMode) === EVENT_MODE.fifo) this.#leaveFifo(domain);
    });
  }

  // ---- Using channels -----------------------------------------------------------------------------------------------

  send(domain: DomainRecord, port: number): number {
    let remote: DomainRecord | undefined;
    let remotePort = 0;
    const result = domain.locked(() => {
      const at = domain.port(port);
      const state = domain.portState(port);
      if (state === EVTCHNSTAT.ipi) this.delivery.raise(domain, port);
      else if (state === EVTCHNSTAT.interdomain) {
        remote = this.domains.live(this.#field(at, PORT.at.remote));
        remotePort = this.#field(at, PORT.at.remotePort);
      } else if (state !== EVTCHNSTAT.unbound) return -ERRNO.EINVAL;
      return 0;
    });
    if (remote !== undefined) this.#raiseAt(remote, remotePort, domain.domid, port);
    return result;
  }

  unmask(domain: DomainRecord, port: number): number {
    return domain.locked(() => {
      if (domain.portState(port) === EVTCHNSTAT.closed) return -ERRNO.EINVAL;
      this.delivery.unmask(domain, port);
      return 0;
    });
  }

  /** Raises a virtual interrupt of a domain if it has bound it. @returns whether it has */
  raiseVirq(domain: DomainRecord, virq: number, vcpuId = 0): boolean {
    return domain.locked(() => {
      const port = this.#field(domain.vcpuEntry(vcpuId) + VCPU_ENTRY.at.virqPorts + 4 * virq, 0);
      if (port !== 0) this.delivery.raise(domain, port);
      return port !== 0;
    });
  }

  status(domain: DomainRecord, port: number): PortStatus | undefined {
    if (!(port < portLimit(domain))) return undefined;
    return domain.locked(() => {
      const at = domain.port(port);
      if (at === 0) return { status: EVTCHNSTAT.closed, vcpu: 0, remote: 0, remotePort: 0 };
      return {
        status: domain.portState(port),
        vcpu: domain.memory.u16[(at + PORT.at.vcpu) / 2]!,
        remote: this.#field(at, PORT.at.remote),
        remotePort: this.#field(at, PORT.at.remotePort),
      };
    });
  }

  // ---- FIFO mode ----------------------------------------------------------------------------------------------------

  /** The caller settles the p2m afterwards, as after `expandArray`. */
  initControl(domain: DomainRecord, vcpuId: number, gfn: number, offset: number): number {
    if (!(vcpuId < domain.vcpuCount)) return -ERRNO.ENOENT;
    if (!(offset <= FRAME_BYTES - evtchnFifoControlBlock.sizeBytes) || offset % 8 !== 0) return -ERRNO.EINVAL;
    return domain.locked(() => {
      const entry = domain.vcpuEntry(vcpuId);
      if (this.#field(entry, VCPU_ENTRY.at.control + HELD_FRAME.at.mfn) !== 0) return -ERRNO.EINVAL;
      this.#setField(entry, VCPU_ENTRY.at.controlOffset, offset);
      const result = holdGuestFrame(this.#environment, domain, entry + VCPU_ENTRY.at.control, gfn);
      if (result < 0) return result;
      if (domain.get(DOMAIN.at.eventMode) === EVENT_MODE.twoLevel) this.#enterFifo(domain);
      this.#raiseWaiting(domain, 1, PORT_LIMIT);
      return 0;
    });
  }

  expandArray(domain: DomainRecord, gfn: number): number {
    return domain.locked(() => {
      if (domain.get(DOMAIN.at.eventMode) !== EVENT_MODE.fifo) return -ERRNO.EOPNOTSUPP;
      const page = domain.get(DOMAIN.at.fifoPages);
      if (page === FIFO_PAGES_MAX) return -ERRNO.ENOSPC;
      const at = domain.address + DOMAIN.at.fifoArray + page * HELD_FRAME.sizeBytes;
      const result = holdGuestFrame(this.#environment, domain, at, gfn);
      if (result < 0) return result;
      domain.set(DOMAIN.at.fifoPages, page + 1);
      const first = page * EVTCHN_FIFO_WORDS_PER_PAGE;
      this.#raiseWaiting(domain, Math.max(1, first), first + EVTCHN_FIFO_WORDS_PER_PAGE);
      return 0;
    });
  }

  setPriority(domain: DomainRecord, port: number, priority: number): number {
    return domain.locked(() => {
      if (domain.get(DOMAIN.at.eventMode) !== EVENT_MODE.fifo) return -ERRNO.ENOSYS;
      if (priority > EVTCHN_FIFO_PRIORITY_MIN || domain.portState(port) === EVTCHNSTAT.closed) return -ERRNO.EINVAL;
      domain.memory.u8[domain.port(port) + PORT.at.priority] = priority;
      return 0;
    });
  }

  // ---- Within the locks ---------------------------------------------------------------------------------------------

  #field(at: number, offset: number): number {
    return this.#environment.memory.u32[(at + offset) / 4]!;
  }

  #setField(at: number, offset: number, value: number): void {
    this.#environment.memory.u32[(at + offset) / 4] = value;
  }

  #setState(at: number, state: number): void {
    this.#environment.memory.u8[at + PORT.at.state] = state;
  }

  #allocate(domain: DomainRecord, state: number, vcpuId: number, remote: number): number {
    if (!domain.isLive) return -ERRNO.ESRCH;
    let port = Math.max(1, domain.get(DOMAIN.at.portHint));
    const limit = portLimit(domain);
    while (port < limit && domain.portState(port) !== EVTCHNSTAT.closed) port++;
    if (port >= limit) return -ERRNO.ENOSPC;
    if (domain.port(port) === 0 && !this.#growPorts(domain, port)) return -ERRNO.ENOMEM;
    const at = domain.port(port);
    domain.memory.u8.fill(0, at, at + PORT.sizeBytes);
    domain.memory.u8[at + PORT.at.priority] = EVTCHN_FIFO_PRIORITY_DEFAULT;
    domain.memory.u16[(at + PORT.at.vcpu) / 2] = vcpuId;
    this.#setField(at, PORT.at.remote, remote);
    this.#setState(at, state);
    domain.set(DOMAIN.at.portHint, port + 1);
    return port;
  }

  #growPorts(domain: DomainRecord, port: number): boolean {
    const mfn = this.#environment.heap.allocate(domain.domid);
    if (mfn === 0) return false;
    domain.set(DOMAIN.at.portFrames + 4 * Math.floor(port / PORTS_PER_FRAME), mfn);
    return true;
  }

  #free(domain: DomainRecord, port: number): void {
    this.delivery.clearPending(domain, port);
    this.#setState(domain.port(port), EVTCHNSTAT.closed);
    if (port < domain.get(DOMAIN.at.portHint)) domain.set(DOMAIN.at.portHint, port);
  }

  #peer(domain: DomainRecord, port: number): { domain: DomainRecord; port: number } | undefined {
    if (domain.portState(port) !== EVTCHNSTAT.interdomain) return undefined;
    const at = domain.port(port);
    return {
      domain: this.domains.record(this.#field(at, PORT.at.remote)),
      port: this.#field(at, PORT.at.remotePort),
    };
  }

  /** Closes a port that has no other end. */
  #closeAlone(domain: DomainRecord, port: number): number {
    const state = domain.portState(port);
    if (state === EVTCHNSTAT.closed) return -ERRNO.EINVAL;
    if (state === EVTCHNSTAT.interdomain) return BUSY;
    if (state === EVTCHNSTAT.virq) {
      const at = domain.port(port);
      const vcpuId = this.#virqOwner(domain, port);
      const virq = this.#field(at, PORT.at.remote);
      this.#setField(domain.vcpuEntry(vcpuId), VCPU_ENTRY.at.virqPorts + 4 * virq, 0);
    }
    this.#free(domain, port);
    return 0;
  }

  /** A global VIRQ is kept with vCPU 0 whichever vCPU it notifies. */
  #virqOwner(domain: DomainRecord, port: number): number {
    const at = domain.port(port);
    return PER_VCPU_VIRQS.has(this.#field(at, PORT.at.remote)) ? domain.memory.u16[(at + PORT.at.vcpu) / 2]! : 0;
  }

  /** Raises a port if it is still the other end of this channel. */
  #raiseAt(remote: DomainRecord, remotePort: number, domid: number, port: number): void {
    let lane: number | undefined;
    remote.locked(() => {
      const at = remote.port(remotePort);
      if (remote.portState(remotePort) !== EVTCHNSTAT.interdomain) return;
      if (this.#field(at, PORT.at.remote) !== domid || this.#field(at, PORT.at.remotePort) !== port) return;
      if (this.serveLane !== undefined) lane = laneOf(remote, remotePort);
      if (lane === undefined) this.delivery.raise(remote, remotePort);
    });
    if (lane !== undefined && !this.serveLane!(lane)) ringDiskThread(remote);
  }

  /** Events that are pending in the two-level bitmap are delivered when there is an event word for them. */
  #enterFifo(domain: DomainRecord): void {
    for (let port = 1; port < EVTCHN_2L_NR_CHANNELS; port++) {
      const at = domain.port(port);
      if (at !== 0 && this.delivery.isPending(domain, port)) domain.memory.u8[at + PORT.at.deferred] = 1;
    }
    domain.set(DOMAIN.at.eventMode, EVENT_MODE.fifo);
  }

  #leaveFifo(domain: DomainRecord): void {
    domain.set(DOMAIN.at.eventMode, EVENT_MODE.twoLevel);
    domain.set(DOMAIN.at.fifoPages, 0);
    for (let page = 0; page < FIFO_PAGES_MAX; page++) {
      dropHeldFrame(this.#environment, domain.address + DOMAIN.at.fifoArray + page * HELD_FRAME.sizeBytes);
    }
    for (let vcpuId = 0; vcpuId < domain.vcpuCount; vcpuId++) {
      const entry = domain.vcpuEntry(vcpuId);
      dropHeldFrame(this.#environment, entry + VCPU_ENTRY.at.control);
      const tails = (entry + VCPU_ENTRY.at.tails) / 4;
      domain.memory.u32.fill(0, tails, tails + EVTCHN_FIFO_MAX_QUEUES);
    }
  }

  /** Delivers what came before there was an event word or a control block to deliver it to. */
  #raiseWaiting(domain: DomainRecord, first: number, end: number): void {
    for (let port = first; port < end; port++) {
      const at = domain.port(port);
      if (at === 0 || domain.portState(port) === EVTCHNSTAT.closed) continue;
      if (this.delivery.isPending(domain, port)) this.delivery.raise(domain, port);
    }
  }

  /** Frees a dying domain's tables; its ports are closed. */
  releaseTables(domain: DomainRecord): void {
    const { heap } = this.#environment;
    for (let index = 0; index < PORT_LIMIT / PORTS_PER_FRAME; index++) {
      const mfn = domain.get(DOMAIN.at.portFrames + 4 * index);
      if (mfn === 0) continue;
      domain.set(DOMAIN.at.portFrames + 4 * index, 0);
      heap.release(mfn);
    }
  }
}

/** The port got another end between two looks. */
const BUSY = 1;

function portLimit(domain: DomainRecord): number {
  return domain.get(DOMAIN.at.eventMode) === EVENT_MODE.twoLevel ? EVTCHN_2L_NR_CHANNELS : PORT_LIMIT;
}

