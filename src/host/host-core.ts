// The host's insides, shared by host.ts (the public face) and domain.ts: the machine, the main thread's hypervisor, the
// store, the ends of event channels, and the pCPU workers.

import { Worker } from 'node:worker_threads';
import { FRAME_BYTES, MACHINE_HEADER } from '../abi/machine-memory.ts';
import { vcpuRecord } from '../abi/vcpu.ts';
import { HVM_PARAM } from '../abi/xen.ts';
import { ZazenError } from '../base/errors.ts';
import type { Clock } from '../base/clock.ts';
import type { Random } from '../base/random.ts';
import { buildInterpreter } from '../cpu/interpreter.ts';
import { DomainBuilder } from '../hypervisor/domain.ts';
import type { DomainRecord } from '../hypervisor/domain-record.ts';
import { HostPorts } from '../hypervisor/host-ports.ts';
import { getHvmParam } from '../hypervisor/hvm-params.ts';
import { HypervisorThread, MAIN_THREAD } from '../hypervisor/thread.ts';
import { Heap } from '../memory/heap.ts';
import { MachineMemory } from '../memory/machine-memory.ts';
import { audit } from '../memory/audit.ts';
import type { AuditReport } from '../memory/audit.ts';
import { Store } from '../xenstore/store.ts';
import type { HostedDomain } from './domain.ts';
import type { PCpuWorkerData } from './pcpu-loop.ts';

/** Frames of a dead domain that are given back before others get their turn. */
const RELEASE_STEP_FRAMES = 2048;
const WASM_PAGE_BYTES = 65536;
const WATCHDOG_CHECK_MILLIS = 500;

export interface CoreOptions {
  readonly memoryBytes: number;
  readonly pcpus: number;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: (line: string) => void;
}

export class HostCore {
  readonly thread: HypervisorThread;
  readonly builder: DomainBuilder;
  readonly store = new Store();
  readonly ports: HostPorts;
  readonly random: Random;
  readonly log: (line: string) => void;
  readonly domains = new Map<number, HostedDomain>();
  /** p2m trees of checkpoints. */
  readonly frozenRoots = new Set<number>();
  readonly #workers: Worker[] = [];
  /** Numbers of vCPU records that no domain has. */
  readonly #freeVcpus: number[] = [];
  /** p2m trees that are still being given back; with their records, those of dead domains. */
  readonly #releasing = new Map<number, DomainRecord | undefined>();
  #releaseScheduled = false;
  #closed = false;
  #watchdogs: NodeJS.Timeout | undefined;
  #workersEnded: Promise<unknown> = Promise.resolve();

  constructor({ memoryBytes, pcpus, clock, random, log }: CoreOptions) {
    const machine = MachineMemory.create({ sizeBytes: memoryBytes, pcpuCount: pcpus });
    Heap.initialize(machine);
    this.random = random;
    this.log = log;
    this.thread = new HypervisorThread(machine, MAIN_THREAD, clock);
    const { channels, grants } = this.thread.hypercalls;
    this.builder = new DomainBuilder(this.thread.environment, channels, grants);
    if (!this.builder.initializeHost()) {
      throw new ZazenError('ZAZEN_HOST_MEMORY_SIZE', 'the host\'s memory is too small for its own records');
    }
    this.ports = new HostPorts(channels, domid => this.domains.get(domid)?.notice());
    for (let number = machine.parameters.vcpuCount - 1; number >= 0; number--) this.#freeVcpus.push(number);
  }

