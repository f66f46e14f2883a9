// Random CPU states for differential tests, thick with the values on which implementations differ: integer extremes,
// powers of two and their neighbours, shift amounts, and for floating point zeros, denormals, infinities, NaNs of both
// kinds, limits, halfway cases and values one step apart. The same seed gives the same state on every machine.

import type { SeededRandom } from '../../src/base/random.ts';
import { type CpuState, SCRATCH_BYTES, emptyState } from './cpu-state.ts';
import { SCRATCH_ADDRESS } from './qemu-driver.ts';

export interface RandomStateOptions {
  /** Probability, 0 to 1, that an integer or lane is an edge value rather than random bits. Default 0.6. */
  edgeProbability?: number;
  /** Probability that FPCR is zero, the default of Linux. Default 0.5. */
  defaultFpcrProbability?: number;
  /** Registers that are to hold a 16-byte aligned address in scratch memory, 1 KiB or more from its ends. */
  pointers?: readonly number[];
}

/** How lanes of one format are spread in a vector register. */
type LaneKind = 'int8' | 'int16' | 'int32' | 'int64' | 'float16' | 'float32' | 'float64';

const LANE_KINDS: readonly LaneKind[] = ['int8', 'int16', 'int32', 'int64', 'float16', 'float32', 'float64'];

const LANE_BITS: Record<LaneKind, number> = {
  int8: 8, int16: 16, int32: 32, int64: 64, float16: 16, float32: 32, float64: 64,
};

/** Exponent and fraction widths of the IEEE formats. */
const FLOAT_FORMATS = {
  float16: { exponentBits: 5, fractionBits: 10 },
  float32: { exponentBits: 8, fractionBits: 23 },
  float64: { exponentBits: 11, fractionBits: 52 },
} as const;

/** A whole state; SP always points into the scratch memory, 16-byte aligned. */
export function randomState(random: SeededRandom, options: RandomStateOptions = {}): CpuState {
  const edgeProbability = options.edgeProbability ?? 0.6;
  const state = emptyState();
  for (let n = 0; n < 31; n++) state.x[n] = randomInteger(random, edgeProbability);
  for (const n of options.pointers ?? []) state.x[n] = randomScratchPointer(random);
  state.sp = randomScratchPointer(random);
  state.nzcv = (random.below(16) << 28) >>> 0;
  state.fpcr = chance(random, options.defaultFpcrProbability ?? 0.5) ? 0 : random.below(32) << 22;
  state.fpsr = randomFpsr(random);
  for (let n = 0; n < 32; n++) fillVector(random, state.v, n, edgeProbability);
  const words = new Uint32Array(state.memory.buffer, 0, SCRATCH_BYTES / 4);
  for (let i = 0; i < words.length; i++) words[i] = random.u32();
  return state;
}

/** A 64-bit integer: full width, or a 32-bit one with any upper half, edge values with the given probability. */
export function randomInteger(random: SeededRandom, edgeProbability: number): bigint {
  if (!chance(random, edgeProbability)) return random.u64();
  if (chance(random, 0.5)) return edgeInteger(random, 64);
  const upper = random.pick([0n, 0xffffffffn, BigInt(random.u32())]);
  return (upper << 32n) | edgeInteger(random, 32);
}

/** An unsigned representation of an edge value of a `bits` wide integer. */
export function edgeInteger(random: SeededRandom, bits: number): bigint {
  const power = 1n << BigInt(random.below(bits));
  const half = 1n << BigInt(bits - 1);
  const value = random.pick([
    0n, 1n, -1n, -2n, half, half - 1n, half + 1n, power, power - 1n, power + 1n, -power, ~power,
    // shift amounts
    BigInt(bits - 1), BigInt(bits), BigInt(random.below(2 * bits + 1)), -BigInt(random.below(bits + 1)),
    0x5555555555555555n, 0x00ff00ff00ff00ffn, 0x0123456789abcdefn,
  ]);
  return BigInt.asUintN(bits, value);
}

/** The bits of an edge value of an IEEE format, either sign. */
export function edgeFloat(random: SeededRandom, kind: keyof typeof FLOAT_FORMATS): bigint {
  const { exponentBits, fractionBits } = FLOAT_FORMATS[kind];
  const fraction = BigInt(fractionBits);
  const one = 1n << fraction;
  const maxExponent = (1n << BigInt(exponentBits)) - 1n;
  const bias = maxExponent >> 1n;
  const randomFraction = random.u64() & (one - 1n);
  const infinity = maxExponent << fraction;
  const quiet = one >> 1n;
  const ordinaryExponent = bias - 3n + BigInt(random.below(8));
  const magnitude = random.pick([
    0n, 0n, // zero
    1n, one - 1n, randomFraction, // denormals
    one, one + 1n, one | randomFraction, // smallest normals
    infinity - 1n, infinity - one, (infinity - one) | randomFraction, // largest finite
    infinity, infinity,
    infinity | quiet, infinity | quiet | randomFraction, // quiet NaNs
    infinity | 1n, infinity | ((randomFraction & ~quiet) || 1n), // signalling NaNs
    bias << fraction, (bias + 1n) << fraction, ((bias - 1n) << fraction) | quiet, // 1.0, 2.0, 0.75
    (bias << fraction) + 1n, (bias << fraction) - 1n, // next to 1.0
    (ordinaryExponent << fraction) | randomFraction,
    halfwayInteger(random, bias, fraction),
    conversionLimit(random, bias, fraction, maxExponent),
    narrowingHalfway(random, kind),
  ]);
  const sign = BigInt(random.below(2)) << BigInt(exponentBits + fractionBits);
  return sign | magnitude;
}

