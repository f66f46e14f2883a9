// `Host`: a process's machine and the domains in it. See types.ts for what each method promises.

import { availableParallelism } from 'node:os';
import { FRAME_BYTES, PCPU_MAX } from '../abi/machine-memory.ts';
import { PCPU } from '../abi/scheduler.ts';
import { systemClock } from '../base/clock.ts';
import { ZazenError } from '../base/errors.ts';
import { systemRandom } from '../base/random.ts';
import { BOOT_IMAGE_ALIGN } from '../lifecycle/boot-image.ts';
import type { BootImage } from '../lifecycle/boot-image.ts';
import { checkHostMemory, layoutDomain, loadDomain, outOfMemory } from '../lifecycle/build.ts';
import type { AddressRange } from '../lifecycle/guest-device-tree.ts';
import type { NewDomain } from '../hypervisor/domain.ts';
import type { AuditReport } from '../memory/audit.ts';
import { BootFiles, BootImages } from './boot-images.ts';
import type { BootContents } from './boot-images.ts';
import { HeldCheckpoint } from './checkpoint.ts';
import { HostedDomain } from './domain.ts';
import { checkName, planDomain } from './domain-spec.ts';
import type { DomainPlan } from './domain-spec.ts';
import { closeDisks, openDisks } from './guest-disks.ts';
import type { OpenedDisk } from './guest-disks.ts';
import { HostCore } from './host-core.ts';
import { loadCheckpoint } from './image-files.ts';
import { parseSize } from './size.ts';
import { isWarmingUp, warmUpForCheckpoints, warmUpLater } from './warm-up.ts';
import type {
  AuditOptions,
  Checkpoint, CreateOptions, Domain, DomainSpec, EventSubscription, Host as HostInterface, HostEvent, HostOptions,
  HostStats, HostStore, LoadOptions, RestoreOptions, StartHost, SubscribeOptions,
} from './types.ts';

const DEFAULT_MEMORY = '2GiB';
const DEFAULT_PCPUS_MAX = 4;
const WASM_PAGE_BYTES = 65536;
const NANOS_PER_MILLI = 1e6;
/** Pages that a guest may have beside its RAM: shared info, grant tables, rings. */
const EXTRA_PAGES = 1024;

export type Host = HostInterface;

const closed = (): ZazenError => new ZazenError('ZAZEN_HOST_CLOSED', 'the host has been closed');

class RunningHost implements HostInterface {
  readonly #core: HostCore;
  readonly #cacheDir: string | undefined;
  readonly #bootImages: BootImages;
  readonly #startMillis = performance.now();
  readonly #loads = new Set<Promise<unknown>>();
  #closing: Promise<void> | undefined;

  constructor(core: HostCore, cacheDir: string | undefined) {
    this.#core = core;
    core.makeHosted = parts => new HostedDomain(core, parts);
    this.#cacheDir = cacheDir;
    this.#bootImages = new BootImages(core);
  }

