// The stock Debian kernel boots twice from the same state, interpreted and compiled, in deterministic virtual time: after
// every slice both have retired as many instructions and have the same registers, and now and then the same memory.
//
//   ZAZEN_LOCKSTEP_MILLIONS=n  millions of instructions (default 60; `all`: until a command has run and the guest is off)
//   ZAZEN_LOCKSTEP_SLICE=n     instructions between comparisons of registers (default 20000)
//   ZAZEN_SEED=n               other random numbers

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RegionStore } from '../../src/cpu/jit/region-store.ts';
import type { TestRegionOptions } from '../../src/cpu/test-regions.ts';
import { DeterministicGuest, fieldAt } from './deterministic-guest.ts';
import { FAST_BOOT } from '../guest/guests.ts';

const MILLION = 1e6;
const { ZAZEN_LOCKSTEP_MILLIONS: asked = '60', ZAZEN_LOCKSTEP_SLICE: wantedSlice = '20000', ZAZEN_SEED: seed = '26' } = process.env;
const LIMIT = asked === 'all' ? Infinity : Number(asked) * MILLION;
const SLICE = Number(wantedSlice);
/** Compiling again and again takes its time. */
const TINY_LIMIT = 4 * MILLION;
const FRAMES_EVERY = 20 * MILLION;
const STORED_LIMIT = 20 * MILLION;
/** Each brings the one that is behind to where the other is, or past it. */
const CATCH_UPS_MAX = 1000;

/**
 * The compiled one goes first; where it stops, the interpreter can stop nearly always.
 * @returns whether the slice was cut short, as by YIELD
 */
function step(compiled: DeterministicGuest, interpreted: DeterministicGuest, slice: number): boolean {
  const target = compiled.retired + slice;
  compiled.run(slice);
  const isShort = compiled.retired < target;
  for (let attempt = 0; compiled.retired !== interpreted.retired; attempt++) {
    assert.ok(attempt < CATCH_UPS_MAX, `no common place to stop: compiled ${compiled}; interpreted ${interpreted}`);
    const behind = compiled.retired < interpreted.retired ? compiled : interpreted;
    // In a loop, each may have places of its own where it stops: they get past it together.
    behind.run(Math.abs(compiled.retired - interpreted.retired) + (attempt % 8 === 7 ? 100 * attempt : 0));
  }
  return isShort;
}

function compareRegisters(compiled: DeterministicGuest, interpreted: DeterministicGuest, lastPc: bigint): void {
  const [a, b] = [compiled.registers(), interpreted.registers()];
  if (Buffer.compare(a, b) === 0) return;
  const offsets = [...a.keys()].filter(offset => a[offset] !== b[offset]);
  const names = [...new Set(offsets.map(offset => fieldAt(offset & ~7)))];
  assert.fail(`after ${compiled.retired} instructions, in the slice from 0x${lastPc.toString(16)} to 0x${compiled.pc.toString(16)}, `
    + `they differ in ${names.join(', ')}`);
}

function compareFrames(compiled: DeterministicGuest, interpreted: DeterministicGuest): void {
  const [a, b] = [compiled.frames(), interpreted.frames()].map(({ buffer, byteOffset, length }) => Buffer.from(buffer, byteOffset, length)) as [Buffer, Buffer];
  if (a.equals(b)) return;
  const first = a.findIndex((byte, i) => byte !== b[i]);
  const words = (frames: Buffer): string => frames.subarray(first & ~7, (first & ~7) + 16).toString('hex');
  assert.fail(`after ${compiled.retired} instructions frame ${first >>> 12} differs at 0x${(first & 0xfff).toString(16)}: `
    + `${words(a)} compiled, ${words(b)} interpreted`);
}

interface Variant {
  readonly name: string;
  readonly regions: TestRegionOptions;
  readonly limit: number;
  readonly slice: number;
}
const [emitted, stored] = [new RegionStore(), new RegionStore()];
const variants: readonly Variant[] = [
  { name: 'compiled', regions: { quantumMin: 500, hotSamples: 1, followCallsAfter: 20_000, store: emitted }, limit: LIMIT, slice: SLICE },
  {
    name: 'with the regions of that boot, found in a store', regions: { quantumMin: 500, store: stored }, slice: SLICE,
    limit: LIMIT === Infinity ? LIMIT : Math.min(LIMIT, STORED_LIMIT),
  },
  // What is compiled is given up all the time.
  {
    name: 'compiled with room for 12 regions of 6 instructions, in short slices', slice: 700, limit: Math.min(LIMIT, TINY_LIMIT),
    regions: { quantumMin: 50, quantumMax: 500, hotSamples: 1, regionMax: 6, regionCountMax: 12 },
  },
];

for (const { name, regions, limit, slice } of variants) {
  test(`a boot of Debian is the same interpreted and ${name}`, async t => {
    const spec = { kernel: 'debian', memory: '128MiB', cmdline: FAST_BOOT, exec: 'echo so far $((6 * 7))' };
    const options = { memoryBytes: 384 * 2 ** 20, seed: Number(seed) };
    console.log(`seed ${seed} (ZAZEN_SEED)`);
    const compiled = await DeterministicGuest.create(spec, { ...options, regions });
    const interpreted = await DeterministicGuest.create(spec, options);
    const { translator } = compiled;
    let nextFrames = 0;
    let running = true;
    while (running && compiled.retired < limit) {
      const lastPc = compiled.pc;
      const isShort = step(compiled, interpreted, slice);
      compareRegisters(compiled, interpreted, lastPc);
      if (compiled.retired >= nextFrames) {
        compareFrames(compiled, interpreted);
        nextFrames += FRAMES_EVERY;
      }
      const [first, second] = [await compiled.settle(isShort), await interpreted.settle(isShort)];
      assert.equal(first, second);
      running = first;
    }
    compareFrames(compiled, interpreted);
    assert.equal(compiled.console, interpreted.console);
    t.diagnostic(`${compiled.retired} instructions, ${translator!.regionCount} regions, given up ${translator!.resets} times`);
    assert.ok(translator!.regionCount > 100 || translator!.resets > 5, 'hot code was compiled');
    if (limit === Infinity) assert.match(compiled.console, /so far 42/);
    for (const guest of [compiled, interpreted]) await guest.close();
    if (regions.store === stored) assert.ok(stored.used.size > 100, 'regions were found in the store');
    for (const region of emitted.takeFresh()) stored.learn(region);
  });
}
