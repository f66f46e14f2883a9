// Guests that make hypercalls, PSCI calls and accesses to the interrupt controller with whatever comes to mind. The
// seeds are in the tests' names.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { Assembler } from '../../src/a64/test-assembler.ts';
import { HYPERVISOR, SCHEDOP, XEN_HYPERCALL_TAG } from '../../src/abi/xen.ts';
import { SeededRandom } from '../../src/base/random.ts';
import { BASE, DATA, FREE, forEachRow, forever, fresh, hypercall, powerOff, repeat } from '../bare-metal.ts';
import { until } from '../waiting.ts';
import { Arena } from './arena.ts';

let arena: Arena;
before(async () => { arena = await Arena.open(); });
after(() => arena.close());

/** x16 and x0-x4. */
const CALL_BYTES = 48;
const MULTICALL_ENTRY_BYTES = 64;

/** A register or a field of a structure: small numbers, pointers good and bad, anything. */
function argument(dice: SeededRandom): bigint {
  switch (dice.below(8)) {
    case 0: return BigInt(dice.below(8));
    case 1: return BigInt(dice.below(2048));
    case 2: return BigInt(DATA + 8 * dice.below(8192));
    case 3: return BigInt(DATA + dice.below(0x2_0000));
    case 4: return BigInt(FREE + 4096 * dice.below(64) + 4090 + dice.below(8));
    case 5: return BigInt(dice.pick([0x7ff0, 0x7fff, 0xffff_ffff, 0x8000_0000, 0, 1, BASE / 4096, DATA / 4096 + 1]));
    case 6: return dice.pick([0xffff_ffff_ffff_ffffn, 0x7fff_ffff_ffff_fff8n, 0x3900_0000n, 0x0300_1000n, 1n << 40n]);
    default: return dice.u64();
  }
}

const numbers = Object.values(HYPERVISOR);

function randomCalls(dice: SeededRandom, count: number, number: (call: number) => number): BigUint64Array {
  const words = new BigUint64Array(count * CALL_BYTES / 8 + 4096);
  for (let call = 0; call < count; call++) {
    words[6 * call] = BigInt(number(call));
    for (let index = 0; index < 5; index++) words[6 * call + 1 + index] = argument(dice);
    // Most first arguments are operations, and most operations of these take a structure.
    if (dice.below(4) !== 0) words[6 * call + 1] = BigInt(dice.below(32));
    if (dice.below(3) !== 0) words[6 * call + 2] = BigInt(DATA + 8 * dice.below(8192));
  }
  // The structures that they point to.
  for (let index = count * 6; index < words.length; index++) words[index] = argument(dice);
  return words;
}

/** What ends the guest has tests of its own. */
function endsTheGuest(words: BigUint64Array, call: number): boolean {
  const op = Number(words[6 * call + 1]! & 0xffff_ffffn);
  return words[6 * call] === BigInt(HYPERVISOR.sched_op)
    && ([SCHEDOP.shutdown, SCHEDOP.remote_shutdown, SCHEDOP.block, SCHEDOP.poll] as number[]).includes(op)
    || words[6 * call] === BigInt(HYPERVISOR.vcpu_op) && op === 2 || words[6 * call] === BigInt(HYPERVISOR.multicall);
}

function makeCalls(a: Assembler, count: number, except: readonly number[] = []): void {
  forEachRow(a, count, CALL_BYTES, () => {
    const skip = fresh('skip');
    a.ldr(16, 20, 0, 'W');
    for (const number of except) a.cmp(16, number).bCond('eq', skip);
    for (let index = 0; index < 5; index++) a.ldr(index, 20, 8 + 8 * index);
    a.hvc(XEN_HYPERCALL_TAG).label(skip);
  });
}

for (const seed of [21, 22, 23]) {
  test(`a guest makes every hypercall with random arguments, seed ${seed}`, async () => {
    const dice = new SeededRandom(seed);
    const count = 6000;
    const words = randomCalls(dice, count, call => call < count - 500 ? numbers[call % numbers.length]! : dice.below(80));
    for (let call = 0; call < count; call++) if (endsTheGuest(words, call)) words[6 * call] = BigInt(HYPERVISOR.xen_version);
    const guest = await arena.start({ data: new Uint8Array(words.buffer), code: a => { makeCalls(a, count); powerOff(a); } });
    await until('all calls are made', () => guest.state === 'shutdown' || guest.stats().hypercalls >= count);
    assert.ok(guest.stats().hypercalls >= count, `it stopped after ${guest.stats().hypercalls} calls`);
    await arena.survive(guest);
  });
}

