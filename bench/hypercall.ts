// What a hypercall costs a guest: a bare-metal guest makes xen_version calls in a loop, then writes to the interrupt
// controller's registers (an emulated access), then reads the counter. Times are of the whole loop on a pCPU. What is
// checked: the guest gets to its end, and has made as many hypercalls as it should.

import { writeFileSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { assert } from '../src/base/assert.ts';
import type { Assembler } from '../src/a64/test-assembler.ts';
import { Host } from '../src/host/index.ts';
import { MEMORY, bareMetalImage, hypercall, powerOff, repeat } from '../test/bare-metal.ts';
import type { Benchmark } from './run.ts';
import { round, summarize } from './statistics.ts';

const CALLS = 200_000;
const RUNS = 5;
const PCPUS = [1, 2, 4];
const GICD_CTLR = 0x0300_1000;
const XENVER_VERSION = 0;

const bodies: Readonly<Record<string, (a: Assembler) => void>> = {
  hypercall: a => { a.mov(0, XENVER_VERSION); hypercall(a, 'xen_version'); },
  emulatedLoad: a => { a.mov(1, GICD_CTLR).emit('LDR W (unsigned offset)', { Rn: 1, Rt: 2 }); },
  counter: a => { a.mrs(3, 'CNTVCT_EL0'); },
};

/** @returns nanoseconds on the pCPU, of everything that the guest does */
async function runGuest(host: Host, folder: string, name: string, times: number): Promise<number> {
  const kernel = join(folder, `${name}-${times}`);
  const code = (a: Assembler): void => {
    if (times > 0) repeat(a, times, () => bodies[name]!(a));
    powerOff(a);
  };
  writeFileSync(kernel, bareMetalImage({ code }));
  await using domain = await host.create({ kernel, initrd: 'none', memory: MEMORY });
  assert(await domain.waitForShutdown() === 'poweroff', 'the guest did not get to its end');
  const { runMillis, hypercalls } = domain.stats();
  assert(hypercalls === (name === 'hypercall' ? times : 0), 'the guest made another number of hypercalls');
  return runMillis * 1e6;
}

/** @returns nanoseconds of each in a loop, the loop's own few included */
async function measure(host: Host, folder: string, name: string): Promise<number> {
  const empty = await runGuest(host, folder, name, 0);
  return (await runGuest(host, folder, name, CALLS) - empty) / CALLS;
}

/** An emulated access on hosts with more and more pCPUs, in turn: it must not cost more for their number. */
async function measureByPcpus(folder: string) {
  const samples = new Map<number, number[]>(PCPUS.map(pcpus => [pcpus, []]));
  for (let run = 0; run < RUNS; run++) {
    for (const pcpus of PCPUS) {
      await using host = await Host.start({ pcpus });
      // The first one compiles our code.
      await measure(host, folder, 'emulatedLoad');
      samples.get(pcpus)!.push(await measure(host, folder, 'emulatedLoad'));
    }
  }
  const nanos = Object.fromEntries([...samples].map(([pcpus, values]) => [`${pcpus} pCPUs`, summarize(values)]));
  const medians = Object.values(nanos).map(({ median }) => median);
  return { nanos, mostToOne: round(medians.at(-1)! / medians[0]!) };
}

const benchmark: Benchmark = {
  name: 'hypercall',
  description: 'nanoseconds of a hypercall, an emulated access (and with several pCPUs) and a counter read',
  async run({ log }) {
    const folder = mkdtempSync(join(tmpdir(), 'zazen-bench-'));
    try {
      const results: Record<string, unknown> = {};
      const host = await Host.start({ pcpus: 1 });
      for (const name of Object.keys(bodies)) {
        const samples: number[] = [];
        for (let run = 0; run < RUNS; run++) samples.push(await measure(host, folder, name));
        const nanos = summarize(samples);
        log(`${name}: ${round(nanos.median)} ns`);
        results[name] = { nanos };
      }
      await host.close();
      const byPcpus = await measureByPcpus(folder);
      log(`emulatedLoad with ${PCPUS.at(-1)} pCPUs takes ${byPcpus.mostToOne} of its time with one`);
      return { ...results, byPcpus };
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
};
export default benchmark;
