// Stage 1 translation through page tables that each test builds: permissions of every kind, access flag and dirty
// state, faults at each level, block sizes, the two halves of the address space, tags.

import assert from 'node:assert/strict';
import { Assembler } from '../../src/a64/test-assembler.ts';
import { vcpuRecord } from '../../src/abi/vcpu.ts';
import {
  DATA, KERNEL_DATA, PAN, PROGRAM, PageTables, USER_DATA, ec, fault, fetchOutcome, outcome, probe, pte, sctlr,
    systemTest, tcr,
} from './guest.ts';
import type { Guest } from './guest.ts';

const at = vcpuRecord.at;
const VA = 0x20_0000_0000n;
const UPPER = 0xffff_ff80_0000_0000n;
const PAGE = 0x1000n;
const SVC = 0xd4000001;
const FULL_ACCESS = pte.accessed | pte.user;

type Outcomes = readonly (readonly ['ok' | number, 'ok' | number])[];
/** Loads and stores at EL0, then at EL1. */
function dataOutcomes(g: Guest, va: bigint): Outcomes {
  return ([0, 1] as const).map(el => [outcome(g, el, 'load', va), outcome(g, el, 'store', va)] as const);
}
/** Fetches at EL0 and EL1 from a page that holds SVC. */
function fetchOutcomes(g: Guest, va: bigint): readonly ('ok' | number)[] {
  return [fetchOutcome(g, 0, va), fetchOutcome(g, 1, va)];
}
function remap(g: Guest, bits: bigint, tableBits = 0n): void {
  g.lower.map(VA, DATA, bits, 3, tableBits);
  g.flush();
}

systemTest('AP[2:1]: who may read and write', g => {
  g.enableMmu();
  const no = fault.permission(3);
  const cases: [bigint, Outcomes][] = [
    [KERNEL_DATA, [[no, no], ['ok', 'ok']]],
    [USER_DATA, [['ok', 'ok'], ['ok', 'ok']]],
    [KERNEL_DATA | pte.readOnly, [[no, no], ['ok', no]]],
    [USER_DATA | pte.readOnly, [['ok', no], ['ok', no]]],
  ];
  for (const [bits, wanted] of cases) {
    remap(g, bits);
    assert.deepEqual(dataOutcomes(g, VA), wanted);
  }
});

systemTest('UXN, PXN, WXN, and EL1 never executing what EL0 can write', g => {
  g.m.load(Number(DATA), [SVC]);
  const no = fault.permission(3);
  const readOnly = FULL_ACCESS | pte.readOnly;
  const cases: [bigint, readonly ('ok' | number)[]][] = [
    [readOnly, ['ok', 'ok']],
    [readOnly | pte.uxn, [no, 'ok']],
    [readOnly | pte.pxn, ['ok', no]],
    [readOnly | pte.uxn | pte.pxn, [no, no]],
    [FULL_ACCESS, ['ok', no]],
    [pte.accessed, ['ok', 'ok']], // EL0 may execute what it cannot read
    [pte.accessed | pte.readOnly, ['ok', 'ok']],
  ];
  g.enableMmu();
  for (const [bits, wanted] of cases) {
    remap(g, bits);
    assert.deepEqual(fetchOutcomes(g, VA), wanted, bits.toString(16));
  }
  g.enableMmu({ sctlr: sctlr.WXN });
  remap(g, FULL_ACCESS);
  assert.deepEqual(fetchOutcomes(g, VA), [no, no]);
  remap(g, pte.accessed);
  assert.equal(fetchOutcome(g, 1, VA), no);
  remap(g, readOnly);
  assert.deepEqual(fetchOutcomes(g, VA), ['ok', 'ok']);
});

