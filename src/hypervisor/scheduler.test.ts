// Shares of the pCPUs: weights, caps, who comes next. pCPUs are simulated: each turn, all of them take a vCPU, which runs
// for a millisecond.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { SCHEDULER, VCPU_SCHEDULE } from '../abi/scheduler.ts';
import { TURN_NANOS } from './run-queue.ts';
import type { VcpuScheduling } from './scheduler.ts';
import { CAP_PERIOD_NANOS, nextPeriod } from './shares.ts';
import { InterruptRig, smallMachine } from './test-interrupts.ts';

/** Domains of so many vCPUs on one machine, all running. */
class Domains {
  readonly machine = smallMachine(2);
  readonly rigs: readonly InterruptRig[];
  readonly turns = new Map<number, number>();

  constructor(...vcpuCounts: number[]) {
    let first = 0;
    this.rigs = vcpuCounts.map((count, i) => {
      const rig = new InterruptRig(count, this.machine, i + 1, first);
      first += count;
      for (const vcpu of rig.vcpus) rig.scheduling.start(vcpu, () => {});
      return rig;
    });
  }

  get scheduling(): VcpuScheduling { return this.rigs[0]!.scheduling; }
  setWeights(...weights: number[]): void {
    weights.forEach((weight, i) => this.scheduling.shares.set(i + 1, { weight, capPercent: 0 }));
  }
  run(turns: number, pcpus = 1): void {
    for (let turn = 0; turn < turns; turn++) {
      const taken = Array.from({ length: pcpus }, (_, pcpu) => this.scheduling.take(pcpu));
      taken.forEach((vcpu, pcpu) => {
        if (vcpu === 0) return;
        this.turns.set(vcpu, (this.turns.get(vcpu) ?? 0) + 1);
        this.scheduling.charge(pcpu, vcpu, TURN_NANOS);
      });
      for (const vcpu of taken) if (vcpu !== 0) this.scheduling.putBack(vcpu);
    }
  }
  /** Turns of a domain since the last call of `forget`. */
  turnsOf(domain: number): number {
    return this.rigs[domain]!.vcpus.reduce((sum, vcpu) => sum + (this.turns.get(vcpu) ?? 0), 0);
  }
  forget(): void { this.turns.clear(); }
  block(vcpu: number): void {
    while (this.scheduling.take(0) !== vcpu) assert.fail('another one is first');
    this.scheduling.blockRunning(vcpu, false);
  }
}

const near = (value: number, wanted: number, tolerance: number): void =>
  assert.ok(Math.abs(value - wanted) <= tolerance, `${value} is not about ${wanted}`);

test('domains get turns in proportion to their weights', () => {
  const domains = new Domains(1, 1, 1);
  domains.setWeights(256, 512, 1024);
  domains.run(700);
  near(domains.turnsOf(0), 100, 3);
  near(domains.turnsOf(1), 200, 3);
  near(domains.turnsOf(2), 400, 3);
});

test('the weight is the domain\'s: four vCPUs have together what one has', () => {
  const domains = new Domains(4, 1);
  domains.run(400);
  near(domains.turnsOf(0), 200, 5);
  near(domains.turnsOf(1), 200, 5);
  for (const vcpu of domains.rigs[0]!.vcpus) near(domains.turns.get(vcpu)!, 50, 3);
});

test('on two pCPUs nobody gets more than one, and the rest is for the others', () => {
  const domains = new Domains(1, 2, 2);
  domains.setWeights(10_000, 256, 256);
  domains.run(400, 2);
  near(domains.turnsOf(0), 400, 5);
  near(domains.turnsOf(1), 200, 5);
  near(domains.turnsOf(2), 200, 5);
});

test('a weight that changes counts from then on', () => {
  const domains = new Domains(1, 1);
  domains.run(100);
  domains.setWeights(768, 256);
  domains.forget();
  domains.run(400);
  near(domains.turnsOf(0), 300, 5);
});

test('who was away comes next, and has saved up nothing', () => {
  const domains = new Domains(1, 1);
  const [sleeper] = domains.rigs[0]!.vcpus;
  domains.block(sleeper!);
  domains.run(1000);
  domains.forget();
  domains.scheduling.wake(sleeper!);
  domains.run(1);
  assert.equal(domains.turnsOf(0), 1, 'it is the next');
  domains.run(99);
  near(domains.turnsOf(0), 50, 3);
});

test('what somebody had when nobody else wanted it does not count for long', () => {
  const domains = new Domains(1, 1, 1);
  domains.setWeights(8, 256, 256);
  const [third] = domains.rigs[2]!.vcpus;
  while (domains.scheduling.take(0) !== third);
  domains.scheduling.blockRunning(third!, false);
  for (const { vcpus } of domains.rigs.slice(0, 2)) domains.scheduling.putBack(vcpus[0]!);
  domains.run(5000, 2);
  near(domains.turnsOf(0), 5000, 0);
  domains.scheduling.wake(third!);
  domains.forget();
  domains.run(4000, 2);
  // 8 of 520, of two pCPUs, less what it is behind.
  near(domains.turnsOf(0), 4000 * 2 * 8 / 520, 60);
  assert.ok(domains.turnsOf(0) > 60, 'it is not starved');
});

test('one that spins steps behind those that wait', () => {
  const domains = new Domains(3);
  const { scheduling } = domains;
  const order: number[] = [];
  for (let turn = 0; turn < 6; turn++) {
    const vcpu = scheduling.take(0);
    order.push(domains.rigs[0]!.vcpus.indexOf(vcpu));
    scheduling.charge(0, vcpu, 1000);
    scheduling.putBack(vcpu, true);
  }
  assert.deepEqual(order, [0, 1, 2, 0, 1, 2]);
});