  async create(spec: DomainSpec = {}, options: CreateOptions = {}): Promise<Domain> {
    this.#assertOpen();
    const core = this.#core;
    if (spec.name !== undefined) core.assertNameFree(spec.name);
    // Beside all that comes before the guest is made.
    const hasNetworks = (spec.nics ?? []).length > 0 ? core.networks.begin() : undefined;
    using files = new BootFiles(this.#bootImages);
    const plan = await planDomain(spec, {
      log: core.log, ...options, random: core.random, cacheDir: this.#cacheDir, files,
    });
    const disks = await openDisks(spec.disks ?? []);
    let domain: HostedDomain;
    try {
      await hasNetworks;
      options.signal?.throwIfAborted();
      this.#assertOpen();
      if (plan.name !== undefined) core.assertNameFree(plan.name);
      domain = this.#build(plan, files, disks);
    } catch (error) {
      await closeDisks(disks);
      throw error;
    }
    try {
      await domain.openForwards();
    } catch (error) {
      await domain.destroy();
      throw error;
    }
    return domain;
  }

  async loadCheckpoint(path: string, options: LoadOptions = {}): Promise<Checkpoint> {
    this.#assertOpen();
    return this.#loaded(path, options);
  }
  async #loaded(path: string, options: LoadOptions): Promise<HeldCheckpoint> {
    const loading = loadCheckpoint(this.#core, path, options);
    this.#loads.add(loading);
    try {
      const { parts, done } = await loading;
      const checkpoint = new HeldCheckpoint(this.#core, parts);
      done();
      if (this.#closing === undefined) return checkpoint;
      await checkpoint.destroy();
      throw closed();
    } finally {
      this.#loads.delete(loading);
    }
  }

  async restore(path: string, options: RestoreOptions = {}): Promise<Domain> {
    this.#assertOpen();
    checkName(options.name);
    if (options.name !== undefined) this.#core.assertNameFree(options.name);
    await using checkpoint = await this.#loaded(path, options);
    const { origin } = checkpoint;
    const isTaken = this.domains().some(domain => domain.uuid === origin.uuid);
    const uuid = options.uuid ?? (isTaken ? undefined : origin.uuid);
    const [domain] = await checkpoint.fork([{ name: options.name ?? origin.name, uuid, paused: options.paused }]);
    // While its memory came, somebody who has seen it in the list may have destroyed it.
    if (domain!.state === 'destroyed') return domain!;
    (domain as HostedDomain).wasRestored(path);
    await (domain as HostedDomain).takeBackForwards();
    return domain!;
  }

  #assertOpen(): void {
    if (this.#closing !== undefined) throw closed();
  }

  #build(plan: DomainPlan, files: BootFiles, disks: readonly OpenedDisk[]): HostedDomain {
    const core = this.#core;
    const { thread } = core;
    core.makeRoom(plan.memoryBytes);
    const vcpuAddresses = core.takeVcpus(plan.vcpus);
    core.prepareBoot();
    const made = vcpuAddresses && core.builder.createDomain({
      vcpuAddresses, handle: Buffer.from(plan.uuid.replaceAll('-', ''), 'hex'),
      maxPages: plan.memoryBytes / FRAME_BYTES + EXTRA_PAGES, hasEmulatedDevices: plan.type === 'hvm',
    });
    if (!made) {
      if (vcpuAddresses) core.returnVcpus(vcpuAddresses);
      throw new ZazenError('ZAZEN_DOMAIN_LIMIT', 'the host has no room for another domain',
        { hint: 'destroy one, or start the host with more memory' });
    }
    const { domain } = made;
    try {
      thread.gic.resetDomain(domain.domid, vcpuAddresses);
      for (const address of vcpuAddresses) thread.scheduling.attach(address);
      thread.scheduling.shares.set(domain.domid, plan.share);
      const entry = this.#load(plan, files, made);
      thread.timers.setTime(domain.domid, 0);
      core.builder.setWallClock(domain, thread.clock.wallMillis());
      const name = plan.name ?? core.freeName(`domain-${domain.domid}`);
      const hosted = core.makeHosted({
        identity: { ...plan, name }, ends: made, vcpuAddresses, family: { image: undefined }, exec: plan.exec, disks, nics: plan.nics,
      });
      core.domains.set(domain.domid, hosted);
      thread.scheduling.start(vcpuAddresses[0]!, () =>
        thread.resetVcpu(vcpuAddresses[0]!, BigInt(entry.entryAddress), BigInt(entry.deviceTreeAddress)));
      hosted.start(plan.paused);
      return hosted;
    } catch (error) {
      if (!core.domains.has(domain.domid)) {
        core.returnVcpus(vcpuAddresses);
        for (const port of [made.consolePort, made.xenstorePort]) core.ports.close(port);
        core.releaseRecord(domain);
      }
      throw error;
    }
  }

  #load(
    plan: DomainPlan, files: BootFiles, { domain }: NewDomain,
  ): { entryAddress: number; deviceTreeAddress: number } {
    const { thread: { p2m, heap }, random } = this.#core;
    const { kernel, initramfs, memoryBytes } = plan;
    const sizes = {
      kernel: { image: kernel, textOffset: kernel.textOffset, imageSize: kernel.imageSize }, initrd: initramfs,
      commandLine: plan.cmdline, type: plan.type, memoryBytes, vcpuCount: plan.vcpus,
    };
    checkHostMemory(heap, memoryBytes);
    const layout = layoutDomain(sizes);
    const place = (contents: BootContents, { address }: AddressRange): BootImage => {
      const image = files.image(contents, address % BOOT_IMAGE_ALIGN);
      if (image === undefined) throw outOfMemory(heap, memoryBytes);
      return image;
    };
    const { entryAddress, deviceTree } = loadDomain(p2m, heap, domain, {
      ...sizes, kernel: { ...sizes.kernel, image: place(kernel, layout.kernel) },
      initrd: initramfs && place(initramfs, layout.initrd!),
    }, random);
    return { entryAddress, deviceTreeAddress: deviceTree.address };
  }

  get store(): HostStore {
    return this.#core.store;
  }
  events(options?: SubscribeOptions): EventSubscription<HostEvent> {
    return this.#core.events.subscribe(options);
  }
  domains(): Domain[] {
    return [...this.#core.domains.values()].toSorted((a, b) => a.id - b.id);
  }

  stats(): HostStats {
    const { thread } = this.#core;
    const { machine } = thread;
    const { clean, cached, dirty, scrubbing, shared } = thread.heap.stats();
    return {
      memoryBytes: machine.parameters.sizeBytes,
      freeBytes: (clean + cached + dirty + scrubbing) * FRAME_BYTES,
      cleanBytes: (clean + cached) * FRAME_BYTES,
      dirtyBytes: dirty * FRAME_BYTES,
      scrubbingBytes: scrubbing * FRAME_BYTES,
      sharedBytes: shared * FRAME_BYTES,
      cachedBytes: this.#core.caches.frames * FRAME_BYTES,
      releasingBytes: this.#core.releasingFrames() * FRAME_BYTES,
      pcpus: Array.from({ length: machine.parameters.pcpuCount }, (_, id) => ({
        id,         busyMillis: machine.f64[(machine.pcpuAddress(id) + PCPU.at.busyNanos) / 8]! / NANOS_PER_MILLI,
        compiledMillis: machine.f64[(machine.pcpuAddress(id) + PCPU.at.compiledNanos) / 8]! / NANOS_PER_MILLI,

        wakeUps: machine.u32[(machine.pcpuAddress(id) + PCPU.at.doorbell) / 4]!,
      })),
      activity: this.#core.activity.samples,
      codeCache: this.#core.activity.codeCache,
      hostThreadMillis: performance.eventLoopUtilization().active,
      networkThreadMillis: this.#core.networks.busyMillis,
      domains: this.#core.domains.size,
      networks: this.#core.networks.metrics(),
      uptimeMillis: performance.now() - this.#startMillis,
      isSettled: this.#core.hasAllThreads && !isWarmingUp(),
    };
  }

  async audit({ readClean }: AuditOptions = {}): Promise<AuditReport> {
    this.#assertOpen();
    // Frames that are being filled are nobody's yet.
    await Promise.allSettled(this.#loads);
    return this.#core.audit(readClean);
  }

  close(): Promise<void> {
    return this.#closing ??= this.#close();
  }
  async #close(): Promise<void> {
    this.#core.beginClose();
    await Promise.all(this.domains().map(domain => domain.destroy()));
    await this.#core.close();
  }
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

async function start(options: HostOptions = {}): Promise<HostInterface> {
  const memoryBytes = parseSize(options.memory ?? DEFAULT_MEMORY, 'the host\'s memory');
  const pcpus = options.pcpus ?? Math.min(DEFAULT_PCPUS_MAX, availableParallelism());
  if (!Number.isInteger(pcpus) || pcpus < 1 || pcpus > PCPU_MAX) {
    throw new ZazenError('ZAZEN_SPEC_PCPUS', `a host cannot have ${pcpus} pCPUs`, { hint: `give 1 to ${PCPU_MAX}` });
  }
  const core = new HostCore({
    memoryBytes: Math.ceil(memoryBytes / WASM_PAGE_BYTES) * WASM_PAGE_BYTES, pcpus,
    clock: options.clock ?? systemClock, random: options.random ?? systemRandom, log: options.log ?? (() => {}),
  });
  try {
    await core.networks.create(options.networks ?? {});
  } catch (error) {
    await core.close();
    throw error;
  }
  core.onSettled = warmUpLater;
  core.onCheckpoint = warmUpForCheckpoints;
  core.startWorkers();
  return hostOf(core, options.cacheDir);
}

/**
 * For who runs the pCPUs of a core by himself.
 * @internal
 */
export function hostOf(core: HostCore, cacheDir?: string): HostInterface {
  return new RunningHost(core, cacheDir);
}

export const Host: { readonly start: StartHost } = { start };