systemTest('PAN keeps EL1 from user pages, but not LDTR and STTR, nor AT and cache maintenance', g => {
  g.enableMmu();
  remap(g, USER_DATA);
  g.vcpu.set32(at.pan, PAN);
  assert.equal(outcome(g, 1, 'load', VA), fault.permission(3));
  assert.equal(outcome(g, 1, 'store', VA), fault.permission(3));
  assert.equal(outcome(g, 1, 'ldtr', VA), 'ok');
  assert.equal(outcome(g, 1, 'sttr', VA), 'ok');
  assert.equal(outcome(g, 0, 'load', VA), 'ok', 'EL0 does not care');
  g.vcpu.setX(1, VA);
  g.complete(1, a => a.sys('AT S1E1R', 1).mrs(2, 'PAR_EL1').sys('DC CVAC', 1));
  assert.equal(g.vcpu.x(2) & 0xffff_ffff_f001n, DATA);
  assert.equal(g.vcpu.get32(at.pan), PAN);
  remap(g, KERNEL_DATA);
  assert.equal(outcome(g, 1, 'load', VA), 'ok');
  assert.equal(outcome(g, 1, 'ldtr', VA), fault.permission(3));
  assert.equal(outcome(g, 1, 'sttr', VA), fault.permission(3));
});

systemTest('plain and unprivileged accesses side by side each need their own permission', g => {
  g.enableMmu();
  const near = (a: Assembler, name: 'LDTR X' | 'STTR X', Rt: number): Assembler => a.emit(`${name} (unprivileged)`, { Rn: 1, Rt, imm9: 8 });
  const loadTwo = [(a: Assembler) => near(a.ldr(0, 1), 'LDTR X', 2), (a: Assembler) => near(a.ldtr(0, 1), 'LDTR X', 2).ldr(3, 1)];
  const storeTwo = (a: Assembler) => near(a.sttr(4, 1), 'STTR X', 5);
  /** In the second and third round the translations are cached. */
  const outcomes = (va: bigint, write: (a: Assembler) => unknown): string[] => [1, 2, 3].map(() => {
    g.vcpu.setX(1, va);
    const taken = g.except(1, a => { write(a); a.svc(0); });
    return taken.ec === ec.svc ? 'ok' : `${taken.iss & 0x3f} at ${taken.far}, ${taken.elr - PROGRAM}`;
  });
  const all = <T>(each: T): T[] => [each, each, each];
  remap(g, KERNEL_DATA);
  assert.deepEqual(outcomes(VA, loadTwo[0]!), all(`${fault.permission(3)} at ${VA + 8n}, 4`), 'a page that is not for EL0');
  remap(g, USER_DATA);
  g.vcpu.set32(at.pan, PAN);
  assert.deepEqual(outcomes(VA, loadTwo[1]!), all(`${fault.permission(3)} at ${VA}, 8`), 'a page that is not for EL1 now');
  [4, 5].forEach((n) => { g.vcpu.setX(n, BigInt(n) << 56n | 0x1234n); });
  assert.deepEqual(outcomes(VA + 16n, storeTwo), all('ok'));
  assert.deepEqual([g.read64(DATA + 16n), g.read64(DATA + 24n)], [4n << 56n | 0x1234n, 5n << 56n | 0x1234n]);
  assert.deepEqual(outcomes(VA + 0xff8n, storeTwo), all(`${fault.translation(3)} at ${VA + 0x1000n}, 4`), 'the next page');
  remap(g, USER_DATA | pte.readOnly);
  assert.deepEqual(outcomes(VA, a => near(a.ldtr(0, 1), 'STTR X', 2)), all(`${fault.permission(3)} at ${VA + 8n}, 4`), 'what may be read only');
});

