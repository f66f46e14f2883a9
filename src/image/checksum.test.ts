import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SeededRandom } from '../base/random.ts';
import { PageHasher, formatDigest } from './checksum.ts';
import type { PageMemory } from './checksum.ts';

const MASK = 2n ** 64n - 1n;
const [P1, P2, P3, P4] = [0x9e3779b185ebca87n, 0xc2b2ae3d27d4eb4fn, 0x165667b19e3779f9n, 0x85ebca77c2b2ae63n];
const P5 = 0x27d4eb2f165667c5n;
const rotl = (x: bigint, n: bigint) => ((x << n) | (x >> (64n - n))) & MASK;
const round = (acc: bigint, input: bigint) => (rotl((acc + input * P2) & MASK, 31n) * P1) & MASK;

/** XXH64 of whole words, with BigInts, after the specification; short inputs too, for its published vectors. */
function xxh64(words: readonly bigint[], seed: bigint): bigint {
  let at = 0;
  let hash = (seed + P5) & MASK;
  if (words.length >= 4) {
    const v = [seed + P1 + P2, seed + P2, seed, seed - P1].map((x) => x & MASK);
    for (; at + 4 <= words.length; at += 4) for (let k = 0; k < 4; k++) v[k] = round(v[k]!, words[at + k]!);
    hash = [1n, 7n, 12n, 18n].map((n, k) => rotl(v[k]!, n)).reduce((a, b) => (a + b) & MASK);
    for (const lane of v) hash = ((hash ^ round(0n, lane)) * P1 + P4) & MASK;
  }
  hash = (hash + BigInt(8 * words.length)) & MASK;
  for (; at < words.length; at++) hash = (rotl(hash ^ round(0n, words[at]!), 27n) * P1 + P4) & MASK;
  hash = ((hash ^ (hash >> 33n)) * P2) & MASK;
  hash = ((hash ^ (hash >> 29n)) * P3) & MASK;
  return hash ^ (hash >> 32n);
}

function makeMemory(addressType: 'i32' | 'i64', pages: number): PageMemory {
  const memory = addressType === 'i32' ? new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true })
    : new WebAssembly.Memory({ initial: BigInt(pages), maximum: BigInt(pages), shared: true, address: 'i64' });
  const u8 = new Uint8Array(memory.buffer);
  return { memory, u8, parameters: { addressType, sizeBytes: u8.length } };
}

test('the reference here gives the published value of the empty input', () => {
  assert.equal(xxh64([], 0n), 0xef46db3751d8e999n);
});

for (const addressType of ['i32', 'i64'] as const) {
  test(`page checksums and digests are XXH64, and zero pages are told, ${addressType}`, () => {
    const page = makeMemory(addressType, 1);
    const random = new SeededRandom(7);
    const words = new BigUint64Array(page.memory.buffer);
    const wordsOf = (mfn: number) => [...words.subarray(512 * mfn, 512 * (mfn + 1))];
    for (let i = 0; i < 512 * 4; i++) words[i] = random.u64();
    words[512 * 6 - 1] = 1n << 63n; // in the last word of page 5; page 4 stays zero
    const hasher = new PageHasher(page);
    const out = new Uint32Array(16);
    const gfn = 0xffff_fff0;
    assert.deepEqual(hasher.hashPages(1, 5, gfn, out, 2), [false, false, false, true, false]);
    for (let k = 0; k < 5; k++) {
      const hash = BigInt(out[2 + 2 * k]!) | (BigInt(out[3 + 2 * k]!) << 32n);
      assert.equal(hash, xxh64(wordsOf(1 + k), BigInt(gfn + k)));
    }
    let digest = 0n;
    for (const mfn of [0, 1, 2]) digest = xxh64(wordsOf(mfn), digest);
    const first = hasher.digest(0, 2);
    assert.equal(formatDigest(hasher.digest(2, 1, first)), digest.toString(16).padStart(16, '0'));
  });
}

test('a page above 4 GiB is reached in a 64-bit memory', () => {
  const pages = 2 ** 16 + 1;
  const page = makeMemory('i64', pages);
  const mfn = 2 ** 20 + 3;
  page.u8[mfn * 4096 + 17] = 1;
  const out = new Uint32Array(2);
  assert.deepEqual(new PageHasher(page).hashPages(mfn, 1, 0, out, 0), [false]);
  const words = [...new BigUint64Array(page.memory.buffer, mfn * 4096, 512)];
  assert.equal(BigInt(out[0]!) | (BigInt(out[1]!) << 32n), xxh64(words, 0n));
});
