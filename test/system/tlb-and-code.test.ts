// Cached translations and cached code: what may be stale, what must not be after TLBI, a change of ASID, or IC IVAU
// with ISB; and the same across two vCPUs.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Assembler } from '../../src/a64/test-assembler.ts';
import type { SysOperation } from '../../src/a64/test-assembler.ts';
import { FRAME, FRAME_STATE } from '../../src/abi/machine-memory.ts';
import { vcpuRecord } from '../../src/abi/vcpu.ts';
import { GUEST_BASE, createTestMachine } from '../../src/cpu/test-machine.ts';
import { DATA, Guest, PROGRAM, PageTables, USER_DATA, ec, fault, pte, sctlr, systemTest, tcr } from './guest.ts';

const at = vcpuRecord.at;
const VA = 0x20_0000_0000n;
const UPPER = 0xffff_ff80_0000_0000n;
const PAGE = 0x1000n;
const BLOCK = 0x20_0000n;
/** What the test puts into the two pages that a mapping is switched between. */
const [OLD, NEW] = [111n, 222n];

function twoPages(g: Guest): void {
  g.write64(DATA, OLD);
  g.write64(DATA + PAGE, NEW);
}
/** Loads from VA at EL1 after an optional TLBI whose argument is in X2. */
function loadAfter(g: Guest, va: bigint, operation?: SysOperation, argument = 0n): bigint {
  g.vcpu.setX(1, va);
  g.vcpu.setX(2, argument);
  g.complete(1, a => {
    if (operation) a.dsb().sys(operation, /VMALLE1/.test(operation) ? 31 : 2).dsb().isb();
    a.ldr(0, 1);
  });
  return g.vcpu.x(0);
}
const pageArgument = (va: bigint, asid = 0n): bigint => ((va >> 12n) & 0xfff_ffff_ffffn) | (asid << 48n);

systemTest('a cached translation stays until it is invalidated, by each form of TLBI', g => {
  g.enableMmu();
  twoPages(g);
  for (const [va, tables] of [[VA, g.lower], [UPPER, g.upper]] as const) {
    const operations = ['TLBI VMALLE1', 'TLBI VAE1', 'TLBI ASIDE1', 'TLBI VAAE1', 'TLBI VALE1', 'TLBI VAALE1',
      'TLBI VMALLE1IS',
      'TLBI VAE1IS', 'TLBI ASIDE1IS', 'TLBI VAAE1IS', 'TLBI VALE1IS', 'TLBI VAALE1IS'] as const;
    for (const operation of operations) {
      tables.map(va, DATA, USER_DATA | pte.notGlobal);
      g.flush();
      assert.equal(loadAfter(g, va), OLD);
      tables.map(va, DATA + PAGE, USER_DATA | pte.notGlobal);
      assert.equal(loadAfter(g, va), OLD, 'this CPU caches translations');
      assert.equal(loadAfter(g, va, operation, /ASIDE1/.test(operation) ? 0n : pageArgument(va)), NEW, operation);
    }
  }
});

systemTest('invalidation takes back permissions, for loads, stores and fetches of both levels', g => {
  g.enableMmu();
  const code = pte.accessed | pte.user | pte.readOnly;
  const svc = new Assembler().svc(0).words();
  g.m.load(Number(DATA), svc);
  for (const el of [0, 1] as const) {
    const run = (write: (a: Assembler) => void): number => {
      g.vcpu.setX(1, VA);
      const taken = g.except(el, write);
      return taken.ec === ec.svc ? -1 : taken.iss & 0x3f;
    };
    const flush = (): void => {
      g.vcpu.setX(2, pageArgument(VA));
      g.complete(1, a => a.sys('TLBI VAE1', 2));
    };
    g.lower.map(VA, DATA, code);
    flush();
    assert.equal(run(a => a.ldr(0, 1).br(1)), -1);
    g.lower.setEntry(VA, 3, 0n);
    flush();
    assert.equal(run(a => a.ldr(0, 1)), fault.translation(3));
    assert.equal(run(a => a.br(1)), fault.translation(3));
    g.lower.map(VA, DATA + PAGE, USER_DATA);
    flush();
    assert.equal(run(a => a.str(0, 1).svc(0)), -1);
    g.lower.map(VA, DATA + PAGE, USER_DATA | pte.readOnly);
    flush();
    assert.equal(run(a => a.ldr(0, 1).str(0, 1)), fault.permission(3));
  }
});

