import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { SHUTDOWN } from '../abi/xen.ts';
import { VcpuState } from '../cpu/vcpu-state.ts';
import { PSCI, PSCI_RESULT, Psci } from './psci.ts';
import { InterruptRig } from './test-interrupts.ts';

const seed = Number(process.env['ZAZEN_TEST_SEED'] ?? 1);
const VCPUS = 18;

class PsciRig extends InterruptRig {
  readonly resets: { vcpu: number; entry: bigint; context: bigint }[] = [];
  readonly shutdowns: number[] = [];
  readonly #psci: Psci;
  exits = 0;

  constructor() {
    super(VCPUS);
    this.scheduling.onRequest(() => this.exits++);
    this.scheduling.start(this.vcpus[0]!, () => {});
    this.#psci = new Psci({
      gic: this.gic, timers: this.timers, scheduling: this.scheduling,
      resetVcpu: (vcpu, entry, context) => this.resets.push({ vcpu: this.vcpus.indexOf(vcpu), entry, context }),
      shutdownDomain: (domid, reason) => this.shutdowns.push(domid, reason),
    });
  }

  call(id: number | bigint, ...args: (number | bigint)[]): number {
    const vcpu = new VcpuState(this.machine, this.vcpus[0]!);
    vcpu.setX(0, BigInt(id));
    for (let i = 0; i < 3; i++) vcpu.setX(i + 1, BigInt(args[i] ?? 0));
    this.#psci.call(vcpu);
    return Number(BigInt.asIntN(64, vcpu.x(0)));
  }
}

test('versions and features', () => {
  const rig = new PsciRig();
  assert.equal(rig.call(PSCI.VERSION), 0x1_0000);
  assert.equal(rig.call(BigInt(PSCI.VERSION) | (0xdeadn << 32n)), 0x1_0000, 'the identifier is in W0');
  assert.equal(rig.call(PSCI.SMCCC_VERSION), 0x1_0001);
  assert.equal(rig.call(PSCI.MIGRATE_INFO_TYPE), 2);
  for (const id of [PSCI.CPU_ON_64, PSCI.CPU_SUSPEND_64, PSCI.SYSTEM_OFF, PSCI.SMCCC_VERSION]) {
    assert.equal(rig.call(PSCI.FEATURES, id), PSCI_RESULT.success);
  }
  assert.equal(rig.call(PSCI.FEATURES, 0x8400_0012), PSCI_RESULT.notSupported, 'SYSTEM_RESET2');
  assert.equal(rig.call(PSCI.SMCCC_ARCH_FEATURES, PSCI.SMCCC_VERSION), 0);
  assert.equal(rig.call(PSCI.SMCCC_ARCH_FEATURES, 0x8000_8000), PSCI_RESULT.notSupported);
  assert.equal(rig.call(0x8400_0005), PSCI_RESULT.notSupported, 'MIGRATE');
  assert.equal(rig.call(0), PSCI_RESULT.notSupported);
});

test('a vCPU is powered on once, at the entry point with the context', () => {
  const rig = new PsciRig();
  const target = 0x101n;
  assert.equal(rig.call(PSCI.AFFINITY_INFO_64, target, 0), 1);
  assert.equal(rig.call(PSCI.CPU_ON_64, target, 0x4020_0000n, 0x1234_5678_9abc_def0n), PSCI_RESULT.success);
  assert.deepEqual(rig.resets, [{ vcpu: 17, entry: 0x4020_0000n, context: 0x1234_5678_9abc_def0n }]);
  assert.equal(rig.call(PSCI.AFFINITY_INFO_64, target, 0), 0);
  assert.equal(rig.call(PSCI.CPU_ON_64, target, 0, 0), PSCI_RESULT.alreadyOn);
  assert.equal(rig.call(PSCI.CPU_ON, 1n | (5n << 32n), 0xf_0000_1000n, -1n), PSCI_RESULT.success);
  assert.deepEqual(rig.resets[1], { vcpu: 1, entry: 0x1000n, context: 0xffff_ffffn });
  assert.equal(rig.call(PSCI.CPU_ON_64, 0x202, 0, 0), PSCI_RESULT.invalidParameters);
  assert.equal(rig.call(PSCI.CPU_ON_64, 2n | (1n << 32n), 0, 0), PSCI_RESULT.invalidParameters);
  assert.equal(rig.call(PSCI.CPU_ON_64, 2, 2, 0), PSCI_RESULT.invalidAddress);
  assert.equal(rig.call(PSCI.AFFINITY_INFO_64, 0, 1), PSCI_RESULT.invalidParameters);
});

test('ends: of a vCPU, of the domain', () => {
  const rig = new PsciRig();
  rig.call(PSCI.SYSTEM_OFF);
  rig.call(PSCI.SYSTEM_RESET);
  assert.deepEqual(rig.shutdowns, [rig.domid, SHUTDOWN.poweroff, rig.domid, SHUTDOWN.reboot]);
  assert.equal(rig.exits, 0);
  rig.call(PSCI.CPU_OFF);
  assert.equal(rig.exits, 1, 'it leaves emitted code at once');
  rig.call(PSCI.CPU_SUSPEND_64);
  assert.equal(rig.exits, 2);
});

test('any registers get an answer', () => {
  const rig = new PsciRig();
  const word = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
  const id = fc.oneof(word, fc.constantFrom(...Object.values(PSCI)).map(BigInt));
  fc.assert(fc.property(id, word, word, word, (x0, x1, x2, x3) => {
    assert.ok(rig.call(x0, x1, x2, x3) >= -9);
  }), { seed, numRuns: 500 });
});
