// Data processing -- register (Arm ARM C4.1.95), second part: the operations with one, two and three sources.

import { i32, i64, select } from '../../wasm/scalar.ts';
import type { I64 } from '../../wasm/types.ts';
import type { Machine, Word } from '../machine.ts';
import { imm, xd, xr } from '../operand.ts';
import { group } from '../row.ts';
import { width } from '../width.ts';
import type { Width } from '../width.ts';

const { name, rows, inst } = group('data-processing-sources');

// ---- one source

/** Exchanges neighbouring fields of `bits` bits; the mask has ones in the lower field of each pair. */
function swapNeighbours(r: Width, value: Word, bits: number): Word {
  const pinned = r.let(value);
  let mask = 0n;
  for (let at = 0; at < 64; at += 2 * bits) mask |= ((1n << BigInt(bits)) - 1n) << BigInt(at);
  const lower = r.const(mask);
  const by = r.const(bits);
  return r.or(r.and(r.shrU(pinned, by), lower), r.shl(r.and(pinned, lower), by));
}
const swapAll = (r: Width, value: Word, sizes: readonly number[]): Word =>
  sizes.reduce((current, bits) => swapNeighbours(r, current, bits), value);

type OneSource = readonly [mnemonic: string, opcode: string, sf: '0' | '1' | 'sf', (r: Width, n: Word) => Word];
const oneSource: readonly OneSource[] = [
  ['RBIT', '000000', 'sf', (r, n) => swapAll(r, n, r.bits === 64 ? [1, 2, 4, 8, 16, 32] : [1, 2, 4, 8, 16])],
  ['REV16', '000001', 'sf', (r, n) => swapAll(r, n, [8])],
  ['REV', '000010', '0', (r, n) => swapAll(r, n, [8, 16])],
  ['REV32', '000010', '1', (r, n) => swapAll(r, n, [8, 16])],
  ['REV (64-bit)', '000011', '1', (r, n) => swapAll(r, n, [8, 16, 32])],
  ['CLZ', '000100', 'sf', (r, n) => r.clz(n)],
  // Bits equal to the sign: a change of bit shows as a one in x ^ (x >> 1).
  ['CLS', '000101', 'sf', (r, n) => {
    const pinned = r.let(n);
    return r.sub(r.clz(r.xor(pinned, r.shrS(pinned, r.const(1)))), r.const(1));
  }],
];
for (const [op, opcode, sf, operate] of oneSource) {
  if (sf === 'sf') {
    inst(op, `sf 1 0 11010110 00000 ${opcode as '000000'} Rn:5 Rd:5`, {
      statics: ['sf'],
      operands: f => ({ d: xd(f.Rd), n: xr(f.Rn) }),
      meaning: (m, o, s) => {
        const r = width(m, s.sf);
        r.write(o.d, operate(r, r.read(o.n)));
      },
    });
  } else {
    inst(op, `${sf} 1 0 11010110 00000 ${opcode as '000000'} Rn:5 Rd:5`, {
      operands: f => ({ d: xd(f.Rd), n: xr(f.Rn) }),
      meaning: (m, o) => {
        const r = width(m, sf === '1' ? 1 : 0);
        r.write(o.d, operate(r, r.read(o.n)));
      },
    });
  }
}

// ---- two sources

/** Wasm's division traps where Arm's has a result: x / 0 = 0, and the most negative number / -1 = itself. */
function divide(m: Machine, r: Width, isSigned: boolean, n: Word, d: Word): Word {
  const dividend = r.let(n);
  const divisor = r.let(d);
  const result = m.f.local(r.bits === 64 ? 'i64' : 'i32') as I64;
  const set = (value: Word): void => m.f.set(result, value as I64);
  m.f.if(r.eqz(divisor), () => set(r.const(0)), () => {
    if (!isSigned) return set(r.divU(dividend, divisor));
    m.f.if(r.eq(divisor, r.const(-1)), () => set(r.sub(r.const(0), dividend)), () => set(r.divS(dividend, divisor)));
  });
  return result;
}

const twoSources: readonly (readonly [string, string, (m: Machine, r: Width, n: Word, d: Word) => Word])[] = [
  ['UDIV', '000010', (m, r, n, d) => divide(m, r, false, n, d)],
  ['SDIV', '000011', (m, r, n, d) => divide(m, r, true, n, d)],
  // Shift amounts are modulo the width, in Wasm as here.
  ['LSLV', '001000', (_, r, n, by) => r.shl(n, by)],
  ['LSRV', '001001', (_, r, n, by) => r.shrU(n, by)],
  ['ASRV', '001010', (_, r, n, by) => r.shrS(n, by)],
  ['RORV', '001011', (_, r, n, by) => r.rotr(n, by)],
];
for (const [op, opcode, operate] of twoSources) {
  inst(op, `sf 0 0 11010110 Rm:5 ${opcode as '000000'} Rn:5 Rd:5`, {
    statics: ['sf'],
    operands: f => ({ d: xd(f.Rd), n: xr(f.Rn), m: xr(f.Rm) }),
    meaning: (m, o, s) => {
      const r = width(m, s.sf);
      r.write(o.d, operate(m, r, r.read(o.n), r.read(o.m)));
    },
  });
}

