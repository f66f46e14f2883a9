// Instruction counts are exact, and where a run is cut into slices makes no difference to what the program does.

import assert from 'node:assert/strict';
import fc from 'fast-check';
import { Assembler } from '../../src/a64/test-assembler.ts';
import { PENDING, vcpuRecord, xOffset } from '../../src/abi/vcpu.ts';
import { SeededRandom } from '../../src/base/random.ts';
import { GUEST_BASE } from '../../src/cpu/test-machine.ts';
import { DATA, Guest, PROGRAM, systemTest } from './guest.ts';

const at = vcpuRecord.at;
const PAGE = 0x1000;

/** Instructions retired by `run`. */
function counted(g: Guest, run: () => void): bigint {
  const before = g.retired;
  run();
  return g.retired - before;
}

systemTest('a program counts each instruction once: straight lines, pages, loops, calls, branches of every kind', g => {
  const count = (write: (a: Assembler) => unknown): bigint =>
    counted(g, () => g.complete(1, a => { write(a); })) - 1n; // the HVC
  assert.equal(count(() => {}), 0n);
  assert.equal(count(a => a.nop().nop().nop()), 3n);
  assert.equal(count(a => a.padTo(3 * PAGE + 8)), BigInt(3 * PAGE / 4 + 2),
    'falling over the ends of pages counts nothing');
  assert.equal(count(a => a.mov(0, 10).label('again').subs(0, 0, 1).bCond('ne', 'again')), 21n);
  assert.equal(count(a => a.b('on').udf().label('on').nop()), 2n);
  assert.equal(count(a => a.b('far').padTo(2 * PAGE).udf().label('far').nop()), 2n);
  assert.equal(count(a => a.bl('sub').b('end').label('sub').nop().ret().label('end')), 4n);
  assert.equal(count(a => a.adr(1, 'on').br(1).udf().label('on')), 2n);
  assert.equal(count(a => a.mov(0, 0).cbz(0, 'x').udf().label('x').cbnz(0, 'x').tbz(0, 3, 'y').label('y')
    .tbnz(0, 3, 'y')), 5n);
  assert.equal(count(a => a.adr(1, 'on').msr('ELR_EL1', 1).mov(1, 5).msr('SPSR_EL1', 1).eret().udf().label('on')
    .isb()), 6n);
  // A branch at the very end of a page, to its beginning and to the next page.
  assert.equal(count(a => a.b('edge').label('head').b('end').padTo(PAGE - 4).label('edge').b('head').label('end')
    .nop()), 4n);
});

systemTest('an instruction that faults is not counted, one that asks for an exception is', g => {
  const HANDLER = 1n; // the vector's HVC
  const count = (write: (a: Assembler) => unknown): bigint =>
    counted(g, () => g.except(1, a => { write(a); })) - HANDLER;
  assert.equal(count(a => a.nop().svc(0)), 2n);
  assert.equal(count(a => a.nop().udf()), 1n);
  assert.equal(count(a => a.nop().brk(0)), 1n);
  assert.equal(count(a => a.mov(1, 0x9000_0000n).nop().ldr(0, 1)), 2n, 'data abort');
  assert.equal(count(a => a.mov(1, 0x9000_0000n).nop().br(1)), 3n, 'instruction abort');
  assert.equal(count(a => a.mov(1, PROGRAM + 2n).movReg(2, 1).br(1)),
    BigInt(new Assembler().mov(1, PROGRAM + 2n).words().length + 2));
  g.vcpu.set32(at.irqLine, 1);
  assert.equal(count(a => a.nop().msrImmediate('DAIFClr', 2).nop()), 2n, 'interrupt');
  g.vcpu.set32(at.irqLine, 0);
});

systemTest('a slice ends at the first branch after its instructions are used up, if not where a region ends before', g => {
  g.program(a => a.label('self').b('self'));
  g.enter(1);
  for (const n of [1, 2, 10, 1000]) assert.equal(counted(g, () => g.m.engine.run(g.vcpu, n)), BigInt(n));
  g.program(a => a.label('self').nop().nop().nop().b('self'));
  g.enter(1);
  const past = counted(g, () => g.m.engine.run(g.vcpu, 5));
  assert.ok(past >= 5n && past <= 8n, `${past}`);
  g.vcpu.set32(at.pending, PENDING.leave);
  const wanted = counted(g, () => g.m.engine.run(g.vcpu, 1000));
  assert.ok(wanted >= 1n && wanted <= 4n, `somebody wants the vCPU: ${wanted}`);
  g.vcpu.set32(at.pending, PENDING.attend);
  g.m.engine.requestTlbFlush(g.vcpu.address);
  assert.equal(counted(g, () => g.m.engine.run(g.vcpu, 1000)), 1000n, 'who only wants something looked at does not end it');
  assert.equal(g.vcpu.get32(at.pending), 0);
  assert.equal(g.vcpu.get32(at.tlbFlushDone), g.vcpu.get32(at.tlbFlushRequest));
});

// ---- slices

