import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { i64x2, v128FromI64 } from '../../wasm/vector.ts';
import { multiplyBytes, multiplyWords } from './polynomial.ts';
import { compile, fromLanes, lanesOf } from './test-lanes.ts';

const options = { seed: 22, numRuns: 200 };

function product(a: bigint, b: bigint): bigint {
  let sum = 0n;
  for (let bit = 0n; b >> bit !== 0n; bit++) if (b >> bit & 1n) sum ^= a << bit;
  return sum;
}

test('products of 64 bits, where all carries would be largest and anywhere', () => {
  const run = compile(3, 128, 2, (l, [a, b]) => {
    const [low, high] = multiplyWords(l.f, i64x2.extract(a!, 0), i64x2.extract(b!, 0));
    return i64x2.replace(v128FromI64(low), 1, high);
  });
  const allOnes = (1n << 64n) - 1n;
  assert.equal(run([allOnes, allOnes]).value, product(allOnes, allOnes));
  const word = fc.bigInt(0n, allOnes);
  fc.assert(fc.property(word, word, (a, b) => assert.equal(run([a, b]).value, product(a, b))), options);
});

test('products of bytes, lower and upper halves', () => {
  const register = fc.bigInt(0n, (1n << 128n) - 1n);
  for (const upper of [false, true]) {
    const run = compile(0, 128, 2, (l, [a, b]) => multiplyBytes(l, a!, b!, upper));
    fc.assert(fc.property(register, register, (a, b) => {
      const bs = lanesOf(b, 8, 'U');
      const products = lanesOf(a, 8, 'U').map((lane, k) => product(lane, bs[k]!));
      assert.equal(run([a, b]).value, fromLanes(upper ? products.slice(8) : products.slice(0, 8), 16));
    }), options);
  }
});