systemTest('PAN, by whatever sets it, is not defeated by a translation that is cached', g => {
  g.enableMmu({ span: false });
  for (const [va, tables] of [[VA, g.lower], [UPPER, g.upper]] as const) {
    tables.map(va, DATA, USER_DATA);
    g.flush();
    const start = (): void => { g.vcpu.set32(at.pan, 0); g.vcpu.setX(1, va); };
    start();
    assert.equal(g.except(1, a => a.ldr(0, 1).msrImmediate('PAN', 1).ldr(0, 1)).iss & 0x3f, fault.permission(3),
      'MSR PAN');
    start();
    assert.equal(g.except(1, a => a.str(0, 1).mov(2, 1n << 22n).msr('PAN', 2).str(0, 1)).iss & 0x3f,
      fault.permission(3));
    // Taking an exception sets it, because SPAN is 0: the load behind the vector's ERET comes after SPSR brought it
    // back.
    start();
    g.except(1, a => a.ldr(0, 1).svc(0).label('handler').ldr(0, 1).svc(1));
    assert.equal(g.vcpu.get32(at.pan), PAN);
    g.vcpu.set64(at.pcBase, PROGRAM + 8n);
    assert.equal(g.runToException().ec, ec.dataAbort, 'after an exception');
    start();
    const returned = g.except(1, a => a.ldr(0, 1).adr(2, 'on').msr('ELR_EL1', 2).mov(2, (1n << 22n) | 5n)
      .msr('SPSR_EL1', 2).eret()
      .label('on').ldr(0, 1));
    assert.equal(returned.ec, ec.dataAbort, 'ERET');
  }
});

systemTest('hierarchical attributes of table descriptors', g => {
  const no = fault.permission(3);
  const check = (tableBits: bigint, bits: bigint, data: Outcomes, fetch: readonly ('ok' | number)[]): void => {
    g.lower = new PageTables(g, 39);
    g.enableMmu();
    remap(g, bits, tableBits);
    assert.deepEqual(dataOutcomes(g, VA), data, 'data');
    g.m.load(Number(DATA), [SVC]); // the stores have overwritten it
    assert.deepEqual(fetchOutcomes(g, VA), fetch, 'fetch');
  };
  check(0n, FULL_ACCESS, [['ok', 'ok'], ['ok', 'ok']], ['ok', no]);
  check(pte.tableReadOnly, FULL_ACCESS, [['ok', no], ['ok', no]], ['ok', 'ok']);
  check(pte.tableNoUser, FULL_ACCESS, [[no, no], ['ok', 'ok']], ['ok', 'ok']);
  check(pte.tableUxn, FULL_ACCESS | pte.readOnly, [['ok', no], ['ok', no]], [no, 'ok']);
  check(pte.tablePxn, FULL_ACCESS | pte.readOnly, [['ok', no], ['ok', no]], ['ok', no]);
});

systemTest('access flag: a fault without hardware management, set by hardware with it', g => {
  g.enableMmu();
  remap(g, USER_DATA & ~pte.accessed);
  assert.equal(outcome(g, 0, 'load', VA), fault.accessFlag(3));
  assert.equal(outcome(g, 1, 'store', VA), fault.accessFlag(3));
  g.lower.map(VA + 0x20_0000n, DATA & ~0x1f_ffffn, USER_DATA & ~pte.accessed, 2);
  assert.equal(outcome(g, 1, 'load', VA + 0x20_0000n), fault.accessFlag(2));
  g.enableMmu({ tcr: tcr.HA });
  assert.equal(outcome(g, 0, 'load', VA), 'ok');
  assert.ok(g.lower.entry(VA, 3) & pte.accessed);
  assert.equal(outcome(g, 1, 'load', VA + 0x20_0000n), 'ok');
  assert.ok(g.lower.entry(VA + 0x20_0000n, 2) & pte.accessed);
  // A permission fault leaves the descriptor alone.
  remap(g, KERNEL_DATA & ~pte.accessed);
  assert.equal(outcome(g, 0, 'load', VA), fault.permission(3));
  assert.equal(g.lower.entry(VA, 3) & pte.accessed, 0n);
});

