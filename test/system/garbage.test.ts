// A guest that executes garbage: whatever it does to itself, with random instructions from the whole table, random
// words, random system registers and page tables, `run` comes back and the host neither throws nor hangs.
//
//   ZAZEN_SEED=n     other random numbers (every run prints its seed)
//   ZAZEN_GUESTS=n   guests for each kind of memory (default 40)

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Assembler } from '../../src/a64/test-assembler.ts';
import { encode } from '../../src/a64/row.ts';
import { sysreg } from '../../src/a64/system-registers.ts';
import { rows } from '../../src/a64/table.ts';
import { vcpuRecord } from '../../src/abi/vcpu.ts';
import { SeededRandom } from '../../src/base/random.ts';
import { GUEST_BASE, createTestMachine } from '../../src/cpu/test-machine.ts';
import { resetVcpu } from '../../src/cpu/reset.ts';

const SEED = Number(process.env['ZAZEN_SEED'] ?? 20_26);
const GUESTS = Number(process.env['ZAZEN_GUESTS'] ?? 40);
const SLICES = 12;
const SLICE_INSTRUCTIONS = 2000;
/** Code, data and tables are all in these first bytes of memory. */
const BYTES = 0x2_0000;
const at = vcpuRecord.at;
const registerNames = Object.keys(sysreg) as (keyof typeof sysreg)[];

function randomWord(random: SeededRandom): number {
  switch (random.below(12)) {
    case 0: return random.u32();
    case 1: return new Assembler().msr(random.pick(registerNames), random.below(31)).words()[0]!;
    case 2: return new Assembler().mrs(random.below(31), random.pick(registerNames)).words()[0]!;
    case 3: return random.pick([new Assembler().eret(), new Assembler().svc(0), new Assembler().sys('TLBI VMALLE1'),
      new Assembler().isb()]).words()[0]!;
    default: {
      const row = random.pick(rows);
      const fields: Record<string, number> = {};
      for (const [name, { bits }] of row.fields) fields[name] = random.u32() & (2 ** bits - 1);
      // Branches that stay near, so that something goes on running.
      const offset = row.branch === undefined ? undefined : Object.keys(fields).find(name => name.startsWith('imm'));
      if (offset !== undefined) fields[offset] = random.below(64);
      return encode(row, fields);
    }
  }
}
/** An address in memory, aligned or not, or something else. */
function randomValue(random: SeededRandom): bigint {
  if (random.below(4) === 0) return random.u64();
  return BigInt(GUEST_BASE + random.below(BYTES)) & (random.below(4) === 0 ? -1n : ~15n);
}

for (const addressType of ['i32', 'i64'] as const) {
  test(`garbage runs, and comes to an end (${addressType} memory)`, () => {
    console.log(`${addressType}: seed ${SEED} (ZAZEN_SEED), ${GUESTS} guests (ZAZEN_GUESTS)`);
    const random = new SeededRandom(SEED);
    const m = createTestMachine({ addressType });
    let retired = 0n;
    for (let guest = 0; guest < GUESTS; guest++) {
      m.load(GUEST_BASE, Array.from({ length: BYTES / 4 }, () => randomWord(random)));
      const tables = new BigUint64Array(m.ram.buffer, m.ram.byteOffset + BYTES / 2, 512);
      for (let i = 0; i < 512; i++) tables[i] = (randomValue(random) & ~0xfffn) | BigInt(random.below(4096)) | 1n;
      resetVcpu(m.vcpu, 0, BigInt(GUEST_BASE + 4 * random.below(BYTES / 4)));
      m.engine.flushTlb(m.vcpu);
      for (let n = 0; n < 32; n++) m.vcpu.setX(n, randomValue(random));
      for (const offset of [at.vbarEl1, at.elrEl1, at.spEl0]) m.vcpu.set64(offset, randomValue(random) & ~0x7ffn);
      m.vcpu.set64(at.ttbr0El1, BigInt(GUEST_BASE + BYTES / 2));
      m.vcpu.set64(at.cpacrEl1, 3n << 20n);
      m.vcpu.updateFpTrap();
      for (let slice = 0; slice < SLICES; slice++) {
        m.vcpu.set32(at.irqLine, random.below(2));
        m.engine.run(m.vcpu, SLICE_INSTRUCTIONS);
      }
      retired += m.vcpu.get64(at.instructionsRetired);
    }
    assert.ok(retired > BigInt(1000 * GUESTS), `something ran: ${retired} instructions`);
  });
}
