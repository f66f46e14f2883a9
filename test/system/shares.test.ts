// Guests with more vCPUs than the host has pCPUs, on a real host: all make progress, locks of vCPUs that spin for each
// other are handed on, nothing is lost when vCPUs move between pCPUs, weights and caps count, and profile and statistics
// show where time went. What is compared are times that the host has given, never the clock on the wall.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import type { Assembler } from '../../src/a64/test-assembler.ts';
import type { Domain } from '../../src/host/index.ts';
import { Host } from '../../src/host/index.ts';
import { PSCI } from '../../src/hypervisor/psci.ts';
import { hostMemory } from '../host-memory.ts';
import { FREE, bareMetalImage, powerOff, spin } from '../bare-metal.ts';
import { until } from '../waiting.ts';

const PCPUS = 2;
const LOCK = FREE;
const COUNTER = FREE + 0x1000;
const DONE = FREE + 0x2000;
const DATA = FREE + 0x3000;
const FLAG = FREE + 0x4000;

const directory = mkdtempSync(join(tmpdir(), 'zazen-shares-'));
const host = await Host.start({ memory: hostMemory('512MiB'), pcpus: PCPUS });
after(async () => {
  const { problems } = await host.audit();
  await host.close();
  rmSync(directory, { recursive: true });
  assert.deepEqual(problems, []);
});

let files = 0;
async function start(code: (a: Assembler) => void, spec: { vcpus?: number; cpuWeight?: number; cpuCapPercent?: number } = {}): Promise<Domain> {
  const kernel = join(directory, `kernel${files++}`);
  writeFileSync(kernel, bareMetalImage({ code }));
  return host.create({ kernel, initrd: 'none', memory: '40MiB', ...spec });
}

/** vCPU 0 powers on the others, which begin at the label `all` with their number in x19, as it does itself. */
function powerOnAll(a: Assembler, vcpus: number): void {
  a.mov(20, 1).label('next').mov(0, PSCI.CPU_ON_64).movReg(1, 20).adr(2, 'all').movReg(3, 20).hvc(0);
  a.add(20, 20, 1).cmp(20, vcpus).bCond('ne', 'next').mov(0, 0);
  a.label('all').movReg(19, 0);
}
/** Then vCPU 0 waits for all and checks `COUNTER`; the guest reboots if it is wrong. */
function finishAll(a: Assembler, vcpus: number, wanted: number): void {
  a.mov(1, 1).mov(2, DONE).ldadd(1, 3, 2).cbz(19, 'wait').label('off').mov(0, 0x8400_0002).hvc(0).b('off');
  a.label('wait').emit('YIELD').ldar(3, 2).cmp(3, vcpus).bCond('ne', 'wait');
  a.mov(1, COUNTER).ldr(3, 1).mov(4, wanted).emit('SUBS (register)', { sf: 1, Rm: 4, Rn: 3, Rd: 31 }).bCond('eq', 'right');
  a.mov(0, PSCI.SYSTEM_RESET).hvc(0).label('right');
  powerOff(a);
}

test('five vCPUs on two pCPUs take turns by ticket locks, spinning with YIELD, and lose nothing', async () => {
  const [VCPUS, ROUNDS] = [5, 200];
  const guest = await start(a => {
    powerOnAll(a, VCPUS);
    a.mov(20, LOCK).mov(21, COUNTER).mov(22, ROUNDS).label('round');
    a.mov(1, 1).emit('LDADD', { size: 3, A: 1, R: 0, Rs: 1, Rn: 20, Rt: 2 }).add(5, 20, 64);
    a.label('spin').ldar(3, 5).emit('SUBS (register)', { sf: 1, Rm: 2, Rn: 3, Rd: 31 }).bCond('eq', 'mine').emit('YIELD').b('spin');
    a.label('mine').ldr(3, 21).add(3, 3, 1).str(3, 21).add(2, 2, 1).stlr(2, 5);
    a.subs(22, 22, 1).bCond('ne', 'round');
    finishAll(a, VCPUS, VCPUS * ROUNDS);
  }, { vcpus: VCPUS });
  assert.equal(await guest.waitForShutdown(), 'poweroff');
  await guest.destroy();
});

