// Scalar operations as expressions, named as in the specification: `i64.add(a, b)`. Operations on constants are
// computed here, so that a definition written for operands in general costs nothing when an operand is known.

import type { Code } from './code.ts';
import { Expr, withSum } from './types.ts';
import type { Address, F32, F64, I32, I64, ValType } from './types.ts';

export function operation<T extends ValType>(type: T, code: number, ...args: Expr[]): Expr<T> {
  return new Expr(type, out => {
    for (const arg of args) arg.emit(out);
    out.opcode(code);
  });
}

const unary = <T extends ValType, A extends ValType>(type: T, code: number, _from: A) =>
  (a: Expr<A>): Expr<T> => operation(type, code, a);
const binary = <T extends ValType, A extends ValType>(type: T, code: number, _from: A) =>
  (a: Expr<A>, b: Expr<A>): Expr<T> => operation(type, code, a, b);

/** `fold` computes two constants; `isIdentity` says that the right operand leaves the left one as it is. */
function folded32(code: number, fold: (a: number, b: number) => number, identity?: number) {
  return (a: I32, b: I32): I32 => {
    if (b.constant !== undefined) {
      if (b.constant === identity) return a;
      if (a.constant !== undefined) return constant32(fold(a.constant as number, b.constant as number));
    }
    return operation('i32', code, a, b);
  };
}
function folded64(code: number, fold: (a: bigint, b: bigint) => bigint, identity?: bigint) {
  return (a: I64, b: I64): I64 => {
    if (b.constant !== undefined) {
      if (b.constant === identity) return a;
      if (a.constant !== undefined) return constant64(fold(a.constant as bigint, b.constant as bigint));
    }
    return operation('i64', code, a, b);
  };
}

/** Of 64-bit values, where the right operand is a constant. @param sign of that operand */
function summed(op: (a: I64, b: I64) => I64, sign: 1n | -1n) {
  return (a: I64, b: I64): I64 => {
    const result = op(a, b);
    if (a.sum === undefined || b.constant === undefined || result === a) return result;
    return withSum(result, { of: a.sum.of, plus: a.sum.plus + sign * (b.constant as bigint) });
  };
}

function constant32(value: number): I32 {
  const constant = value | 0;
  return new Expr('i32', out => { out.byte(0x41); out.signed32(constant); }, { constant });
}
function constant64(value: bigint | number): I64 {
  const constant = BigInt.asIntN(64, BigInt(value));
  return new Expr('i64', out => { out.byte(0x42); out.signed64(constant); }, { constant });
}

/** Natural alignment is only a hint to the engine; 0 (byte) is always valid for plain accesses. */
function memoryAccess(out: Code, code: number, align: number, offset: number): void {
  out.opcode(code);
  out.unsigned(align);
  out.unsigned(offset);
}
function emitAddress(out: Code, address: Address): void {
  address.emit(out);
  if (address.type === out.addressType) return;
  if (address.type === 'i32') out.byte(0xad);
  else throw new Error('a 64-bit address in code for a 32-bit memory');
}
export function loadOp<T extends ValType>(type: T, code: number, align = 0) {
  return (address: Address, offset = 0): Expr<T> =>
    new Expr(type, out => { emitAddress(out, address); memoryAccess(out, code, align, offset); });
}
/** A statement; the function builder's methods emit it. */
export type Statement = (out: Code) => void;
export function storeOp<T extends ValType>(_type: T, code: number, align = 0) {
  return (address: Address, value: Expr<T>, offset = 0): Statement => out => {
    emitAddress(out, address);
    value.emit(out);
    memoryAccess(out, code, align, offset);
  };
}
/** Of whole ranges; sizes are of the type of addresses. */
export const bulkMemory = {
  fill: (address: Address, value: I32, sizeBytes: Address): Statement => out => {
    emitAddress(out, address);
    value.emit(out);
    emitAddress(out, sizeBytes);
    out.opcode(0xfc000b);
    out.byte(0);
  },
  copy: (to: Address, from: Address, sizeBytes: Address): Statement => out => {
    for (const operand of [to, from, sizeBytes]) emitAddress(out, operand);
    out.opcode(0xfc000a);
    out.raw([0, 0]);
  },
  /** From the memory to the second one, whose addresses are 32-bit. */
  copyToSecond: (to: I32, from: Address, sizeBytes: I32): Statement => out => {
    to.emit(out);
    emitAddress(out, from);
    sizeBytes.emit(out);
    out.opcode(0xfc000a);
    out.raw([1, 0]);
  },
};
/** Atomic read-modify-write: evaluates to the old value. `align` must be natural: a misaligned access traps. */
function rmw<T extends 'i32' | 'i64'>(type: T, code: number, align: number) {
  return (address: Address, value: Expr<T>, offset = 0): Expr<T> => new Expr(type, out => {
    emitAddress(out, address);
    value.emit(out);
    memoryAccess(out, 0xfe0000 | code, align, offset);
  });
}
function cmpxchg<T extends 'i32' | 'i64'>(type: T, code: number, align: number) {
  return (address: Address, expected: Expr<T>, replacement: Expr<T>, offset = 0): Expr<T> => new Expr(type, out => {
    emitAddress(out, address);
    expected.emit(out);
    replacement.emit(out);
    memoryAccess(out, 0xfe0000 | code, align, offset);
  });
}
export type AtomicOp = 'add' | 'sub' | 'and' | 'or' | 'xor' | 'xchg';
const atomicOps: readonly AtomicOp[] = ['add', 'sub', 'and', 'or', 'xor', 'xchg'];

