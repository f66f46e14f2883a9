// The compute helper 'softFloat': runs the exact floating-point functions of cpu/fp on the lanes in the scratch words.
// See a64/soft-float.ts for the request and for where operands and result lie.

import { assert } from '../../base/assert.ts';
import { unpackRequest } from '../../a64/soft-float.ts';
import type { SoftFloatOperation, SoftFloatRequest, SoftFloatWidth } from '../../a64/soft-float.ts';
import {
  fpAdd, fpDiv, fpMul, fpMulAdd, fpMulX, fpRSqrtStepFused, fpRecipStepFused, fpSqrt, fpSub,
} from '../fp/arithmetic.ts';
import {
  fpCompare, fpCompareEQ, fpCompareGE, fpCompareGT, fpMax, fpMaxNum, fpMin, fpMinNum,
} from '../fp/compare.ts';
import { fixedToFP, fpConvert, fpRoundInt, fpToFixed } from '../fp/convert.ts';
import {
  fpRSqrtEstimate, fpRecipEstimate, fpRecpX, unsignedRSqrtEstimate, unsignedRecipEstimate,
} from '../fp/estimate.ts';
import { DOUBLE, HALF, Rounding, SINGLE, fpRoundingMode } from '../fp/format.ts';
import type { Format, FpStatus } from '../fp/format.ts';
import type { ComputeContext } from './context.ts';

const formats: Record<SoftFloatWidth, Format> = { 16: HALF, 32: SINGLE, 64: DOUBLE };

/** A request with what its lanes have in common worked out. */
interface Job extends Required<SoftFloatRequest> {
  readonly format: Format;
  readonly mode: Rounding;
  readonly fpcr: number;
  readonly fractionBits: number;
  readonly status: FpStatus;
}

type LaneOperation = (job: Job, a: bigint, b: bigint, c: bigint) => bigint;
type Unary = (format: Format, a: bigint, fpcr: number, status: FpStatus) => bigint;
type Binary = (format: Format, a: bigint, b: bigint, fpcr: number, status: FpStatus) => bigint;
type Predicate = (format: Format, a: bigint, b: bigint, fpcr: number, status: FpStatus) => boolean;

const unary = (op: Unary): LaneOperation => (j, a) => op(j.format, a, j.fpcr, j.status);
const binary = (op: Binary): LaneOperation => (j, a, b) => op(j.format, a, b, j.fpcr, j.status);
/** All ones for true. */
const predicate = (op: Predicate): LaneOperation =>
  (j, a, b) => op(j.format, a, b, j.fpcr, j.status) ? (1n << BigInt(j.format.width)) - 1n : 0n;
const fixedPoint = (j: Job, width: SoftFloatWidth) => ({ width, unsigned: j.unsigned, fractionBits: j.fractionBits });

const operations: Record<SoftFloatOperation, LaneOperation> = {
  add: binary(fpAdd), sub: binary(fpSub), mul: binary(fpMul), mulX: binary(fpMulX), div: binary(fpDiv),
  max: binary(fpMax), min: binary(fpMin), maxNum: binary(fpMaxNum), minNum: binary(fpMinNum),
  recipStepFused: binary(fpRecipStepFused), rSqrtStepFused: binary(fpRSqrtStepFused),
  sqrt: unary(fpSqrt), recipEstimate: unary(fpRecipEstimate), rSqrtEstimate: unary(fpRSqrtEstimate),
  recpX: unary(fpRecpX),
  mulAdd: (j, a, b, c) => fpMulAdd(j.format, a, b, c, j.fpcr, j.status),
  compareEQ: predicate(fpCompareEQ), compareGE: predicate(fpCompareGE), compareGT: predicate(fpCompareGT),
  compare: (j, a, b) => BigInt(fpCompare(j.format, a, b, j.exact, j.fpcr, j.status)),
  roundInt: (j, a) => fpRoundInt(j.format, a, j.mode, j.exact, j.fpcr, j.status),
  toFixed: (j, a) => fpToFixed(j.format, a, fixedPoint(j, j.to), j.mode, j.fpcr, j.status),
  fixedToFP: (j, a) => fixedToFP(formats[j.to], a, fixedPoint(j, j.from), j.mode, j.fpcr, j.status),
  convert: (j, a) => fpConvert(j.format, formats[j.to], a, j.fpcr, j.status, j.mode),
  unsignedRecipEstimate: (_, a) => BigInt(unsignedRecipEstimate(Number(a))),
  unsignedRSqrtEstimate: (_, a) => BigInt(unsignedRSqrtEstimate(Number(a))),
};

const RESULT_WORD = 6;
const roundingModes = {
  nearest: Rounding.TIEEVEN, positive: Rounding.POSINF, negative: Rounding.NEGINF, zero: Rounding.ZERO,
  tiesAway: Rounding.TIEAWAY, odd: Rounding.ODD,
};

/** @returns the FPSR bits to be set */
export function softFloat(cpu: ComputeContext, request: number, fpcr: number, fractionBits: number): number {
  const r = unpackRequest(request);
  const mode = r.rounding === 'dynamic' ? fpRoundingMode(fpcr) : roundingModes[r.rounding];
  const job: Job = { ...r, format: formats[r.from], mode, fpcr, fractionBits, status: { flags: 0 } };
  const operation = operations[r.operation];
  const results: bigint[] = [];
  for (let lane = 0; lane < r.lanes; lane++) {
    // Operands that the operation does not have read as whatever is there.
    const [a, b, c] = [readLane(cpu, 0, r.from, lane), readLane(cpu, 2, r.from, lane), readLane(cpu, 4, r.from, lane)];
    results.push(operation(job, a, b, c));
  }
  writeLanes(cpu, r.to, results);
  return job.status.flags;
}

function readLane(cpu: ComputeContext, word: number, width: SoftFloatWidth, lane: number): bigint {
  if (width === 64) return cpu.u64[cpu.scratch / 8 + word + lane]!;
  const at = cpu.scratch / 4 + 2 * word;
  if (width === 32) return BigInt(cpu.u32[at + lane]!);
  return BigInt((cpu.u32[at + (lane >> 1)]! >>> (16 * (lane & 1))) & 0xffff);
}

/** The rest of the 128 bits becomes zero. */
function writeLanes(cpu: ComputeContext, width: SoftFloatWidth, lanes: readonly bigint[]): void {
  assert(lanes.length * width <= 128, 'more lanes of a result than a vector register has');
  const at = cpu.scratch / 8 + RESULT_WORD;
  cpu.u64[at] = 0n;
  cpu.u64[at + 1] = 0n;
  lanes.forEach((value, lane) => {
    const bit = lane * width;
    cpu.u64[at + (bit >> 6)]! |= value << BigInt(bit & 63);
  });
}
