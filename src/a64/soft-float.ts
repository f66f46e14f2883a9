// What the exact floating-point path (compute helper 'softFloat') is asked to do, packed into one constant.
//
// Operand k lies in scratch words 2k and 2k+1, the result in words 6 and 7: lanes of their formats, lane 0 lowest.
// The helper takes (request, FPCR, fraction bits of a fixed-point operand); it returns the FPSR bits to be set.
//
//     31        21 20   19       18  16 15  12 11 10  9  8  7        0
//    ┌────────────┬────┬────────┬──────┬──────┬──────┬──────┬──────────┐
//    │     0      │ ex │unsigned│ mode │lanes │  to  │ from │operation │
//    └────────────┴────┴────────┴──────┴──────┴──────┴──────┴──────────┘

/** Operations on lanes; the names are those of the shared functions of the Arm ARM without "FP". */
export const softFloatOperations = [
  'add', 'sub', 'mul', 'mulX', 'div', 'max', 'min', 'maxNum', 'minNum', 'recipStepFused', 'rSqrtStepFused',
  'sqrt', 'recipEstimate', 'rSqrtEstimate', 'recpX', 'mulAdd',
  'compareEQ', 'compareGE', 'compareGT', 'compare',
  'roundInt', 'toFixed', 'fixedToFP', 'convert', 'unsignedRecipEstimate', 'unsignedRSqrtEstimate',
] as const;
export type SoftFloatOperation = (typeof softFloatOperations)[number];

/** Formats (of integers as well: the register's width) by their code in a request. */
export const softFloatWidths = [16, 32, 64] as const;
export type SoftFloatWidth = (typeof softFloatWidths)[number];

/** N, P, M, Z, A and X are those of FCVTNS, FCVTPS, …, FCVTXN; 'dynamic' is FPCR.RMode. The order is the code. */
export const roundingNames = ['nearest', 'positive', 'negative', 'zero', 'tiesAway', 'odd', 'dynamic'] as const;
export type RoundingName = (typeof roundingNames)[number];

export interface SoftFloatRequest {
  readonly operation: SoftFloatOperation;
  readonly from: SoftFloatWidth;
  /** Default: as `from`. */
  readonly to?: SoftFloatWidth;
  readonly lanes: number;
  /** Default: dynamic. */
  readonly rounding?: RoundingName;
  /** The integer of a conversion is unsigned. */
  readonly unsigned?: boolean;
  /** roundInt: a changed value sets IXC. compare: a quiet NaN sets IOC. */
  readonly exact?: boolean;
}

export function packRequest(r: SoftFloatRequest): number {
  return softFloatOperations.indexOf(r.operation) | (softFloatWidths.indexOf(r.from) << 8) |
    (softFloatWidths.indexOf(r.to ?? r.from) << 10) | (r.lanes << 12) |
    (roundingNames.indexOf(r.rounding ?? 'dynamic') << 16) | (Number(r.unsigned ?? false) << 19) |
    (Number(r.exact ?? false) << 20);
}

export function unpackRequest(request: number): Required<SoftFloatRequest> {
  return {
    operation: softFloatOperations[request & 0xff]!,
    from: softFloatWidths[(request >>> 8) & 3]!,
    to: softFloatWidths[(request >>> 10) & 3]!,
    lanes: (request >>> 12) & 15,
    rounding: roundingNames[(request >>> 16) & 7]!,
    unsigned: ((request >>> 19) & 1) === 1,
    exact: ((request >>> 20) & 1) === 1,
  };
}