systemTest('TLBI by any address in a block covers all cached pages of it', g => {
  g.enableMmu();
  const [first, second] = [PROGRAM + BLOCK, PROGRAM + 2n * BLOCK];
  for (const offset of [0x3000n, 0x1f_f000n]) {
    g.write64(first + offset, OLD);
    g.write64(second + offset, NEW);
  }
  for (const [level, va] of [[2, VA], [1, VA + (1n << 30n)]] as const) {
    // At level 1 there is one gigabyte of memory to map: the other mapping is by 2 MiB.
    const mapOld = (): unknown => level === 2 ? g.lower.map(va, first, USER_DATA, 2)
      : g.lower.map(va, PROGRAM, USER_DATA, 1);
    const shift = level === 2 ? 0n : BLOCK;
    mapOld();
    g.flush();
    assert.equal(loadAfter(g, va + shift + 0x3000n), OLD);
    assert.equal(loadAfter(g, va + shift + 0x1f_f000n), OLD);
    g.lower.setEntry(va, level, 0n);
    g.lower.map(va + shift, second, USER_DATA, 2);
    assert.equal(loadAfter(g, va + shift + 0x3000n, 'TLBI VAE1', pageArgument(va + 0x7000n)), NEW);
    assert.equal(loadAfter(g, va + shift + 0x1f_f000n), NEW);
  }
});

systemTest('TLBI by address is not misled by a tag', g => {
  g.enableMmu({ tcr: tcr.TBI0 });
  twoPages(g);
  const tagged = VA | (0x12n << 56n);
  g.lower.map(VA, DATA, USER_DATA);
  assert.equal(loadAfter(g, tagged), OLD);
  g.lower.map(VA, DATA + PAGE, USER_DATA);
  assert.equal(loadAfter(g, tagged, 'TLBI VAE1', pageArgument(VA)), NEW);
});

for (const asidInTtbr1 of [false, true]) {
  systemTest(`a change of ASID in TTBR${Number(asidInTtbr1)} switches non-global translations`, g => {
    twoPages(g);
    g.enableMmu({ tcr: asidInTtbr1 ? tcr.A1 : 0n });
    const first = g.lower;
    const second = new PageTables(g, 39);
    const code = pte.accessed | pte.user | pte.readOnly;
    for (let pa = PROGRAM; pa < PROGRAM + 17n * PAGE; pa += PAGE) second.map(pa, pa, code);
    first.map(VA, DATA, USER_DATA | pte.notGlobal);
    second.map(VA, DATA + PAGE, USER_DATA | pte.notGlobal);
    g.upper.map(UPPER, DATA, USER_DATA | pte.notGlobal);
    g.vcpu.setX(1, VA);
    g.vcpu.setX(5, UPPER);
    const switchTo = (a: Assembler, root: bigint, asid: bigint): void => {
      if (asidInTtbr1) a.mov(9, g.upper.root | (asid << 48n)).msr('TTBR1_EL1', 9).mov(9, root).msr('TTBR0_EL1', 9)
        .isb();
      else a.mov(9, root | (asid << 48n)).msr('TTBR0_EL1', 9).isb();
    };
    g.complete(1, a => {
      switchTo(a, first.root, 1n);
      a.ldr(2, 1).ldr(6, 5);
      switchTo(a, second.root, 2n);
      a.ldr(3, 1);
      switchTo(a, first.root, 1n);
      a.ldr(4, 1);
    });
    assert.deepEqual([g.vcpu.x(2), g.vcpu.x(3), g.vcpu.x(4)], [OLD, NEW, OLD]);
    // The upper half's non-global page changes with the ASID as well.
    g.upper.map(UPPER, DATA + PAGE, USER_DATA | pte.notGlobal);
    g.complete(1, a => { switchTo(a, second.root, 3n); a.ldr(7, 5); });
    assert.deepEqual([g.vcpu.x(6), g.vcpu.x(7)], [OLD, NEW]);
  });
}

