// Micro-benchmarks of the interpreter: dispatch, TLB hit, TLB miss, trap to the host and back. Nanoseconds per
// instruction (dispatch) or per access beyond the loop around it.

import { vcpuRecord } from '../src/abi/vcpu.ts';
import { GUEST_BASE, createTestMachine } from '../src/cpu/test-machine.ts';
import type { TestMachine } from '../src/cpu/test-machine.ts';
import { assert } from '../src/base/assert.ts';
import { round, summarize } from './statistics.ts';
import type { Benchmark } from './run.ts';

const at = vcpuRecord.at;
const HVC_STOP = 0xd4000842;
const DATA = GUEST_BASE + 0x10_0000;

interface Case {
  readonly name: string;
  /** The body of a loop that counts x0 down; x1 points to data. */
  readonly body: readonly number[];
  readonly iterations: number;
  readonly check: (machine: TestMachine, iterations: number) => boolean;
}

const ADD_X4 = 0x91000484; // add x4, x4, #1
const cases: readonly Case[] = [
  { name: 'dispatch', body: Array.from({ length: 8 }, () => ADD_X4), iterations: 2_000_000,
    check: (m, n) => m.vcpu.x(4) === BigInt(8 * n) },
  // ldr x3, [x1]; add x4, x4, x3 (the word there is 1)
  { name: 'tlbHit', body: Array.from({ length: 8 }, () => [0xf9400023, 0x8b030084]).flat(), iterations: 1_000_000,
    check: (m, n) => m.vcpu.x(4) === BigInt(8 * n) },
  // ldr x3, [x1]; ldr x3, [x5]: 2 MiB apart, so they share a TLB entry and each misses
  { name: 'tlbMiss', body: [0xf9400023, 0xf94000a3, ADD_X4], iterations: 100_000,
    check: (m, n) => m.vcpu.x(4) === BigInt(n) },
  // mrs x3, CNTFRQ_EL0: a trap that the host answers
  { name: 'hostCall', body: [0xd53be003, ADD_X4], iterations: 200_000,
    check: (m, n) => m.vcpu.x(4) === BigInt(n) && m.vcpu.x(3) === 62_500_000n },
];

function runCase(machine: TestMachine, { body, iterations, check, name }: Case): { nanos: number; retired: number } {
  const words = [...body, 0xf1000400]; // subs x0, x0, #1
  const back = 0x54000001 | ((-words.length & 0x7ffff) << 5); // b.ne to the start
  machine.load(GUEST_BASE, [...words, back >>> 0, HVC_STOP]);
  const { vcpu, engine, host } = machine;
  vcpu.setX(0, BigInt(iterations));
  vcpu.setX(1, BigInt(DATA));
  vcpu.setX(4, 0n);
  vcpu.setX(5, BigInt(DATA + 2 * 2 ** 20));
  machine.ram[DATA - GUEST_BASE] = 1;
  vcpu.set64(at.pcBase, BigInt(GUEST_BASE));
  const before = vcpu.get64(at.instructionsRetired);
  const start = performance.now();
  while (engine.run(vcpu, 1_000_000) === 'slice');
  const nanos = (performance.now() - start) * 1e6;
  assert(host.hypercalls.length === 1 && check(machine, iterations), `wrong result in ${name}`);
  host.hypercalls.length = 0;
  return { nanos, retired: Number(vcpu.get64(at.instructionsRetired) - before) };
}

const benchmark: Benchmark = {
  name: 'interpreter',
  description: 'dispatch, TLB hit, TLB miss, call to the host',
  async run({ log }) {
    const machine = createTestMachine();
    const results: Record<string, unknown> = {};
    for (const one of cases) {
      for (let i = 0; i < 3; i++) runCase(machine, one);
      const runs = Array.from({ length: 15 }, () => runCase(machine, one));
      const nanosPerIteration = summarize(runs.map(run => run.nanos / one.iterations));
      const mips = summarize(runs.map(run => run.retired / run.nanos * 1000));
      log(`${one.name}: ${round(nanosPerIteration.median)} ns an iteration of ${one.body.length + 2}, `
        + `${round(mips.median)} MIPS`);
      results[one.name] = { instructionsPerIteration: one.body.length + 2, nanosPerIteration, mips: mips.median };
    }
    return results;
  },
};
export default benchmark;
