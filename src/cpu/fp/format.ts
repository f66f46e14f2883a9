// Floating-point formats, control and status of the exact (slow) floating-point path.
//
// Every function of this folder is pure but for the status accumulator. A floating-point value is a bigint holding
// its encoding, zero-extended: [0, 2^format.width). FPCR is the register's value as a number; of it only AHP, DN, FZ
// and RMode are observed (FZ16 does not exist in ARMv8.0, and no exception is trapped). Behaviour follows the shared
// pseudocode functions of the Arm ARM (DDI 0487) of the same names.
//
//     width-1   width-2 … fractionBits   fractionBits-1 … 0
//    ┌──────┬────────────────────────┬────────────────────────┐
//    │ sign │    biased exponent     │        fraction        │
//    └──────┴────────────────────────┴────────────────────────┘

export interface Format {
  readonly width: 16 | 32 | 64;
  readonly exponentBits: number;
  readonly fractionBits: number;
  readonly bias: number;
  /** Exponent of the smallest normal number, 2^minExponent. */
  readonly minExponent: number;
  /** Shift count of the exponent field: fractionBits as a bigint. */
  readonly exponentShift: bigint;
  readonly signBit: bigint;
  readonly fractionMask: bigint;
  /** All bits but the sign. */
  readonly magnitudeMask: bigint;
  /** Top bit of the fraction: set in a quiet NaN. */
  readonly quietBit: bigint;
  /** Encoding of +infinity. */
  readonly infinity: bigint;
  /** Encoding of the largest finite positive number. */
  readonly maxNormal: bigint;
  readonly defaultNaN: bigint;
}

function makeFormat(width: 16 | 32 | 64, exponentBits: number): Format {
  const fractionBits = width - exponentBits - 1;
  const exponentShift = BigInt(fractionBits);
  const bias = 2 ** (exponentBits - 1) - 1;
  const signBit = 1n << BigInt(width - 1);
  const quietBit = 1n << (exponentShift - 1n);
  const infinity = BigInt(2 ** exponentBits - 1) << exponentShift;
  return {
    width,
    exponentBits,
    fractionBits,
    bias,
    minExponent: 1 - bias,
    exponentShift,
    signBit,
    fractionMask: (1n << exponentShift) - 1n,
    magnitudeMask: signBit - 1n,
    quietBit,
    infinity,
    maxNormal: infinity - 1n,
    defaultNaN: infinity | quietBit,
  };
}

export const HALF = makeFormat(16, 5);
export const SINGLE = makeFormat(32, 8);
export const DOUBLE = makeFormat(64, 11);

/** Fields of FPCR that these functions observe. RMode is bits 23:22. */
export const FPCR_AHP = 1 << 26;
export const FPCR_DN = 1 << 25;
export const FPCR_FZ = 1 << 24;
export const FPCR_RMODE_SHIFT = 22;

/** Cumulative exception bits, at their places in FPSR. */
export const FPSR_IOC = 1 << 0;
export const FPSR_DZC = 1 << 1;
export const FPSR_OFC = 1 << 2;
export const FPSR_UFC = 1 << 3;
export const FPSR_IXC = 1 << 4;
export const FPSR_IDC = 1 << 7;

/** Accumulates cumulative exception bits (FPSR layout): functions only ever set bits in it. */
export interface FpStatus {
  flags: number;
}

/** FPRounding of the Arm ARM; the first four have the encoding of FPCR.RMode (RN, RP, RM, RZ). */
export const Rounding = { TIEEVEN: 0, POSINF: 1, NEGINF: 2, ZERO: 3, TIEAWAY: 4, ODD: 5 } as const;
export type Rounding = (typeof Rounding)[keyof typeof Rounding];

/** FPRoundingMode(): the rounding mode that FPCR selects. */
export function fpRoundingMode(fpcr: number): Rounding {
  return ((fpcr >>> FPCR_RMODE_SHIFT) & 3) as Rounding;
}

export type Sign = 0 | 1;

export function fpInfinity(format: Format, sign: Sign): bigint {
  return sign ? format.signBit | format.infinity : format.infinity;
}

export function fpZero(format: Format, sign: Sign): bigint {
  return sign ? format.signBit : 0n;
}

export function fpMaxNormal(format: Format, sign: Sign): bigint {
  return sign ? format.signBit | format.maxNormal : format.maxNormal;
}

/** FPTwo(): ±2.0. */
export function fpTwo(format: Format, sign: Sign): bigint {
  const magnitude = BigInt(format.bias + 1) << format.exponentShift;
  return sign ? format.signBit | magnitude : magnitude;
}