systemTest('turning the MMU off and on by SCTLR_EL1 takes effect at once', g => {
  g.enableMmu();
  twoPages(g);
  g.lower.map(DATA, DATA + PAGE, USER_DATA);
  g.vcpu.setX(1, DATA);
  g.complete(1, a => {
    a.ldr(2, 1).mrs(9, 'SCTLR_EL1').sub(10, 9, 1).msr('SCTLR_EL1', 10).isb().ldr(3, 1).msr('SCTLR_EL1', 9).isb()
      .ldr(4, 1);
  });
  assert.deepEqual([g.vcpu.x(2), g.vcpu.x(3), g.vcpu.x(4)], [NEW, OLD, NEW]);
});

// ---- code that changes

/** MOV X0, #value; RET. */
const routine = (value: number): number[] => new Assembler().mov(0, value).ret().words();

systemTest('self-modifying code runs as new after IC IVAU and ISB', g => {
  g.vcpu.set64(at.sctlrEl1, sctlr.SPAN | sctlr.UCI);
  for (const el of [0, 1] as const) {
    g.m.load(Number(DATA), routine(1));
    g.vcpu.setX(1, DATA);
    g.complete(el, a => {
      a.blr(1).movReg(20, 0);
      for (let value = 2; value < 5; value++) {
        a.mov(2, routine(value)[0]!).str(2, 1, 0, 'W').sys('DC CVAU', 1).dsb().sys('IC IVAU', 1).dsb().isb();
        a.blr(1).movReg(20 + value, 0);
      }
    });
    assert.deepEqual([20, 22, 23, 24].map(n => g.vcpu.x(n)), [1n, 2n, 3n, 4n], `EL${el}`);
  }
});

systemTest('IC IVAU works through any mapping of the page, IC IALLU and IALLUIS without one', g => {
  g.enableMmu();
  const code = pte.accessed | pte.user | pte.readOnly;
  g.lower.map(VA, DATA, USER_DATA).map(VA + PAGE, DATA, code);
  for (const operation of ['IC IVAU', 'IC IALLU', 'IC IALLUIS'] as const) {
    g.m.load(Number(DATA), routine(1));
    g.vcpu.setX(1, VA);
    g.vcpu.setX(3, VA + PAGE);
    g.complete(1, a => {
      a.blr(3).movReg(20, 0).mov(2, routine(9)[0]!).str(2, 1, 0, 'W').dsb()
        .sys(operation, operation === 'IC IVAU' ? 1 : 31).dsb().isb();
      a.blr(3).movReg(21, 0);
    });
    assert.deepEqual([g.vcpu.x(20), g.vcpu.x(21)], [1n, 9n], operation);
  }
});

systemTest('code that rewrites the instruction behind the ISB that it runs', g => {
  g.vcpu.set64(at.sctlrEl1, sctlr.SPAN);
  g.complete(1, a => {
    a.adr(1, 'target').mov(2, routine(77)[0]!).str(2, 1, 0, 'W').sys('IC IVAU', 1).dsb().isb().label('target')
      .mov(0, 1);
  });
  assert.equal(g.vcpu.x(0), 77n);
});

systemTest('IC IVAU of an address without translation aborts as cache maintenance', g => {
  g.enableMmu({ sctlr: sctlr.UCI });
  for (const el of [0, 1] as const) {
    g.vcpu.setX(1, VA);
    const taken = g.except(el, a => a.sys('IC IVAU', 1));
    assert.equal(taken.ec, el === 0 ? ec.dataAbortLower : ec.dataAbort);
    assert.equal(taken.iss, (1 << 8) | (1 << 6) | fault.translation(1), 'CM and WnR are set');
    assert.equal(taken.far, VA);
  }
});

