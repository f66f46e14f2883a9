// What a pCPU's worker thread does: puts the CPU and the hypervisor together over the machine memory it was given, and
// runs vCPUs until the host closes.

import { receiveMessageOnPort } from 'node:worker_threads';
import type { MessagePort } from 'node:worker_threads';
import { STALL_LOST_PAGE, STALL_OUT_OF_FRAMES } from '../abi/domain-record.ts';
import { RUNSTATE } from '../abi/xen-shared-info.ts';
import { systemClock } from '../base/clock.ts';
import type { Clock } from '../base/clock.ts';
import { DecodeAhead } from '../cpu/decode-ahead.ts';
import { Engine } from '../cpu/engine.ts';
import { RegionClient } from '../cpu/jit/region-client.ts';
import type { RegionChannel } from '../cpu/jit/region-client.ts';
import type { RegionMessage } from '../cpu/jit/region-parcels.ts';
import type { VcpuState } from '../cpu/vcpu-state.ts';
import { Pl011 } from '../devices/pl011/registers.ts';
import { Pl031 } from '../devices/pl031/registers.ts';
import { VirtioMmio } from '../devices/virtio/registers.ts';
import { DomainCpuHost } from '../hypervisor/cpu-host.ts';
import { EmulatedDevices } from '../hypervisor/emulated-devices.ts';
import { notifyHostOf } from '../hypervisor/event-delivery.ts';
import { GicCpuInterface } from '../hypervisor/gic-cpu-interface.ts';
import { GicRegisters } from '../hypervisor/gic-registers.ts';
import { HeapIdleWork } from '../hypervisor/idle-work.ts';
import { PCpu } from '../hypervisor/pcpu.ts';
import { Psci } from '../hypervisor/psci.ts';
import { enterRunstate, publishRunstate } from '../hypervisor/runstate.ts';
import { HypervisorThread } from '../hypervisor/thread.ts';
import { PageLoader } from '../memory/image-pages.ts';
import type { ImagePages } from '../memory/image-pages.ts';
import { MachineMemory } from '../memory/machine-memory.ts';
import { serveLanes } from './disk-loop.ts';
import { PostedImages } from './image-source.ts';
import { takeSample } from './sample.ts';
import { CodeAhead, SlotsAhead, WarmDecoding, firstOf } from './warm-decoding.ts';

export interface PCpuWorkerData {
  readonly memory: WebAssembly.Memory;
  readonly pcpu: number;
  /** Where the interpreter comes from when it has been compiled. */
  readonly interpreter: MessagePort;
  /** To the translator's thread: hot places go out, parcels come in. */
  readonly translator: MessagePort;
  /** Rings of disks (lanes/lane.ts). */
  readonly lanes: SharedArrayBuffer;
}

function regionChannel(port: MessagePort): RegionChannel {
  return {
    request: places => port.postMessage(places),
    receive: () => receiveMessageOnPort(port)?.message as RegionMessage | undefined,
  };
}

/** What a pCPU's thread is made of. */
export interface PcpuParts {
  readonly thread: HypervisorThread;
  readonly host: DomainCpuHost;
  readonly engine: Engine;
  readonly virtio: VirtioMmio;
}

export interface PcpuEnvironment {
  readonly machine: MachineMemory;
  readonly pcpu: number;
  readonly clock: Clock;
  /** Compiled from `buildInterpreter`. */
  readonly interpreter: WebAssembly.Module;
  /** Without it everything is interpreted. */
  readonly regions?: RegionClient | undefined;
  /** Where pages of images come from, if there are any. */
  readonly images?: ImagePages;
}

