// Runs rehearsals (lifecycle/rehearsal.ts): domains that the host's user never sees, for some milliseconds each, beside
// the writing of an image. It is advice that comes of them, so whatever is missing for one, there is none.

import { availableParallelism } from 'node:os';
import { DOMAIN } from '../abi/domain-record.ts';
import { P2M_KIND } from '../abi/machine-memory.ts';
import { VCPU_STATE } from '../abi/scheduler.ts';
import { vcpuRecord } from '../abi/vcpu.ts';
import { ConsoleRing } from '../devices/console/ring.ts';
import type { DomainRecord } from '../hypervisor/domain-record.ts';
import type { HypervisorThread } from '../hypervisor/thread.ts';
import type { FrozenDomain } from '../lifecycle/checkpoint.ts';
import { forkDomain } from '../lifecycle/fork.ts';
import type { Rehearsed } from '../lifecycle/rehearsal.ts';
import { placesOf } from '../lifecycle/rehearsal.ts';
import { endSuspendElsewhere, isSuspended } from '../lifecycle/suspend.ts';
import { entryKind, entryValue } from '../memory/p2m.ts';
import { heldPage } from './guest-devices.ts';
import type { DomainEnds } from './guest-devices.ts';
import type { HostCore } from './host-core.ts';
import { connectHost, tellGuest } from './host-ends.ts';
import type { FrozenPages } from './image-source.ts';

/** It is stopped when its vCPUs have retired so many: by then a restored guest has shown that it lives. */
const INSTRUCTIONS_MAX = 100_000;
/** How often that is looked at. */
const LOOK_MILLIS = 2;
/** Frames that must be free: it copies what it writes. */
const FRAMES_MIN = 8192;
const HANDLE_BYTES = 16;

export class Rehearsal {
  readonly #core: HostCore;
  readonly #record: DomainRecord;
  readonly #vcpuAddresses: readonly number[];
  readonly #template: number;
  readonly #pages: FrozenPages;
  readonly #ends: DomainEnds;
  readonly #timer: NodeJS.Timeout;
  #isPaused = false;
  #result: Rehearsed | undefined;

  /**
   * @param frozen must stay as it is until `end`
   * @returns undefined when the host has no room for it, or no core to spare: what writes the image comes first
   */
  static begin(core: HostCore, frozen: FrozenDomain): Rehearsal | undefined {
    const { thread, builder } = core;
    if (!hasSpareCore(thread)) return undefined;
    const { total, used } = thread.heap.stats();
    if (total - used < FRAMES_MIN) return undefined;
    const vcpuAddresses = core.takeVcpus(frozen.state.vcpus.length);
    if (vcpuAddresses === undefined) return undefined;
    const pages = core.images.addFrozen(frozen.root);
    const template = placesOf(thread, frozen.root, pages.number);
    const record = template === 0 ? undefined
      : forkDomain(thread, builder, { state: frozen.state, root: template }, vcpuAddresses, new Uint8Array(HANDLE_BYTES));
    if (record !== undefined) return new Rehearsal(core, record, vcpuAddresses, template, pages);
    if (template !== 0) core.releaseRoot(template);
    core.images.removeFrozen(pages);
    core.returnVcpus(vcpuAddresses);
    return undefined;
  }

  private constructor(
    core: HostCore, record: DomainRecord, vcpuAddresses: readonly number[], template: number, pages: FrozenPages,
  ) {
    this.#core = core;
    this.#record = record;
    this.#vcpuAddresses = vcpuAddresses;
    this.#template = template;
    this.#pages = pages;
    const { thread, frozenRoots, unseen } = core;
    frozenRoots.add(template);
    unseen.add(record);
    if (isSuspended(record)) endSuspendElsewhere(thread, record);
    this.#ends = connectHost(core, record);
    // A guest that waits for room in its console's ring gets it, once.
    new ConsoleRing(heldPage(core, record, DOMAIN.at.console)).takeOutput();
    tellGuest(core, this.#ends);
    thread.timers.startTime(record.domid);
    thread.scheduling.unpauseDomain(record.domid);
    const retired = this.#retired();
    this.#timer = setInterval(() => { if (this.#retired() - retired >= INSTRUCTIONS_MAX) this.#pause(); }, LOOK_MILLIS).unref();
  }

  #retired(): number {
    const { u64 } = this.#core.thread.machine;
    return this.#vcpuAddresses.reduce((sum, address) =>
      sum + Number(u64[(address + vcpuRecord.at.instructionsRetired) / 8]), 0);
  }

  #pause(): void {
    if (this.#isPaused) return;
    this.#isPaused = true;
    clearInterval(this.#timer);
    this.#core.thread.scheduling.pauseDomain(this.#record.domid);
  }

  /** GFNs of the pages that it has touched until now, in the order of their first touch. */
  touched(): readonly number[] {
    return this.#result?.touched ?? this.#pages.notes.gfns;
  }

  /** @returns what it has touched and run */
  end(): Rehearsed {
    if (this.#result !== undefined) return this.#result;
    const { thread, frozenRoots, unseen, images, ports } = this.#core;
    const { scheduling } = thread;
    this.#pause();
    scheduling.waitUntilStopped(this.#record.domid);
    const touched = this.#pages.notes.gfns;
    this.#result = { touched, code: this.#codeIn(touched) };
    for (const port of [this.#ends.consolePort, this.#ends.xenstorePort]) ports.close(port);
    for (const address of this.#vcpuAddresses) scheduling.detach(address);
    unseen.delete(this.#record);
    this.#core.returnVcpus(this.#vcpuAddresses);
    this.#core.releaseRecord(this.#record);
    frozenRoots.delete(this.#template);
    this.#core.releaseRoot(this.#template);
    images.removeFrozen(this.#pages);
    return this.#result;
  }

  /** What is decoded in pages: they were the rehearsal's own, so nobody else has run it. */
  #codeIn(gfns: readonly number[]): Map<number, Uint32Array> {
    const { thread: { p2m }, decodeCache } = this.#core;
    const root = this.#record.get(DOMAIN.at.p2mRoot);
    const code = new Map<number, Uint32Array>();
    for (const gfn of gfns) {
      const entry = p2m.lookup(root, gfn);
      const decoded = entryKind(entry) === P2M_KIND.frame ? decodeCache.decodedIn(entryValue(entry)) : undefined;
      if (decoded !== undefined) code.set(gfn, decoded);
    }
    return code;
  }
}

/** Beside the main thread, which is about to write, and the vCPUs that want to run. */
function hasSpareCore({ machine, scheduling }: HypervisorThread): boolean {
  const { pcpuCount, vcpuCount } = machine.parameters;
  let busy = 0;
  for (let number = 0; number < vcpuCount; number++) {
    const address = machine.vcpuAddress(number);
    const state = scheduling.get(address, 'state');
    if (state === VCPU_STATE.running || (state === VCPU_STATE.runnable && scheduling.mayRun(address))) busy++;
  }
  return busy < pcpuCount && busy + 1 < availableParallelism();
}
