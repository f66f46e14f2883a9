// The steps of SHA-1 and SHA-256 (FIPS 180-4) as the Arm instructions cut them: four rounds, or four words of the
// message schedule.

import type { FunctionBuilder } from '../../wasm/function.ts';
import { i32 } from '../../wasm/scalar.ts';
import type { I32, V128 } from '../../wasm/types.ts';
import { i32x4, v128 } from '../../wasm/vector.ts';
import { shuffleElements } from './lanes.ts';

const rotateLeft = (a: I32, by: number): I32 => i32.rotl(a, i32.const(by));
const rotateRight = (a: I32, by: number): I32 => i32.rotr(a, i32.const(by));
const xor3 = (a: I32, b: I32, c: I32): I32 => i32.xor(i32.xor(a, b), c);
const lanesOf = (f: FunctionBuilder, a: V128): I32[] => [0, 1, 2, 3].map(lane => f.let(i32x4.extract(a, lane)));

function vectorOf(words: readonly I32[]): V128 {
  return words.slice(1).reduce((a, word, k) => i32x4.replace(a, k + 1, word), i32x4.splat(words[0]!));
}

/** Words 1 to 3 of `a`, and word 0 of `b`; likewise for other places. */
function wordsFrom(first: number, a: V128, b: V128): V128 {
  return shuffleElements(2, a, b, lane => lane + first);
}

export type RoundFunction = (b: I32, c: I32, d: I32) => I32;
/** (b & c) | (~b & d) */
export const choose: RoundFunction = (b, c, d) => i32.xor(i32.and(i32.xor(c, d), b), d);
export const parity: RoundFunction = xor3;
export const majority: RoundFunction = (b, c, d) => i32.or(i32.and(b, c), i32.and(i32.or(b, c), d));

/**
 * Four rounds of SHA-1.
 * @param abcd the first four words of the state, a in lane 0
 * @param workingWords message words with the round constant added
 * @returns abcd after them
 */
export function sha1Rounds(f: FunctionBuilder, round: RoundFunction, abcd: V128, e: I32, workingWords: V128): V128 {
  let [a, b, c, d] = lanesOf(f, f.let(abcd)) as [I32, I32, I32, I32];
  let last = f.let(e);
  for (const word of lanesOf(f, f.let(workingWords))) {
    const sum = i32.add(i32.add(i32.add(last, rotateLeft(a, 5)), round(b, c, d)), word);
    [a, b, c, d, last] = [f.let(sum), a, f.let(rotateLeft(b, 30)), c, d];
  }
  return vectorOf([a, b, c, d]);
}

/** SHA1H. */
export const sha1FixedRotate = (a: I32): I32 => rotateLeft(a, 30);

/** w0 to w3 combined with the words 2 and 8 further: SHA1SU0. */
export function sha1ScheduleStart(f: FunctionBuilder, w0: V128, w4: V128, w8: V128): V128 {
  const first = f.let(w0);
  return v128.xor(v128.xor(first, w8), wordsFrom(2, first, w4));
}
/** Combined with the word 13 further and rotated: SHA1SU1. The last one of these is the first of the results. */
export function sha1ScheduleEnd(f: FunctionBuilder, partial: V128, w12: V128): V128 {
  const combined = f.let(v128.xor(partial, wordsFrom(1, f.let(w12), v128.const(0n, 0n))));
  const rotated = f.let(rotateLanes(combined, 31));
  const again = rotateLeft(i32x4.extract(rotated, 0), 1);
  return i32x4.replace(rotated, 3, i32.xor(i32x4.extract(rotated, 3), again));
}

const rotateLanes = (a: V128, rightBy: number): V128 =>
  v128.or(i32x4.shrU(a, i32.const(rightBy)), i32x4.shl(a, i32.const(32 - rightBy)));

/**
 * Four rounds of SHA-256.
 * @param abcd a in lane 0; `efgh`: e in lane 0
 * @param workingWords message words with the round constants added
 * @returns abcd (SHA256H) or efgh (SHA256H2) after them
 */
export function sha256Rounds(
  f: FunctionBuilder, abcd: V128, efgh: V128, workingWords: V128, part: 'abcd' | 'efgh',
): V128 {
  let [a, b, c, d] = lanesOf(f, f.let(abcd)) as [I32, I32, I32, I32];
  let [e, f1, g, h] = lanesOf(f, f.let(efgh)) as [I32, I32, I32, I32];
  for (const word of lanesOf(f, f.let(workingWords))) {
    const sigma1 = xor3(rotateRight(e, 6), rotateRight(e, 11), rotateRight(e, 25));
    const t1 = f.let(i32.add(i32.add(i32.add(h, sigma1), choose(e, f1, g)), word));
    const sigma0 = xor3(rotateRight(a, 2), rotateRight(a, 13), rotateRight(a, 22));
    const t2 = i32.add(sigma0, majority(a, b, c));
    [a, b, c, d, e, f1, g, h] = [f.let(i32.add(t1, t2)), a, b, c, f.let(i32.add(d, t1)), e, f1, g];
  }
  return vectorOf(part === 'abcd' ? [a, b, c, d] : [e, f1, g, h]);
}

/** The schedule's sigma functions: two rotations and a shift of every word. */
function sigma(f: FunctionBuilder, words: V128, rotations: readonly [number, number], shift: number): V128 {
  const a = f.let(words);
  return v128.xor(
    v128.xor(rotateLanes(a, rotations[0]), rotateLanes(a, rotations[1])),
    i32x4.shrU(a, i32.const(shift)),
  );
}

/** w0 to w3 plus sigma0 of the words after each: SHA256SU0. */
export function sha256ScheduleStart(f: FunctionBuilder, w0: V128, w4: V128): V128 {
  const first = f.let(w0);
  return i32x4.add(first, sigma(f, wordsFrom(1, first, w4), [7, 18], 3));
}
/** Plus the words 9 further and sigma1 of those 14 further; the last two of those are the first results: SHA256SU1. */
export function sha256ScheduleEnd(f: FunctionBuilder, partial: V128, w8: V128, w12: V128): V128 {
  const last = f.let(w12);
  const sum = f.let(i32x4.add(partial, wordsFrom(1, w8, last)));
  const firstTwo = f.let(i32x4.add(sum, sigma(f, wordsFrom(2, last, v128.const(0n, 0n)), [17, 19], 10)));
  const lastTwo = i32x4.add(sum, sigma(f, wordsFrom(2, v128.const(0n, 0n), firstTwo), [17, 19], 10));
  return shuffleElements(2, firstTwo, f.let(lastTwo), lane => lane < 2 ? lane : lane + 4);
}
