// The host's insides, shared by host.ts (the public face) and domain.ts: the machine, the main thread's hypervisor, the
// store, the ends of event channels, and the pCPU workers.

import { availableParallelism } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { MessageChannel } from 'node:worker_threads';
import type { MessagePort, Worker } from 'node:worker_threads';
import { FRAME_BYTES, MACHINE_HEADER, SIZE_MAX_BYTES } from '../abi/machine-memory.ts';
import { PCPU } from '../abi/scheduler.ts';
import { vcpuRecord } from '../abi/vcpu.ts';
import { HVM_PARAM } from '../abi/xen.ts';
import { unreachable } from '../base/assert.ts';
import { ZazenError } from '../base/errors.ts';
import type { Clock } from '../base/clock.ts';
import type { Random } from '../base/random.ts';
import { DecodeAhead } from '../cpu/decode-ahead.ts';
import { DecodeCache } from '../cpu/decode-cache.ts';
import { DomainBuilder } from '../hypervisor/domain.ts';
import type { DomainRecord } from '../hypervisor/domain-record.ts';
import { HostPorts } from '../hypervisor/host-ports.ts';
import { getHvmParam } from '../hypervisor/hvm-params.ts';
import { HypervisorThread, MAIN_THREAD } from '../hypervisor/thread.ts';
import { Heap } from '../memory/heap.ts';
import { PageLoader } from '../memory/image-pages.ts';
import { MachineMemory } from '../memory/machine-memory.ts';
import { assertNoLockHeld } from '../memory/spin.ts';
import { audit } from '../memory/audit.ts';
import type { AuditReport } from '../memory/audit.ts';
import { Store } from '../xenstore/store.ts';
import type { HostedDomain, HostedDomainParts } from './domain.ts';
import { releaseDisks } from './guest-disks.ts';
import type { SavedDisk } from './guest-disks.ts';
import { EventLog } from './event-log.ts';
import { FrameCaches } from './frame-caches.ts';
import type { PostedImage } from './image-source.ts';
import { ActivitySampler } from './activity.ts';
import { DiskThread } from './disk-thread.ts';
import { HostNetworks } from './networks.ts';
import { NetworkThread } from './network-thread.ts';
import { interpreterFor } from './kept-interpreter.ts';
import { LoadedImages } from './loaded-images.ts';
import { takePcpuThread } from './pcpu-ahead.ts';
import type { PCpuWorkerData } from './pcpu-loop.ts';
import { QuietTimes } from './quiet-times.ts';
import { SampleSubscriptions } from './sample.ts';
import type { TranslatorOrder, TranslatorWorkerData } from './translator-worker.ts';
import { startWorker } from './worker-thread.ts';
import type { HostEvent } from './types.ts';

/** What this thread takes apart in one go when all pCPUs are busy, about 100 µs of work, and how often it looks. */
const RELEASE_STEP_FRAMES = 512;
const RELEASE_WATCH_MILLIS = 2;
const HOUSEKEEPING_MILLIS = 500;
/** It takes tens of milliseconds, on a machine that does much else a hundred times that. */
const TRANSLATOR_END_MILLIS = 10_000;
/**
 * From the start of a host until there is time for what its first guest, which boots meanwhile, does not need; there is earlier
 * when that guest is at rest.
 */
const SETTLE_MILLIS = 4000;
const SETTLE_LOOK_MILLIS = 200;

export interface CoreOptions {
  readonly memoryBytes: number;
  readonly pcpus: number;
  /** Of this machine. */
  readonly cores?: number;
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
  /** Threads that can run at a time. */
  readonly cores: number;
  readonly networks: HostNetworks;
  readonly domains = new Map<number, HostedDomain>();
  /** Of all domains. */
  readonly events = new EventLog<HostEvent>();
  /** Makes the host's half of a domain; set by the host, since domains know the core. */
  makeHosted: (parts: HostedDomainParts) => HostedDomain = () => unreachable('the core has no host yet');
  /** Somebody is about to take a checkpoint, not to save it but to have it; set by the host. */
  onCheckpoint: () => void = () => {};
  /** The first guest has most probably booted: time for what can wait; set by the host. */
  onSettled: () => void = () => {};
  /** p2m trees of checkpoints. */
  readonly frozenRoots = new Set<number>();
  /** Domains that are the host's own (rehearsals.ts). */
  readonly unseen = new Set<DomainRecord>();
  /** Disks of checkpoints: they keep files open and locked. */
  readonly frozenDisks = new Set<readonly SavedDisk[]>();
  readonly activity: ActivitySampler;
  readonly decodeCache: DecodeCache;
  /** Of images that are being restored. */
  readonly decodeAhead: DecodeAhead;
  /** Who wants samples of domains' stacks. */
  readonly samples: SampleSubscriptions;
  /** What the host can do without when memory is short. */
  readonly caches = new FrameCaches();
  readonly diskThread: DiskThread;
  readonly #networkThread: NetworkThread;
  /** What domains were restored from. */
  readonly images = new LoadedImages(this);
  /** Resolves when a guest that is let go runs at once; where somebody else runs the pCPUs, it has. */
  firstPcpuRuns: Promise<unknown> = Promise.resolve();
  readonly #workers: Worker[] = [];
  /** Each resolves when its thread runs vCPUs. */
  readonly #pcpusRun: Promise<unknown>[] = [];
  #hasAllThreads = false;
  #interpreter: Promise<WebAssembly.Module> | undefined;
  /** Begin what has no thread yet: the translator, and pCPUs in their order. */
  #startTranslator: (() => void) | undefined;
  #spares: (() => void)[] = [];
  /** What those will have to know. */
  #postedBefore: PostedImage[] = [];
  #translator: Worker | undefined;
  #isBootPrepared = false;
  /** Numbers of vCPU records that no domain has. */
  readonly #freeVcpus: number[] = [];
  #releaseWatch: NodeJS.Timeout | undefined;
  #isClosing = false;
  #closed = false;
  readonly #settling: NodeJS.Timeout[] = [];
  #housekeeping: NodeJS.Timeout | undefined;
  readonly #workersEnded: Promise<void>[] = [];

