// What an access to a register of an emulated device costs: a bare-metal guest of type hvm reads a flag register of the
// serial port, or a status register of a virtio device, or writes one, in a loop, on hosts with 1, 2 and N pCPUs in
// turn. The other pCPUs are idle: as many guests that compute would measure the processors. What is checked: the guest
// gets to its end, and made as many accesses as it should, none of which had anything to tell the host, and no pCPU was
// woken meanwhile but to run the guest. That an access allocates nothing and changes nothing of anybody else's is tested in
// src/hypervisor/emulated-devices.test.ts.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  GUEST_PL011_BASE, GUEST_VIRTIO_MMIO_BASE, PL011, VIRTIO_MMIO,
} from '../src/abi/emulated-devices.ts';
import { assert } from '../src/base/assert.ts';
import type { Assembler } from '../src/a64/test-assembler.ts';
import { Host } from '../src/host/index.ts';
import { MEMORY, bareMetalImage, powerOff, repeat } from '../test/bare-metal.ts';
import type { Benchmark } from './run.ts';
import { settled } from './settled.ts';
import { round, summarize } from './statistics.ts';

const ACCESSES = 200_000;
const RUNS = 21;
/** Of all pCPUs, while a guest is made and runs: for the guest, and for what the host does by itself now and then. */
const WAKE_UPS_MAX = 100;
const PCPUS = [...new Set([1, 2, Math.max(4, availableParallelism())])];

interface Access {
  readonly address: number;
  readonly isStore: boolean;
}

const accesses: Readonly<Record<string, Access>> = {
  pl011Load: { address: GUEST_PL011_BASE + PL011.FR, isStore: false },
  pl011Store: { address: GUEST_PL011_BASE + PL011.IMSC, isStore: true },
  virtioLoad: { address: GUEST_VIRTIO_MMIO_BASE + VIRTIO_MMIO.InterruptStatus, isStore: false },
  virtioStore: { address: GUEST_VIRTIO_MMIO_BASE + VIRTIO_MMIO.QueueSel, isStore: true },
};

class Bench {
  /** Of all pCPUs, by a guest that makes ACCESSES of them. */
  wakeUpsMost = 0;
  readonly #folder = mkdtempSync(join(tmpdir(), 'zazen-bench-'));

  #kernel(name: string, code: (a: Assembler) => void): string {
    const path = join(this.#folder, name);
    writeFileSync(path, bareMetalImage({ code }));
    return path;
  }

  /** @returns nanoseconds on the pCPU, of everything that the guest does */
  async #run(host: Host, name: string, times: number): Promise<number> {
    const { address, isStore } = accesses[name]!;
    const kernel = this.#kernel(`${name}-${times}`, (a) => {
      a.mov(1, address).mov(2, 0);
      const row = isStore ? 'STR W (unsigned offset)' : 'LDR W (unsigned offset)';
      if (times > 0) repeat(a, times, () => { a.emit(row, { Rn: 1, Rt: 2 }); });
      powerOff(a);
    });
    await using domain = await host.create({ type: 'hvm', kernel, initrd: 'none', memory: MEMORY });
    assert(await domain.waitForShutdown() === 'poweroff', 'the guest did not get to its end');
    const { runMillis, emulated } = domain.stats();
    assert(emulated!.accesses === times && emulated!.hostCalls === 0, 'the guest made other accesses than it should');
    return runMillis * 1e6;
  }

  /** Every pCPU's thread has our code compiled for itself: so many guests at once as there are pCPUs, twice. */
  async warmUp(host: Host, name: string, pcpus: number): Promise<void> {
    for (let times = 0; times < 2; times++) {
      await Promise.all(Array.from({ length: pcpus }, () => this.#run(host, name, ACCESSES)));
    }
  }

  /** @returns nanoseconds of each in a loop, the loop's own few included */
  async measure(host: Host, name: string): Promise<number> {
    const wakeUps = (): number => host.stats().pcpus.reduce((sum, pcpu) => sum + pcpu.wakeUps, 0);
    const empty = await this.#run(host, name, 0);
    const before = wakeUps();
    const all = await this.#run(host, name, ACCESSES);
    this.wakeUpsMost = Math.max(this.wakeUpsMost, wakeUps() - before);
    assert(this.wakeUpsMost < WAKE_UPS_MAX, 'accesses wake pCPUs');
    return (all - empty) / ACCESSES;
  }

  [Symbol.dispose](): void {
    rmSync(this.#folder, { recursive: true });
  }
}

/** On all hosts in turn, so that what disturbs disturbs all. @returns samples by pCPUs, one of each round */
async function measureInTurn(bench: Bench, name: string, hosts: ReadonlyMap<number, Host>): Promise<Map<number, number[]>> {
  const samples = new Map<number, number[]>(PCPUS.map((pcpus) => [pcpus, []]));
  for (const [pcpus, host] of hosts) await bench.warmUp(host, name, pcpus);
  for (let run = 0; run < RUNS; run++) {
    for (const [pcpus, host] of hosts) samples.get(pcpus)!.push(await bench.measure(host, name));
  }
  return samples;
}

async function measureAll(bench: Bench, log: (line: string) => void) {
  const hosts = new Map<number, Host>();
  try {
    for (const pcpus of PCPUS) hosts.set(pcpus, await Host.start({ pcpus, memory: '512MiB' }));
    await Promise.all([...hosts.values()].map(settled));
    const result: Record<string, unknown> = {};
    let [worstNanos, worstRatio] = [0, 0];
    for (const name of Object.keys(accesses)) {
      const samples = await measureInTurn(bench, name, hosts);
      const nanos = Object.fromEntries([...samples].map(([pcpus, values]) => [`${pcpus} pCPUs`, summarize(values)]));
      const [one, ...more] = [...samples.values()];
      // Of each round, so that a round in which the machine was slow counts as no more than one.
      const mostToOne = Math.max(...more.map((values) => summarize(values.map((value, i) => value / one![i]!)).median));
      result[name] = { nanos, mostToOne: round(mostToOne) };
      const medians = Object.values(nanos).map(({ median }) => median);
      worstNanos = Math.max(worstNanos, ...medians);
      worstRatio = Math.max(worstRatio, mostToOne);
      log(`${name}: ${medians.map((median) => `${round(median)} ns`).join(', ')} with ${PCPUS.join(', ')} pCPUs`);
    }
    return { ...result, worstNanos: round(worstNanos), worstRatio: round(worstRatio), wakeUpsMost: bench.wakeUpsMost };
  } finally {
    for (const host of hosts.values()) await host.close();
  }
}

const benchmark: Benchmark = {
  name: 'emulated-access',
  description: 'nanoseconds of an access to a PL011 and to a virtio register, with 1, 2 and more pCPUs',
  async run({ log }) {
    using bench = new Bench();
    return await measureAll(bench, log);
  },
};
export default benchmark;