  /** Resolves when all pCPUs wait for work. */
  async startWorkers(): Promise<void> {
    const { machine } = this.thread;
    const { addressType, sizeBytes, pcpuCount } = machine.parameters;
    // What this process was started with need not suit a worker: `--input-type`, or the options of the test runner.
    const execArgv: string[] = [];
    const ready = Array.from({ length: pcpuCount }, (_, pcpu) => {
      const workerData: PCpuWorkerData = { memory: machine.memory, pcpu };
      const worker = new Worker(new URL('./pcpu-worker.ts', import.meta.url), { workerData, execArgv, name: `pcpu${pcpu}` });
      this.#workers.push(worker);
      return new Promise<void>((resolve, reject) => {
        worker.once('message', () => resolve());
        worker.once('error', reject);
      });
    });
    this.#workersEnded = Promise.all(this.#workers.map(worker => new Promise<void>(resolve => {
      worker.once('exit', () => resolve());
    })));
    // While the workers load their code, the interpreter is made.
    const interpreter = await WebAssembly.compile(buildInterpreter(
      { addressType, minPages: 1, maxPages: sizeBytes / WASM_PAGE_BYTES }, MACHINE_HEADER.at.pairLock));
    for (const worker of this.#workers) worker.postMessage(interpreter);
    await Promise.all(ready);
    // From here on, an error in a worker is our bug: the host's state cannot be trusted any more.
    for (const worker of this.#workers) worker.on('error', error => { throw error; });
    void this.#listen();
    this.#watchdogs = setInterval(() => this.#checkWatchdogs(), WATCHDOG_CHECK_MILLIS).unref();
  }

  /** Guests set their watchdogs in whole seconds. */
  #checkWatchdogs(): void {
    const { sched, domains } = this.thread.hypercalls;
    for (const id of this.domains.keys()) sched.checkWatchdogs(domains.record(id));
  }

  /** Hears what guests tell the host, until the host closes. */
  async #listen(): Promise<void> {
    while (!this.#closed) {
      const seen = this.ports.doorbell;
      this.ports.deliver();
      if (this.ports.doorbell === seen) await this.ports.untilDoorbell(seen);
      // Guests that never stop ringing must not keep all else waiting that this thread has to do.
      else await new Promise(resolve => setImmediate(resolve));
    }
  }

  /** @returns addresses of blank vCPU records, or undefined if there are not as many left */
  takeVcpus(count: number): number[] | undefined {
    if (this.#freeVcpus.length < count) return undefined;
    const { machine } = this.thread;
    const addresses = Array.from({ length: count }, () => machine.vcpuAddress(this.#freeVcpus.pop()!));
    for (const address of addresses) machine.u8.fill(0, address, address + vcpuRecord.sizeBytes);
    return addresses;
  }
  returnVcpus(addresses: readonly number[]): void {
    for (const address of addresses) this.#freeVcpus.push(this.thread.scheduling.table.numberOf(address));
  }

  /** Where the guest finds its console: page and event channel. */
  consoleOf(domain: DomainRecord): { gfn: number; port: number } {
    const param = (index: number): number => Number(getHvmParam(domain, index));
    return { gfn: param(HVM_PARAM.CONSOLE_PFN), port: param(HVM_PARAM.CONSOLE_EVTCHN) };
  }

  /** A domain whose vCPUs are detached goes; its memory is given back little by little. */
  release(domain: HostedDomain, record: DomainRecord, vcpuAddresses: readonly number[]): void {
    this.domains.delete(domain.id);
    this.returnVcpus(vcpuAddresses);
    this.releaseRecord(record);
  }
  releaseRecord(record: DomainRecord): void {
    const root = this.builder.destroyDomain(record);
    if (root === 0) return this.builder.forgetDomain(record);
    this.#releasing.set(root, record);
    this.#scheduleRelease();
  }
  /** A p2m that nobody uses any more. */
  releaseRoot(root: number): void {
    this.#releasing.set(root, undefined);
    this.#scheduleRelease();
  }
  #scheduleRelease(): void {
    if (this.#releaseScheduled || this.#releasing.size === 0) return;
    this.#releaseScheduled = true;
    setImmediate(() => {
      this.#releaseScheduled = false;
      this.releaseStep();
      this.#scheduleRelease();
    });
  }
  /** Finishes giving memory back as far as it takes to have so many bytes free, if there are that many. */
  makeRoom(bytes: number): void {
    const free = (): number => {
      const { total, used } = this.thread.heap.stats();
      return (total - used) * FRAME_BYTES;
    };
    while (free() < bytes && this.releaseStep());
  }
  /** Gives back some of the memory of domains that are gone. @returns false if there is none */
  releaseStep(): boolean {
    const any = this.#releasing.size > 0;
    for (const [root, record] of this.#releasing) {
      if (!this.thread.p2m.releaseStep(root, RELEASE_STEP_FRAMES)) continue;
      this.#releasing.delete(root);
      if (record !== undefined) this.builder.forgetDomain(record);
    }
    return any;
  }

  /** Proves that every frame is accounted for exactly once, while no vCPU runs. */
  audit(): AuditReport {
    let report: AuditReport | undefined;
    this.thread.safePoints.stopWorld(() => {
      const records = [this.thread.hypercalls.domains.record(0),
        ...[...this.domains.keys()].map(id => this.thread.hypercalls.domains.record(id))];
      const claims = records.map(record => this.builder.claims(record));
      report = audit(this.thread.heap, {
        roots: [...claims.flatMap(claim => [...claim.roots]), ...this.#releasing.keys(), ...this.frozenRoots],
        held: claims.flatMap(claim => [...claim.held]),
        pins: claims.flatMap(claim => [...claim.pins]),
      });
    });
    return report!;
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearInterval(this.#watchdogs);
    this.thread.scheduling.close();
    this.ports.ring();
    await this.#workersEnded;
  }
}
