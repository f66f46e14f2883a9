// Fast paths of floating-point instructions against the exact path, on the interpreter. FPCR.AHP is only looked at by
// conversions of half precision, but any bit of FPCR rules the fast paths out: so each instruction must do the same
// with FPCR = 0 as with AHP alone, flags included. That the exact path is right is shown elsewhere.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { vcpuRecord, vOffset } from '../abi/vcpu.ts';
import { SeededRandom } from '../base/random.ts';
import { fpMul } from '../cpu/fp/arithmetic.ts';
import { DOUBLE, FPCR_AHP, FPSR_IXC, SINGLE } from '../cpu/fp/format.ts';
import type { Format } from '../cpu/fp/format.ts';
import { GUEST_BASE, createTestMachine } from '../cpu/test-machine.ts';
import { encode } from './row.ts';
import type { Row } from './row.ts';
import { rows } from './table.ts';

const SEED = 0x00f10a75;
const HVC_STOP = 0xd4000842;
const at = vcpuRecord.at;
const random = new SeededRandom(SEED);

const machine = createTestMachine();
const { vcpu } = machine;
vcpu.set64(at.cpacrEl1, 3n << 20n);
vcpu.updateFpTrap();

interface Inputs {
  /** Registers 0 to 3, low half first. */
  readonly v: readonly bigint[];
  readonly x1: bigint;
  readonly fpsr: number;
}

/** Everything that the loaded instruction may change, as text. */
function outcome(inputs: Inputs, fpcr: number): string {
  inputs.v.forEach((half, i) => vcpu.set64(vOffset(0) + 8 * i, half));
  vcpu.setX(0, 0n);
  vcpu.setX(1, inputs.x1);
  vcpu.set32(at.fpsr, inputs.fpsr);
  vcpu.set32(at.fpcr, fpcr);
  vcpu.setNzcv(0);
  vcpu.set64(at.pcBase, BigInt(GUEST_BASE));
  vcpu.set32(at.record, 0);
  assert.equal(machine.engine.run(vcpu, 100), 'host');
  const halves = [vcpu.get64(vOffset(0) + 8), vcpu.get64(vOffset(0)), vcpu.x(0)].map(value => value.toString(16));
  return [...halves, (vcpu.nzcv() >>> 28).toString(2), vcpu.get32(at.fpsr).toString(16)].join(' ');
}

function check(row: Row, word: number, inputs: Inputs): void {
  const fast = outcome(inputs, 0);
  const exact = outcome(inputs, FPCR_AHP);
  if (fast === exact) return;
  const registers = inputs.v.map(half => half.toString(16)).join(' ');
  assert.fail(`${row.name} ${word.toString(16)}, seed ${SEED}: V0… ${registers}, X1 ${inputs.x1.toString(16)}, ` +
    `FPSR ${inputs.fpsr}: fast ${fast}, exact ${exact}`);
}

/** Mostly with an exponent near that of 1, at times with few significant bits; or an edge value (of integers, too). */
function operand(format: Format): bigint {
  const sign = random.below(2) ? format.signBit : 0n;
  if (random.below(24) === 0) {
    return sign | random.pick([0n, 1n, format.infinity, format.infinity - 1n, format.defaultNaN, format.infinity + 1n,
      1n << format.exponentShift, format.magnitudeMask]);
  }
  const spread = random.pick([1, 4, 30, 60, format.bias - 1]);
  const exponent = BigInt(format.bias + random.below(2 * spread) - spread + 1);
  const dropped = BigInt(random.pick([0, 0, random.below(format.fractionBits), format.fractionBits]));
  let fraction = random.u64() & format.fractionMask;
  if (random.below(4) === 0) fraction = format.fractionMask - BigInt(random.below(3));
  return sign | (exponent << format.exponentShift) | ((fraction >> dropped) << dropped);
}

function lanes(format: Format): bigint {
  return format === DOUBLE ? operand(DOUBLE) : (operand(SINGLE) << 32n) | operand(SINGLE);
}

/** Registers full of one format; some halves equal or nearly equal to an earlier one, or to its negation. */
function randomInputs(format: Format): Inputs {
  const v: bigint[] = [];
  for (let i = 0; i < 8; i++) {
    const near = v.length > 1 && random.below(4) === 0;
    v.push(near ? random.pick(v) ^ (BigInt(random.below(2)) << 63n) ^ BigInt(random.below(3)) : lanes(format));
  }
  return { v, x1: random.u64() >> BigInt(random.below(64)), fpsr: random.below(2) * FPSR_IXC };
}

function* staticsOf(row: Row): Generator<Record<string, number>> {
  const bits = row.statics.map(name => row.fields.get(name)!.bits);
  for (let packed = 0; packed < 1 << bits.reduce((a, b) => a + b, 0); packed++) {
    let rest = packed;
    yield Object.fromEntries(row.statics.map((name, k) => {
      const value = rest & ((1 << bits[k]!) - 1);
      rest >>= bits[k]!;
      return [name, value];
    }));
  }
}

