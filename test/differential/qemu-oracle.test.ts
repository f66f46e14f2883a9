// The oracle itself, on instructions whose results are plain from the manual: if these hold, the machinery that carries
// states in and out of QEMU can be trusted with the rest.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { SeededRandom } from '../../src/base/random.ts';
import { type CpuState, SCRATCH_BYTES, copyState, diffStates, emptyState } from './cpu-state.ts';
import { type OracleResult, QemuOracle, SCRATCH_ADDRESS } from './qemu-oracle.ts';
import { randomState } from './random-state.ts';

const ONE = 0x3ff0000000000000n;
const THREE = 0x4008000000000000n;
const SIGNALLING_NAN = 0x7ff0000000000123n;
const FPCR_ROUND_UP = 1 << 22;
const FPCR_FLUSH_TO_ZERO = 1 << 24;
const FPCR_DEFAULT_NAN = 1 << 25;
const FPSR_INPUT_DENORMAL = 1 << 7;
const FPSR_UNDERFLOW = 1 << 3;
const FPSR_INEXACT = 1 << 4;
const FPSR_INVALID = 1;

let oracle: QemuOracle;
before(async () => {
  oracle = await QemuOracle.start();
});

/** Runs one case from an empty state that `prepare` fills. */
async function runOne(words: number[], prepare: (state: CpuState) => void = () => {}): Promise<OracleResult> {
  const state = emptyState();
  prepare(state);
  const [result] = await oracle.run([{ words, state }]);
  return result!;
}

/** Also asserts that the case ended without a fault. */
async function runToEnd(words: number[], prepare?: (state: CpuState) => void): Promise<CpuState> {
  const result = await runOne(words, prepare);
  assert.equal(result.fault, undefined);
  return result.state;
}

test('NOP leaves the whole of a random state as it was', async () => {
  const random = new SeededRandom(1);
  const cases = Array.from({ length: 300 }, () => ({ words: [0xd503201f], state: randomState(random) }));
  const results = await oracle.run(cases);
  results.forEach((result, i) => {
    assert.equal(result.fault, undefined);
    assert.deepEqual(diffStates(cases[i]!.state, result.state), []);
  });
});

test('ADDS x0, x1, x2 sets carry and zero, and changes nothing else', async () => {
  const state = randomState(new SeededRandom(2));
  state.x[1] = 0xffffffffffffffffn;
  state.x[2] = 1n;
  const [result] = await oracle.run([{ words: [0xab020020], state }]);
  const expected = copyState(state);
  expected.x[0] = 0n;
  expected.nzcv = 0x60000000;
  assert.deepEqual(diffStates(expected, result!.state), []);
});

test('SDIV by zero gives zero', async () => {
  const state = await runToEnd([0x9ac20c20], (s) => {
    s.x[0] = 5n;
    s.x[1] = 7n;
  });
  assert.equal(state.x[0], 0n);
});

test('UDF, BRK, unmapped loads and stores fault, and the next case still runs', async () => {
  const results = await oracle.run([
    { words: [0x00000000], state: emptyState() },
    { words: [0xd4200000], state: emptyState() },
    { words: [0xd2800022, 0xf9400020], state: { ...emptyState(), x: new BigUint64Array(31).with(1, 0x5008n) } },
    { words: [0x8b020020], state: { ...emptyState(), x: new BigUint64Array(31).with(1, 3n).with(2, 4n) } },
  ]);
  assert.deepEqual(results.map((r) => r.fault?.signal), ['SIGILL', 'SIGTRAP', 'SIGSEGV', undefined]);
  assert.equal(results[2]!.fault!.address, 0x5008n);
  assert.equal(results[2]!.fault!.pc, results[2]!.codeAddress + 4n);
  assert.equal(results[2]!.state.x[2], 1n, 'the instruction before the fault has taken effect');
  assert.equal(results[3]!.state.x[0], 7n);
});

test('both neighbours of the scratch page are guarded', async () => {
  const end = SCRATCH_ADDRESS + BigInt(SCRATCH_BYTES);
  for (const address of [SCRATCH_ADDRESS - 8n, end]) {
    const result = await runOne([0xf9000020], (s) => s.x[1] = address);
    assert.equal(result.fault?.signal, 'SIGSEGV');
    assert.equal(result.fault.address, address);
  }
  assert.equal((await runOne([0xf9000020], (s) => s.x[1] = end - 8n)).fault, undefined);
});

test('an endless loop ends in TIMEOUT', async () => {
  assert.equal((await runOne([0x14000000])).fault?.signal, 'TIMEOUT');
});

test('a fault reports the registers and vectors of its moment', async () => {
  const state = randomState(new SeededRandom(3));
  const [result] = await oracle.run([{ words: [0], state }]);
  assert.equal(result!.fault?.signal, 'SIGILL');
  assert.deepEqual(diffStates(state, result!.state), []);
});

test('a branch that leaves the code is seen at its target', async () => {
  const register = await runOne([0xd63f0020], (s) => s.x[1] = 0x123450n); // BLR X1
  assert.equal(register.fault?.pc, 0x123450n);
  assert.equal(register.state.x[30], register.codeAddress + 4n);
  const relative = await runOne([0x17fffff0]); // B -64
  assert.equal(relative.fault?.signal, 'SIGILL');
  assert.equal(relative.fault.pc, relative.codeAddress - 64n);
});