  constructor({
    memoryBytes, pcpus, cores = availableParallelism(), clock, random, log,
  }: CoreOptions) {
    this.cores = cores;
    const machine = MachineMemory.create({
      sizeBytes: memoryBytes, pcpuCount: pcpus, addressType: memoryBytes > SIZE_MAX_BYTES.i32 ? 'i64' : 'i32',
    });
    Heap.initialize(machine);
    this.random = random;
    this.log = log;
    this.thread = new HypervisorThread(machine, MAIN_THREAD, clock);
    this.activity = new ActivitySampler(machine);
    this.decodeCache = new DecodeCache(machine);
    this.decodeAhead = new DecodeAhead(machine, this.decodeCache);
    this.decodeCache.wantAhead();
    this.samples = new SampleSubscriptions(this.thread.scheduling);
    this.thread.heap.reclaim = () => this.caches.giveUpOldest();
    this.thread.p2m.loader = new PageLoader(this.thread.heap, this.thread.p2m, this.images);
    const { channels, grants } = this.thread.hypercalls;
    this.builder = new DomainBuilder(this.thread.environment, channels, grants);
    if (!this.builder.initializeHost()) {
      throw new ZazenError('ZAZEN_HOST_MEMORY_SIZE', 'the host\'s memory is too small for its own records');
    }
    for (const path of ['/local/domain', '/vm']) this.store.mkdir(path);
    this.ports = new HostPorts(channels, domid => this.domains.get(domid)?.notice());
    this.diskThread = new DiskThread(machine, this.ports);
    this.#networkThread = new NetworkThread(machine, () => { this.releaseStep(); });
    this.networks = new HostNetworks(this.#networkThread);
    for (let number = machine.parameters.vcpuCount - 1; number >= 0; number--) this.#freeVcpus.push(number);
  }

  /**
   * The first pCPU's thread loads its code, and the interpreter is compiled, beside which the main thread can make a guest
   * ready. The translator begins when there is a vCPU, the other pCPUs when there are vCPUs for them, or later: loading their code
   * would keep those two from their cores.
   */
  startWorkers(): void {
    const { pcpuCount } = this.thread.machine.parameters;
    const channels = Array.from({ length: pcpuCount }, () => new MessageChannel());
    this.#startPcpu(0, channels[0]!.port1);
    this.firstPcpuRuns = this.#pcpusRun[0]!;
    this.#startTranslator = () => this.#makeTranslator(channels.map(({ port2 }) => port2));
    this.#spares = channels.slice(1).map(({ port1 }, i) => () => this.#startPcpu(i + 1, port1));
    void this.#listen();
    this.#housekeeping = setInterval(() => this.#keepHouse(), HOUSEKEEPING_MILLIS).unref();
    this.#whenSettled(() => {
      this.startThreads(this.thread.machine.parameters.pcpuCount);
      this.onSettled();
      void this.#noteAllThreads();
    });
  }

  async #noteAllThreads(): Promise<void> {
    await Promise.all(this.#pcpusRun);
    this.#hasAllThreads = true;
  }
  /** What was put off while the first guest booted has begun, and every pCPU's thread has loaded its code. */
  get hasAllThreads(): boolean { return this.#hasAllThreads; }

  /** Guests are at rest, or it is time for what had to wait for that. */
  #whenSettled(action: () => void): void {
    const quietTimes = new QuietTimes();
    const latest = performance.now() + SETTLE_MILLIS;
    const watch = setInterval(() => {
      if (!quietTimes.look(performance.now(), this.#busyNanos()) && performance.now() < latest) return;
      clearInterval(watch);
      action();
    }, SETTLE_LOOK_MILLIS).unref();
    this.#settling.push(watch);
  }

  /** An error in a worker is our bug: the host's state cannot be trusted any more. */
  #startPcpu(pcpu: number, translator: MessagePort): void {
    const { machine } = this.thread;
    const { port1, port2: interpreter } = new MessageChannel();
    const workerData: PCpuWorkerData = { memory: machine.memory, pcpu, interpreter, translator, lanes: this.diskThread.lanes };
    const worker = takePcpuThread(pcpu);
    worker.postMessage(workerData, [interpreter, translator]);
    this.#interpreter ??= interpreterFor(machine);
    void this.#interpreter.then(module => port1.postMessage(module));
    worker.on('error', error => { throw error; });
    worker.on('message', message => { if (message instanceof BigUint64Array) this.samples.deliver(message); });
    this.#workers.push(worker);
    this.#pcpusRun.push(new Promise(resolve => { worker.once('message', resolve).once('exit', resolve); }));
    this.#workersEnded.push(new Promise(resolve => { worker.once('exit', () => resolve()); }));
  }

  /** pCPUs that have a thread. */
  get startedPcpus(): number { return this.#workers.length; }
  /** For so many vCPUs: as many pCPUs, of those that there are, and who compiles for them. */
  startThreads(count: number): void {
    this.#startTranslator?.();
    this.#startTranslator = undefined;
    while (this.startedPcpus < count && this.#spares.length > 0) {
      this.#spares.shift()!();
      for (const image of this.#postedBefore) this.#workers.at(-1)!.postMessage(image);
    }
    if (this.#spares.length === 0) this.#postedBefore = [];
  }

  /** A guest boots: for the first one, what the last one of a former process needed is compiled at once. */
  prepareBoot(): void {
    if (this.#isBootPrepared || this.#translator === undefined) return;
    this.#isBootPrepared = true;
    const order = (name: TranslatorOrder): void => this.#translator!.postMessage(name);
    order('boot');
    this.#whenSettled(() => order('booted'));
  }
  #makeTranslator(ports: MessagePort[]): void {
    const workerData: TranslatorWorkerData = { memory: this.thread.machine.memory, ports };
    this.#translator = startWorker(new URL('./translator-worker.ts', import.meta.url),
      { workerData, name: 'translator', transferList: ports });
    this.#translator.on('error', error => { throw error; });
    this.#translator.unref();
  }

  /**
   * Guests set their watchdogs in whole seconds. And frames that a busy pCPU or this thread has freed wake nobody, so
   * that freeing costs nothing; here somebody sees that they are scrubbed. Likewise memory for decoded code is touched in
   * advance when it is quiet, and not while a guest is in a hurry.
   */
  #keepHouse(): void {
    assertNoLockHeld();
    const { hypercalls: { sched, domains }, heap, scheduling } = this.thread;
    for (const [id, domain] of this.domains) if (domain.state !== 'suspended') sched.checkWatchdogs(domains.record(id));
    if (this.decodeCache.wantAhead() || heap.hasIdleWork) scheduling.wakeIdlePcpus();
    this.images.keepHouse();
    this.diskThread.keepHouse();
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

  #busyNanos(): number {
    const { machine } = this.thread;
    const nanosOf = (pcpu: number): number => machine.f64[(machine.pcpuAddress(pcpu) + PCPU.at.busyNanos) / 8]!;
    return this.#workers.reduce((sum, _, pcpu) => sum + nanosOf(pcpu), 0);
  }

  postToWorkers(image: PostedImage): void {
    for (const worker of this.#workers) worker.postMessage(image);
    this.#networkThread.postImage(image);
    if (this.#spares.length > 0) this.#postedBefore.push(image);
  }

  /** From here on nothing new is made; what there is can be taken apart. */
  beginClose(): void {
    this.#isClosing = true;
  }
  assertOpen(): void {
    if (this.#isClosing) throw new ZazenError('ZAZEN_HOST_CLOSED', 'the host has been closed');
  }
  assertNameFree(name: string): void {
    if (!this.#isNameTaken(name)) return;
    throw new ZazenError('ZAZEN_DOMAIN_NAME_TAKEN', `there is a domain called ${name} already`,
      { hint: 'choose another name' });
  }
  /** The name, or the first of name-2, name-3 … that nobody has. */
  freeName(name: string): string {
    let free = name;
    for (let number = 2; this.#isNameTaken(free); number++) free = `${name}-${number}`;
    return free;
  }
  #isNameTaken(name: string): boolean {
    for (const domain of this.domains.values()) if (domain.name === name) return true;
    return false;
  }

  /** @returns addresses of blank vCPU records, or undefined if there are not as many left */
  takeVcpus(count: number): number[] | undefined {
    if (this.#freeVcpus.length < count) return undefined;
    const { machine } = this.thread;
    const addresses = Array.from({ length: count }, () => machine.vcpuAddress(this.#freeVcpus.pop()!));
    for (const address of addresses) machine.u8.fill(0, address, address + vcpuRecord.sizeBytes);
    this.startThreads(machine.parameters.vcpuCount - this.#freeVcpus.length);
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
    if (root !== 0) this.releaseRoot(root);
    this.builder.forgetDomain(record);
  }
  /** A p2m that nobody uses any more: idle pCPUs take it apart. */
  releaseRoot(root: number): void {
    this.thread.p2m.release(root);
    this.thread.scheduling.wakeIdlePcpus();
    this.#watchRelease();
  }
  /** If no pCPU has time, this thread takes trees apart, in steps that nobody notices. */
  #watchRelease(): void {
    const { tearDown } = this.thread.heap;
    const seen = tearDown.steps;
    this.#releaseWatch ??= setTimeout(() => {
      this.#releaseWatch = undefined;
      if (tearDown.steps === seen) tearDown.step(RELEASE_STEP_FRAMES);
      if (tearDown.isPending) this.#watchRelease();
    }, RELEASE_WATCH_MILLIS).unref();
  }
  /** Frames charged to domains that are gone and whose trees are being taken apart. */
  releasingFrames(): number {
    const { heap, machine } = this.thread;
    let frames = 0;
    for (let id = 1; heap.tearDown.isPending && id < machine.parameters.domainCount; id++) {
      if (heap.tearDown.isReleasing(id) && !this.domains.has(id)) frames += heap.chargedFrames(id);
    }
    return frames;
  }
  /** Finishes giving memory back as far as it takes to have so many bytes free, if there are that many. */
  makeRoom(bytes: number): void {
    const { heap } = this.thread;
    const { tearDown } = heap;
    if (heap.listedFrames * FRAME_BYTES >= bytes) return;
    const free = (): number => {
      const { total, used } = heap.stats();
      return (total - used) * FRAME_BYTES;
    };
    while (free() < bytes && tearDown.isPending) this.releaseStep();
    // What the caches have would be lost for nothing if it were not enough.
    if (free() + this.caches.frames * FRAME_BYTES < bytes) return;
    while (free() < bytes && this.releaseStep());
  }
  /** Gives back some of the memory of domains that are gone, or of the caches. @returns false if there is none */
  releaseStep(): boolean {
    const { tearDown } = this.thread.heap;
    const any = tearDown.isPending || this.caches.giveUpOldest() || this.images.detach();
    tearDown.step(RELEASE_STEP_FRAMES);
    return any;
  }

  /** Proves that every frame is accounted for exactly once, while no vCPU runs. */
  audit(readClean = false): AuditReport {
    let report: AuditReport | undefined;
    this.thread.safePoints.stopWorldAtRest(() => {
      const records = [this.thread.hypercalls.domains.record(0),
        ...[...this.domains.keys()].map(id => this.thread.hypercalls.domains.record(id)), ...this.unseen];
      const claims = records.map(record => this.builder.claims(record));
      report = audit(this.thread.heap, {
        roots: [...claims.flatMap(claim => [...claim.roots]), ...this.frozenRoots, ...this.caches.roots()],
        held: [...claims.flatMap(claim => [...claim.held]), ...this.images.inFlight()],
        pins: claims.flatMap(claim => [...claim.pins]),
        readClean,
      });
    });
    return report!;
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#settling.forEach(watch => clearInterval(watch));
    this.events.end();
    await this.images.close();
    await Promise.all([...this.frozenDisks].map(releaseDisks));
    await this.networks.close();
    clearInterval(this.#housekeeping);
    this.activity.stop();
    clearTimeout(this.#releaseWatch);
    this.thread.scheduling.close();
    this.ports.ring();
    await Promise.all(this.#workersEnded);
    await Promise.all([this.#endTranslator(), this.diskThread.close()]);
  }

  /** It keeps what it has compiled for the next process, if that does not take long. */
  async #endTranslator(): Promise<void> {
    const translator = this.#translator;
    if (translator === undefined) return;
    const { u32 } = this.thread.machine;
    if (Atomics.load(u32, MACHINE_HEADER.at.compiledRegions >>> 2) > 0) {
      const ended = new Promise<void>(resolve => { translator.once('exit', () => resolve()); });
      const timeout = new AbortController();
      translator.ref();
      translator.postMessage('close');
      await Promise.race([ended, sleep(TRANSLATOR_END_MILLIS, undefined, { signal: timeout.signal }).catch(() => {})]);
      timeout.abort();
    }
    await translator.terminate();
  }
}