/** A word of the row for these statics, with registers 0 to 3; undefined if there is none. */
function wordOf(row: Row, statics: Record<string, number>): number | undefined {
  for (let attempt = 0; attempt < 64; attempt++) {
    const fields: Record<string, number> = {};
    for (const [name, { bits }] of row.fields) fields[name] = random.below(1 << bits);
    Object.assign(fields, { Rd: 0, Rn: 1, Rm: 2, Ra: 3 }, statics);
    for (const name of ['Rd', 'Rn', 'Rm', 'Ra']) if (!row.fields.has(name)) delete fields[name];
    if (row.when(fields)) return encode(row, fields);
  }
  return undefined;
}

const groups = [
  'fp-data-processing', 'fp-conversions', 'simd-fp-three-same', 'simd-fp-two-register', 'simd-fp-conversions',
];
const fpRows = rows.filter(row => groups.includes(row.group) && !row.name.includes('half'));

for (const group of groups) {
  test(`${group}: fast paths do what the exact path does`, () => {
    let checked = 0;
    for (const row of fpRows.filter(r => r.group === group)) {
      for (const statics of staticsOf(row)) {
        const convertsHalf = (row.name === 'FCVTN' || row.name === 'FCVTL') && statics['sz'] === 0;
        const word = convertsHalf ? undefined : wordOf(row, statics);
        if (word === undefined) continue;
        machine.load(GUEST_BASE, [word, HVC_STOP]);
        for (let i = 0; i < 16; i++, checked++) check(row, word, randomInputs(random.pick([SINGLE, DOUBLE])));
      }
    }
    assert.ok(checked > 300);
  });
}

test('conversions from integers at the limits of their range and of exactness', () => {
  const edges = [24, 31, 32, 40, 53, 63, 64]
    .flatMap(bits => [-65n, -2n, -1n, 0n, 1n, 3n].map(distance => 2n ** BigInt(bits) + distance));
  for (const row of fpRows.filter(r => /^[SU]CVTF/.test(r.name))) {
    for (const statics of staticsOf(row)) {
      const word = wordOf(row, statics);
      if (word === undefined) continue;
      machine.load(GUEST_BASE, [word, HVC_STOP]);
      for (const edge of edges.flatMap(e => [BigInt.asUintN(64, e), BigInt.asUintN(64, -e)])) {
        const half = random.below(2) ? edge : (edge & 0xffff_ffffn) * 0x1_0000_0001n;
        check(row, word, { v: Array.from({ length: 8 }, () => half), x1: edge, fpsr: 0 });
      }
    }
  }
});

test('reciprocal estimates of every top fraction, for even and odd exponents', () => {
  for (const row of rows.filter(r => r.name === 'FRECPE (scalar)' || r.name === 'FRSQRTE (scalar)')) {
    for (const format of [SINGLE, DOUBLE]) {
      const word = wordOf(row, { sz: format === DOUBLE ? 1 : 0 })!;
      machine.load(GUEST_BASE, [word, HVC_STOP]);
      const firstExponent = BigInt(random.below(2 * format.bias - 2) + 1);
      for (let k = 0n; k < 512n; k++) {
        const below = random.u64() & (format.fractionMask >> 8n);
        const value = (((firstExponent << 8n) + k) << (format.exponentShift - 8n)) | below;
        check(row, word, { v: [0n, 0n, value, 0n, 0n, 0n, 0n, 0n], x1: 0n, fpsr: 0 });
      }
    }
  }
});

/** An addend that almost or quite cancels a product, or is so far from it that only the last bit sees it. */
function relatedAddend(format: Format, a: bigint, b: bigint): bigint {
  const product = fpMul(format, a, b, 0, { flags: 0 });
  const { fractionBits } = format;
  const distance = random.pick([0, 0, 1, fractionBits, fractionBits + 1, fractionBits + 2, 2 * fractionBits + 1]);
  const shift = BigInt(random.below(2) ? distance : -distance);
  const exponent = ((product & format.magnitudeMask) >> format.exponentShift) + shift;
  if (exponent <= 0n || exponent >= format.infinity >> format.exponentShift) return operand(format);
  const fraction = random.below(2) ? product + BigInt(random.below(5) - 2) : random.u64();
  const magnitude = (exponent << format.exponentShift) | (fraction & format.fractionMask);
  return random.below(2) ? magnitude | format.signBit : magnitude;
}

for (const format of [SINGLE, DOUBLE]) {
  test(`fused multiply-add of width ${format.width}: products and addends that cancel or barely touch`, () => {
    const row = rows.find(r => r.name === 'FMADD')!;
    const word = wordOf(row, { sz: format === DOUBLE ? 1 : 0 })!;
    machine.load(GUEST_BASE, [word, HVC_STOP]);
    for (let i = 0; i < 20_000; i++) {
      const [a, b] = [operand(format), operand(format)];
      const v = [0n, 0n, a, 0n, b, 0n, relatedAddend(format, a, b), 0n];
      check(row, word, { v, x1: 0n, fpsr: random.below(2) * FPSR_IXC });
    }
  });
}
