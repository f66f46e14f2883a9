// Condition flags from the operation that set them (a64/machine.ts, FlagSource): the four flags one by one, and a
// condition as one comparison where the operation allows it.

import type { FlagSource } from '../a64/machine.ts';
import { vcpuRecord } from '../abi/vcpu.ts';
import type { FunctionBuilder } from '../wasm/function.ts';
import { i32, i64, select } from '../wasm/scalar.ts';
import type { I32, I64 } from '../wasm/types.ts';

const at = vcpuRecord.at;

type Arithmetic = Extract<FlagSource, { kind: 'add' | 'sub' | 'adc' }>;
type Wide = Exclude<FlagSource, { kind: 'packed' }>;

/** The operations of the source's width. The values of one source are all of that width. */
const opsOf = ({ bits }: Wide): typeof i64 => (bits === 64 ? i64 : i32) as unknown as typeof i64;

/** 0 or 1. */
export function carryOut(source: Arithmetic): I32 {
  const ops = opsOf(source);
  const [a, b, result] = [source.a, source.b, source.result] as [I64, I64, I64];
  // With a carry in, a + b + 1 carries out when the result is not above a.
  if (source.kind === 'adc') return select(source.carry, ops.leU(result, a), ops.ltU(result, a));
  return source.kind === 'sub' ? ops.geU(a, b) : ops.ltU(result, a);
}

/** V in bit 31. */
export function overflow(source: Arithmetic): I32 {
  const ops = opsOf(source);
  const [a, b, result] = [source.a, source.b, source.result] as [I64, I64, I64];
  const signs = source.kind === 'sub'
    ? ops.and(ops.xor(a, b), ops.xor(a, result))
    : ops.and(ops.xor(a, result), ops.xor(b, result));
  return source.bits === 64 ? i32.wrapI64(i64.shrU(signs, i64.const(32))) : signs as unknown as I32;
}

const bitOf = (value: I32, bit: number): I32 => i32.and(i32.shrU(value, i32.const(bit)), i32.const(1));
const not = (value: I32): I32 => i32.eqz(value);

/** 0 or 1 for a condition code 0–13 over the flags that the source gives. */
export function conditionOf(source: FlagSource, code: number): I32 {
  if (source.kind === 'sub') return comparison(source, code);
  const positive = source.kind === 'packed' ? ofPacked(source.nzcv, code >> 1) : ofResult(source, code >> 1);
  return code & 1 ? not(positive) : positive;
}

/** After a subtraction most conditions compare its operands. */
function comparison(source: Arithmetic, code: number): I32 {
  const ops = opsOf(source);
  const [a, b, result] = [source.a, source.b, source.result] as [I64, I64, I64];
  switch (code) {
    case 0: return ops.eq(a, b);
    case 1: return ops.ne(a, b);
    case 2: return ops.geU(a, b);
    case 3: return ops.ltU(a, b);
    case 4: return isNegative(source, result);
    case 5: return not(isNegative(source, result));
    case 6: return i32.ltS(overflow(source), i32.const(0));
    case 7: return i32.geS(overflow(source), i32.const(0));
    case 8: return ops.gtU(a, b);
    case 9: return ops.leU(a, b);
    case 10: return ops.geS(a, b);
    case 11: return ops.ltS(a, b);
    case 12: return ops.gtS(a, b);
    default: return ops.leS(a, b);
  }
}

function isNegative({ bits }: { bits: 32 | 64 }, result: I32 | I64): I32 {
  return bits === 64 ? i64.ltS(result as I64, i64.const(0)) : i32.ltS(result as I32, i32.const(0));
}

function ofResult(source: Exclude<Wide, { kind: 'sub' }>, pair: number): I32 {
  const ops = opsOf(source);
  const result = source.result as I64;
  const isZero = (): I32 => ops.eqz(result);
  const n = (): I32 => isNegative(source, result);
  if (source.kind === 'logic') {
    switch (pair) {
      case 0: return isZero();
      case 2: return n();
      case 5: return not(n());
      case 6: return source.bits === 64 ? i64.gtS(result, i64.const(0)) : i32.gtS(source.result as I32, i32.const(0));
      default: return i32.const(0); // C and V are clear: CS, VS, HI
    }
  }
  const v = (): I32 => i32.ltS(overflow(source as Arithmetic), i32.const(0));
  switch (pair) {
    case 0: return isZero();
    case 1: return carryOut(source as Arithmetic);
    case 2: return n();
    case 3: return v();
    case 4: return i32.and(carryOut(source as Arithmetic), not(isZero()));
    case 5: return i32.eq(n(), v());
    default: return i32.and(i32.eq(n(), v()), not(isZero()));
  }
}

function ofPacked(nzcv: I32, pair: number): I32 {
  const [n, z, c, v] = [3, 2, 1, 0].map(bit => bitOf(nzcv, bit)) as [I32, I32, I32, I32];
  switch (pair) {
    case 0: return z;
    case 1: return c;
    case 2: return n;
    case 3: return v;
    case 4: return i32.and(c, not(z));
    case 5: return i32.eq(n, v);
    default: return i32.and(i32.eq(n, v), not(z));
  }
}

/** N, Z, C, V in bits 3 … 0. */
export function packedFlags(source: FlagSource): I32 {
  if (source.kind === 'packed') return source.nzcv;
  const ops = opsOf(source);
  const n = i32.shl(isNegative(source, source.result), i32.const(3));
  const z = i32.shl(ops.eqz(source.result as I64), i32.const(2));
  if (source.kind === 'logic') return i32.or(n, z);
  const c = i32.shl(carryOut(source), i32.const(1));
  return i32.or(i32.or(n, z), i32.or(c, i32.shrU(overflow(source), i32.const(31))));
}

/** Emits the stores that put the flags into the vCPU record. */
export function recordFlags(f: FunctionBuilder, vcpu: I32, source: FlagSource): void {
  const write32 = (offset: number, value: I32): void => f.do(i32.store(vcpu, value, offset));
  const write64 = (offset: number, value: I64): void => f.do(i64.store(vcpu, value, offset));
  if (source.kind === 'packed') {
    const nzcv = f.let(source.nzcv);
    write64(at.flagN, i64.shl(i64.extendI32U(nzcv), i64.const(60)));
    write64(at.flagZ, i64.extendI32U(i32.xor(i32.and(nzcv, i32.const(4)), i32.const(4))));
    write32(at.flagC, i32.and(i32.shrU(nzcv, i32.const(1)), i32.const(1)));
    return write32(at.flagV, i32.shl(nzcv, i32.const(31)));
  }
  const result = source.bits === 64 ? source.result as I64 : f.let(i64.extendI32S(source.result as I32));
  write64(at.flagN, result);
  write64(at.flagZ, result);
  const isLogic = source.kind === 'logic';
  write32(at.flagC, isLogic ? i32.const(0) : carryOut(source));
  write32(at.flagV, isLogic ? i32.const(0) : overflow(source));
}