/** n + 0.5 for a small n, or one step beside it: what rounding to integral must decide. */
function halfwayInteger(random: SeededRandom, bias: bigint, fraction: bigint): bigint {
  const exponent = BigInt(random.below(Number(fraction)));
  const integerBits = (random.u64() & ((1n << exponent) - 1n)) << (fraction - exponent);
  const half = 1n << (fraction - exponent - 1n);
  return ((bias + exponent) << fraction) + integerBits + half + BigInt(random.below(3) - 1);
}

/** ±2^31, 2^32, 2^63, 2^64 and neighbours, as far as the format reaches: where conversions to integers saturate. */
function conversionLimit(random: SeededRandom, bias: bigint, fraction: bigint, maxExponent: bigint): bigint {
  const exponent = bias + BigInt(random.pick([7, 8, 15, 16, 31, 32, 63, 64]));
  const clipped = exponent < maxExponent ? exponent : maxExponent - 1n;
  return (clipped << fraction) + BigInt(random.below(3) - 1);
}

/** Halfway between two neighbours of the next smaller format, or one step beside; also in its denormal range. */
function narrowingHalfway(random: SeededRandom, kind: keyof typeof FLOAT_FORMATS): bigint {
  if (kind === 'float16') return random.u64() & 0x7fffn;
  const wide = FLOAT_FORMATS[kind];
  const narrow = kind === 'float64' ? FLOAT_FORMATS.float32 : FLOAT_FORMATS.float16;
  const wideBias = (1 << (wide.exponentBits - 1)) - 1;
  const narrowBias = (1 << (narrow.exponentBits - 1)) - 1;
  const depth = random.below(narrow.fractionBits + 2); // 0: the narrow result is normal, else denormal by so many bits
  const exponent = depth === 0
    ? wideBias - narrowBias + 1 + random.below(2 * narrowBias)
    : wideBias - narrowBias + 1 - depth;
  const dropped = BigInt(Math.min(wide.fractionBits, wide.fractionBits - narrow.fractionBits + depth));
  const kept = ((random.u64() & ((1n << BigInt(wide.fractionBits)) - 1n)) >> dropped) << dropped;
  return (BigInt(exponent) << BigInt(wide.fractionBits)) + kept + (1n << (dropped - 1n)) + BigInt(random.below(3) - 1);
}

/** Fills register `n` with lanes of one kind; some lanes repeat an earlier one, or its neighbour, or its negation. */
function fillVector(random: SeededRandom, v: BigUint64Array, n: number, edgeProbability: number): void {
  const kind = random.pick(LANE_KINDS);
  const bits = LANE_BITS[kind];
  let value = 0n;
  let previous = n === 0 ? 0n : v[2 * n - 2]!; // a register starts near its predecessor's first lane at times
  for (let lane = 128 / bits - 1; lane >= 0; lane--) {
    const bitsOfLane = randomLane(random, kind, edgeProbability, previous);
    previous = bitsOfLane;
    value = (value << BigInt(bits)) | bitsOfLane;
  }
  v[2 * n] = BigInt.asUintN(64, value);
  v[2 * n + 1] = value >> 64n;
}

function randomLane(random: SeededRandom, kind: LaneKind, edgeProbability: number, previous: bigint): bigint {
  const bits = LANE_BITS[kind];
  if (chance(random, 0.15)) {
    const signFlip = BigInt(random.below(2)) << BigInt(bits - 1);
    return BigInt.asUintN(bits, (previous + BigInt(random.below(5) - 2)) ^ signFlip);
  }
  if (!chance(random, edgeProbability)) return BigInt.asUintN(bits, random.u64());
  if (kind === 'float16' || kind === 'float32' || kind === 'float64') return edgeFloat(random, kind);
  return edgeInteger(random, bits);
}

function randomFpsr(random: SeededRandom): number {
  if (chance(random, 0.75)) return 0;
  const bits = random.u32();
  return (bits & 0x9f) | ((bits >>> 8) & 1) << 27;
}

/** At least 1 KiB from either end, so that scaled and pair offsets mostly stay inside. */
function randomScratchPointer(random: SeededRandom): bigint {
  return SCRATCH_ADDRESS + BigInt(1024 + 16 * random.below((SCRATCH_BYTES - 2048) / 16));
}

function chance(random: SeededRandom, probability: number): boolean {
  return random.u32() < probability * 0x1_0000_0000;
}
