import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Assembler } from '../a64/test-assembler.ts';
import { vcpuRecord } from '../abi/vcpu.ts';
import { GUEST_BASE, createTestMachine } from '../cpu/test-machine.ts';
import { StackSamples } from './profile.ts';
import { takeSample } from './sample.ts';

const MICRO = 1000;
const sample = (el: number, micros: number, ...addresses: bigint[]): BigUint64Array =>
  BigUint64Array.from([7n, 0n, BigInt(el), BigInt(micros * MICRO), ...addresses]);
const names = new Map([[0x1000n, 'idle loop'], [0x2000n, 'caller'], [0x2ffcn, 'caller'], [0x3000n, 'root;fn']]);
const nameOf = (address: bigint): string | undefined => names.get(address);

function collected(): StackSamples {
  const samples = new StackSamples();
  samples.add(sample(1, 10, 0x1000n, 0x2004n));
  samples.add(sample(0, 5, 0x40_0123n, 0x50_0456n));
  samples.add(sample(1, 20, 0x1000n, 0x3000n));
  samples.add(sample(0, 7, 0x40_0fffn, 0x50_0000n));
  samples.add(sample(1, 1, 0x3000n));
  return samples;
}

test('folded stacks: outermost first, names that would break a line are mended, times added up', () => {
  const profile = collected().finish('web', nameOf);
  assert.deepEqual([profile.samples, profile.cpuMicros], [5, 43]);
  assert.equal(profile.toFolded(), [
    'web;[user];0x500000;0x400000 12', 'web;caller;idle_loop 30', 'web;root_fn 1', '',
  ].join('\n'));
});

test('a .cpuprofile is one tree, every sample one of its nodes, and its time adds up', () => {
  const { nodes, samples, timeDeltas, startTime, endTime } = collected().finish('web', nameOf).toCpuProfile();
  assert.deepEqual(nodes.map(({ id }) => id), nodes.map((_, i) => i + 1));
  const parents = new Map(nodes.flatMap(({ id, children }) => children.map(child => [child, id] as const)));
  assert.equal(parents.size, nodes.length - 1, 'every node but the root has one parent');
  const path = (id: number): string[] => [...parents.has(id) ? path(parents.get(id)!) : [], nodes[id - 1]!.callFrame.functionName];
  assert.deepEqual(samples.map(path)[0], ['(root)', 'web', 'caller', 'idle loop']);
  assert.equal(samples[0], samples[2], 'the same functions, though called from different places');
  assert.equal(samples[1], samples[3]);
  assert.equal(nodes.reduce((sum, { hitCount }) => sum + hitCount, 0), 5);
  assert.deepEqual(timeDeltas, [10, 5, 20, 7, 1]);
  assert.equal(endTime - startTime, 43);
});

test('nameless addresses are shown as they are', () => {
  const samples = new StackSamples();
  samples.add(sample(1, 3, 0xffff_8000_0800_1234n));
  assert.equal(samples.finish('x', () => undefined).toFolded(), 'x;0xffff800008001234 3\n');
});

test('a stack is followed by its frame records, and ends where they make no sense', () => {
  const m = createTestMachine();
  const at = (offset: number): bigint => BigInt(GUEST_BASE + offset);
  m.load(GUEST_BASE, new Assembler().nop().words());
  const words = new BigUint64Array(m.ram.buffer, m.ram.byteOffset, 0x2000);
  const record = (offset: number, next: bigint, address: bigint): void => words.set([next, address], offset / 8);
  const stack = (frame: bigint): bigint[] => {
    m.vcpu.setX(29, frame);
    m.vcpu.set64(vcpuRecord.at.pcBase, 0x1234n);
    const taken = takeSample(m.engine, m.vcpu, [3, 1], 5.4);
    assert.deepEqual([...taken.subarray(0, 5)], [3n, 1n, BigInt(m.vcpu.el), 5n, 0x1234n]);
    return [...taken.subarray(5)];
  };
  record(0x100, at(0x200), 11n);
  record(0x200, at(0x300), 22n);
  record(0x300, 0n, 33n);
  assert.deepEqual(stack(at(0x100)), [11n, 22n, 33n]);
  record(0x300, at(0x100), 33n);
  assert.deepEqual(stack(at(0x100)), [11n, 22n, 33n], 'not in circles');
  record(0x200, at(0x300), 0n);
  assert.deepEqual(stack(at(0x100)), [11n], 'nothing has called it');
  record(0x100, 0xffff_0000_0000_0000n, 11n);
  assert.deepEqual(stack(at(0x100)), [11n], 'another stack');
  assert.deepEqual(stack(0n), []);
  assert.deepEqual(stack(at(0x101)), [], 'misaligned');
  assert.deepEqual(stack(0x1000n), [], 'no memory');
  for (let i = 0; i < 100; i++) record(0x400 + 16 * i, at(0x400 + 16 * (i + 1)), BigInt(i + 1));
  assert.equal(stack(at(0x400)).length, 63);
});
