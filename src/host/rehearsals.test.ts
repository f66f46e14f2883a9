// A bare-metal guest that touches pages in an order of its own: what a rehearsal of it finds, and that nothing of it is
// left, in the guest or in the host.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { PATIENCE_MILLIS } from '../../test/patience.ts';
import { Assembler } from '../a64/test-assembler.ts';
import { DOMAIN } from '../abi/domain-record.ts';
import { FRAME_BYTES, P2M_KIND } from '../abi/machine-memory.ts';
import { GUEST_RAM0_BASE } from '../abi/xen.ts';
import { runsOf } from '../cpu/decode-ahead.ts';
import { DecodeCache } from '../cpu/decode-cache.ts';
import { WordDecoder } from '../cpu/word-decoder.ts';
import { systemClock } from '../base/clock.ts';
import { SeededRandom } from '../base/random.ts';
import { freezeDomain } from '../lifecycle/checkpoint.ts';
import { entryKind } from '../memory/p2m.ts';
import { HostCore } from './host-core.ts';
import { Rehearsal } from './rehearsals.ts';

const RAM_GFN = GUEST_RAM0_BASE / FRAME_BYTES;
const RAM_PAGES = 2048;
const CODE_GFN = RAM_GFN + 1;
/** In several nodes of the p2m; of the pages from here on, every other is written. */
const TOUCHED = [700, 3, 1500, 701, 40, 512, 41].map((page) => RAM_GFN + page);
/** Never written before, and so in no frame: one is read, one written. */
const ZERO = [900, 1700].map((page) => RAM_GFN + page);
/** Behind all that, a whole gigabyte that would be written. */
const GREEDY_GFN = RAM_GFN + RAM_PAGES;
const GREEDY_PAGES = 2 ** 18;
/** In frames like those, and not touched. */
const UNTOUCHED = [4, 702, 1501].map((page) => RAM_GFN + page);

/** Loads from and stores to the pages in turn; then writes to all pages of the memory that follow, and is lost behind it. */
function program(): Uint32Array {
  const a = new Assembler(BigInt(CODE_GFN * FRAME_BYTES));
  a.mov(1, ZERO[0]! * FRAME_BYTES).ldr(2, 1).mov(1, ZERO[1]! * FRAME_BYTES).str(1, 1);
  TOUCHED.forEach((gfn, i) => {
    a.mov(1, gfn * FRAME_BYTES);
    if (i % 2 === 0) a.ldr(2, 1);
    else a.str(1, 1);
  });
  a.mov(1, GREEDY_GFN * FRAME_BYTES).mov(2, FRAME_BYTES);
  return Uint32Array.from(a.label('again').str(1, 1).addReg(1, 1, 2).b('again').words());
}

async function startCore(): Promise<HostCore> {
  const core = new HostCore({
    memoryBytes: 256 * 2 ** 20, pcpus: 1, clock: systemClock, random: new SeededRandom(1), log: () => {},
  });
  core.startWorkers();
  return core;
}

test('a rehearsal tells which pages are touched and in which order, and leaves nothing', { timeout: PATIENCE_MILLIS }, async (t) => {
  const core = await startCore();
  t.after(() => core.close());
  const { thread, builder } = core;
  const { machine, p2m, heap, scheduling } = thread;
  const vcpuAddresses = core.takeVcpus(1)!;
  const { domain } = builder.createDomain({ vcpuAddresses, handle: new Uint8Array(16), maxPages: RAM_PAGES + GREEDY_PAGES })!;
  assert(builder.addRam(domain, RAM_GFN, RAM_PAGES + GREEDY_PAGES));
  core.unseen.add(domain);
  const root = domain.get(DOMAIN.at.p2mRoot);
  const frame = (gfn: number): number => p2m.frameForWrite(root, gfn);
  for (const gfn of [...TOUCHED, ...UNTOUCHED]) machine.frameBytes(frame(gfn)).fill(gfn % 251);
  machine.frameBytes(frame(CODE_GFN)).set(new Uint8Array(program().buffer));
  p2m.releaseStale();
  thread.gic.resetDomain(domain.domid, vcpuAddresses);
  scheduling.attach(vcpuAddresses[0]!);
  thread.timers.setTime(domain.domid, 0);
  scheduling.start(vcpuAddresses[0]!, () => thread.resetVcpu(vcpuAddresses[0]!, BigInt(CODE_GFN * FRAME_BYTES), 0n));
  const frozen = freezeDomain(thread, domain);
  assert(typeof frozen === 'object');
  core.frozenRoots.add(frozen.root);
  const audited = (): void => {
    heap.tearDown.finish();
    assert.deepEqual(core.audit().problems, []);
  };
  audited();
  const used = heap.stats().used;

  // Code that somebody else has run.
  const decoding = new DecodeCache(machine, new WordDecoder());
  decoding.decodeAhead(decoding.slotFor(p2m.frameForRead(frozen.root, CODE_GFN)), 1000, 4);
  const rehearsal = Rehearsal.begin(core, frozen)!;
  assert(rehearsal !== undefined);
  audited();
  const last = TOUCHED.at(-1)!;
  const touchedSoFar = (): readonly number[] => rehearsal.touched();
  for (const start = performance.now(); !touchedSoFar().includes(last); await sleep(1)) {
    assert(performance.now() - start < PATIENCE_MILLIS, `it came no further than ${touchedSoFar().map((gfn) => gfn - RAM_GFN)}`);
  }
  const unseen = [...core.unseen].find((record) => record !== domain)!;
  for (const start = performance.now(); unseen.get(DOMAIN.at.stalled) === 0; await sleep(1)) {
    assert(performance.now() - start < PATIENCE_MILLIS, 'it has all the memory that it wants');
  }
  assert(heap.stats().used - used < 2100, `it has taken ${heap.stats().used - used} frames`);
  const { touched, code } = rehearsal.end();
  assert.deepEqual([...code.keys()], [CODE_GFN]);
  assert.deepEqual(runsOf(code.get(CODE_GFN)!), [program().length - 1]);
  assert.deepEqual(touched.filter((gfn) => gfn >= RAM_GFN && gfn < RAM_GFN + RAM_PAGES), [CODE_GFN, ...ZERO, ...TOUCHED]);
  assert.equal(rehearsal.end().touched, touched);
  for (const gfn of [...TOUCHED, ...UNTOUCHED]) {
    for (const each of [root, frozen.root]) {
      assert(machine.frameBytes(p2m.frameForRead(each, gfn)).every((byte) => byte === gfn % 251), `page ${gfn} has changed`);
    }
  }
  for (const gfn of ZERO) assert.equal(entryKind(p2m.lookup(frozen.root, gfn)), P2M_KIND.zero);
  audited();
  assert.equal(heap.stats().used, used);
  assert.equal(core.unseen.size, 1);

  // Where there is no room, there is none.
  const taken = core.takeVcpus(machine.parameters.vcpuCount - 1)!;
  assert.equal(Rehearsal.begin(core, frozen), undefined);
  core.returnVcpus(taken);
  const spare = heap.stats().total - heap.stats().used - 1000;
  const hoarded = Array.from({ length: spare }, () => heap.allocate(domain.domid, true));
  assert.equal(Rehearsal.begin(core, frozen), undefined);
  for (const mfn of hoarded) heap.release(mfn);
  audited();
});