export const i32 = {
  const: constant32,
  clz: unary('i32', 0x67, 'i32'), ctz: unary('i32', 0x68, 'i32'), popcnt: unary('i32', 0x69, 'i32'),
  add: folded32(0x6a, (a, b) => a + b, 0), sub: folded32(0x6b, (a, b) => a - b, 0),
  mul: folded32(0x6c, Math.imul, 1),
  divS: binary('i32', 0x6d, 'i32'), divU: binary('i32', 0x6e, 'i32'),
  remS: binary('i32', 0x6f, 'i32'), remU: binary('i32', 0x70, 'i32'),
  and: folded32(0x71, (a, b) => a & b, -1), or: folded32(0x72, (a, b) => a | b, 0),
  xor: folded32(0x73, (a, b) => a ^ b, 0),
  shl: folded32(0x74, (a, b) => a << b, 0), shrS: folded32(0x75, (a, b) => a >> b, 0),
  shrU: folded32(0x76, (a, b) => a >>> b, 0),
  rotl: binary('i32', 0x77, 'i32'), rotr: binary('i32', 0x78, 'i32'),
  eqz: unary('i32', 0x45, 'i32'),
  eq: binary('i32', 0x46, 'i32'), ne: binary('i32', 0x47, 'i32'),
  ltS: binary('i32', 0x48, 'i32'), ltU: binary('i32', 0x49, 'i32'),
  gtS: binary('i32', 0x4a, 'i32'), gtU: binary('i32', 0x4b, 'i32'),
  leS: binary('i32', 0x4c, 'i32'), leU: binary('i32', 0x4d, 'i32'),
  geS: binary('i32', 0x4e, 'i32'), geU: binary('i32', 0x4f, 'i32'),
  extend8S: unary('i32', 0xc0, 'i32'), extend16S: unary('i32', 0xc1, 'i32'),
  wrapI64: (a: I64): I32 =>
    a.constant !== undefined ? constant32(Number(BigInt.asIntN(32, a.constant as bigint))) : operation('i32', 0xa7, a),
  reinterpretF32: unary('i32', 0xbc, 'f32'),
  truncSatF32S: unary('i32', 0xfc0000, 'f32'), truncSatF32U: unary('i32', 0xfc0001, 'f32'),
  truncSatF64S: unary('i32', 0xfc0002, 'f64'), truncSatF64U: unary('i32', 0xfc0003, 'f64'),
  load: loadOp('i32', 0x28), load8S: loadOp('i32', 0x2c), load8U: loadOp('i32', 0x2d),
  load16S: loadOp('i32', 0x2e), load16U: loadOp('i32', 0x2f),
  store: storeOp('i32', 0x36), store8: storeOp('i32', 0x3a), store16: storeOp('i32', 0x3b),
  atomicLoad: loadOp('i32', 0xfe0010, 2), atomicLoad8U: loadOp('i32', 0xfe0012, 0),
  atomicLoad16U: loadOp('i32', 0xfe0013, 1),
  atomicStore: storeOp('i32', 0xfe0017, 2), atomicStore8: storeOp('i32', 0xfe0019, 0),
  atomicStore16: storeOp('i32', 0xfe001a, 1),
};