// ---- two vCPUs

for (const addressType of ['i32', 'i64'] as const) {
  test(`TLBI of the inner shareable domain reaches another vCPU on another engine (${addressType} memory)`, () => {
    const g = new Guest({ addressType });
    g.enableMmu();
    twoPages(g);
    g.lower.map(VA, DATA, USER_DATA);
    const { vcpu, engine, host } = g.m.addVcpu(1);
    const other = new Assembler(PROGRAM + 0x8000n).ldr(0, 1).hvc(0x55).ldr(0, 1).hvc(0x56);
    g.m.load(Number(other.origin), other.words());
    const shared = [at.sctlrEl1, at.tcrEl1, at.mairEl1, at.ttbr0El1, at.ttbr1El1, at.vbarEl1];
    for (const offset of shared) vcpu.set64(offset, g.vcpu.get64(offset));
    vcpu.setX(1, VA);
    vcpu.set64(at.pcBase, other.origin);
    assert.equal(engine.run(vcpu, 1000), 'host');
    assert.deepEqual([vcpu.x(0), host.hypercalls.at(-1)], [OLD, 0x55]);
    g.lower.map(VA, DATA + PAGE, USER_DATA);
    assert.equal(loadAfter(g, VA, 'TLBI VAE1IS', pageArgument(VA)), NEW);
    assert.equal(engine.run(vcpu, 1000), 'host');
    assert.deepEqual([vcpu.x(0), host.hypercalls.at(-1)], [NEW, 0x56]);
  });
}

systemTest('IC IVAU of one vCPU is for all: another runs the new code after its own ISB', g => {
  g.m.load(Number(DATA), routine(1));
  const { vcpu, engine } = g.m.addVcpu(1);
  const caller = new Assembler(PROGRAM + 0x8000n).mov(1, DATA).blr(1).hvc(1).isb().blr(1).hvc(2);
  g.m.load(Number(caller.origin), caller.words());
  vcpu.set64(at.pcBase, caller.origin);
  assert.equal(engine.run(vcpu, 100), 'host');
  assert.equal(vcpu.x(0), 1n);
  g.vcpu.setX(1, DATA);
  g.complete(1, a => a.mov(2, routine(5)[0]!).str(2, 1, 0, 'W').dsb().sys('IC IVAU', 1).dsb().isb());
  assert.equal(engine.run(vcpu, 100), 'host');
  assert.equal(vcpu.x(0), 5n);
});

// A thread that waits for others to make a frame writable counts as out of code; what they do meanwhile must be seen.
systemTest('a flush while a frame is waited for makes the translation be done again', g => {
  g.enableMmu();
  const { host, engine, vcpu } = g.m;
  const { frameForWrite } = host;
  const old = Number(DATA) / 4096;
  /** As soon as a frame is asked for the first time: the page is mapped elsewhere, and all vCPUs are told. */
  const remapDuringNextWait = (va: bigint): void => {
    host.frameForWrite = (of, guestFrame) => {
      if (guestFrame === old) {
        host.frameForWrite = frameForWrite;
        g.lower.map(va, DATA + PAGE, USER_DATA);
        engine.requestTlbFlush(vcpu.address);
        engine.obeyFlushRequest(vcpu);
      }
      return frameForWrite.call(host, of, guestFrame);
    };
  };
  const writes: [string, bigint, (a: Assembler) => void][] = [
    ['STR', 0n, a => a.str(0, 1)],
    ['STP across a page boundary', PAGE - 8n, a => a.stp(0, 0, 1)],
  ];
  for (const [name, offset, write] of writes) {
    twoPages(g);
    g.lower.map(VA, DATA, USER_DATA);
    g.lower.map(VA + PAGE, DATA + 2n * PAGE, USER_DATA);
    g.flush();
    remapDuringNextWait(VA);
    vcpu.setX(0, 333n);
    vcpu.setX(1, VA + offset);
    g.complete(1, write);
    assert.equal(g.read64(DATA + PAGE + offset), 333n, name);
    assert.notEqual(g.read64(DATA + offset), 333n, name);
    assert.equal(loadAfter(g, VA + offset), 333n, `${name}: and no entry of before is left`);
  }
});