for (const [name, number] of Object.entries(HYPERVISOR)) {
  test(`a guest makes the hypercall ${name} with random arguments, whatever it does, seed 24`, async () => {
    const dice = new SeededRandom(24 + number);
    const count = 3000;
    const words = randomCalls(dice, count, () => number);
    const guest = await arena.start({ data: new Uint8Array(words.buffer), code: a => { makeCalls(a, count); powerOff(a); } });
    await until('it has stopped or waits', () => guest.state !== 'running'
      || ['blocked', 'offline'].includes(guest.stats().vcpus[0]!.state) || guest.stats().hypercalls >= count);
    await arena.survive(guest);
  });
}

test('two vCPUs make random hypercalls at the same time, seed 25', async () => {
  const dice = new SeededRandom(25);
  const count = 4000;
  // What a call answers may come to be another row's call: a vCPU that is off or asleep makes no further ones.
  const unsafe = [HYPERVISOR.sched_op, HYPERVISOR.vcpu_op, HYPERVISOR.multicall];
  const words = randomCalls(dice, count, () => dice.pick(numbers.filter(number => !unsafe.includes(number as never))));
  const guest = await arena.start({ data: new Uint8Array(words.buffer), code: a => {
    a.adr(2, 'second').mov(0, 0xc400_0003).mov(1, 1).mov(3, 0).hvc(0);
    makeCalls(a, count, unsafe);
    forever(a, () => a.nop());
    a.label('second').mov(0, BASE + 0x800).msr('VBAR_EL1', 0);
    makeCalls(a, count, unsafe);
    forever(a, () => a.nop());
  } }, { vcpus: 2 });
  const done = (): boolean => guest.stats().vcpus.every(({ instructionsRetired }) => instructionsRetired >= 16 * count);
  await until('all calls are made', () => guest.state !== 'running' || done());
  assert.ok(guest.stats().hypercalls > count);
  assert.equal(guest.state, 'running');
  await arena.survive(guest);
});

test('multicalls of anything, of each other, and far too long, seed 26', async () => {
  const dice = new SeededRandom(26);
  const entries = 256;
  const words = new BigUint64Array(entries * MULTICALL_ENTRY_BYTES / 8);
  for (let index = 0; index < words.length; index++) words[index] = argument(dice);
  for (let entry = 0; entry < entries; entry++) {
    words[entry * 8] = BigInt(dice.pick(numbers.filter(number => number !== HYPERVISOR.sched_op && number !== HYPERVISOR.vcpu_op)));
  }
  await arena.runToEnd({ data: new Uint8Array(words.buffer), code: a => {
    for (const count of [entries, 1, 0, 1025, 0xffff_ffff, 1024]) {
      for (const place of [DATA, DATA + 1, DATA + 4090, 0x3900_0000, 0, -64]) {
        a.mov(0, place).mov(1, count);
        hypercall(a, 'multicall');
      }
    }
    powerOff(a);
  } });
});

test('events are sent in a tight loop', async () => {
  for (const op of [4, 1, 0, 3] as const) {
    const guest = await arena.start({ code: a => {
      // Console and xenstore are ports 1 and 2: send; or bind, allocate and close as fast as can be.
      forever(a, () => {
        for (const port of [1, 2]) {
          a.mov(1, FREE).mov(2, op === 4 || op === 3 ? port : 0x7ff0).str(2, 1).mov(0, op);
          hypercall(a, 'event_channel_op');
        }
      });
    } });
    await until('it has made many calls', () => guest.stats().hypercalls > 20_000);
    await arena.survive(guest);
  }
});

test('PSCI calls with random arguments, seed 27', async () => {
  const dice = new SeededRandom(27);
  const never = new Set([0x8400_0001, 0x8400_0002, 0x8400_0008, 0x8400_0009, 0xc400_0001]);
  const functions = Array.from({ length: 2000 }, () => dice.pick([
    0x8400_0000 + dice.below(32), 0xc400_0000 + dice.below(32), 0x8000_0000 + dice.below(4), dice.u32(),
  ])).filter(id => !never.has(id));
  const guest = await arena.start({ code: a => {
    for (const id of functions) {
      a.mov(0, id).mov(1, argument(dice) & ~3n).mov(2, argument(dice)).mov(3, argument(dice)).hvc(0);
    }
    powerOff(a);
  } }, { vcpus: 4 });
  await until('it has stopped or retired enough', () => guest.state !== 'running' || guest.stats().instructionsRetired > 50_000);
  await arena.survive(guest);
});

test('vCPUs are powered on and off for ever', async () => {
  const guest = await arena.start({ code: a => {
    a.adr(19, 'second');
    forever(a, () => {
      for (const target of [1, 2, 3, 4]) a.mov(0, 0xc400_0003).mov(1, target).movReg(2, 19).mov(3, 0).hvc(0);
    });
    a.label('second').mov(0, 0x8400_0002).hvc(0).b('second');
  } }, { vcpus: 4 });
  await until('it has run', () => guest.stats().vcpus.every(vcpu => vcpu.instructionsRetired > 500));
  await arena.survive(guest);
});