systemTest('dirty state by hardware: DBM with TCR_EL1.HD and HA', g => {
  const clean = USER_DATA | pte.readOnly | pte.dirtyManaged;
  const no = fault.permission(3);
  for (const bits of [0n, tcr.HA, tcr.HD]) {
    g.enableMmu({ tcr: bits });
    remap(g, clean);
    assert.equal(outcome(g, 1, 'store', VA), no, 'not enabled');
  }
  g.enableMmu({ tcr: tcr.HA | tcr.HD });
  for (const el of [0, 1] as const) {
    remap(g, clean & ~pte.accessed);
    assert.equal(outcome(g, el, 'load', VA), 'ok');
    assert.equal(g.lower.entry(VA, 3) & (pte.readOnly | pte.accessed), pte.readOnly | pte.accessed,
      'a load leaves it clean');
    assert.equal(outcome(g, el, 'store', VA), 'ok');
    assert.equal(g.lower.entry(VA, 3) & pte.readOnly, 0n);
  }
  remap(g, USER_DATA | pte.readOnly);
  assert.equal(outcome(g, 1, 'store', VA), no, 'without DBM');
  remap(g, KERNEL_DATA | pte.readOnly | pte.dirtyManaged);
  assert.equal(outcome(g, 0, 'store', VA), no);
  assert.ok(g.lower.entry(VA, 3) & pte.readOnly, 'a store that is not permitted dirties nothing');
  g.lower.map(VA + (1n << 30n), DATA, clean, 3, pte.tableReadOnly);
  assert.equal(outcome(g, 1, 'store', VA + (1n << 30n)), no, 'the table says read-only');
});

systemTest('translation faults at each level, and at level 0 outside the address range', g => {
  g.lower = new PageTables(g, 48);
  g.enableMmu({ replaceTcr: tcr.t0sz(16) | tcr.t1sz(25) | tcr.ips(2) });
  remap(g, USER_DATA);
  assert.equal(outcome(g, 1, 'load', VA), 'ok');
  assert.equal(outcome(g, 1, 'load', VA + PAGE), fault.translation(3));
  assert.equal(outcome(g, 1, 'load', VA + (1n << 21n)), fault.translation(2));
  assert.equal(outcome(g, 0, 'store', VA + (1n << 30n)), fault.translation(1));
  assert.equal(outcome(g, 0, 'load', VA + (1n << 39n)), fault.translation(0));
  assert.equal(outcome(g, 0, 'load', 1n << 48n), fault.translation(0));
  assert.equal(outcome(g, 1, 'load', 0x8000_0000_0000_0000n), fault.translation(0));
  assert.equal(outcome(g, 1, 'load', 0xffff_ff7f_ffff_f000n), fault.translation(0), 'below the upper half');
  assert.equal(fetchOutcome(g, 1, VA + (1n << 30n)), fault.translation(1));
  assert.equal(fetchOutcome(g, 0, VA + (1n << 39n)), fault.translation(0));
  // A block where none may be: at level 0, and a "block" at level 3.
  g.lower.setEntry(VA + (1n << 39n), 0, DATA | USER_DATA | pte.block);
  assert.equal(outcome(g, 1, 'load', VA + (1n << 39n)), fault.translation(0));
  g.lower.setEntry(VA, 3, DATA | USER_DATA | pte.block);
  g.flush();
  assert.equal(outcome(g, 1, 'load', VA), fault.translation(3));
});