test('a cap holds over each second, however far slices overrun it', () => {
  for (const capPercent of [1, 20, 150]) {
    const domains = new Domains(3);
    const { scheduling, rigs: [rig] } = domains;
    scheduling.shares.set(1, { weight: 256, capPercent });
    let [now, ran] = [1e9, 0];
    const end = now + 2e9;
    // Two pCPUs in step: what they do takes 0.3 ms.
    while (now < end) {
      const taken = [scheduling.take(0), scheduling.take(1)];
      const throttled: { vcpu: number; generation: number }[] = [];
      taken.forEach((vcpu, pcpu) => {
        if (vcpu === 0) return;
        if (scheduling.shares.leftNanos(1, now) <= 0) {
          const { generation, untilNanos } = scheduling.throttleRunning(vcpu, now);
          assert.ok(untilNanos > now && untilNanos <= now + CAP_PERIOD_NANOS);
          assert.ok(scheduling.isOnline(vcpu));
          scheduling.wake(vcpu);
          throttled.push({ vcpu, generation });
        } else {
          scheduling.charge(pcpu, vcpu, 0.3e6);
          ran += 0.3e6;
          scheduling.putBack(vcpu);
        }
      });
      if (throttled.length === taken.filter(vcpu => vcpu !== 0).length) {
        now = nextPeriod(now);
        for (const vcpu of rig!.vcpus) scheduling.expire(vcpu, scheduling.get(vcpu, 'generation'));
      } else {
        now += 0.3e6;
        for (const { vcpu, generation } of throttled) scheduling.expire(vcpu, generation);
      }
    }
    near(ran / 2e9, capPercent / 100, 0.01);
  }
});

test('a new domain has the usual share, whatever the one before it had', () => {
  const domains = new Domains(1);
  domains.scheduling.shares.set(1, { weight: 9, capPercent: 7 });
  domains.block(domains.rigs[0]!.vcpus[0]!);
  domains.scheduling.detach(domains.rigs[0]!.vcpus[0]!);
  domains.scheduling.attach(domains.rigs[0]!.vcpus[0]!);
  assert.deepEqual(domains.scheduling.shares.get(1), { weight: 256, capPercent: 0 });
});

test('the queue is in order and complete, whatever happens', () => {
  const step = fc.record({
    what: fc.constantFrom('take', 'putBack', 'spin', 'block', 'wake', 'pause', 'unpause', 'weight'),
    which: fc.nat(8), nanos: fc.nat(3e6),
  });
  fc.assert(fc.property(fc.array(step, { maxLength: 120 }), steps => {
    const domains = new Domains(3, 3, 3);
    const { scheduling } = domains;
    const all = domains.rigs.flatMap(rig => rig.vcpus);
    const running = new Set<number>();
    const blocked = new Set<number>();
    const paused = [0, 0, 0];
    for (const { what, which, nanos } of steps) {
      const vcpu = all[which]!;
      const domain = Math.floor(which / 3);
      if (what === 'take' && running.size < 2) {
        const taken = scheduling.take(running.size);
        if (taken !== 0) running.add(taken);
      } else if (what === 'putBack' || what === 'spin') {
        const [one] = running;
        if (one === undefined) continue;
        scheduling.charge(0, one, nanos);
        scheduling.putBack(one, what === 'spin');
        running.delete(one);
      } else if (what === 'block' && running.has(vcpu)) {
        scheduling.blockRunning(vcpu, false);
        running.delete(vcpu);
        blocked.add(vcpu);
      } else if (what === 'wake') {
        scheduling.wake(vcpu);
        blocked.delete(vcpu);
      } else if (what === 'pause') {
        scheduling.pauseDomain(domain + 1);
        paused[domain]!++;
      } else if (what === 'unpause' && paused[domain]! > 0) {
        scheduling.unpauseDomain(domain + 1);
        paused[domain]!--;
      } else if (what === 'weight') {
        scheduling.shares.set(domain + 1, { weight: 1 + nanos % 1000, capPercent: 0 });
      }
    }
    const wanted = all.filter((vcpu, i) => !running.has(vcpu) && !blocked.has(vcpu) && paused[Math.floor(i / 3)] === 0);
    const taken: number[] = [];
    for (let vcpu = scheduling.take(0); vcpu !== 0; vcpu = scheduling.take(0)) taken.push(vcpu);
    assert.deepEqual(taken.toSorted((a, b) => a - b), wanted);
    const virtual = taken.map(vcpu => scheduling.getNanos(vcpu, VCPU_SCHEDULE.at.virtualNanos));
    assert.deepEqual(virtual, virtual.toSorted((a, b) => a - b));
  }), { numRuns: 300, seed: 2026 });
});

test('a vCPU that becomes runnable while its pCPU is about to look for work wakes no other, and is taken by that one', () => {
  const { machine, scheduling, rigs: [rig] } = new Domains(2);
  const [one, other] = rig!.vcpus as [number, number];
  const idle = (machine.region('scheduler').offsetBytes + SCHEDULER.at.idleLow) / 4;
  /** Whether a wake leaves pCPU 1 asleep, as which it counts when this begins. */
  const sleepsOn = (wake: () => void): boolean => {
    machine.u32[idle] = 2;
    wake();
    return machine.u32[idle] === 2;
  };
  assert.deepEqual([scheduling.take(0), scheduling.take(0)], [one, other]);
  scheduling.blockRunning(other, false);
  assert.ok(sleepsOn(() => scheduling.interrupted(other)));
  assert.equal(scheduling.take(0), other);
  // The pCPU that ran this one last has another now.
  scheduling.blockRunning(one, false);
  assert.ok(!sleepsOn(() => scheduling.interrupted(one)));
});
