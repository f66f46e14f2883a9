// The steps put together to whole ciphers and digests, against Node's.

import assert from 'node:assert/strict';
import { createCipheriv, createHash } from 'node:crypto';
import { test } from 'node:test';
import fc from 'fast-check';
import { i32x4, v128 } from '../../wasm/vector.ts';
import { decryptRound, encryptRound, inverseMixColumns, mixColumns } from './aes.ts';
import {
  choose, majority, parity, sha1FixedRotate, sha1Rounds, sha1ScheduleEnd, sha1ScheduleStart, sha256Rounds,
  sha256ScheduleEnd, sha256ScheduleStart,
} from './sha.ts';
import { compile, fromLanes, lanesOf } from './test-lanes.ts';

const options = { seed: 23, numRuns: 50 };
const bytes = (length: number) => fc.uint8Array({ minLength: length, maxLength: length });

const toVector = (block: Uint8Array): bigint => fromLanes([...block].map(BigInt), 8);
const toBytes = (vector: bigint): Buffer => Buffer.from(vector.toString(16).padStart(32, '0'), 'hex').reverse();
const words = (...values: number[]): bigint => fromLanes(values.map(BigInt), 32);
const toWords = (vector: bigint): number[] => lanesOf(vector, 32, 'U').map(Number);

const aese = compile(0, 128, 2, (l, [state, key]) => encryptRound(l.f, v128.xor(state!, key!)));
const aesd = compile(0, 128, 2, (l, [state, key]) => decryptRound(l.f, v128.xor(state!, key!)));
const aesmc = compile(0, 128, 1, (l, [state]) => mixColumns(l.f, state!));
const aesimc = compile(0, 128, 1, (l, [state]) => inverseMixColumns(l.f, state!));

/** Round keys of AES-128; SubWord is AESE of a word in every column, where ShiftRows has nothing to move. */
function expandKey(key: Uint8Array): bigint[] {
  const keys = [toWords(toVector(key))];
  for (let round = 0, constant = 1; round < 10; round++) {
    const [a, b, c, d] = keys[round]! as [number, number, number, number];
    const substituted = toWords(aese([words(d, d, d, d), 0n]).value)[0]!;
    const rotated = substituted >>> 8 | substituted << 24;
    const first = a ^ rotated ^ constant;
    keys.push([first, first ^ b, first ^ b ^ c, first ^ b ^ c ^ d].map(word => word >>> 0));
    constant = constant << 1 ^ (constant & 0x80 ? 0x11b : 0);
  }
  return keys.map(key4 => words(...key4));
}

test('AES-128 encrypts as Node does, and decrypts what it encrypted', () => {
  fc.assert(fc.property(bytes(16), bytes(16), (key, block) => {
    const keys = expandKey(key);
    let state = toVector(block);
    for (let round = 0; round < 9; round++) state = aesmc([aese([state, keys[round]!]).value]).value;
    state = aese([state, keys[9]!]).value ^ keys[10]!;
    const cipher = createCipheriv('aes-128-ecb', key, null);
    assert.deepEqual(toBytes(state), cipher.update(block));

    state = aesd([state, keys[10]!]).value;
    for (let round = 9; round > 0; round--) state = aesd([aesimc([state]).value, aesimc([keys[round]!]).value]).value;
    assert.deepEqual(toBytes(state ^ keys[0]!), Buffer.from(block));
  }), options);
});

/** A message of up to 55 bytes as the one block it is padded to: 16 words, big-endian. */
function paddedBlock(message: Uint8Array): number[] {
  const block = Buffer.alloc(64);
  block.set(message);
  block[message.length] = 0x80;
  block.writeUInt32BE(message.length * 8, 60);
  return Array.from({ length: 16 }, (_, k) => block.readUInt32BE(4 * k));
}
const fourWords = (all: readonly number[]) => [0, 4, 8, 12].map(k => words(...all.slice(k, k + 4)));
const addWords = (a: bigint, b: bigint) => words(...toWords(a).map((word, k) => (word + toWords(b)[k]!) >>> 0));
const digestOf = (state: readonly number[]) => Buffer.concat(state.map(word => {
  const bytes4 = Buffer.alloc(4);
  bytes4.writeUInt32BE(word);
  return bytes4;
})).toString('hex');