export const i64 = {
  const: constant64,
  clz: unary('i64', 0x79, 'i64'), ctz: unary('i64', 0x7a, 'i64'), popcnt: unary('i64', 0x7b, 'i64'),
  add: summed(folded64(0x7c, (a, b) => a + b, 0n), 1n), sub: summed(folded64(0x7d, (a, b) => a - b, 0n), -1n),
  mul: folded64(0x7e, (a, b) => a * b, 1n),
  divS: binary('i64', 0x7f, 'i64'), divU: binary('i64', 0x80, 'i64'),
  remS: binary('i64', 0x81, 'i64'), remU: binary('i64', 0x82, 'i64'),
  and: folded64(0x83, (a, b) => a & b, -1n), or: folded64(0x84, (a, b) => a | b, 0n),
  xor: folded64(0x85, (a, b) => a ^ b, 0n),
  shl: folded64(0x86, (a, b) => a << (b & 63n), 0n), shrS: folded64(0x87, (a, b) => a >> (b & 63n), 0n),
  shrU: folded64(0x88, (a, b) => BigInt.asUintN(64, a) >> (b & 63n), 0n),
  rotl: binary('i64', 0x89, 'i64'), rotr: binary('i64', 0x8a, 'i64'),
  eqz: unary('i32', 0x50, 'i64'),
  eq: binary('i32', 0x51, 'i64'), ne: binary('i32', 0x52, 'i64'),
  ltS: binary('i32', 0x53, 'i64'), ltU: binary('i32', 0x54, 'i64'),
  gtS: binary('i32', 0x55, 'i64'), gtU: binary('i32', 0x56, 'i64'),
  leS: binary('i32', 0x57, 'i64'), leU: binary('i32', 0x58, 'i64'),
  geS: binary('i32', 0x59, 'i64'), geU: binary('i32', 0x5a, 'i64'),
  extend8S: unary('i64', 0xc2, 'i64'), extend16S: unary('i64', 0xc3, 'i64'), extend32S: unary('i64', 0xc4, 'i64'),
  extendI32S: (a: I32): I64 => a.constant !== undefined ? constant64(a.constant) : operation('i64', 0xac, a),
  extendI32U: (a: I32): I64 =>
    a.constant !== undefined ? constant64((a.constant as number) >>> 0) : operation('i64', 0xad, a),
  reinterpretF64: unary('i64', 0xbd, 'f64'),
  truncSatF32S: unary('i64', 0xfc0004, 'f32'), truncSatF32U: unary('i64', 0xfc0005, 'f32'),
  truncSatF64S: unary('i64', 0xfc0006, 'f64'), truncSatF64U: unary('i64', 0xfc0007, 'f64'),
  load: loadOp('i64', 0x29), load8S: loadOp('i64', 0x30), load8U: loadOp('i64', 0x31),
  load16S: loadOp('i64', 0x32), load16U: loadOp('i64', 0x33),
  load32S: loadOp('i64', 0x34), load32U: loadOp('i64', 0x35),
  store: storeOp('i64', 0x37), store8: storeOp('i64', 0x3c), store16: storeOp('i64', 0x3d), store32: storeOp('i64', 0x3e),
  atomicLoad: loadOp('i64', 0xfe0011, 3), atomicLoad8U: loadOp('i64', 0xfe0014, 0),
  atomicLoad16U: loadOp('i64', 0xfe0015, 1), atomicLoad32U: loadOp('i64', 0xfe0016, 2),
  atomicStore: storeOp('i64', 0xfe0018, 3), atomicStore8: storeOp('i64', 0xfe001b, 0),
  atomicStore16: storeOp('i64', 0xfe001c, 1), atomicStore32: storeOp('i64', 0xfe001d, 2),
};