// compute('crc32', crc, low word, high word, C:size): see the cpu room.
for (const [op, C] of [['CRC32', '0'], ['CRC32C', '1']] as const) {
  const polynomial = C === '1' ? 4 : 0;
  inst(`${op}B, H, W`, `0 0 0 11010110 Rm:5 010 ${C} sz:2 Rn:5 Rd:5`, {
    when: f => f.sz < 3,
    operands: f => ({ d: xd(f.Rd), n: xr(f.Rn), m: xr(f.Rm), kind: imm(polynomial | f.sz) }),
    meaning: (m, o) => m.setW(o.d, m.compute('crc32', m.w(o.n), m.w(o.m), i32.const(0), m.imm(o.kind))),
  });
  inst(`${op}X`, `1 0 0 11010110 Rm:5 010 ${C} 11 Rn:5 Rd:5`, {
    operands: f => ({ d: xd(f.Rd), n: xr(f.Rn), m: xr(f.Rm) }),
    meaning: (m, o) => {
      const high = i32.wrapI64(i64.shrU(m.x(o.m), i64.const(32)));
      m.setW(o.d, m.compute('crc32', m.w(o.n), m.w(o.m), high, i32.const(polynomial | 3)));
    },
  });
}

// ---- three sources

for (const [op, bit, kind] of [['MADD', '0', 'add'], ['MSUB', '1', 'sub']] as const) {
  inst(op, `sf 00 11011 000 Rm:5 ${bit} Ra:5 Rn:5 Rd:5`, {
    statics: ['sf'],
    operands: f => ({ d: xd(f.Rd), n: xr(f.Rn), m: xr(f.Rm), a: xr(f.Ra) }),
    meaning: (m, o, s) => {
      const r = width(m, s.sf);
      r.write(o.d, r[kind](r.read(o.a), r.mul(r.read(o.n), r.read(o.m))));
    },
  });
}
inst('MUL', 'sf 00 11011 000 Rm:5 0 11111 Rn:5 Rd:5', {
  statics: ['sf'],
  operands: f => ({ d: xd(f.Rd), n: xr(f.Rn), m: xr(f.Rm) }),
  meaning: (m, o, s) => {
    const r = width(m, s.sf);
    r.write(o.d, r.mul(r.read(o.n), r.read(o.m)));
  },
});

for (const [op, U, bit, kind] of [
  ['SMADDL', '0', '0', 'add'], ['SMSUBL', '0', '1', 'sub'], ['UMADDL', '1', '0', 'add'], ['UMSUBL', '1', '1', 'sub'],
] as const) {
  inst(op, `1 00 11011 ${U} 01 Rm:5 ${bit} Ra:5 Rn:5 Rd:5`, {
    operands: f => ({ d: xd(f.Rd), n: xr(f.Rn), m: xr(f.Rm), a: xr(f.Ra) }),
    meaning: (m, o) => {
      const extend = U === '1' ? i64.extendI32U : i64.extendI32S;
      m.setX(o.d, i64[kind](m.x(o.a), i64.mul(extend(m.w(o.n)), extend(m.w(o.m)))));
    },
  });
}

/** The high half of the unsigned product, from four products of halves. Operands pinned. */
function multiplyHighUnsigned(m: Machine, a: I64, b: I64): I64 {
  const word = i64.const(32);
  const low = (value: I64): I64 => i64.and(value, i64.const(0xffffffffn));
  const high = (value: I64): I64 => i64.shrU(value, word);
  const carry = high(i64.mul(low(a), low(b)));
  const middle = m.f.let(i64.add(i64.mul(high(a), low(b)), carry));
  const other = i64.add(i64.mul(low(a), high(b)), low(middle));
  return i64.add(i64.add(i64.mul(high(a), high(b)), high(middle)), high(other));
}

inst('UMULH', '1 00 11011 1 10 Rm:5 0 Ra:5 Rn:5 Rd:5', {
  operands: f => ({ d: xd(f.Rd), n: xr(f.Rn), m: xr(f.Rm) }),
  meaning: (m, o) => m.setX(o.d, multiplyHighUnsigned(m, m.f.let(m.x(o.n)), m.f.let(m.x(o.m)))),
});
inst('SMULH', '1 00 11011 0 10 Rm:5 0 Ra:5 Rn:5 Rd:5', {
  operands: f => ({ d: xd(f.Rd), n: xr(f.Rn), m: xr(f.Rm) }),
  meaning: (m, o) => {
    const a = m.f.let(m.x(o.n));
    const b = m.f.let(m.x(o.m));
    const zero = i64.const(0);
    // A negative operand counts 2^64 too much when read as unsigned.
    const excess = i64.add(select(i64.ltS(a, zero), b, zero), select(i64.ltS(b, zero), a, zero));
    m.setX(o.d, i64.sub(multiplyHighUnsigned(m, a, b), excess));
  },
});

export default { name, rows };
