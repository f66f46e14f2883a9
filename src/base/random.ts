// Randomness as an injected interface: the system's for keys and identifiers, a seeded one for tests and replay.

import { randomFillSync } from 'node:crypto';

export interface Random {
  /** Uniform over 0 … 2^32-1. */
  u32(): number;
}

export const systemRandom: Random = {
  u32() {
    const word = new Uint32Array(1);
    randomFillSync(word);
    return word[0]!;
  },
};

/** xoshiro128** (Blackman and Vigna), seeded by splitmix32: small, fast, and the same on every machine. */
export class SeededRandom implements Random {
  readonly #s = new Uint32Array(4);

  constructor(seed: number) {
    let z = seed >>> 0;
    for (let i = 0; i < 4; i++) {
      z = (z + 0x9e3779b9) >>> 0;
      let t = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
      t = Math.imul(t ^ (t >>> 15), 0x735a2d97);
      this.#s[i] = t ^ (t >>> 15);
    }
  }

  u32(): number {
    const s = this.#s;
    const s1 = s[1]!;
    const product = Math.imul(s1, 5);
    const result = Math.imul((product << 7) | (product >>> 25), 9) >>> 0;
    s[2]! ^= s[0]!;
    s[3]! ^= s1;
    s[1]! ^= s[2]!;
    s[0]! ^= s[3]!;
    s[2]! ^= s1 << 9;
    const s3 = s[3]!;
    s[3] = (s3 << 11) | (s3 >>> 21);
    return result;
  }

  u64(): bigint {
    return (BigInt(this.u32()) << 32n) | BigInt(this.u32());
  }

  /** Uniform over 0 … bound-1 (bias below 2^-32 × bound). */
  below(bound: number): number {
    return Math.floor((this.u32() / 4294967296) * bound);
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)]!;
  }
}