/** The CPU and the hypervisor of a thread, put together. */
export function assemblePcpu({ machine, pcpu, clock, interpreter, regions, images }: PcpuEnvironment): PcpuParts {
  const thread = new HypervisorThread(machine, pcpu, clock, {
    copyFromGuest: (vcpu, va, sizeBytes, willAnswer) => engine.data.copyFromGuest(vcpu, va, sizeBytes, willAnswer),
    copyToGuest: (vcpu, va, bytes, isRepeatable) => engine.data.copyToGuest(vcpu, va, bytes, isRepeatable),
    mustRetry: () => engine.data.mustRetry,
  });
  if (images !== undefined) thread.p2m.loader = new PageLoader(thread.heap, thread.p2m, images);
  const { gic, timers, scheduling, safePoints, hypercalls, environment } = thread;
  const psci = new Psci({
    gic, timers, scheduling,
    resetVcpu: (address, entry, context) => thread.resetVcpu(address, entry, context),
    shutdownDomain: (domid, reason) => hypercalls.sched.shutdown(hypercalls.domains.record(domid), reason),
  });
  const virtio = new VirtioMmio();
  const host = new DomainCpuHost({
    environment, hypercalls, gic, timers, psci,
    gicRegisters: new GicRegisters(gic),
    cpuInterface: new GicCpuInterface(gic),
    devices: new EmulatedDevices(gic, hypercalls.domains, [new Pl011(), virtio, new Pl031(clock)]),
    flushDecodeCache: regionEpoch => flushDecodeCache(regionEpoch),
    stopCode: action => safePoints.stopWorld(() => {
      action();
      engine.decodeCache.renew();
    }),
    forgetFrame: (vcpu, mfn) => engine.forgetFrame(vcpu, mfn),
    flushOthers: (domid, vcpu, request, asid) => safePoints.flushTlbs(domid, { except: vcpu.address, request, asid }),
  });
  const engine = new Engine(machine, host, interpreter, { pcpu, ...(regions && { regions }) });
  /** No vCPU has an entry in its exec TLB for a slot that is given back: all of them flush before they run on. */
  function flushDecodeCache(regionEpoch?: number): void {
    safePoints.stopWorld(() => {
      engine.decodeCache.empty(regionEpoch);
      for (let number = 0; number < machine.parameters.vcpuCount; number++) {
        engine.requestTlbFlush(machine.vcpuAddress(number));
      }
    });
  }
  return { thread, host, engine, virtio };
}

/**
 * @param interpreter compiled by the host, from `buildInterpreter`
 * @param port to the host, which posts images (image-source.ts), and first of all hears that vCPUs are run from now on
 * @returns when the host closes
 */
export function runPcpu(
  { memory, pcpu, translator, lanes }: PCpuWorkerData, interpreter: WebAssembly.Module, port: MessagePort,
): void {
  const machine = MachineMemory.attach(memory);
  const { thread, host, engine, virtio } = assemblePcpu({
    machine, pcpu, clock: systemClock, interpreter,
    regions: new RegionClient(machine, regionChannel(translator)), images: new PostedImages(machine, port),
  });
  const { timers, scheduling, safePoints, hypercalls, environment } = thread;
  serveLanes(thread, lanes, virtio);
  const onRunstate = (vcpuAddress: number, runstate: number): void => {
    const caller = host.caller(engine.vcpu(vcpuAddress));
    enterRunstate(caller.domain, caller.vcpuId, runstate, systemClock.monotonicNanos());
    if (runstate === RUNSTATE.running) publishRunstate(environment, caller);
  };
  const onSample = (vcpu: VcpuState, nanos: number): void => {
    const { domain, vcpuId } = host.caller(vcpu);
    port.postMessage(takeSample(engine, vcpu, [domain.domid, vcpuId], nanos));
  };
  const loop = new PCpu(engine, {
    pcpu, machine, scheduling, safePoints, timers, onRunstate, onSample, clock: systemClock,
    idleWork: firstOf(new CodeAhead(new DecodeAhead(machine, engine.decodeCache), safePoints),
      new HeapIdleWork(thread.heap, scheduling, safePoints), new SlotsAhead(engine.decodeCache), new WarmDecoding(engine.decodeCache)),
    stallReason: () => host.lostGfn === undefined ? STALL_OUT_OF_FRAMES : STALL_LOST_PAGE + host.lostGfn,
    onStall: domid => notifyHostOf(hypercalls.domains.record(0), domid),
  });
  port.postMessage('runs');
  loop.runLoop();
}
