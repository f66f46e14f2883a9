// Memory accesses at the edges: unaligned, across pages, alignment faults, exclusives and atomics, two vCPUs.

import assert from 'node:assert/strict';
import { Assembler } from '../../src/a64/test-assembler.ts';
import type { AccessLetter } from '../../src/a64/test-assembler.ts';
import { HEAP } from '../../src/abi/machine-memory.ts';
import { vOffset, vcpuRecord } from '../../src/abi/vcpu.ts';
import { GUEST_BASE } from '../../src/cpu/test-machine.ts';
import type { TestVcpu } from '../../src/cpu/test-machine.ts';
import { DATA, Guest, KERNEL_DATA, PROGRAM, USER_DATA, WNR, ec, fault, pte, sctlr, systemTest } from './guest.ts';

const at = vcpuRecord.at;
const VA = 0x20_0000_0000n;
const PAGE = 0x1000n;
/** Not beside each other in physical memory, and the first one behind the second. */
const [FIRST, SECOND] = [DATA + 5n * PAGE, DATA + 2n * PAGE];

interface Access {
  readonly name: string;
  readonly sizeBytes: number;
  /** Loads from [X1] into X2, X3 or V2, V3; stores from there. */
  readonly load: (a: Assembler) => unknown;
  readonly store: (a: Assembler) => unknown;
  readonly isVector?: boolean;
  /** The first of two accesses may be done before the second faults. */
  readonly isTwo?: boolean;
}
const single = (letter: AccessLetter, sizeBytes: number, isVector = false): Access => ({
  name: letter, sizeBytes, isVector, load: a => a.ldr(2, 1, 0, letter), store: a => a.str(2, 1, 0, letter),
});
const accesses: readonly Access[] = [
  single('H', 2), single('W', 4), single('X', 8), single('S', 4, true), single('D', 8, true), single('Q', 16, true),
  { name: 'pair of X', sizeBytes: 16, load: a => a.ldp(2, 3, 1), store: a => a.stp(2, 3, 1) },
  { name: 'pair of W', sizeBytes: 8, load: a => a.emit('LDP W (signed offset)', { Rt: 2, Rt2: 3, Rn: 1 }),
    store: a => a.emit('STP W (signed offset)', { Rt: 2, Rt2: 3, Rn: 1 }) },
  { name: 'pair of Q', sizeBytes: 32, isVector: true, isTwo: true,
    load: a => a.emit('LDP Q (signed offset)', { Rt: 2, Rt2: 3, Rn: 1 }),
    store: a => a.emit('STP Q (signed offset)', { Rt: 2, Rt2: 3, Rn: 1 }) },
];

