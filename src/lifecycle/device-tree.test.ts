import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import fc from 'fast-check';
import { needsTool } from '../../test/tools.ts';
import { cells64, writeDeviceTree } from './device-tree.ts';
import type { DeviceTreeNode } from './device-tree.ts';
import { hexOfCells, hexOfStrings, readDeviceTree } from './test-device-tree-reader.ts';
import type { ReadNode } from './test-device-tree-reader.ts';

const seed = Number(process.env['ZAZEN_TEST_SEED'] ?? 1);

const nameCharacter = fc.constantFrom(...'abcxyz019,._+-');
const nodeName = fc.tuple(
  fc.string({ unit: nameCharacter, minLength: 1, maxLength: 31 }),
  fc.option(fc.string({ unit: fc.constantFrom(...'0123456789abcdef'), minLength: 1, maxLength: 16 })),
).map(([name, unit]) => (unit === null ? name : `${name}@${unit}`));
const propertyName = fc.string({ unit: fc.constantFrom(...'abcxyz019,._+?#-'), minLength: 1, maxLength: 31 })
  .filter((name) => !['phandle', '__proto__'].includes(name));
const value = fc.oneof(
  fc.constant(true as const),
  fc.string({ unit: fc.constantFrom(...'ab =é0') }),
  fc.array(fc.string({ unit: fc.constantFrom(...'ab,-'), maxLength: 9 }), { maxLength: 4 }),
  fc.array(fc.nat({ max: 0xffffffff }), { maxLength: 6 }),
  fc.uint8Array({ maxLength: 13 }),
);
const properties = fc.dictionary(propertyName, value, { maxKeys: 6, noNullPrototype: true });
const children = (depth: number): fc.Arbitrary<DeviceTreeNode[]> => {
  if (depth === 0) return fc.constant([]);
  const node = fc.record({ name: nodeName, properties, children: children(depth - 1) });
  return fc.uniqueArray(node, { maxLength: 3, selector: ({ name }) => name });
};
const tree: fc.Arbitrary<DeviceTreeNode> = fc.record({ name: fc.constant(''), properties, children: children(3) });

/** What a reader should find, from the plain data. Only for trees without phandles. */
function expected({ name, properties: values, children: below = [] }: DeviceTreeNode): ReadNode {
  const hex = Object.entries(values).map(([key, item]): [string, string] => {
    if (item === true) return [key, ''];
    if (item instanceof Uint8Array) return [key, Buffer.from(item).toString('hex')];
    if (typeof item === 'string') return [key, hexOfStrings(item)];
    if (typeof item[0] === 'string') return [key, hexOfStrings(...(item as string[]))];
    return [key, hexOfCells(...(item as number[]))];
  });
  return { name, properties: Object.fromEntries(hex), children: below.map(expected) };
}

test('what is written is read back, node for node and byte for byte', () => {
  fc.assert(fc.property(tree, (root) => {
    assert.deepEqual(readDeviceTree(writeDeviceTree(root)), expected(root));
  }), { seed, numRuns: 300 });
});

test('dtc reads the same tree', (t) => {
  if (!needsTool(t, 'dtc', 'device-tree-compiler')) return;
  const dtc = (from: string, to: string, input: Uint8Array) =>
    execFileSync('dtc', ['-q', '-f', '-I', from, '-O', to], { input, stdio: ['pipe', 'pipe', 'pipe'] });
  fc.assert(fc.property(tree, (root) => {
    const source = dtc('dtb', 'dts', writeDeviceTree(root));
    assert.deepEqual(readDeviceTree(dtc('dts', 'dtb', source)), expected(root));
  }), { seed, numRuns: 25 });
});

test('references become phandles, unique and in the node that is meant', () => {
  const gic: DeviceTreeNode = { name: 'gic', properties: { 'interrupt-controller': true } };
  const clock: DeviceTreeNode = { name: 'clock@10', properties: {} };
  const user: DeviceTreeNode = { name: 'user', properties: { clocks: [clock, 7, clock], 'interrupt-parent': [gic] } };
  const root = readDeviceTree(writeDeviceTree({
    name: '', properties: { 'interrupt-parent': [gic] }, children: [user, gic, clock],
  }));
  const [readUser, readGic, readClock] = root.children as [ReadNode, ReadNode, ReadNode];
  const gicPhandle = readGic.properties['phandle']!;
  const clockPhandle = readClock.properties['phandle']!;
  assert.deepEqual(new Set([gicPhandle, clockPhandle]), new Set([hexOfCells(1), hexOfCells(2)]));
  assert.equal(root.properties['interrupt-parent'], gicPhandle);
  assert.equal(readUser.properties['interrupt-parent'], gicPhandle);
  assert.equal(readUser.properties['clocks'], clockPhandle + hexOfCells(7) + clockPhandle);
  assert.equal(readUser.properties['phandle'], undefined);
});

test('a name is in the strings block once', () => {
  const nodes = Array.from({ length: 50 }, (_, i) => ({ name: `n${i}`, properties: { 'a-name-of-mine': [i] } }));
  const blob = Buffer.from(writeDeviceTree({ name: '', properties: {}, children: nodes }));
  assert.equal(blob.indexOf('a-name-of-mine'), blob.lastIndexOf('a-name-of-mine'));
});

test('64-bit values take two cells', () => {
  assert.deepEqual(cells64(0x2_8000_0001, 5), [2, 0x8000_0001, 0, 5]);
  for (const bad of [-1, 1.5, NaN, 2 ** 53]) assert.throws(() => cells64(bad), { name: 'AssertionError' });
});

test('trees that no reader could take are bugs of ours', () => {
  const child: DeviceTreeNode = { name: 'a', properties: {} };
  const bad: DeviceTreeNode[] = [
    { name: 'root', properties: {} },
    { name: '', properties: {}, children: [{ name: '', properties: {} }] },
    { name: '', properties: {}, children: [{ name: 'a/b', properties: {} }] },
    { name: '', properties: {}, children: [child, { name: 'a', properties: {} }] },
    { name: '', properties: {}, children: [child, child] },
    { name: '', properties: { 'no spaces': true } },
    { name: '', properties: { text: 'a\0b' } },
    { name: '', properties: { lost: [child] } },
    { name: '', properties: { me: [child] }, children: [{ name: 'b', properties: { phandle: [1] } }] },
  ];
  for (const root of bad) assert.throws(() => writeDeviceTree(root), { name: 'AssertionError' });
});