systemTest('address size faults: in a leaf, a table descriptor and TTBR, by IPS and by the implemented 40 bits', g => {
  g.enableMmu();
  remap(g, USER_DATA | (1n << 40n));
  assert.equal(outcome(g, 1, 'load', VA), fault.addressSize(3));
  assert.equal(fetchOutcome(g, 1, VA), fault.addressSize(3));
  remap(g, USER_DATA | (1n << 39n));
  assert.equal(outcome(g, 1, 'load', VA), fault.external, 'in range, but nothing is there');
  g.lower.setEntry(VA + (1n << 30n), 1, (1n << 41n) | pte.table);
  assert.equal(outcome(g, 1, 'load', VA + (1n << 30n)), fault.addressSize(1));
  g.lower.setEntry(VA + (1n << 30n), 1, (1n << 38n) | pte.table);
  assert.equal(outcome(g, 1, 'load', VA + (1n << 30n)), 0x14 + 2, 'external abort on the walk');
  g.enableMmu({ replaceTcr: tcr.t0sz(25) | tcr.t1sz(25) | tcr.ips(0) });
  remap(g, USER_DATA | (1n << 32n));
  assert.equal(outcome(g, 1, 'load', VA), fault.addressSize(3), 'IPS = 32 bits');
  g.vcpu.set64(at.ttbr1El1, 1n << 44n);
  assert.equal(outcome(g, 1, 'load', UPPER), fault.addressSize(0));
});

systemTest('blocks of 2 MiB and 1 GiB, and the contiguous hint', g => {
  g.enableMmu();
  const block2M = PROGRAM + 0x20_0000n;
  g.lower.map(VA, block2M, USER_DATA, 2).map(VA + (1n << 30n), PROGRAM, USER_DATA, 1);
  for (let i = 0n; i < 16n; i++) g.lower.map(VA + 0x40_0000n + i * PAGE, DATA + i * PAGE, USER_DATA | pte.contiguous);
  const value = 0x1122_3344_5566_7788n;
  for (const [va, pa] of [
    [VA + 0x12_3458n, block2M + 0x12_3458n], [VA + 0x1f_fff8n, block2M + 0x1f_fff8n],
    [VA + (1n << 30n) + 0x12_3458n, PROGRAM + 0x12_3458n], [VA + (1n << 30n) + 0x130_0008n, PROGRAM + 0x130_0008n],
    [VA + 0x40_7010n, DATA + 0x7010n],
  ] as const) {
    g.write64(pa, value);
    g.vcpu.setX(1, va);
    g.complete(0, a => a.ldr(2, 1).add(3, 2, 1).str(3, 1));
    assert.equal(g.vcpu.x(2), value);
    assert.equal(g.read64(pa), value + 1n);
  }
  const no = fault.permission(2);
  g.lower.map(VA, block2M, KERNEL_DATA | pte.readOnly, 2).map(VA + (1n << 30n), PROGRAM, KERNEL_DATA, 1);
  g.flush();
  assert.deepEqual(dataOutcomes(g, VA + 0x5000n), [[no, no], ['ok', no]]);
  assert.equal(outcome(g, 0, 'load', VA + (1n << 30n)), fault.permission(1));
});

systemTest('T0SZ from 16 to 39 decides the first level and the range', g => {
  for (const t0sz of [16, 20, 24, 25, 28, 33, 34, 36, 39]) {
    g.lower = new PageTables(g, 64 - t0sz);
    const limit = 1n << BigInt(64 - t0sz);
    // Programs are inside the range only of larger ones: here they run from the upper half.
    g.enableMmuUpper(tcr.t0sz(t0sz) | tcr.t1sz(25) | tcr.ips(2));
    const va = limit - PAGE;
    g.lower.map(va, DATA, USER_DATA);
    assert.equal(g.upperOutcome(va + 8n), 'ok', `T0SZ ${t0sz}`);
    if (t0sz > 16) assert.equal(g.upperOutcome(limit), fault.translation(0), `T0SZ ${t0sz}`);
  }
  for (const t0sz of [0, 15, 40, 63]) {
    g.enableMmuUpper(tcr.t0sz(t0sz) | tcr.t1sz(25) | tcr.ips(2));
    assert.equal(g.upperOutcome(0x1000n), fault.translation(0), `T0SZ ${t0sz}`);
  }
});

