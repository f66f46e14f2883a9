// Where threads wait for each other's vCPUs to leave emitted code: to invalidate TLBs, and to stop everything while
// the decode cache is emptied.
//
//   pCPU:  inCode = 1 ─► looks at worldOwner, flush requests ─► runs ─► inCode = 0
//   other: sets worldOwner or a flush request ─► waits until inCode = 0 (or the request is obeyed)
//
// Either the pCPU sees the wish or the other sees it in code; both stores are sequentially consistent. Whoever waits
// counts as out of code itself, so that two that wait for each other both go on. It must hold no lock that a vCPU in
// code could wait for.

import { THREAD_MAX } from '../abi/machine-memory.ts';
import { PCPU, SCHEDULER, VCPU_SCHEDULE } from '../abi/scheduler.ts';
import { PENDING, vcpuRecord } from '../abi/vcpu.ts';
import { ANY_ASID, FORGET_EVERYTHING, isObeyed, mustHear, postTlbRequest } from '../cpu/tlb-requests.ts';
import type { TlbRequest } from '../cpu/tlb-requests.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import { backOff } from '../memory/spin.ts';
import { VcpuTable } from './vcpu-table.ts';

const at = vcpuRecord.at;

/** Which entries are to go, of which vCPUs; by default all. */
export interface TlbFlush {
  /** A vCPU that has looked after itself. */
  readonly except?: number;
  readonly request?: TlbRequest;
  /** As for `mustHear`. */
  readonly asid?: number;
}

export class SafePoints {
  readonly #machine: MachineMemory;
  readonly #table: VcpuTable;
  readonly #thread: number;
  readonly #worldOwner: number;
  readonly #schedules: number;
  /** The vCPU whose code this thread is in, or 0. */
  #current = 0;
  /** Does for the vCPU that this thread runs what its flush requests ask. */
  #obey: (vcpuAddress: number) => void = () => {};

  /** @param thread number of the pCPU, or of a thread of the host's own behind them */
  constructor(machine: MachineMemory, thread: number) {
    this.#machine = machine;
    this.#table = new VcpuTable(machine);
    this.#thread = thread;
    const { offsetBytes } = machine.region('scheduler');
    this.#worldOwner = (offsetBytes + SCHEDULER.at.worldOwner) >>> 2;
    this.#schedules = offsetBytes + SCHEDULER.sizeBytes;
  }

  onFlush(obey: (vcpuAddress: number) => void): void {
    this.#obey = obey;
  }

  #pcpuIndex(pcpu: number, field: keyof typeof PCPU.at): number {
    return (this.#machine.pcpuAddress(pcpu) + PCPU.at[field]) >>> 2;
  }

