// Guests that do not play by the rules of the CPU: garbage, loops with interrupts masked, exceptions without end, wild
// system registers and page tables. Seeds are in the tests' names.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { systemRegister, sysreg } from '../../src/a64/system-registers.ts';
import type { Assembler } from '../../src/a64/test-assembler.ts';
import { SeededRandom } from '../../src/base/random.ts';
import { BASE, DATA, FREE, forever, fresh, powerOff, repeat, spin } from '../bare-metal.ts';
import { until } from '../waiting.ts';
import { Arena } from './arena.ts';

let arena: Arena;
before(async () => { arena = await Arena.open(); });
after(() => arena.close());

function randomWords(seed: number, count: number): Uint8Array {
  const dice = new SeededRandom(seed);
  return new Uint8Array(Uint32Array.from({ length: count }, () => dice.u32()).buffer);
}

/** Address in x0, PSTATE in x1. */
const eretTo = (a: Assembler, address: number, pstate: number): void => {
  a.mov(0, address).mov(1, pstate).msr('ELR_EL1', 0).msr('SPSR_EL1', 1).eret();
};
const EL0 = 0x3c0;
const EL1 = 0x3c5;

for (const [name, pstate] of [['EL1', EL1], ['EL0', EL0]] as const) {
  for (const seed of [1, 2, 3, 4]) {
    test(`a guest executes random words at ${name}, seed ${seed}`, async () => {
      await arena.run({ data: randomWords(seed, 2 ** 18), code: a => eretTo(a, DATA, pstate) }, 150_000);
    });
  }
}

test('a guest executes random words and starts again at another one after each fault, seed 5', async () => {
  await arena.run({
    data: randomWords(5, 2 ** 18),
    onFault: a => {
      a.mrs(28, 'CNTVCT_EL0').mov(27, 0xf_fffc).emit('AND (shifted register)', { sf: 1, Rm: 27, Rn: 28, Rd: 28 });
      a.mov(27, DATA).addReg(28, 28, 27).msr('ELR_EL1', 28).eret();
    },
    code: a => eretTo(a, DATA, EL0),
  }, 150_000);
});

test('a guest loops with interrupts masked for ever', async () => {
  await arena.run({ code: a => { a.msrImmediate('DAIFSet', 15); spin(a); } }, 2_000_000);
});

test('a guest invalidates its TLB in a loop over two pages: each branch misses', async () => {
  await arena.run({ code: a => {
    const [here, there] = [fresh('here'), fresh('there')];
    a.msrImmediate('DAIFSet', 15).label(here).sys('TLBI VMALLE1').isb().b(there);
    a.padTo(0x3000).label(there).b(here);
  } }, 100_000);
});

test('more guests than pCPUs loop with interrupts masked', async () => {
  const guests = await Promise.all([1, 2, 3, 4].map(() => arena.start({ code: a => { a.msrImmediate('DAIFSet', 15); spin(a); } })));
  await until('all have run', () => guests.every(guest => guest.stats().instructionsRetired > 100_000));
  for (const guest of guests) await arena.survive(guest);
});

for (const [name, target] of [
  ['that is unmapped', 0x1000], ['of a device', 0x0300_1000], ['beyond 40 bits', 0x100_0000_0000],
  ['that is not aligned', BASE + 0x1002], ['of memory never written', FREE],
] as const) {
  test(`a guest jumps to an address ${name}`, async () => {
    await arena.run({ code: a => a.mov(0, target).br(0) }, 0);
    await arena.run({ code: a => { a.mov(0, target).msr('VBAR_EL1', 0).br(0); } }, 0);
  });
}

for (const [name, vectors] of [
  ['unmapped memory', 0], ['memory that is zero', FREE], ['a device', 0x0300_1000], ['nowhere', 0xffff_ffff_ffff_f800n],
] as const) {
  test(`exceptions without end, with vectors in ${name}`, async () => {
    const guest = await arena.start({ code: a => a.mov(0, vectors).msr('VBAR_EL1', 0).udf() });
    await until('it has run', () => guest.stats().runMillis > 20);
    await arena.survive(guest);
  });
}