systemTest('the upper half has tables of its own; EPD0, EPD1 and E0PD close a half', g => {
  g.enableMmu();
  g.upper.map(UPPER, DATA, USER_DATA);
  g.lower.map(VA, DATA + PAGE, USER_DATA);
  g.write64(DATA, 111n);
  g.write64(DATA + PAGE, 222n);
  for (const el of [0, 1] as const) {
    g.vcpu.setX(1, UPPER);
    g.vcpu.setX(3, VA);
    g.complete(el, a => a.ldr(2, 1).ldr(4, 3));
    assert.deepEqual([g.vcpu.x(2), g.vcpu.x(4)], [111n, 222n]);
  }
  g.enableMmu({ tcr: tcr.EPD1 });
  assert.equal(outcome(g, 1, 'load', UPPER), fault.translation(0));
  g.enableMmu({ tcr: tcr.E0PD1 });
  assert.equal(outcome(g, 0, 'load', UPPER), fault.translation(0), 'as if it were not mapped');
  assert.equal(outcome(g, 1, 'load', UPPER), 'ok');
  assert.equal(outcome(g, 1, 'ldtr', UPPER), fault.translation(0));
  g.enableMmuUpper(tcr.t0sz(25) | tcr.t1sz(25) | tcr.ips(2) | tcr.EPD0);
  assert.equal(g.upperOutcome(VA), fault.translation(0));
});

systemTest('top byte ignore, for data and for branches', g => {
  g.enableMmu();
  g.lower.map(VA, DATA, USER_DATA);
  g.upper.map(UPPER, DATA, USER_DATA);
  const tagged = VA | (0x5an << 56n);
  const taggedUpper = UPPER & ~(0xffn << 56n) | (0x5an << 56n);
  assert.equal(outcome(g, 1, 'load', tagged), fault.translation(0));
  g.enableMmu({ tcr: tcr.TBI0 });
  assert.equal(outcome(g, 0, 'load', tagged), 'ok');
  assert.equal(outcome(g, 1, 'store', tagged), 'ok');
  assert.equal(outcome(g, 1, 'load', taggedUpper), fault.translation(0), 'the other half has its own bit');
  g.enableMmu({ tcr: tcr.TBI1 });
  assert.equal(outcome(g, 1, 'load', taggedUpper), 'ok');
  assert.equal(probe(g, 1, 'load', taggedUpper + PAGE)!.far, taggedUpper + PAGE, 'the tag stays in FAR_EL1');
  // A branch to a tagged address runs without the tag in the PC.
  g.enableMmu({ tcr: tcr.TBI0 });
  for (const el of [0, 1] as const) {
    const taken = g.except(el, a => a.mov(3, (PROGRAM + 0x100n) | (0x77n << 56n)).br(3).padTo(0x100).adr(4, 'here')
      .label('here').svc(0));
    assert.equal(taken.ec, ec.svc);
    assert.equal(taken.elr, PROGRAM + 0x108n);
    assert.equal(g.vcpu.x(4), PROGRAM + 0x104n);
  }
});

systemTest('AT gives the physical address or the fault in PAR_EL1', g => {
  g.enableMmu();
  remap(g, KERNEL_DATA | pte.readOnly);
  g.vcpu.setX(1, VA + 0x123n);
  g.vcpu.setX(2, VA + PAGE);
  g.complete(1, a => {
    a.sys('AT S1E1R', 1).mrs(3, 'PAR_EL1').sys('AT S1E1W', 1).mrs(4, 'PAR_EL1').sys('AT S1E0R', 1).mrs(5, 'PAR_EL1');
    a.sys('AT S1E1R', 2).mrs(6, 'PAR_EL1');
  });
  assert.equal(g.vcpu.x(3) & 0xffff_ffff_f001n, DATA);
  for (const [register, status] of [[4, fault.permission(3)], [5, fault.permission(3)],
    [6, fault.translation(3)]] as const) {
    assert.equal(g.vcpu.x(register) & 1n, 1n);
    assert.equal(Number(g.vcpu.x(register) >> 1n) & 0x3f, status);
  }
});