  /** Before a vCPU's code is run. Waits while the world is stopped. */
  enter(vcpuAddress: number): void {
    const { u32 } = this.#machine;
    Atomics.store(u32, this.#pcpuIndex(this.#thread, 'vcpu'), vcpuAddress);
    this.#current = vcpuAddress;
    this.#markInCode();
  }
  leave(): void {
    Atomics.store(this.#machine.u32, this.#pcpuIndex(this.#thread, 'inCode'), 0);
    this.#current = 0;
  }

  /**
   * Idle work counts as code, so that nothing changes under the eyes of who has stopped the world; so does what the disk
   * thread and the network thread do with the machine's memory.
   */
  enterIdleWork(): void {
    this.enter(0);
  }
  /** Whether somebody stops the world, or has. */
  get isWorldStopped(): boolean {
    return Atomics.load(this.#machine.u32, this.#worldOwner) !== 0;
  }

  #markInCode(): void {
    const { u32 } = this.#machine;
    const inCode = this.#pcpuIndex(this.#thread, 'inCode');
    for (;;) {
      Atomics.store(u32, inCode, 1);
      if (Atomics.load(u32, this.#worldOwner) === 0) return;
      Atomics.store(u32, inCode, 0);
      for (let attempt = 0; Atomics.load(u32, this.#worldOwner) !== 0; attempt++) backOff(attempt);
    }
  }

  /** Out of code for as long as `wait` takes, in the middle of a call from it; obeys what was asked meanwhile. */
  aside(wait: () => void): void {
    const vcpuAddress = this.#current;
    if (vcpuAddress === 0) return wait();
    const { u32 } = this.#machine;
    const aside = this.#pcpuIndex(this.#thread, 'aside');
    Atomics.store(u32, aside, 1);
    Atomics.store(u32, this.#pcpuIndex(this.#thread, 'inCode'), 0);
    try {
      wait();
    } finally {
      this.#markInCode();
      Atomics.store(u32, aside, 0);
      this.#obey(vcpuAddress);
    }
  }

  /**
   * Returns when no vCPU of the domain uses a TLB entry older than this call, of those that are meant; the vCPU that this
   * thread runs included, unless it is the one that has looked after itself.
   */
  flushTlbs(domid: number, { except = 0, request = FORGET_EVERYTHING, asid = ANY_ASID }: TlbFlush = {}): void {
    const count = this.#table.vcpuCount(domid);
    const targets: { vcpu: number; number: number }[] = [];
    for (let index = 0; index < count; index++) {
      const vcpu = this.#table.vcpuOf(domid, index);
      if (vcpu === except || !mustHear(this.#machine, vcpu, request, asid)) continue;
      targets.push({ vcpu, number: postTlbRequest(this.#machine, vcpu, request) });
    }
    if (targets.some(({ vcpu, number }) => vcpu === this.#current || this.#usesOldEntries(vcpu, number))) {
      this.aside(() => this.#waitForFlush(targets));
    }
  }
  #waitForFlush(targets: readonly { vcpu: number; number: number }[]): void {
    for (const { vcpu, number } of targets) {
      for (let attempt = 0; vcpu !== this.#current && this.#usesOldEntries(vcpu, number); attempt++) {
        Atomics.or(this.#machine.u32, (vcpu + at.pending) >>> 2, PENDING.attend);
        backOff(attempt);
      }
    }
  }

  /** A vCPU that is not in code obeys when it enters the next time. */
  #usesOldEntries(vcpu: number, number: number): boolean {
    const { u32 } = this.#machine;
    if (isObeyed(this.#machine, vcpu, number)) return false;
    const schedule = this.#schedules + this.#table.numberOf(vcpu) * VCPU_SCHEDULE.sizeBytes;
    const pcpu = Atomics.load(u32, (schedule + VCPU_SCHEDULE.at.pcpu) >>> 2);
    return Atomics.load(u32, this.#pcpuIndex(pcpu, 'vcpu')) === vcpu
      && Atomics.load(u32, this.#pcpuIndex(pcpu, 'inCode')) !== 0;
  }

  /**
   * Runs `action` while no pCPU is in code. When another thread stops the world at the same time, its turn comes first
   * and this one has to look again whether there is still something to do.
   */
  stopWorld(action: () => void): void {
    const { u32 } = this.#machine;
    this.aside(() => {
      for (let attempt = 0; Atomics.compareExchange(u32, this.#worldOwner, 0, this.#thread + 1) !== 0; attempt++) {
        backOff(attempt);
      }
      try {
        for (let thread = 0; thread < THREAD_MAX; thread++) this.#waitOutOfCode(thread);
        action();
      } finally {
        Atomics.store(u32, this.#worldOwner, 0);
      }
    });
  }

  /** `stopWorld` when nobody is in the middle of anything either. */
  stopWorldAtRest(action: () => void): void {
    for (let attempt = 0; !this.#tryAtRest(action); attempt++) backOff(attempt);
  }
  #tryAtRest(action: () => void): boolean {
    let isAtRest = true;
    this.stopWorld(() => {
      for (let pcpu = 0; pcpu < THREAD_MAX; pcpu++) {
        isAtRest &&= Atomics.load(this.#machine.u32, this.#pcpuIndex(pcpu, 'aside')) === 0;
      }
      if (isAtRest) action();
    });
    return isAtRest;
  }

  #waitOutOfCode(pcpu: number): void {
    const { u32 } = this.#machine;
    for (let attempt = 0; Atomics.load(u32, this.#pcpuIndex(pcpu, 'inCode')) !== 0; attempt++) {
      const vcpu = Atomics.load(u32, this.#pcpuIndex(pcpu, 'vcpu'));
      if (vcpu !== 0) Atomics.store(u32, (vcpu + at.pending) >>> 2, PENDING.leave);
      backOff(attempt);
    }
  }
}