test('a vector that is the instruction which faults', async () => {
  const guest = await arena.start({ onFault: a => a.udf(), code: a => a.udf() });
  await until('it has run', () => guest.stats().runMillis > 20);
  await arena.survive(guest);
});

test('a guest waits for interrupts with interrupts off', async () => {
  for (const wait of ['WFI', 'WFE']) {
    const guest = await arena.start({ code: a => { a.msrImmediate('DAIFSet', 15); forever(a, () => a.emit(wait)); } });
    await until('it waits', () => guest.stats().vcpus[0]!.state === 'blocked' || wait === 'WFE' && guest.stats().runMillis > 5);
    await arena.survive(guest);
  }
});

test('a guest sets its timers to fire all the time', async () => {
  for (const [control, value] of [['CNTV_CTL_EL0', 'CNTV_TVAL_EL0'], ['CNTP_CTL_EL0', 'CNTP_TVAL_EL0']] as const) {
    await arena.run({ code: a => {
      // Interrupts are enabled at the distributor, the redistributor and the CPU interface, and taken as fast as can be.
      a.mov(0, 0x0300_1000).mov(1, 0x12).str(1, 0, 0, 'W').mov(0, 0x0302_0014).str(31, 0, 0, 'W');
      a.mov(0, 0x0303_0100).mov(1, 0xffff_ffff).str(1, 0, 0, 'W').mov(0, 0x0303_0080).str(1, 0, 0, 'W');
      a.mov(1, 0xff).msr(sysreg.ICC_PMR_EL1, 1).mov(1, 1).msr(sysreg.ICC_IGRPEN1_EL1, 1).isb();
      a.mov(2, 1).msr(control, 2);
      forever(a, () => a.mov(1, 1).msr(value, 1).msrImmediate('DAIFClr', 15).wfi());
    } }, 5000);
  }
});

// ---- system registers

const SKIPPED: ReadonlySet<number> = new Set([sysreg.SCTLR_EL1, sysreg.VBAR_EL1]);

for (const seed of [6, 7]) {
  test(`a guest reads and writes every system register there could be, seed ${seed}`, async () => {
    const dice = new SeededRandom(seed);
    const guest = await arena.runToEnd({ code: a => {
      for (let encoding = systemRegister(0, 0, 0, 0, 0); encoding < 1 << 16; encoding++) {
        if (encoding >>> 14 < 2 || SKIPPED.has(encoding)) continue;
        a.mrs(1, encoding);
        if (encoding % 8 === 0) a.mov(2, dice.u64());
        a.msr(encoding, 2);
      }
      // What one of them has done to the interrupt mask or the stack pointer does not matter to what follows.
      powerOff(a);
    } });
    assert.ok(guest.stats().unknownSystemRegisters > 50_000);
  });
}

test('a guest performs every SYS operation there could be, at EL1 and EL0, seed 8', async () => {
  const dice = new SeededRandom(8);
  for (const pstate of [EL1, EL0]) {
    await arena.run({ code: a => {
      eretTo(a, 0, pstate); // faults at once: its vector goes on behind it
      for (let fields = 0; fields < 1 << 14; fields++) {
        if (fields % 16 === 0) a.mov(1, dice.pick([dice.u64(), BigInt(FREE + dice.below(0x1_0000)), BigInt(BASE)]));
        a.emit('SYS', { op1: fields >>> 11, CRn: (fields >>> 7) & 15, CRm: (fields >>> 3) & 15, op2: fields & 7, Rt: 1 });
      }
      powerOff(a);
    } }, 16_000);
  }
});

// ---- the MMU

const MMU_ON = 0x30d0_0800n | 0x1005n;
const MMU_OFF = 0x30d0_0800n;
/** Level 1, for inputs of 39 bits: the second GiB is RAM, mapped one to one; `rest` is everything else. */
function lowerTable(rest: bigint): BigUint64Array {
  const table = new BigUint64Array(512).fill(rest);
  table[1] = BigInt(BASE) | 0x401n;
  return table;
}

