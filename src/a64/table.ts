// The instruction table: all groups of definitions, the decoder over them, and the numbering of handlers.
//
// A row is specialised for each combination of its static fields, and some for one thing more, here called special: a row
// with a direct branch for a target outside of its page, one that accesses memory for SP as base register. Handler
// number = the row's first + statics packed in order, the special ones at odd places.

import { assert } from '../base/assert.ts';
import { FIRST_REGION, HANDLER_FIRST_ROW } from '../abi/decode-cache.ts';
import { fieldsOf } from './row.ts';
import type { Fields, Row } from './row.ts';
import branches from './definitions/branches.ts';
import systemRegisterStorage from './definitions/system-register-storage.ts';
import system from './definitions/system.ts';
import dataProcessingImmediate from './definitions/data-processing-immediate.ts';
import dataProcessingRegister from './definitions/data-processing-register.ts';
import dataProcessingSources from './definitions/data-processing-sources.ts';
import loadsStores from './definitions/loads-stores.ts';
import loadsStoresPair from './definitions/loads-stores-pair.ts';
import loadsStoresStructures from './definitions/loads-stores-structures.ts';
import loadsStoresExclusive from './definitions/loads-stores-exclusive.ts';
import atomics from './definitions/atomics.ts';
import crypto from './definitions/crypto.ts';
import fpDataProcessing from './definitions/fp-data-processing.ts';
import fpConversions from './definitions/fp-conversions.ts';
import simdFpThreeSame from './definitions/simd-fp-three-same.ts';
import simdFpTwoRegister from './definitions/simd-fp-two-register.ts';
import simdFpConversions from './definitions/simd-fp-conversions.ts';
import simdAcrossLanes from './definitions/simd-across-lanes.ts';
import simdByElement from './definitions/simd-by-element.ts';
import simdModifiedImmediate from './definitions/simd-modified-immediate.ts';
import simdPermuteCopy from './definitions/simd-permute-copy.ts';
import simdShiftImmediate from './definitions/simd-shift-immediate.ts';
import simdThreeDifferent from './definitions/simd-three-different.ts';
import simdThreeSame from './definitions/simd-three-same.ts';
import simdTwoMisc from './definitions/simd-two-misc.ts';

const groups = [
  dataProcessingImmediate, dataProcessingRegister, dataProcessingSources, branches, system, systemRegisterStorage,
  loadsStores, loadsStoresPair, loadsStoresStructures, loadsStoresExclusive, atomics,
  simdThreeSame, simdThreeDifferent, simdByElement, simdTwoMisc, simdAcrossLanes, simdShiftImmediate, simdPermuteCopy,
  simdModifiedImmediate, crypto,
  fpDataProcessing, fpConversions, simdFpThreeSame, simdFpTwoRegister, simdFpConversions,
];

export const rows: readonly Row[] = groups.flatMap(group => group.rows);

export interface Numbering {
  readonly first: number;
  readonly count: number;
}
const isTwofold = (row: Row): boolean => row.branch !== undefined || row.spBase;
const numberings = new Map<Row, Numbering>();
let nextHandler = HANDLER_FIRST_ROW;
for (const row of rows) {
  const bits = row.statics.reduce((sum, name) => sum + row.fields.get(name)!.bits, isTwofold(row) ? 1 : 0);
  numberings.set(row, { first: nextHandler, count: 1 << bits });
  nextHandler += 1 << bits;
}
assert(nextHandler <= FIRST_REGION, 'there are more handlers than numbers for them');

export function numbering(row: Row): Numbering {
  return numberings.get(row)!;
}

/** @param far of a row with a branch: to another page */
export function handlerNumber(row: Row, f: Fields, far: boolean): number {
  let packed = 0;
  for (const name of row.statics) packed = (packed << row.fields.get(name)!.bits) | f[name]!;
  if (isTwofold(row)) packed = (packed << 1) | Number(far || (row.spBase && f['Rn'] === 31));
  return numbering(row).first + packed;
}

/** The inverse of `handlerNumber`: what a handler is specialised for. */
export function staticsOf(row: Row, handler: number): { statics: Fields; special: boolean } {
  let packed = handler - numbering(row).first;
  const special = isTwofold(row) && (packed & 1) === 1;
  if (isTwofold(row)) packed >>= 1;
  const statics: Record<string, number> = {};
  for (const name of row.statics.toReversed()) {
    const { bits } = row.fields.get(name)!;
    statics[name] = packed & ((1 << bits) - 1);
    packed >>= bits;
  }
  return { statics, special };
}

/** Bits that are set. */
function countOf(bits: number): number {
  let count = 0;
  for (let rest = bits; rest !== 0; rest &= rest - 1) count++;
  return count;
}
const specificity = new Map(rows.map(row => [row, countOf(row.mask)]));
const specificFirst = rows.toSorted((a, b) => specificity.get(b)! - specificity.get(a)!);

// Buckets by bits 31–21; in each the rows that can match, most specific first. Made when first looked into, of those by bits 31–24.
export const BUCKET_SHIFT = 21;
const COARSE_SHIFT = 24;
const buckets: (readonly Row[] | undefined)[] = [];
const coarse: (readonly Row[] | undefined)[] = [];
function matching(among: readonly Row[], word: number, shift: number): readonly Row[] {
  return among.filter(row => ((word ^ row.bits) & row.mask) >>> shift === 0);
}
/** The rows that a word can be of, by these bits of it. */
export function bucketOf(word: number): readonly Row[] {
  return buckets[word >>> BUCKET_SHIFT] ??= matching(
    coarse[word >>> COARSE_SHIFT] ??= matching(specificFirst, word, COARSE_SHIFT), word, BUCKET_SHIFT);
}

/** The row and fields of an instruction word, or undefined if it is unallocated. */
export function decode(word: number): { row: Row; fields: Fields } | undefined {
  for (const row of bucketOf(word)) {
    if (((word & row.mask) >>> 0) !== row.bits) continue;
    const fields = fieldsOf(row, word);
    if (row.when(fields)) return { row, fields };
  }
  return undefined;
}