test('SHA-1 of one block is that of Node', () => {
  const rounds = [choose, parity, majority].map(round => compile(2, 128, 3, (l, [abcd, e, w]) =>
    sha1Rounds(l.f, round, abcd!, i32x4.extract(e!, 0), w!)));
  const su0 = compile(2, 128, 3, (l, [a, b, c]) => sha1ScheduleStart(l.f, a!, b!, c!));
  const su1 = compile(2, 128, 2, (l, [a, b]) => sha1ScheduleEnd(l.f, a!, b!));
  const rotate = compile(2, 128, 1, (_, [a]) => i32x4.splat(sha1FixedRotate(i32x4.extract(a!, 0))));
  const constants = [0x5a827999, 0x6ed9eba1, 0x8f1bbcdc, 0xca62c1d6];
  fc.assert(fc.property(fc.uint8Array({ maxLength: 55 }), message => {
    const initial = words(0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476);
    let [abcd, e] = [initial, 0xc3d2e1f0n];
    const schedule = fourWords(paddedBlock(message));
    for (let k = 0; k < 20; k++) {
      if (k >= 4) {
        const partial = su0([schedule[k - 4]!, schedule[k - 3]!, schedule[k - 2]!]).value;
        schedule.push(su1([partial, schedule[k - 1]!]).value);
      }
      const phase = Math.floor(k / 5);
      const constant = constants[phase]!;
      const working = addWords(schedule[k]!, words(constant, constant, constant, constant));
      const nextE = BigInt.asUintN(32, rotate([abcd]).value);
      abcd = rounds[[0, 1, 2, 1][phase]!]!([abcd, e, working]).value;
      e = nextE;
    }
    const state = [...toWords(addWords(abcd, initial)), (Number(e) + 0xc3d2e1f0) >>> 0];
    assert.equal(digestOf(state), createHash('sha1').update(message).digest('hex'));
  }), options);
});

/** First 32 bits of the fractions of square or cube roots of the first primes, which SHA-256 is made from. */
function rootFractions(count: number, root: 2 | 3): number[] {
  const found: number[] = [];
  for (let candidate = 2; found.length < count; candidate++) {
    if (Array.from({ length: candidate - 2 }, (_, k) => k + 2).some(divisor => candidate % divisor === 0)) continue;
    let [low, high] = [0n, 1n << 40n]; // the root times 2^32, by bisection
    while (high - low > 1n) {
      const middle = (low + high) / 2n;
      if (middle ** BigInt(root) <= BigInt(candidate) << BigInt(32 * root)) low = middle;
      else high = middle;
    }
    found.push(Number(BigInt.asUintN(32, low)));
  }
  return found;
}

test('SHA-256 of one block is that of Node', () => {
  const h = compile(2, 128, 3, (l, [abcd, efgh, w]) => sha256Rounds(l.f, abcd!, efgh!, w!, 'abcd'));
  const h2 = compile(2, 128, 3, (l, [abcd, efgh, w]) => sha256Rounds(l.f, abcd!, efgh!, w!, 'efgh'));
  const su0 = compile(2, 128, 2, (l, [a, b]) => sha256ScheduleStart(l.f, a!, b!));
  const su1 = compile(2, 128, 3, (l, [a, b, c]) => sha256ScheduleEnd(l.f, a!, b!, c!));
  const initial = rootFractions(8, 2);
  const constants = rootFractions(64, 3);
  fc.assert(fc.property(fc.uint8Array({ maxLength: 55 }), message => {
    const [firstHalf, secondHalf] = [words(...initial.slice(0, 4)), words(...initial.slice(4))];
    let [abcd, efgh] = [firstHalf, secondHalf];
    const schedule = fourWords(paddedBlock(message));
    for (let k = 0; k < 16; k++) {
      if (k >= 4) {
        const partial = su0([schedule[k - 4]!, schedule[k - 3]!]).value;
        schedule.push(su1([partial, schedule[k - 2]!, schedule[k - 1]!]).value);
      }
      const working = addWords(schedule[k]!, words(...constants.slice(4 * k, 4 * k + 4)));
      [abcd, efgh] = [h([abcd, efgh, working]).value, h2([abcd, efgh, working]).value];
    }
    const state = [...toWords(addWords(abcd, firstHalf)), ...toWords(addWords(efgh, secondHalf))];
    assert.equal(digestOf(state), createHash('sha256').update(message).digest('hex'));
  }), options);
});