export type RmwI64 = (address: Address, value: I64, offset?: number) => I64;
/** Atomic read-modify-write on 1, 2, 4 or 8 bytes, with zero-extended i64 values: `atomicRmw.add[sizeLog2]`. */
export const atomicRmw = Object.fromEntries(atomicOps.map((name, k) => {
  const first = 0x1e + 7 * k; // i32, i64, i32_8, i32_16, i64_8, i64_16, i64_32
  return [name, [rmw('i64', first + 4, 0), rmw('i64', first + 5, 1), rmw('i64', first + 6, 2), rmw('i64', first + 1, 3)]];
})) as Record<AtomicOp, RmwI64[]>;
/** Compare and exchange on 1, 2, 4 or 8 bytes (index: log2 of the size), zero-extended i64 values. */
export const atomicCmpxchg = [
  cmpxchg('i64', 0x4c, 0), cmpxchg('i64', 0x4d, 1), cmpxchg('i64', 0x4e, 2), cmpxchg('i64', 0x49, 3),
];

const floatOps = <T extends 'f32' | 'f64'>(type: T, compare: number, arithmetic: number) => ({
  eq: binary('i32', compare, type), ne: binary('i32', compare + 1, type), lt: binary('i32', compare + 2, type),
  gt: binary('i32', compare + 3, type), le: binary('i32', compare + 4, type), ge: binary('i32', compare + 5, type),
  abs: unary(type, arithmetic, type), neg: unary(type, arithmetic + 1, type), ceil: unary(type, arithmetic + 2, type),
  floor: unary(type, arithmetic + 3, type), trunc: unary(type, arithmetic + 4, type),
  nearest: unary(type, arithmetic + 5, type), sqrt: unary(type, arithmetic + 6, type),
  add: binary(type, arithmetic + 7, type), sub: binary(type, arithmetic + 8, type),
  mul: binary(type, arithmetic + 9, type), div: binary(type, arithmetic + 10, type),
  min: binary(type, arithmetic + 11, type), max: binary(type, arithmetic + 12, type),
  copysign: binary(type, arithmetic + 13, type),
});

export const f32 = {
  const: (value: number): F32 => new Expr('f32', out => {
    out.byte(0x43);
    out.raw(new Uint8Array(new Float32Array([value]).buffer));
  }),
  ...floatOps('f32', 0x5b, 0x8b),
  convertI32S: unary('f32', 0xb2, 'i32'), convertI32U: unary('f32', 0xb3, 'i32'),
  convertI64S: unary('f32', 0xb4, 'i64'), convertI64U: unary('f32', 0xb5, 'i64'),
  demoteF64: unary('f32', 0xb6, 'f64'), reinterpretI32: unary('f32', 0xbe, 'i32'),
  load: loadOp('f32', 0x2a), store: storeOp('f32', 0x38),
};

export const f64 = {
  const: (value: number): F64 => new Expr('f64', out => {
    out.byte(0x44);
    out.raw(new Uint8Array(new Float64Array([value]).buffer));
  }),
  ...floatOps('f64', 0x61, 0x99),
  convertI32S: unary('f64', 0xb7, 'i32'), convertI32U: unary('f64', 0xb8, 'i32'),
  convertI64S: unary('f64', 0xb9, 'i64'), convertI64U: unary('f64', 0xba, 'i64'),
  promoteF32: unary('f64', 0xbb, 'f32'), reinterpretI64: unary('f64', 0xbf, 'i64'),
  load: loadOp('f64', 0x2b), store: storeOp('f64', 0x39),
};

/** One of two values of the same type, both evaluated. */
export function select<T extends ValType>(condition: I32, whenTrue: Expr<T>, whenFalse: Expr<T>): Expr<T> {
  if (condition.constant !== undefined) return condition.constant !== 0 ? whenTrue : whenFalse;
  if (whenTrue.type === 'v128') {
    return new Expr(whenTrue.type, out => {
      whenTrue.emit(out); whenFalse.emit(out); condition.emit(out);
      out.byte(0x1c); out.byte(1); out.byte(0x7b);
    });
  }
  return operation(whenTrue.type, 0x1b, whenTrue, whenFalse, condition);
}