const VECTORS = GUEST_BASE + 0x2_0000;
/** Counts in X20, mixes the syndrome into X21, and skips what faulted (SVC has its return address behind it). */
function writeHandler(g: Guest): void {
  const a = new Assembler(VECTORS).padTo(0x200);
  a.add(20, 20, 1).mrs(22, 'ESR_EL1').eorReg(21, 21, 22);
  a.emit('UBFM', { sf: 1, N: 1, immr: 26, imms: 63, Rn: 22, Rd: 22 });
  a.cmp(22, 0x15).bCond('eq', 'return').mrs(22, 'ELR_EL1').add(22, 22, 4).msr('ELR_EL1', 22).label('return').eret();
  g.m.load(VECTORS, a.words());
}

/**
 * Loops over arithmetic, memory, calls, traps and faults; X0–X9 hold values, X10 the data's address, X19 loop counters.
 */
function randomProgram(seed: number): number[] {
  const random = new SeededRandom(seed);
  const a = new Assembler(PROGRAM);
  const value = (): number => random.below(10);
  for (let n = 0; n < 10; n++) a.mov(n, random.u64());
  a.mov(10, DATA).mov(11, 0x9000_0000n).b('start');
  a.label('function').madd(9, 8, 7, 6).emit('EOR (register)', { sf: 1, Rm: 9, Rn: 0, Rd: 0 }).ret().label('start');
  const steps: ((id: string) => unknown)[] = [
    () => a.addReg(value(), value(), value()), () => a.madd(value(), value(), value(), value()),
    () => a.subs(value(), value(), random.below(4096)),
    () => a.emit('ADCS', { sf: 1, Rm: value(), Rn: value(), Rd: value() }),
    () => a.str(value(), 10, 8 * random.below(64)), () => a.ldr(value(), 10, 8 * random.below(64)),
    () => a.ldadd(value(), value(), 10), () => a.bl('function'), () => a.svc(random.below(100)), () => a.udf(),
    () => a.ldr(value(), 11), () => a.str(value(), 11), () => a.isb(), () => a.wfe(), () => a.mrs(value(), 'CURRENTEL'),
    () => a.msr('TPIDR_EL0', value()), () => a.mrs(value(), 'TPIDR_EL0'), () => a.emit('YIELD'),
    id => a.cbz(value(), id).addReg(0, 0, 1).label(id),
    id => a.bCond(random.pick(['eq', 'ne', 'cs', 'lt', 'hi', 'vs'] as const), id)
      .emit('CSINC', { sf: 1, Rm: 1, cond: 3, Rn: 2, Rd: 3 }).label(id),
  ];
  for (let loop = 0; loop < 4; loop++) {
    a.mov(19, 1 + random.below(12)).label(`loop ${loop}`);
    for (let step = 0; step < 12; step++) random.pick(steps)(`step ${loop} ${step}`);
    a.sub(19, 19, 1).cbnz(19, `loop ${loop}`);
    if (random.below(2)) a.b(`page ${loop}`).padTo((loop + 1) * PAGE).label(`page ${loop}`);
  }
  return a.hvc(0).words();
}

interface Outcome {
  readonly state: readonly bigint[];
  readonly memory: string;
}
function execute(g: Guest, words: readonly number[], slice: () => number): Outcome {
  const { vcpu, engine, ram } = g.m;
  g.m.load(Number(PROGRAM), words);
  ram.fill(0x5a, Number(DATA) - GUEST_BASE, Number(DATA) - GUEST_BASE + PAGE);
  for (let n = 0; n < 31; n++) vcpu.setX(n, 0n);
  vcpu.setNzcv(0);
  const kept = [at.tpidrEl0, at.esrEl1, at.elrEl1, at.spsrEl1, at.farEl1, at.instructionsRetired];
  for (const offset of kept) vcpu.set64(offset, 0n);
  vcpu.set64(at.vbarEl1, BigInt(VECTORS));
  g.enter(1);
  for (let runs = 0; engine.run(vcpu, slice()) !== 'host'; runs++) assert.ok(runs < 100_000, 'it comes to an end');
  const registers = Array.from({ length: 31 }, (_, n) => vcpu.get64(xOffset(n)));
  const others = [...kept, at.pcBase].map(offset => vcpu.get64(offset));
  const memory = Buffer.from(ram.subarray(Number(DATA) - GUEST_BASE, Number(DATA) - GUEST_BASE + 512)).toString('hex');
  return { state: [...registers, ...others, BigInt(vcpu.nzcv())], memory };
}

systemTest('slices of any length give the state and the count of one run', g => {
  writeHandler(g);
  fc.assert(fc.property(fc.integer(), fc.integer({ min: 1, max: 200 }), fc.integer(),
    (programSeed, longest, sliceSeed) => {
    const words = randomProgram(programSeed);
    const whole = execute(g, words, () => 1_000_000);
    const random = new SeededRandom(sliceSeed);
    assert.deepEqual(execute(g, words, () => 1 + random.below(longest)), whole);
  }), { numRuns: 150, seed: 2026, verbose: true });
});