test('messages pass in order between vCPUs that move from pCPU to pCPU', async () => {
  // vCPU 0 and 2 write data and then a flag; 1 and 3 read flag and data; a fifth only keeps a pCPU busy.
  const [VCPUS, ROUNDS] = [5, 300_000];
  const guest = await start(a => {
    powerOnAll(a, VCPUS);
    a.mov(20, DATA).mov(21, FLAG).mov(22, ROUNDS).mov(23, 0);
    a.cmp(19, 2).bCond('cc', 'pair').add(20, 20, 8).add(21, 21, 8).label('pair').cmp(19, 4).bCond('eq', 'busy');
    a.tbnz(19, 0, 'reader').label('writer').add(23, 23, 1).str(23, 20).stlr(23, 21)
      .emit('SUBS (register)', { sf: 1, Rm: 22, Rn: 23, Rd: 31 }).bCond('ne', 'writer').b('done');
    a.label('reader').ldar(1, 21).ldr(2, 20).emit('SUBS (register)', { sf: 1, Rm: 1, Rn: 2, Rd: 31 }).bCond('cc', 'wrong')
      .emit('SUBS (register)', { sf: 1, Rm: 22, Rn: 1, Rd: 31 }).bCond('ne', 'reader').b('done');
    a.label('wrong').mov(0, PSCI.SYSTEM_RESET).hvc(0);
    a.label('busy').add(23, 23, 1).emit('SUBS (register)', { sf: 1, Rm: 22, Rn: 23, Rd: 31 }).bCond('ne', 'busy');
    a.label('done');
    finishAll(a, VCPUS, 0);
  }, { vcpus: VCPUS });
  assert.equal(await guest.waitForShutdown(), 'poweroff');
  await guest.destroy();
});

const millis = (guest: Domain): number => guest.stats().runMillis;

test('guests that want the pCPUs get them by weight, and a weight may change', async () => {
  const guests = [await start(spin, { vcpus: 1, cpuWeight: 100 }), await start(spin, { cpuWeight: 200 }), await start(spin, { cpuWeight: 300 })];
  const [light, , heavy] = guests as [Domain, Domain, Domain];
  // Of two pCPUs, by weights: 1/3, 2/3 and 1.
  const from = guests.map(millis);
  const had = (): number[] => guests.map((guest, i) => millis(guest) - from[i]!);
  await until('a second has been given', () => had().reduce((sum, each) => sum + each) > 1200);
  // Widely, and in the long run: what a pCPU's thread waits for a core of its own counts as given. scheduler.test.ts has
  // the exact shares.
  await until('each has had what its weight says', () => {
    const [one, two, three] = had() as [number, number, number];
    return two > 1.4 * one && two < 3 * one && three > 1.8 * one && three < 5 * one;
  });
  light.setCpuShare({ cpuWeight: 30_000 });
  assert.deepEqual([light.stats().cpuWeight, light.stats().cpuCapPercent], [30_000, 0]);
  const again = guests.map(millis);
  await until('the light one has more than the heavy one', () => millis(light) - again[0]! > 1.3 * (millis(heavy) - again[2]!) + 50);
  assert.throws(() => light.setCpuShare({ cpuWeight: 0 }), { code: 'ZAZEN_SPEC_CPU_SHARE' });
  const checkpoint = await light.checkpoint();
  const [fork] = await checkpoint.fork();
  assert.equal(fork!.stats().cpuWeight, 30_000);
  await checkpoint.destroy();
  for (const guest of [...guests, fork!]) await guest.destroy();
});

