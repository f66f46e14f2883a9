import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { createTestMachine, GUEST_BASE } from '../cpu/test-machine.ts';
import { vcpuRecord } from '../abi/vcpu.ts';
import { Assembler, bitMaskFields, encodeChecked, rowNamed } from './test-assembler.ts';
import { decodeBitMasks } from './bit-masks.ts';
import { disassemble } from './test-disassembler.ts';
import { encode, fieldsOf } from './row.ts';
import { decode, rows } from './table.ts';

// Words worked out by hand from the encoding diagrams of the Arm ARM.
test('shorthands encode as the manual says', () => {
  const a = new Assembler(0n);
  a.label('start').nop().add(0, 31, 16).subs(1, 1, 1).bCond('ne', 'start').cbz(3, 'start').ldr(2, 1, 8)
    .str(2, 31, 4, 'W')
    .svc(5).hvc(0x42).brk(1).eret().ret().mrs(0, 'SCTLR_EL1').msr('VBAR_EL1', 7).isb().sys('TLBI VMALLE1')
    .msrImmediate('DAIFClr', 2).ldxr(1, 2).stxr(3, 1, 2).adr(0, 'end').tbnz(4, 40, 'end').label('end').b('start');
  assert.deepEqual(a.words().map(word => word.toString(16)), [
    'd503201f', '910043e0', 'f1000421', '54ffffa1', 'b4ffff83', 'f9400422', 'b90007e2', 'd40000a1', 'd4000842',
    'd4200020', 'd69f03e0', 'd65f03c0', 'd5381000', 'd518c007', 'd5033fdf', 'd508871f', 'd50342ff', 'c85f7c41',
    'c8037c41', '10000040', 'b7400024', '17ffffeb',
  ]);
});

test('mov gives the value in the CPU, in at most four instructions', () => {
  const m = createTestMachine();
  const edge = fc.constantFrom(0n, 0xffff_ffff_ffff_ffffn, 0xffffn, 0xffff_0000n, 0x5555_5555_5555_5555n,
    0x1234_0000_ffff_ffffn);
  fc.assert(fc.property(fc.oneof(edge, fc.bigInt(0n, 2n ** 64n - 1n)), value => {
    const words = new Assembler(GUEST_BASE).mov(5, value).words();
    assert.ok(words.length <= 4);
    m.load(GUEST_BASE, [...words, ...new Assembler().hvc(0).words()]);
    m.vcpu.set64(vcpuRecord.at.pcBase, BigInt(GUEST_BASE));
    assert.equal(m.engine.run(m.vcpu, 100), 'host');
    assert.equal(m.vcpu.x(5), value);
  }));
  assert.equal(new Assembler().mov(0, 0x00ff_00ff_00ff_00ffn).words().length, 1, 'a bitmask immediate');
});

test('bitmask immediates are found and decode to themselves', () => {
  for (const value of [1n, 0xffn << 60n & (2n ** 64n - 1n), 0xaaaa_aaaa_aaaa_aaaan, 0x7fff_ffff_ffff_fffen]) {
    const f = bitMaskFields(value);
    assert.ok(f);
    assert.equal(decodeBitMasks(f.N, f.imms, f.immr), value);
  }
  assert.equal(bitMaskFields(0n), undefined);
  assert.equal(bitMaskFields(5n), undefined);
});

test('what does not fit, exist or reach is refused', () => {
  assert.throws(() => new Assembler().add(0, 1, 4096), /does not fit/);
  assert.throws(() => new Assembler().add(0, 32, 1), /does not fit/);
  assert.throws(() => new Assembler().ldr(0, 1, 4), /does not fit/, 'an offset that is no multiple of the size');
  assert.throws(() => new Assembler().emit('ADD (immediate)', { Rx: 1 }), /no field Rx/);
  assert.throws(() => new Assembler().emit('FROB'), /no row/);
  assert.throws(() => new Assembler().emit('MOVZ', { sf: 0, hw: 2 }), /not allocated/);
  assert.throws(() => new Assembler().b('nowhere').words(), /not defined/);
  assert.throws(() => new Assembler().label('a').label('a'), /twice/);
  assert.throws(() => new Assembler().tbz(0, 0, 'far').padTo(0x8004).label('far').words(), /out of reach/);
  assert.equal(new Assembler().tbz(0, 0, 'far').padTo(0x7ffc).label('far').words().length, 0x7ffc / 4);
});

test('negative values of fields are taken as signed', () => {
  const row = rowNamed('LDUR X (unscaled)');
  assert.equal(encodeChecked(row, { imm9: -8, Rn: 1, Rt: 2 }), encode(row, { imm9: 0x1f8, Rn: 1, Rt: 2 }));
  assert.throws(() => encodeChecked(row, { imm9: -257 }), /does not fit/);
});

test('disassembly', () => {
  const text = (a: Assembler): string => disassemble(a.words()[0]!, a.origin);
  const at = (origin: number): Assembler => new Assembler(origin);
  assert.equal(text(at(0).add(0, 31, 16)), 'ADD (immediate) x0, sp, #16');
  assert.equal(text(at(0).emit('ADD (register)', { Rm: 31, Rn: 2, Rd: 3 })), 'ADD (register) w3, w2, wzr');
  assert.equal(text(at(0x1000).label('self').bCond('ne', 'self')), 'B.cond ne 0x1000');
  assert.equal(text(at(0x1000).adr(7, 'next').label('next')), 'ADR x7, 0x1004');
  assert.equal(text(at(0).mrs(3, 'SCTLR_EL1')), 'MRS x3, SCTLR_EL1');
  assert.equal(text(at(0).sys('TLBI VMALLE1')), 'SYS xzr, S1_0_C8_C7_0');
  assert.equal(text(at(0).ldr(2, 31, 4, 'W')), 'LDR W (unsigned offset) w2, sp, #4');
  assert.equal(text(at(0).isb()), 'ISB {CRm=15}');
  assert.equal(text(at(0).cas(1, 2, 31)), 'CAS x1, x2, sp {size=3}');
  assert.equal(disassemble(0), 'udf 0x00000000');
});

test('every row disassembles under its own name and survives encoding its fields again', () => {
  for (const row of rows) {
    // All fields zero, or the first of a few simple patterns that the row allows and no more specific row takes.
    const word = Array.from({ length: 4096 }, (_, seed) => {
      const values: Record<string, number> = {};
      for (const [name, { bits }] of row.fields) {
        values[name] = (Math.imul(seed, 0x9e3779b1 ^ (name.length * 77)) >>> 7) & (2 ** bits - 1);
      }
      return row.when(values) ? encode(row, values) : undefined;
    }).find(candidate => candidate !== undefined && decode(candidate)?.row === row);
    assert.ok(word !== undefined, `${row.name} can be reached`);
    assert.ok(disassemble(word).startsWith(row.name), disassemble(word));
    assert.equal(encodeChecked(row, fieldsOf(row, word)), word);
  }
});