systemTest('a page that is mapped elsewhere while the decode cache is emptied is run from there', g => {
  g.enableMmu();
  const { host, engine, vcpu } = g.m;
  g.m.load(Number(DATA), routine(1));
  g.m.load(Number(DATA + PAGE), routine(2));
  const bits = pte.accessed | pte.readOnly;
  g.lower.map(VA, DATA, bits);
  const { decodeCache } = engine;
  const { slotFor } = decodeCache;
  const { flushDecodeCache } = host;
  const full = g.m.machine.firstFrame + Number(DATA - BigInt(GUEST_BASE)) / 4096;
  decodeCache.slotFor = mfn => mfn === full ? 0 : slotFor.call(decodeCache, mfn);
  host.flushDecodeCache = of => {
    decodeCache.slotFor = slotFor;
    g.lower.map(VA, DATA + PAGE, bits);
    flushDecodeCache.call(host, of);
  };
  vcpu.setX(1, VA);
  g.complete(1, a => a.blr(1));
  assert.equal(vcpu.x(0), 2n);
});

test('a frame that was code and is the root of a p2m now keeps its lock when the decode cache is emptied', () => {
  const { machine, engine: { decodeCache } } = createTestMachine();
  const { u32 } = machine;
  const [root, code] = [machine.frameEnd - 1, machine.frameEnd - 2];
  const wordOf = (mfn: number, field: number): number => (machine.region('frameTable').offsetBytes + mfn * FRAME.sizeBytes + field) / 4;
  for (const mfn of [root, code]) decodeCache.slotFor(mfn);
  const locked = u32[wordOf(root, FRAME.at.decode)]!;
  assert.equal(locked, 1);
  u32[wordOf(root, FRAME.at.state)] = FRAME_STATE.table;
  decodeCache.empty();
  assert.deepEqual([root, code].map(mfn => u32[wordOf(mfn, FRAME.at.decode)]), [locked, 0]);
});

systemTest('a program that changes the page that it runs in goes on in the copy of it that is made for that', g => {
  g.vcpu.set64(at.sctlrEl1, sctlr.SPAN);
  const { host, engine, machine } = g.m;
  const { frameForRead, frameForWrite } = host;
  const shared = machine.firstFrame + Number(PROGRAM - BigInt(GUEST_BASE)) / 4096;
  const copy = machine.frameEnd - 1;
  let now = shared;
  host.frameForRead = (of, guestFrame) => {
    const mfn = frameForRead.call(host, of, guestFrame);
    return mfn === shared ? now : mfn;
  };
  host.frameForWrite = (of, guestFrame) => {
    const mfn = frameForWrite.call(host, of, guestFrame);
    if (mfn === shared && now === shared) {
      machine.u8.copyWithin(copy * 4096, shared * 4096, (shared + 1) * 4096);
      now = copy;
      engine.forgetFrame(of, shared);
    }
    return mfn === shared ? now : mfn;
  };
  g.program(a => {
    a.adr(1, 'target').mov(2, routine(77)[0]!).str(2, 1, 0, 'W').sys('IC IVAU', 1).dsb().isb().label('target')
      .mov(0, 1).hvc(0);
  });
  g.enter(1);
  // It is stopped before the store, which is tried again from the copy.
  assert.equal(engine.run(g.vcpu, 100), 'slice');
  assert.equal(engine.run(g.vcpu, 100), 'host');
  assert.equal(g.vcpu.x(0), 77n);
  assert.equal(now, copy);
});