test('a cap holds though pCPUs are idle; without it the guest goes on', async () => {
  const guest = await start(spin, { cpuCapPercent: 20 });
  const other = await start(spin);
  const from = [millis(guest), millis(other)];
  await until('the other one has had a second', () => millis(other) - from[1]! > 1000);
  const had = millis(guest) - from[0]!;
  // Both have a pCPU of their own; the host takes the same from both.
  assert.ok(had < 0.6 * (millis(other) - from[1]!), `${had} ms of a capped guest`);
  assert.ok(had > 0, 'it runs at all');
  guest.setCpuShare({ cpuCapPercent: 0 });
  const then = [millis(guest), millis(other)];
  await until('it has its pCPU again', () => millis(guest) - then[0]! > 0.5 * (millis(other) - then[1]!) && millis(guest) - then[0]! > 100);
  for (const one of [guest, other]) await one.destroy();
});

test('a profile of a guest without names shows addresses, each with its share of the time, and who called it', async () => {
  const PLACES = { main: 0, short: 0, long: 0 };
  const guest = await start(a => {
    const count = (loops: number): void => {
      a.emit('STP X (pre-index)', { Rt: 29, Rt2: 30, Rn: 31, imm7: -2 }).add(29, 31, 0).mov(1, loops);
      const label = `count ${loops}`;
      a.label(label).subs(1, 1, 1).bCond('ne', label).emit('LDP X (post-index)', { Rt: 29, Rt2: 30, Rn: 31, imm7: 2 }).ret();
    };
    a.mov(1, FREE + 0x10000).movSp(31, 1).mov(29, 0).mov(30, 0).b('main').label('short');
    PLACES.short = Number(a.here);
    count(3000);
    a.label('long');
    PLACES.long = Number(a.here);
    count(30_000);
    a.label('main');
    PLACES.main = Number(a.here);
    a.bl('short').bl('long').b('main');
  });
  const profiling = guest.profile({ intervalMicros: 200 });
  const from = millis(guest);
  const seen = host.stats().activity;
  await until('it has run for a while', () => millis(guest) - from > 400);
  await until('the host has looked at it', () => host.stats().activity.code > seen.code + 20);
  const { codeCache, pcpus, activity } = host.stats();
  assert.ok(activity.idle > seen.idle, 'the other pCPU has nothing to do');
  assert.ok(codeCache.usedPages > 0 && codeCache.usedPages <= codeCache.pages && codeCache.regions > 0, JSON.stringify(codeCache));
  assert.ok(pcpus.some(({ compiledMillis, busyMillis }) => compiledMillis > 0 && compiledMillis <= busyMillis));
  assert.ok(guest.stats().tlbMisses > 0);
  const profile = await profiling.stop();
  assert.equal(await profiling.stop(), profile);
  for (const line of profile.toFolded().trim().split('\n')) {
    const [stack] = line.split(' ') as [string];
    const [name, caller, inner] = stack.split(';');
    assert.equal(name, guest.name);
    if (inner === undefined) continue;
    assert.ok(Number(caller) >= PLACES.main && Number(caller) < PLACES.main + 12, line);
  }
  // Ten to one, as far as samples can tell. Their number, not their time: what a thread waits for its core is part of that.
  const totals = { short: 0, long: 0 };
  for (const { callFrame: { functionName }, hitCount } of profile.toCpuProfile().nodes) {
    const place = Number(functionName);
    if (place >= PLACES.short && place < PLACES.main) totals[place >= PLACES.long ? 'long' : 'short'] += hitCount;
  }
  assert.ok(totals.long > 3 * totals.short, JSON.stringify(totals));
  assert.throws(() => guest.profile({ intervalMicros: 1 }), { code: 'ZAZEN_PROFILE_INTERVAL' });
  const left = guest.profile();
  await guest.destroy();
  assert.ok((await left.stop()).samples >= 0);
  assert.throws(() => guest.profile(), { code: 'ZAZEN_DOMAIN_GONE' });
});