systemTest('code runs on from page to page through the tables, and faults where the next page does', g => {
  g.enableMmu();
  const code = pte.accessed | pte.user | pte.readOnly;
  g.lower.map(VA, DATA + PAGE, code).map(VA + PAGE, DATA, code); // in the other order in physical memory
  const words = new Assembler(VA).padTo(0xff8).add(0, 0, 1).add(0, 0, 2).add(0, 0, 4).padTo(0x1ffc).add(0, 0, 8)
    .words();
  g.m.load(Number(DATA + PAGE), words.slice(0, 1024));
  g.m.load(Number(DATA), words.slice(1024));
  for (const el of [0, 1] as const) {
    g.vcpu.setX(0, 0n);
    const before = g.retired;
    const taken = g.enter(el, VA + 0xff8n).runToException();
    assert.deepEqual([taken.ec & ~1, taken.iss], [ec.instructionAbortLower, fault.translation(3)]);
    assert.deepEqual([taken.far, taken.elr], [VA + 2n * PAGE, VA + 2n * PAGE]);
    assert.equal(g.vcpu.x(0), 15n);
    assert.equal(g.retired - before, 2n + 1024n + 1n, 'and the HVC of the vector');
  }
});

systemTest('a hypervisor reads and writes guest memory as EL1, across pages, whatever PAN says', g => {
  g.enableMmu();
  g.lower.map(VA, DATA + PAGE, USER_DATA).map(VA + PAGE, DATA, KERNEL_DATA)
    .map(VA + 2n * PAGE, DATA + 2n * PAGE, KERNEL_DATA | pte.readOnly);
  g.enter(1);
  g.vcpu.set32(at.pan, PAN);
  const { data } = g.m.engine;
  const bytes = Uint8Array.from({ length: 100 }, (_, i) => i);
  assert.equal(data.copyToGuest(g.vcpu, VA + PAGE - 60n, bytes), true);
  assert.deepEqual(data.copyFromGuest(g.vcpu, VA + PAGE - 60n, 100), bytes);
  assert.equal(g.read64(DATA) & 0xffn, 60n);
  assert.equal(data.copyToGuest(g.vcpu, VA + 2n * PAGE - 8n, bytes), false, 'read-only');
  assert.ok(data.copyFromGuest(g.vcpu, VA + 2n * PAGE - 8n, 100));
  assert.equal(data.copyFromGuest(g.vcpu, VA + 3n * PAGE - 8n, 100), undefined, 'not mapped');
  assert.equal(data.copyFromGuest(g.vcpu, 0xffff_ffff_ffff_fff0n, 100), undefined,
    'around the end of the address space');
  assert.equal(g.vcpu.get32(at.pan), PAN);
});

systemTest('device memory: no misalignment', g => {
  g.enableMmu();
  remap(g, USER_DATA | pte.device);
  assert.equal(outcome(g, 1, 'load', VA + 8n), 'ok');
  assert.equal(outcome(g, 1, 'load', VA + 4n), fault.alignment);
  assert.equal(outcome(g, 0, 'store', VA + 1n), fault.alignment);
});

systemTest('emulated registers are reached through the MMU, and abort where there is none', g => {
  g.enableMmu();
  g.lower.map(VA, 0x900_0000n, KERNEL_DATA | pte.device);
  g.m.host.registers.set(0x900_0010, 0x1234n);
  g.vcpu.setX(1, VA);
  g.complete(1, a => a.ldr(2, 1, 16, 'W').mov(3, 77).str(3, 1, 16, 'W'));
  assert.equal(g.vcpu.x(2), 0x1234n);
  assert.equal(g.m.host.registers.get(0x900_0010), 77n);
  assert.equal(outcome(g, 1, 'load', VA + 0x20n), fault.external);
});