test('all vCPUs power the system off at once, or reset it', async () => {
  for (const id of [0x8400_0008, 0x8400_0009]) {
    const guest = await arena.start({ code: a => {
      a.adr(19, 'end');
      for (const target of [1, 2, 3]) a.mov(0, 0xc400_0003).mov(1, target).movReg(2, 19).hvc(0);
      a.label('end');
      forever(a, () => a.mov(0, id).hvc(0));
    } }, { vcpus: 4 });
    assert.equal(await guest.waitForShutdown(), id === 0x8400_0008 ? 'poweroff' : 'reboot');
    await arena.survive(guest);
  }
});

test('SCHEDOP_shutdown with reasons that there are and reasons that there are not', async () => {
  const reasons = [0, 1, 2, 3, 4, 5, 6, 255, 0x8000_0000, 0xffff_ffff];
  const expected = ['poweroff', 'reboot', 'suspend', 'crash', 'watchdog', 'crash'];
  for (const [index, reason] of reasons.entries()) {
    const guest = await arena.start({ code: a => {
      a.mov(1, FREE).mov(2, reason).str(2, 1, 0, 'W').mov(0, SCHEDOP.shutdown);
      hypercall(a, 'sched_op');
      // Refused: it is still there.
      a.mov(2, 0).str(2, 1, 0, 'W').mov(0, SCHEDOP.shutdown);
      hypercall(a, 'sched_op');
    } });
    if (expected[index] === 'suspend') await until('it has suspended itself', () => guest.state === 'suspended');
    else assert.equal(await guest.waitForShutdown(), expected[index] ?? 'poweroff');
    await arena.survive(guest);
  }
});

for (const seed of [28, 29]) {
  test(`accesses of all sizes to the interrupt controller, seed ${seed}`, async () => {
    const dice = new SeededRandom(seed);
    const count = 4000;
    const rows = new BigUint64Array(2 * count);
    for (let row = 0; row < count; row++) {
      const base = dice.pick([0x0300_1000, 0x0302_0000, 0x0303_0000, 0x0304_0000, 0x0300_f000, 0x0401_0000]);
      const offset = dice.pick([4 * dice.below(1024), dice.below(0x1_0000), 8 * dice.below(0x2000)]);
      rows[2 * row] = BigInt(base + offset);
      rows[2 * row + 1] = dice.pick([dice.u64(), 0n, 0xffff_ffff_ffff_ffffn]);
    }
    await arena.runToEnd({ data: new Uint8Array(rows.buffer), code: a => {
      forEachRow(a, count, 16, () => {
        a.ldr(1, 20).ldr(2, 20, 8);
        for (const size of ['B', 'H', 'W', 'X', 'Q'] as const) a.ldr(3, 1, 0, size).str(2, 1, 0, size);
        a.ldp(3, 4, 1).stp(3, 4, 1).ldxr(3, 1).stxr(4, 3, 1).ldadd(3, 4, 1).cas(3, 4, 1).sys('DC ZVA', 1).ldtr(3, 1);
      });
      powerOff(a);
    } }, { vcpus: 2 });
  });
}

test('grant tables: nonsense in the entries, mapped anywhere, grown without end, seed 30', async () => {
  const dice = new SeededRandom(30);
  const words = BigUint64Array.from({ length: 8192 }, () => argument(dice));
  await arena.runToEnd({ data: new Uint8Array(words.buffer), code: a => {
    repeat(a, 20, () => {
      for (let step = 0; step < 80; step++) {
        a.mov(0, dice.below(13)).mov(1, DATA + 8 * dice.below(4096)).mov(2, dice.pick([0, 1, 2, 7, 64, 0xffff_ffff]));
        hypercall(a, 'grant_table_op');
        // XENMEM_add_to_physmap, add_to_physmap_batch, remove_from_physmap with the table's frames and others.
        a.mov(0, dice.pick([7, 23, 15, 0, 1, 6])).mov(1, DATA + 8 * dice.below(4096));
        hypercall(a, 'memory_op');
        a.mov(1, DATA + 8 * dice.below(4096)).mov(2, 0x7ff0).str(2, 1, 0, 'H').mov(2, dice.below(4)).str(2, 1, 4, 'H');
        a.mov(2, dice.below(70)).str(2, 1, 8).mov(2, 0x3_8000 + dice.below(40)).str(2, 1, 16).mov(0, 7);
        hypercall(a, 'memory_op');
      }
    });
    powerOff(a);
  } });
});