test('B and CBZ forward skip instructions', async () => {
  const skipOne = [0xb4000040, 0xd2800021]; // CBZ X0, +8; MOV X1, #1
  assert.equal((await runToEnd(skipOne)).x[1], 0n);
  assert.equal((await runToEnd(skipOne, (s) => s.x[0] = 9n)).x[1], 1n);
  assert.equal((await runToEnd([0x14000002, 0xd2800021])).x[1], 0n);
});

test('ADR gives the reported code address', async () => {
  const result = await runOne([0x10000000]);
  assert.equal(result.state.x[0], result.codeAddress);
});

test('LDP with writeback, STR and LDADD work on the scratch memory', async () => {
  const pair = await runToEnd([0xa8c10c22], (s) => { // LDP X2, X3, [X1], #16
    s.x[1] = SCRATCH_ADDRESS + 32n;
    new BigUint64Array(s.memory.buffer).set([11n, 22n], 4);
  });
  assert.deepEqual(Array.from(pair.x.subarray(1, 4)), [SCRATCH_ADDRESS + 48n, 11n, 22n]);
  const store = await runToEnd([0xf90007e0], (s) => { // STR X0, [SP, #8]
    s.sp = SCRATCH_ADDRESS + 64n;
    s.x[0] = 0x1122334455667788n;
  });
  assert.equal(new BigUint64Array(store.memory.buffer)[9], 0x1122334455667788n);
  const add = await runToEnd([0xf8200041], (s) => { // LDADD X0, X1, [X2]
    s.x[0] = 5n;
    s.x[2] = SCRATCH_ADDRESS;
    s.memory[0] = 200;
  });
  assert.equal(add.x[1], 200n);
  assert.equal(add.memory[0], 205);
});

test('FADD d0, d1, d2 of a signalling NaN quiets it, or gives the default NaN, and sets IOC', async () => {
  const withNan = (fpcr: number) => runToEnd([0x1e622820], (s) => {
    s.fpcr = fpcr;
    s.v[2] = ONE;
    s.v[4] = SIGNALLING_NAN;
    s.v[1] = 77n;
  });
  const quieted = await withNan(0);
  assert.equal(quieted.v[0], SIGNALLING_NAN | 1n << 51n);
  assert.equal(quieted.v[1], 0n, 'the upper half of the vector register is cleared');
  assert.equal(quieted.fpsr, FPSR_INVALID);
  const replaced = await withNan(FPCR_DEFAULT_NAN);
  assert.equal(replaced.v[0], 0x7ff8000000000000n);
  assert.equal(replaced.fpcr, FPCR_DEFAULT_NAN);
});

test('FDIV d0, d1, d2 honours the rounding mode and sets IXC', async () => {
  const third = (fpcr: number) => runToEnd([0x1e621820], (s) => {
    s.fpcr = fpcr;
    s.v[2] = ONE;
    s.v[4] = THREE;
  });
  const nearest = await third(0);
  assert.equal(nearest.v[0], 0x3fd5555555555555n);
  assert.equal(nearest.fpsr, FPSR_INEXACT);
  assert.equal((await third(FPCR_ROUND_UP)).v[0], 0x3fd5555555555556n);
});

test('FMUL d0, d1, d2 flushes denormals with FZ: UFC alone for a result, IDC alone for an operand', async () => {
  const product = (fpcr: number, factor: bigint) => runToEnd([0x1e620820], (s) => {
    s.fpcr = fpcr;
    s.v[2] = factor;
    s.v[4] = ONE - (1n << 52n); // 0.5
  });
  const minNormal = 1n << 52n;
  const [exact, flushed, operand] = await Promise.all([
    product(0, minNormal), product(FPCR_FLUSH_TO_ZERO, minNormal), product(FPCR_FLUSH_TO_ZERO, 1n),
  ]);
  assert.deepEqual([exact.v[0], exact.fpsr], [1n << 51n, 0]);
  assert.deepEqual([flushed.v[0], flushed.fpsr], [0n, FPSR_UNDERFLOW]);
  assert.deepEqual([operand.v[0], operand.fpsr], [0n, FPSR_INPUT_DENORMAL]);
});

test('code that ends the process is an error that names the case', async () => {
  const exit = [0xd2800bc8, 0xd4000001]; // MOV X8, #94 (exit_group); SVC #0
  await assert.rejects(
    oracle.run([{ words: [0xd503201f], state: emptyState() }, { words: exit, state: emptyState() }]),
    { code: 'ZAZEN_ORACLE_FAILED', message: /^case 1 \(0xd2800bc8 0xd4000001\)/ },
  );
});

test('code longer than a stub is refused', async () => {
  await assert.rejects(runOne(Array.from({ length: 9 }, () => 0xd503201f)), RangeError);
});

test('a run of several batches keeps the order', async () => {
  const cases = Array.from({ length: 2500 }, (_, i) => {
    const state = emptyState();
    state.x[1] = BigInt(i);
    return { words: [0x91000420], state }; // ADD X0, X1, #1
  });
  const results = await oracle.run(cases);
  assert.equal(results.length, 2500);
  results.forEach((result, i) => assert.equal(result.state.x[0], BigInt(i + 1)));
  assert.deepEqual(await oracle.run([]), []);
});