for (const seed of [9, 10, 11]) {
  test(`a guest turns on the MMU with random page tables, seed ${seed}`, async () => {
    const dice = new SeededRandom(seed);
    // Three in four descriptors are tables or pages in the guest's own memory.
    const tables = BigUint64Array.from({ length: 64 * 512 }, () => dice.below(4) === 0 ? dice.u64()
      : (dice.u64() & 0xfff0_0000_0000_0fffn) | BigInt(DATA + 4096 * dice.below(64)) | 3n);
    tables.set(lowerTable(0n));
    await arena.runToEnd({ data: new Uint8Array(tables.buffer), code: a => {
      a.mov(1, DATA).msr('TTBR0_EL1', 1);
      repeat(a, 20, () => {
        for (let round = 0; round < 20; round++) {
          const inputBits = dice.below(24) + 25;
          a.mov(1, 25n | (BigInt(64 - inputBits) << 16n) | (BigInt(dice.below(8)) << 32n) | (BigInt(dice.below(4)) << 39n));
          a.msr('TCR_EL1', 1).mov(1, DATA + 4096 * (1 + dice.below(63))).msr('TTBR1_EL1', 1);
          a.mov(1, dice.u64() & ~0xffn | 0xffn).msr('MAIR_EL1', 1).isb().mov(1, MMU_ON).msr('SCTLR_EL1', 1).isb();
          for (let access = 0; access < 16; access++) {
            a.mov(1, -1n << BigInt(inputBits) | dice.u64() & ((1n << BigInt(inputBits)) - 1n));
            a.ldr(2, 1).emit('LDTR X (unprivileged)', { Rn: 1, Rt: 2 }).sys('AT S1E1W', 1);
          }
          a.mov(1, MMU_OFF).msr('SCTLR_EL1', 1).sys('TLBI VMALLE1').isb();
        }
      });
      powerOff(a);
    } });
  });
}

test('page tables that contain themselves', async () => {
  for (const hardwareManaged of [0n, 3n]) {
    // Everything but the program's RAM leads back into the same table.
    const table = lowerTable(BigInt(DATA) | 0x403n | 1n << 51n);
    const guest = await arena.runToEnd({ data: new Uint8Array(table.buffer), code: a => {
      a.mov(1, 25n | 25n << 16n | 2n << 32n | hardwareManaged << 39n).msr('TCR_EL1', 1).mov(1, 0xff).msr('MAIR_EL1', 1);
      a.mov(1, DATA).msr('TTBR0_EL1', 1).msr('TTBR1_EL1', 1).isb().mov(1, MMU_ON).msr('SCTLR_EL1', 1).isb();
      // Read and written as memory through themselves, until the descriptors are nonsense.
      for (const index of [2, 3, 9, 511]) {
        for (const other of [0, 2, 3, 511]) {
          const address = BigInt(index) << 30n | BigInt(other) << 21n | BigInt(index) << 12n;
          a.mov(1, address).ldr(2, 1, 8 * other).mov(3, index * 0x1234_5677).str(3, 1, 8 * other).str(2, 1, 16);
          a.sys('TLBI VMALLE1').dsb().isb();
        }
      }
      a.mov(1, MMU_OFF).msr('SCTLR_EL1', 1).isb();
      powerOff(a);
    } });
    assert.equal(guest.state, 'destroyed');
  }
});

for (const seed of [12, 13]) {
  test(`wild values in the registers of the MMU, with the MMU on, seed ${seed}`, async () => {
    const dice = new SeededRandom(seed);
    const guest = await arena.start({ code: a => {
      const again = fresh('wild');
      a.label(again);
      for (let step = 0; step < 400; step++) {
        const register = dice.pick(['TCR_EL1', 'TTBR0_EL1', 'TTBR1_EL1', 'MAIR_EL1', 'SCTLR_EL1', 'CONTEXTIDR_EL1'] as const);
        a.mov(1, dice.u64()).msr(register, 1).isb();
        if (dice.below(3) === 0) a.sys(dice.pick(['TLBI VMALLE1IS', 'TLBI VAE1IS', 'TLBI ASIDE1', 'AT S1E1R', 'AT S1E0W']), 1);
      }
      a.b(again);
    } });
    await until('it has run', () => guest.stats().runMillis > 50);
    await arena.survive(guest);
  });
}