/** Guest memory of the two pages as the guest sees it, one behind the other. */
class Window {
  readonly #g: Guest;
  constructor(g: Guest) { this.#g = g; }
  #page(i: number): Uint8Array {
    const start = Number(i < 4096 ? FIRST : SECOND) - GUEST_BASE;
    return this.#g.m.ram.subarray(start, start + 4096);
  }
  get(i: number): number { return this.#page(i)[i & 0xfff]!; }
  fill(value: (i: number) => number): void {
    for (let i = 0; i < 8192; i++) this.#page(i)[i & 0xfff] = value(i);
  }
  bytes(from: number, count: number): number[] { return Array.from({ length: count }, (_, i) => this.get(from + i)); }
}
const pattern = (i: number): number => (i * 37 + (i >> 8) * 11 + 5) & 0xff;

/** The bytes that an access has put into registers. */
function registerBytes(g: Guest, { sizeBytes, isVector, name }: Access): number[] {
  const { vcpu } = g;
  const bytes = (value: bigint, count: number): number[] => Array.from({ length: count }, (_, i) =>
    Number((value >> BigInt(8 * i)) & 0xffn));
  const halves = isVector
    ? [0, 8, 16, 24].flatMap(offset => bytes(vcpu.get64(vOffset(2) + offset), 8))
    : name === 'pair of W' ? [...bytes(vcpu.x(2), 4), ...bytes(vcpu.x(3), 4)]
      : [...bytes(vcpu.x(2), 8), ...bytes(vcpu.x(3), 8)];
  return halves.slice(0, sizeBytes);
}

/** Offsets around the page boundary and elsewhere at which the access is tried. */
function offsets(sizeBytes: number): number[] {
  return [0, 1, 3, 7, 0x801, 4096 - sizeBytes, ...Array.from({ length: sizeBytes - 1 }, (_, i) => 4095 - i), 4096];
}

systemTest('unaligned accesses within a page and across two pages', g => {
  g.enableMmu();
  g.lower.map(VA, FIRST, USER_DATA).map(VA + PAGE, SECOND, USER_DATA);
  const window = new Window(g);
  for (const access of accesses) {
    const load = g.program(a => { access.load(a); a.svc(0); }).origin;
    const store = g.program(a => { access.store(a); a.svc(0); }, PROGRAM + 0x100n).origin;
    for (const offset of offsets(access.sizeBytes)) {
      for (const warm of [false, true]) {
        if (!warm) g.flush();
        window.fill(pattern);
        g.vcpu.setX(1, VA + BigInt(offset));
        assert.equal(g.enter(0, load).runToException().ec, ec.svc);
        const label = `${access.name} at ${offset}`;
        const wanted = Array.from({ length: access.sizeBytes }, (_, i) => pattern(offset + i));
        assert.deepEqual(registerBytes(g, access), wanted, `${label}: load`);
        window.fill(() => 0xee);
        assert.equal(g.enter(0, store).runToException().ec, ec.svc);
        assert.deepEqual(window.bytes(offset, access.sizeBytes), wanted, `${label}: store`);
        if (offset > 0) assert.equal(window.get(offset - 1), 0xee, `${label}: nothing before`);
        assert.equal(window.get(offset + access.sizeBytes), 0xee, `${label}: nothing behind`);
      }
    }
  }
});

systemTest('accesses beside one before, by the same register and by sums of it, across a page border', g => {
  g.enableMmu();
  g.lower.map(VA, FIRST, USER_DATA).map(VA + PAGE, SECOND, USER_DATA);
  const window = new Window(g);
  const { origin } = g.program(a => a.ldr(2, 1).ldr(3, 1, 8).emit('LDR W (unsigned offset)', { imm12: 4, Rn: 1, Rt: 4 })
    .emit('LDP X (signed offset)', { imm7: 3, Rn: 1, Rt: 5, Rt2: 6 })
    .emit('LDUR X (unscaled)', { imm9: -8 & 0x1ff, Rn: 1, Rt: 7 }).emit('LDUR X (unscaled)', { imm9: -3 & 0x1ff, Rn: 1, Rt: 8 })
    .str(3, 1, 40).str(2, 1, 48)
    .add(9, 1, 64).emit('LDUR X (unscaled)', { imm9: -24 & 0x1ff, Rn: 9, Rt: 10 })
    .emit('LDR X (post-index)', { imm9: 8, Rn: 9, Rt: 11 }).emit('LDR X (pre-index)', { imm9: 8, Rn: 9, Rt: 12 })
    .addReg(9, 1, 15).ldr(14, 9).sub(13, 1, 16).ldr(13, 13).svc(0));
  const word = (from: number, count = 8): bigint =>
    window.bytes(from, count).reduceRight((value, byte) => value << 8n | BigInt(byte), 0n);
  for (const start of [64, 2048, ...Array.from({ length: 28 }, (_, i) => 4096 - 104 + 4 * i + i % 3), 4096, 4104, 4200]) {
    for (const warm of [false, true]) {
      if (!warm) g.flush();
      window.fill(pattern);
      const wanted = [word(start), word(start + 8), word(start + 16, 4), word(start + 24), word(start + 32), word(start - 8),
        word(start - 3), VA + BigInt(start + 2048), word(start + 8), word(start + 64), word(start + 80), word(start - 16), word(start + 2048)];
      g.vcpu.setX(1, VA + BigInt(start));
      g.vcpu.setX(15, 2048n);
      assert.equal(g.enter(0, origin).runToException().ec, ec.svc);
      assert.deepEqual(Array.from({ length: 13 }, (_, i) => g.vcpu.x(i + 2)), wanted, `at ${start}`);
      assert.deepEqual([word(start + 40), word(start + 48)], [wanted[1], wanted[0]], `stores at ${start}`);
      assert.deepEqual([word(start + 32), word(start + 56)], [wanted[4], Array.from({ length: 8 },
        (_, i) => BigInt(pattern(start + 56 + i)) << BigInt(8 * i)).reduce((x, y) => x | y)], `beside the stores at ${start}`);
    }
  }
});

systemTest('an access whose second page faults does nothing, and FAR_EL1 names the second page', g => {
  g.enableMmu();
  const window = new Window(g);
  const before = 0xdead_beefn;
  for (const bits of [undefined, KERNEL_DATA, USER_DATA | pte.readOnly]) {
    g.lower.map(VA, FIRST, USER_DATA);
    if (bits === undefined) g.lower.setEntry(VA + PAGE, 3, 0n);
    else g.lower.map(VA + PAGE, SECOND, bits);
    g.flush();
    for (const access of accesses) {
      for (const kind of ['load', 'store'] as const) {
        if (kind === 'load' && bits !== undefined && bits & pte.readOnly) continue;
        const offset = 4096 - access.sizeBytes / 2 - (access.isTwo ? 8 : 0);
        window.fill(() => 0x11);
        g.vcpu.setX(1, VA + BigInt(offset));
        g.vcpu.setX(2, before);
        g.vcpu.setX(3, before);
        const taken = g.except(0, a => access[kind](a));
        const label = `${kind} of ${access.name}`;
        const status = bits === undefined ? fault.translation(3) : fault.permission(3);
        assert.deepEqual([taken.ec, taken.iss], [ec.dataAbortLower, status | (kind === 'store' ? WNR : 0)], label);
        assert.deepEqual([taken.far, taken.elr], [VA + PAGE, PROGRAM], label);
        assert.deepEqual([g.vcpu.x(1), g.vcpu.x(2), g.vcpu.x(3)], [VA + BigInt(offset), before, before], label);
        if (!access.isTwo) assert.deepEqual(new Set(window.bytes(0, 8192)), new Set([0x11]),
          `${label}: nothing written`);
        assert.deepEqual(new Set(window.bytes(4096, 4096)), new Set([0x11]), label);
      }
    }
  }
});

systemTest('a fault leaves the base register of pre- and post-indexed accesses as it was', g => {
  g.enableMmu();
  g.lower.map(VA, FIRST, USER_DATA | pte.readOnly);
  for (const name of ['STR X (post-index)', 'STR X (pre-index)', 'STP X (post-index)', 'STP X (pre-index)']) {
    g.vcpu.setX(1, VA + 64n);
    const fields: Record<string, number> = name.startsWith('STP') ? { imm7: 2, Rt2: 3, Rn: 1, Rt: 2 }
      : { imm9: 16, Rn: 1, Rt: 2 };
    const taken = g.except(0, a => a.emit(name, fields));
    assert.equal(taken.iss, fault.permission(3) | WNR);
    assert.equal(taken.far, VA + 64n + (name.includes('pre') ? 16n : 0n));
    assert.equal(g.vcpu.x(1), VA + 64n, name);
  }
});

systemTest('alignment faults: exclusives, atomics and ordered accesses always; others with SCTLR_EL1.A', g => {
  const always: [string, number, (a: Assembler) => unknown][] = [
    ['LDXR X', 8, a => a.ldxr(2, 1)], ['STXR X', 8, a => a.stxr(4, 2, 1)], ['LDAR X', 8, a => a.ldar(2, 1)],
    ['STLR X', 8, a => a.stlr(2, 1)],
    ['LDAXR W', 4, a => a.emit('LDAXR W', { Rs: 31, Rt2: 31, Rn: 1, Rt: 2 })],
    ['LDARH', 2, a => a.emit('LDARH', { Rs: 31, Rt2: 31, Rn: 1, Rt: 2 })],
    ['LDXP X', 16, a => a.emit('LDXP X', { Rs: 31, Rt2: 3, Rn: 1, Rt: 2 })],
    ['STXP X', 16, a => a.emit('STXP X', { Rs: 4, Rt2: 3, Rn: 1, Rt: 2 })],
    ['LDADD X', 8, a => a.ldadd(2, 3, 1)], ['CAS X', 8, a => a.cas(2, 3, 1)],
    ['SWP W', 4, a => a.emit('SWP', { size: 2, Rs: 2, Rn: 1, Rt: 3 })],
    ['CASP X', 16, a => a.emit('CASP X', { Rs: 2, Rt: 4, Rn: 1 })],
    ['LDAPR X', 8, a => a.emit('LDAPR X', { Rn: 1, Rt: 2 })],
  ];
  g.enableMmu();
  g.lower.map(VA, FIRST, USER_DATA);
  for (const [name, size, write] of always) {
    for (const el of [0, 1] as const) {
      for (let low = 1; low < size; low++) {
        g.vcpu.setX(1, VA + 64n + BigInt(low));
        const taken = g.except(el, a => write(a));
        assert.deepEqual([taken.ec, taken.iss & 0x3f], [el === 0 ? ec.dataAbortLower : ec.dataAbort, fault.alignment],
          `${name} + ${low}`);
        assert.equal(taken.far, VA + 64n + BigInt(low), name);
      }
      g.vcpu.setX(1, VA + 64n);
      g.complete(el, a => { write(a); });
    }
  }
  g.enableMmu({ sctlr: sctlr.A });
  for (const access of accesses) {
    g.vcpu.setX(1, VA + 65n);
    assert.equal(g.except(0, a => { access.load(a); }).iss, fault.alignment, access.name);
    assert.equal(g.except(0, a => { access.store(a); }).iss, fault.alignment | WNR, access.name);
    g.vcpu.setX(1, VA + 64n);
    g.complete(0, a => { access.load(a); access.store(a); });
  }
  g.vcpu.setX(1, VA + 72n);
  g.complete(0, a => a.ldp(2, 3, 1).stp(2, 3, 1));
});

// ---- exclusives

systemTest('store exclusive succeeds once after a load exclusive of the same address, and else fails', g => {
  g.vcpu.setX(1, DATA);
  g.vcpu.setX(5, DATA + 64n);
  g.vcpu.setX(3, 42n);
  const statusOf = (write: (a: Assembler) => unknown): bigint => {
    g.write64(DATA, 7n);
    g.vcpu.setX(4, 99n);
    g.vcpu.set64(at.exclusiveAddress, 2n ** 64n - 1n);
    g.complete(1, a => { write(a); });
    assert.equal(g.read64(DATA), g.vcpu.x(4) === 0n ? 42n : 7n, 'stored only if the status says so');
    return g.vcpu.x(4);
  };
  assert.equal(statusOf(a => a.ldxr(2, 1).stxr(4, 3, 1)), 0n);
  assert.equal(g.vcpu.x(2), 7n);
  assert.equal(statusOf(a => a.stxr(4, 3, 1)), 1n, 'without a load');
  assert.equal(statusOf(a => a.ldxr(2, 5).stxr(4, 3, 1)), 1n, 'another address');
  assert.equal(statusOf(a => a.ldxr(2, 1).emit('CLREX', { CRm: 15 }).stxr(4, 3, 1)), 1n, 'CLREX');
  assert.equal(statusOf(a => a.ldxr(2, 1).stxr(6, 2, 1).stxr(4, 3, 1)), 1n,
    'the monitor is open after a store exclusive');
  assert.equal(statusOf(a => {
    a.ldxr(2, 1).adr(7, 'on').msr('ELR_EL1', 7).mov(7, 5).msr('SPSR_EL1', 7).eret().label('on').stxr(4, 3, 1);
  }), 1n, 'an exception return clears it');
});

systemTest('a load exclusive of memory that was never written does not watch the frame that stands for it', g => {
  const { machine, host } = g.m;
  const page = Number(DATA / PAGE);
  const zero = machine.firstFrame + 0x300;
  machine.u32[(machine.region('heap').offsetBytes + HEAP.at.zeroMfn) / 4] = zero;
  const [read, write] = [host.frameForRead.bind(host), host.frameForWrite.bind(host)];
  let own = false;
  host.frameForRead = (vcpu, frame) => frame === page && !own ? zero : read(vcpu, frame);
  host.frameForWrite = (vcpu, frame) => {
    own ||= frame === page;
    return write(vcpu, frame);
  };
  g.vcpu.setX(1, DATA);
  g.complete(1, a => a.ldr(5, 1).label('again').ldxr(2, 1).add(2, 2, 1).stxr(4, 2, 1).cbnz(4, 'again'));
  assert.equal(g.vcpu.x(2), 1n);
  assert.equal(g.read64(DATA), 1n);
});

/** A second vCPU at EL1 without translation, at `pc`, with the first one's vectors. */
function second(g: Guest, write: (a: Assembler) => unknown): TestVcpu {
  const other = g.m.addVcpu(1);
  g.program(a => { write(a); a.hvc(0); }, PROGRAM + 0x8000n);
  other.vcpu.set64(at.vbarEl1, g.vcpu.get64(at.vbarEl1));
  other.vcpu.set64(at.pcBase, PROGRAM + 0x8000n);
  return other;
}

systemTest('a store of another vCPU between makes the store exclusive fail', g => {
  const other = second(g, a => a.mov(1, DATA).mov(2, 1000).str(2, 1));
  g.vcpu.setX(1, DATA);
  g.vcpu.setX(3, 42n);
  g.write64(DATA, 7n);
  g.program(a => a.ldxr(2, 1).hvc(1).stxr(4, 3, 1).hvc(2));
  assert.equal(g.enter(1).run(), 1);
  assert.equal(other.engine.run(other.vcpu, 100), 'host');
  assert.equal(g.run(), 2);
  assert.deepEqual([g.vcpu.x(2), g.vcpu.x(4), g.read64(DATA)], [7n, 1n, 1000n]);
});

const increments: [string, (a: Assembler) => unknown][] = [
  ['LDXR and STXR', a => a.label('again').ldxr(2, 1).add(2, 2, 1).stxr(4, 2, 1).cbnz(4, 'again')],
  ['LDADD', a => a.ldadd(5, 2, 1)],
  ['CAS', a => a.label('again').ldr(2, 1).add(3, 2, 1).movReg(4, 2).cas(4, 3, 1).eorReg(4, 4, 2).cbnz(4, 'again')],
  ['LDXP and STXP', a => a.label('again').emit('LDXP X', { Rs: 31, Rt2: 3, Rn: 1, Rt: 2 }).add(2, 2, 1)
    .emit('STXP X', { Rs: 4, Rt2: 3, Rn: 1, Rt: 2 }).cbnz(4, 'again')],
  ['CASP', a => a.label('again').emit('LDP X (signed offset)', { Rt: 2, Rt2: 3, Rn: 1 }).movReg(6, 2).movReg(7, 3)
    .add(8, 2, 1).movReg(9, 3)
    .emit('CASP X', { Rs: 6, Rt: 8, Rn: 1 }).eorReg(6, 6, 2).cbnz(6, 'again')],
];
systemTest('two vCPUs that count in one word lose nothing, however their instructions fall among each other', g => {
  const ROUNDS = 300;
  const other = g.m.addVcpu(1);
  for (const [name, increment] of increments) {
    const words = new Assembler(PROGRAM).mov(1, DATA).mov(5, 1).mov(0, ROUNDS).label('loop');
    increment(words);
    words.subs(0, 0, 1).bCond('ne', 'loop').hvc(0);
    g.m.load(Number(PROGRAM), words.words());
    g.write64(DATA, 0n);
    g.write64(DATA + 8n, 0n);
    const running = new Set<TestVcpu>([g.m, other]);
    for (const each of running) each.vcpu.set64(at.pcBase, PROGRAM);
    for (let slice = 0; running.size > 0; slice++) {
      assert.ok(slice < 100_000, name);
      for (const each of [...running]) {
        if (each.engine.run(each.vcpu, 1 + (slice * 7 + (each === other ? 3 : 0)) % 5) === 'host') running.delete(each);
      }
    }
    assert.equal(g.read64(DATA), BigInt(2 * ROUNDS), name);
  }
});
