// What compiled regions take of the process's memory, measured where it is: in executable mappings that are no file's. It
// stays within what 64 MiB of emitted code, the bound, are said to become (docs/performance.md), 256 MiB, however much code
// comes and goes. Here with a smaller bound, and in proportion.
//
//   ZAZEN_CODE_MIB=64    the bound in MiB (default 1; a long run takes minutes)

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { SeededRandom } from '../../src/base/random.ts';
import { ProgramRunner } from './program-runner.ts';
import { DATA_BYTES, longProgram } from './long-programs.ts';

const MIB = 2 ** 20;
const BOUND_BYTES = Number(process.env['ZAZEN_CODE_MIB'] ?? 1) * MIB;
/** 256 MiB for 64. */
const BYTES_OF_EACH = 4;
/** The bound is reached so often: code that was given up must have gone by then. */
const RESETS = 2;
/** Machine code of TypeScript comes and goes as well. */
const OTHER_BYTES = 2 * MIB;

/** Resident bytes of executable mappings without a file; undefined where the system does not tell. */
function executableBytes(): number | undefined {
  if (process.platform !== 'linux') return undefined;
  let total = 0;
  let counts = false;
  for (const line of readFileSync('/proc/self/smaps', 'utf8').split('\n')) {
    const mapping = /^[0-9a-f]+-[0-9a-f]+ (\S{4}) \S+ \S+ (\d+) *(\S*)/.exec(line);
    if (mapping !== null) counts = mapping[1]!.includes('x') && mapping[2] === '0' && !mapping[3]!.startsWith('[v');
    else if (counts && line.startsWith('Rss:')) total += Number(/\d+/.exec(line)![0]) * 1024;
  }
  return total;
}

test('machine code of regions is bounded as their emitted code is', async (t) => {
  if (executableBytes() === undefined) return t.skip('needs /proc/self/smaps');
  const random = new SeededRandom(1);
  const data = Uint8Array.from({ length: DATA_BYTES }, () => random.below(256));
  const runner = new ProgramRunner({ regions: { codeMaxBytes: BOUND_BYTES, quantumMin: 100, quantumMax: 200, hotSamples: 1 } });
  // What TypeScript and the interpreter need is there after some programs.
  for (let i = 0; i < 10; i++) runner.run(longProgram(random, { pieces: 24, faults: false }), data);
  const before = executableBytes()!;
  let peak = 0;
  let peakEmitted = 0;
  let programs = 0;
  for (; runner.resets < RESETS; programs++) {
    const words = longProgram(random, { pieces: 24, faults: false });
    for (let round = 0; round < 4; round++) runner.run(words, data);
    // V8 optimises, and frees what is not used any more, beside this thread.
    await sleep(1);
    peakEmitted = Math.max(peakEmitted, runner.emittedBytes);
    peak = Math.max(peak, executableBytes()! - before);
  }
  const said = (bytes: number): string => `${(bytes / MIB).toFixed(1)} MiB`;
  t.diagnostic(`${programs} programs, at most ${said(peakEmitted)} emitted, ${said(peak)} of machine code beside ${said(before)}`);
  assert(peakEmitted > BOUND_BYTES / 2);
  assert(peak <= BYTES_OF_EACH * BOUND_BYTES + OTHER_BYTES, `${said(peak)} of machine code`);
});
