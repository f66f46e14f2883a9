import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { needsTool } from '../../test/tools.ts';
import { SeededRandom } from '../base/random.ts';
import { writeDeviceTree } from './device-tree.ts';
import { guestDeviceTree } from './guest-device-tree.ts';
import type { GuestDescription } from './guest-device-tree.ts';
import { hexOfCells, hexOfStrings, nodeAt, readDeviceTree } from './test-device-tree-reader.ts';

const MIB = 2 ** 20;
const guest = (more: Partial<GuestDescription> = {}): GuestDescription => ({
  commandLine: 'console=hvc0 quiet',
  vcpuCount: 2,
  banks: [{ address: 0x4000_0000, sizeBytes: 400 * MIB }],
  random: new SeededRandom(1),
  ...more,
});
const read = (more: Partial<GuestDescription> = {}) => readDeviceTree(writeDeviceTree(guestDeviceTree(guest(more))));

test('Linux finds Xen, and all that Xen promises', () => {
  const root = read();
  assert.equal(root.properties['compatible'], hexOfStrings('xen,xenvm-4.17', 'xen,xenvm'));
  assert.equal(root.properties['#address-cells'], hexOfCells(2));
  assert.equal(root.properties['#size-cells'], hexOfCells(2));

  const hypervisor = nodeAt(root, '/hypervisor').properties;
  assert.equal(hypervisor['compatible'], hexOfStrings('xen,xen-4.17', 'xen,xen'));
  assert.equal(hypervisor['interrupts'], hexOfCells(1, 15, 0xf08));
  assert.equal(hypervisor['reg'],
    hexOfCells(0, 0x3800_0000, 0, 0x100_0000, 0, 0x5900_0000, 0, 0xa700_0000));

  const gic = nodeAt(root, '/interrupt-controller@3001000').properties;
  assert.equal(gic['compatible'], hexOfStrings('arm,gic-v3'));
  assert.equal(gic['#interrupt-cells'], hexOfCells(3));
  assert.equal(gic['interrupt-controller'], '');
  assert.equal(gic['reg'], hexOfCells(0, 0x300_1000, 0, 0x1_0000, 0, 0x302_0000, 0, 0x4_0000));
  assert.equal(gic['phandle'], root.properties['interrupt-parent']);

  const timer = nodeAt(root, '/timer').properties;
  assert.equal(timer['compatible'], hexOfStrings('arm,armv8-timer'));
  assert.equal(timer['interrupts'], hexOfCells(1, 13, 0xf08, 1, 14, 0xf08, 1, 11, 0xf08));

  const psci = nodeAt(root, '/psci').properties;
  assert.deepEqual(psci, { compatible: hexOfStrings('arm,psci-1.0', 'arm,psci-0.2'), method: hexOfStrings('hvc') });
  const memory = nodeAt(root, '/memory@40000000').properties;
  assert.deepEqual(memory, { device_type: hexOfStrings('memory'), reg: hexOfCells(0, 0x4000_0000, 0, 400 * MIB) });
});

test('chosen carries the command line, the initramfs if there is one, and fresh seeds', () => {
  const plain = nodeAt(read(), '/chosen').properties;
  assert.equal(plain['bootargs'], hexOfStrings('console=hvc0 quiet'));
  assert.deepEqual(Object.keys(plain), ['bootargs', 'rng-seed', 'kaslr-seed']);
  assert.equal(plain['rng-seed']!.length, 2 * 64);
  assert.equal(plain['kaslr-seed']!.length, 2 * 8);
  const other = nodeAt(read({ random: new SeededRandom(2) }), '/chosen').properties;
  assert.notEqual(other['rng-seed'], plain['rng-seed']);
  assert.notEqual(other['kaslr-seed'], plain['kaslr-seed']);
  assert.deepEqual(nodeAt(read(), '/chosen').properties, plain);

  const chosen = nodeAt(read({ initrd: { address: 0x2_0000_1000, sizeBytes: 0x234 } }), '/chosen').properties;
  assert.equal(chosen['linux,initrd-start'], hexOfCells(2, 0x1000));
  assert.equal(chosen['linux,initrd-end'], hexOfCells(2, 0x1234));
});

test('each vCPU has a node with its affinity', () => {
  const all = nodeAt(read({ vcpuCount: 128 }), '/cpus').children;
  assert.equal(new Set(all.map((cpu) => cpu.properties['reg'])).size, 128);
  const cpus = nodeAt(read({ vcpuCount: 18 }), '/cpus');
  assert.equal(cpus.children.length, 18);
  assert.deepEqual(cpus.children[17], {
    name: 'cpu@101',
    properties: {
      device_type: hexOfStrings('cpu'),
      compatible: hexOfStrings('arm,armv8'),
      'enable-method': hexOfStrings('psci'),
      reg: hexOfCells(0x101),
    },
    children: [],
  });
});

test('memory of two banks leaves the extended region in the second', () => {
  const root = read({
    banks: [{ address: 0x4000_0000, sizeBytes: 0xc000_0000 }, { address: 0x2_0000_0000, sizeBytes: 4096 }],
  });
  assert.equal(nodeAt(root, '/memory@200000000').properties['reg'], hexOfCells(2, 0, 0, 4096));
  assert.equal(nodeAt(root, '/hypervisor').properties['reg'],
    hexOfCells(0, 0x3800_0000, 0, 0x100_0000, 2, 0x20_0000, 0x7d, 0xffe0_0000));
});

test('dtc has nothing to complain about', (t) => {
  if (!needsTool(t, 'dtc', 'device-tree-compiler')) return;
  const initrd = { address: 0x5000_0000, sizeBytes: 12345 };
  const input = writeDeviceTree(guestDeviceTree(guest({ initrd })));
  // As xl has it: the hypervisor node's name does not say where its first region is.
  const dtc = spawnSync('dtc', ['-I', 'dtb', '-O', 'dts', '-W', 'no-unit_address_vs_reg'], { input });
  assert.equal(dtc.stderr.toString(), '');
  assert.equal(dtc.status, 0);
  assert.match(dtc.stdout.toString(), /linux,initrd-start = <0x00 0x50000000>;/);
});