export const FpType = { NONZERO: 0, ZERO: 1, INFINITY: 2, QNAN: 3, SNAN: 4 } as const;
export type FpType = (typeof FpType)[keyof typeof FpType];

/** A decoded operand. For NONZERO the value is (-1)^sign × significand × 2^exponent; otherwise significand is 0. */
export interface Unpacked {
  readonly type: FpType;
  readonly sign: Sign;
  readonly significand: bigint;
  readonly exponent: number;
}

export function isNaNType(type: FpType): boolean {
  return type === FpType.QNAN || type === FpType.SNAN;
}

function signOf(format: Format, bits: bigint): Sign {
  return (bits & format.signBit) === 0n ? 0 : 1;
}

/**
 * FPUnpack(): decodes an operand of a data-processing instruction. With FPCR.FZ a single or double denormal reads as
 * zero and sets IDC; half is never flushed. AHP is not observed.
 */
export function fpUnpack(format: Format, bits: bigint, fpcr: number, status: FpStatus): Unpacked {
  const sign = signOf(format, bits);
  const magnitude = bits & format.magnitudeMask;
  if (magnitude >= format.infinity) {
    if (magnitude === format.infinity) return { type: FpType.INFINITY, sign, significand: 0n, exponent: 0 };
    const type = (magnitude & format.quietBit) === 0n ? FpType.SNAN : FpType.QNAN;
    return { type, sign, significand: 0n, exponent: 0 };
  }
  return unpackFinite(format, sign, magnitude, fpcr, status);
}

/** FPUnpackCV(): like fpUnpack, but a half operand is read in the alternative format when FPCR.AHP says so. */
export function fpUnpackCV(format: Format, bits: bigint, fpcr: number, status: FpStatus): Unpacked {
  if (format.width !== 16 || (fpcr & FPCR_AHP) === 0) return fpUnpack(format, bits, fpcr, status);
  // The alternative format has no infinities and no NaNs: the top exponent is one more binade of numbers.
  return unpackFinite(format, signOf(format, bits), bits & format.magnitudeMask, fpcr, status);
}

function unpackFinite(format: Format, sign: Sign, magnitude: bigint, fpcr: number, status: FpStatus): Unpacked {
  const biasedExponent = Number(magnitude >> format.exponentShift);
  if (biasedExponent !== 0) {
    const significand = (magnitude & format.fractionMask) | (1n << format.exponentShift);
    return { type: FpType.NONZERO, sign, significand, exponent: biasedExponent - format.bias - format.fractionBits };
  }
  if (magnitude === 0n) return { type: FpType.ZERO, sign, significand: 0n, exponent: 0 };
  if ((fpcr & FPCR_FZ) !== 0 && format.width !== 16) {
    status.flags |= FPSR_IDC;
    return { type: FpType.ZERO, sign, significand: 0n, exponent: 0 };
  }
  const exponent = format.minExponent - format.fractionBits;
  return { type: FpType.NONZERO, sign, significand: magnitude, exponent };
}

/** FPProcessNaN(): the result when the NaN `bits` decides it; a signaling one is quieted and sets IOC. */
export function fpProcessNaN(format: Format, type: FpType, bits: bigint, fpcr: number, status: FpStatus): bigint {
  if (type === FpType.SNAN) status.flags |= FPSR_IOC;
  return (fpcr & FPCR_DN) === 0 ? bits | format.quietBit : format.defaultNaN;
}

/**
 * FPProcessNaNs(): if an operand is a NaN, the result it decides, else undefined. The first signaling NaN wins over
 * any quiet one, and among equals the first operand.
 */
export function fpProcessNaNs(
  format: Format, type1: FpType, type2: FpType, op1: bigint, op2: bigint, fpcr: number, status: FpStatus,
): bigint | undefined {
  if (type1 === FpType.SNAN) return fpProcessNaN(format, type1, op1, fpcr, status);
  if (type2 === FpType.SNAN) return fpProcessNaN(format, type2, op2, fpcr, status);
  if (type1 === FpType.QNAN) return fpProcessNaN(format, type1, op1, fpcr, status);
  if (type2 === FpType.QNAN) return fpProcessNaN(format, type2, op2, fpcr, status);
  return undefined;
}

/** The result of an operation without a meaningful one: the default NaN, and IOC. */
export function fpInvalid(format: Format, status: FpStatus): bigint {
  status.flags |= FPSR_IOC;
  return format.defaultNaN;
}
