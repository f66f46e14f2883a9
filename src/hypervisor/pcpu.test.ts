// One pCPU in the test's own thread, with an engine that does what the test says and a clock that goes by hand.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import { sysreg } from '../a64/system-registers.ts';
import { DOMAIN } from '../abi/domain-record.ts';
import { SCHEDULER, VCPU_SCHEDULE } from '../abi/scheduler.ts';
import { vcpuRecord } from '../abi/vcpu.ts';
import type { ExitReason } from '../cpu/host.ts';
import { VcpuState } from '../cpu/vcpu-state.ts';
import { PCpu } from './pcpu.ts';
import type { VcpuRunner } from './pcpu.ts';
import { SafePoints } from './safe-points.ts';
import { InterruptRig } from './test-interrupts.ts';

type Behaviour = (index: number, instructions: number) => ExitReason;
const MILLI = 1e6;

class PcpuRig extends InterruptRig implements VcpuRunner {
  /** What each run of a vCPU does; when the script is over, the loop ends. */
  readonly runs: number[] = [];
  behave: Behaviour = () => 'wfi';
  readonly safePoints: SafePoints;
  readonly pcpu: PCpu;
  /** How far the clock goes when there is nothing to run, and how often before the loop ends. */
  idleNanos = 0;
  idleRounds = 0;
  exitRequests = 0;
  onIdle = (): void => {};

  constructor(vcpuCount: number) {
    super(vcpuCount);
    this.safePoints = new SafePoints(this.machine, 0);
    this.pcpu = new PCpu(this, {
      pcpu: 0, machine: this.machine, scheduling: this.scheduling, safePoints: this.safePoints, timers: this.timers,
      clock: this.clock,
      idleWork: {
        isWaiting: true,
        step: () => {
          this.clock.nanos += this.idleNanos;
          this.onIdle();
          if (this.idleRounds-- === 0) this.scheduling.close();
          return true;
        },
      },
    });
    this.enable();
  }

  vcpu(vcpuAddress: number): VcpuState { return new VcpuState(this.machine, vcpuAddress); }
  run(vcpu: VcpuState, instructions: number): ExitReason {
    const index = this.vcpus.indexOf(vcpu.address);
    assert.ok(this.scheduling.isRunning(vcpu.address));
    this.runs.push(index);
    return this.behave(index, instructions);
  }
  requestExit(): void { this.exitRequests++; }
  obeyFlushRequest(): void {}
  readonly isInRegions = false;

  start(): this {
    for (const vcpu of this.vcpus) assert.equal(this.scheduling.start(vcpu, () => {}), true);
    return this;
  }
  retire(index: number, instructions: number, nanos: number): void {
    this.machine.u64[(this.vcpus[index]! + vcpuRecord.at.instructionsRetired) / 8]! += BigInt(instructions);
    this.clock.nanos += nanos;
  }
  wake(index: number): void { this.scheduling.wake(this.vcpus[index]!); }
}

test('vCPUs take turns of a millisecond', () => {
  const rig = new PcpuRig(3).start();
  rig.behave = (index, instructions) => {
    rig.retire(index, instructions, 0.5 * MILLI);
    if (rig.runs.length === 12) rig.scheduling.close();
    return 'slice';
  };
  rig.pcpu.runLoop();
  assert.deepEqual(rig.runs, [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2]);
});

test('a vCPU that spins on YIELD or WFE gives its turn away if somebody waits, one that is kicked does not', () => {
  const rig = new PcpuRig(2).start();
  rig.behave = index => {
    rig.retire(index, 10, 1000);
    if (rig.runs.length === 3) rig.scheduling.kick(rig.vcpus[index]!);
    if (rig.runs.length === 4) rig.scheduling.close();
    return 'slice';
  };
  rig.pcpu.runLoop();
  assert.deepEqual(rig.runs, [0, 1, 0, 0]);
});

test('a vCPU that spins for long rests while nobody waits, until an interrupt or for 50 µs', () => {
  const rig = new PcpuRig(1).start();
  rig.idleNanos = 10_000;
  rig.idleRounds = 1000;
  const times: number[] = [];
  rig.behave = index => {
    times.push(rig.clock.nanos);
    // Whoever does something in between, however short, is not one that spins.
    rig.retire(index, rig.runs.length === 10 ? 1000 : 10, 2000);
    if (rig.runs.length === 60) rig.scheduling.close();
    return 'slice';
  };
  rig.pcpu.runLoop();
  const rests = times.flatMap((time, i) => time - (times[i - 1] ?? time) > 40_000 ? [i] : []);
  assert.deepEqual(rests, [27, 32, 37, 42, 47, 52, 57], 'seventeen after the tenth, and then five at a time');
  for (const i of rests) assert.ok(times[i]! - times[i - 1]! < 70_000, `${times[i]! - times[i - 1]!} ns`);
});

test('an interrupt ends the rest of a vCPU that spins', () => {
  const rig = new PcpuRig(1).start();
  rig.idleRounds = 3;
  rig.behave = index => {
    rig.retire(index, 10, 2000);
    if (rig.irq()) rig.scheduling.close();
    return 'slice';
  };
  const { scheduling } = rig;
  rig.onIdle = () => {
    assert.equal(scheduling.isStopped(rig.domid), true);
    rig.raise(20);
    for (const vcpu of rig.woken.splice(0)) scheduling.interrupted(vcpu);
  };
  rig.pcpu.runLoop();
  assert.equal(rig.irq(), true);
  assert.equal(rig.runs.length, 18);
});

test('one slice in which the thread was off its core does not change the budget much; a second one is believed', () => {
  const rig = new PcpuRig(1).start();
  const budgets: number[] = [];
  const SLOW = [80, 90, 91];
  rig.behave = (index, instructions) => {
    budgets.push(instructions);
    rig.retire(index, instructions, instructions / 0.4 * (SLOW.includes(rig.runs.length) ? 20 : 1));
    if (rig.runs.length === 100) rig.scheduling.close();
    return 'slice';
  };
  rig.pcpu.runLoop();
  const usual = budgets[78]!;
  assert.ok(budgets[80]! > 0.8 * usual, `${budgets[80]} instead of ${usual}`);
  assert.ok(budgets[91]! < 0.1 * usual, `${budgets[91]} instead of ${usual}`);
});

test('the budget follows the rate, and ends at the next timer', () => {
  const rig = new PcpuRig(1).start();
  const budgets: number[] = [];
  rig.behave = (index, instructions) => {
    budgets.push(instructions);
    rig.retire(index, instructions, instructions / 0.4);
    if (rig.runs.length === 60) rig.timers.write(rig.vcpus[0]!, sysreg.CNTV_TVAL_EL0, 6250, 0);
    if (rig.runs.length === 60) rig.timers.write(rig.vcpus[0]!, sysreg.CNTV_CTL_EL0, 1, 0);
    if (rig.irq() || rig.runs.length === 70) rig.scheduling.close();
    return 'slice';
  };
  rig.pcpu.runLoop();
  assert.ok(Math.abs(budgets[58]! / (0.4 * MILLI) - 1) < 0.05, `${budgets[58]} instructions for a millisecond`);
  assert.ok(budgets[60]! <= 0.105 * 0.4 * MILLI, 'a tenth of a millisecond is left until the timer');
  assert.equal(rig.irq(), true);
  assert.ok(rig.runs.length < 65, 'the timer fired soon after');
});

test('WFI waits for the timer and not longer', () => {
  const rig = new PcpuRig(1).start();
  rig.idleNanos = 0.25 * MILLI;
  rig.idleRounds = 100;
  const times: number[] = [];
  rig.behave = () => {
    times.push(rig.clock.nanos);
    if (rig.runs.length > 1) assert.equal(rig.irq(), true);
    rig.end(rig.acknowledge());
    if (rig.runs.length === 4) rig.scheduling.close();
    rig.timers.write(rig.vcpus[0]!, sysreg.CNTV_TVAL_EL0, 62_500, 0);
    rig.timers.write(rig.vcpus[0]!, sysreg.CNTV_CTL_EL0, 1, 0);
    return 'wfi';
  };
  rig.pcpu.runLoop();
  assert.deepEqual(times.map(t => t - times[0]!), [0, MILLI, 2 * MILLI, 3 * MILLI]);
});

test('an interrupt between the WFI and the block is not lost, and a wake during a blocking call counts', () => {
  const rig = new PcpuRig(1).start();
  rig.behave = () => {
    if (rig.runs.length === 1) rig.raise(20);
    else if (rig.runs.length === 2) {
      rig.raise(20, false);
      rig.scheduling.block(rig.vcpus[0]!, undefined);
      rig.wake(0);
      return 'host';
    }
    return 'wfi';
  };
  rig.pcpu.runLoop();
  assert.deepEqual(rig.runs, [0, 0, 0]);
  assert.equal(rig.exitRequests > 0, true, 'a blocking call leaves emitted code');
});

test('a wake from before a WFI does not end it; one from after does', () => {
  const rig = new PcpuRig(2).start();
  rig.behave = index => {
    if (rig.runs.length === 1) rig.wake(0);
    if (index === 1 && rig.runs.length === 2) rig.wake(0);
    return 'wfi';
  };
  rig.pcpu.runLoop();
  assert.deepEqual(rig.runs, [0, 1, 0]);
});

test('a block ends at its deadline, an ended block\'s deadline does nothing', () => {
  const rig = new PcpuRig(1).start();
  rig.idleNanos = MILLI;
  rig.idleRounds = 20;
  const times: number[] = [];
  rig.behave = () => {
    times.push(rig.clock.nanos / MILLI - 1000);
    if (rig.runs.length > 2) return 'wfi';
    rig.scheduling.block(rig.vcpus[0]!, rig.clock.nanos + 5 * MILLI);
    if (rig.runs.length === 2) rig.wake(0);
    return 'host';
  };
  rig.pcpu.runLoop();
  assert.deepEqual(times, [0, 5, 5]);
});

test('yield lets the others run, power-off ends a vCPU, power-on starts it again', () => {
  const rig = new PcpuRig(2).start();
  rig.behave = index => {
    const vcpu = rig.vcpus[index]!;
    switch (rig.runs.length) {
      case 1: rig.scheduling.yield(vcpu); return 'host';
      case 2: rig.scheduling.setOnline(vcpu, false); return 'host';
      case 3:
        assert.equal(rig.scheduling.isOnline(rig.vcpus[1]!), false);
        assert.equal(rig.scheduling.start(vcpu, () => assert.fail('it is on')), false);
        assert.equal(rig.scheduling.setOnline(rig.vcpus[1]!, true), true);
        return 'wfi';
      default: return 'wfi';
    }
  };
  rig.pcpu.runLoop();
  assert.deepEqual(rig.runs, [0, 1, 0, 1]);
});

test('a vCPU that was never started cannot be put online', () => {
  const rig = new PcpuRig(1);
  assert.equal(rig.scheduling.setOnline(rig.vcpus[0]!, true), false);
  assert.equal(rig.scheduling.isOnline(rig.vcpus[0]!), false);
});

test('a paused domain does not run, blocked ones woken meanwhile run when all pauses are gone', () => {
  const rig = new PcpuRig(2).start();
  rig.idleRounds = 3;
  rig.behave = index => {
    if (rig.runs.length === 1) {
      rig.scheduling.pauseDomain(rig.domid);
      rig.scheduling.pauseDomain(rig.domid);
      assert.equal(rig.scheduling.isStopped(rig.domid), false);
    }
    rig.retire(index, 1, 2 * MILLI);
    return 'wfi';
  };
  rig.pcpu.runLoop();
  assert.deepEqual(rig.runs, [0]);
  assert.equal(rig.scheduling.isStopped(rig.domid), true);
  rig.wake(0);
  assert.equal(rig.scheduling.hasWaiting, false);
  rig.scheduling.unpauseDomain(rig.domid);
  assert.equal(rig.scheduling.hasWaiting, false);
  rig.scheduling.unpauseDomain(rig.domid);
  // The first one has had two milliseconds already.
  assert.deepEqual([rig.scheduling.take(0), rig.scheduling.take(0), rig.scheduling.take(0)], [...rig.vcpus.toReversed(), 0]);
});

test('a vCPU whose domain has used up its cap rests until the next period, and is seen as runnable meanwhile', () => {
  const rig = new PcpuRig(1).start();
  rig.scheduling.shares.set(rig.domid, { weight: 256, capPercent: 30 });
  rig.idleNanos = 0.1 * MILLI;
  rig.idleRounds = 2000;
  const startNanos = rig.clock.nanos;
  let ran = 0;
  rig.behave = index => {
    rig.retire(index, 5000, 0.7 * MILLI);
    ran += 0.7 * MILLI;
    assert.ok(rig.scheduling.isOnline(rig.vcpus[0]!));
    return 'slice';
  };
  rig.pcpu.runLoop();
  const share = ran / (rig.clock.nanos - startNanos);
  assert.ok(share > 0.29 && share < 0.31, `${share} of the time, over ${rig.clock.nanos - startNanos} ns`);
});

/** Calls back at each look of a thread that looks for something, instead of pausing. @returns how many looks there were */
function looks(t: TestContext, body: () => void, onLook: (count: number) => void = () => {}): number {
  let count = 0;
  const pause = t.mock.method(Atomics, 'pause', () => onLook(++count));
  body();
  pause.mock.restore();
  return count;
}

test('a pCPU looks for a vCPU that is stopped briefly, and goes on with it without other work in between', t => {
  const rig = new PcpuRig(1).start();
  const { scheduling, domid } = rig;
  rig.onIdle = () => assert.fail('the vCPU comes back');
  const stopped: boolean[] = [];
  rig.behave = () => {
    if (rig.runs.length === 2) scheduling.close();
    else {
      scheduling.beginBriefStop();
      scheduling.pauseDomain(domid);
    }
    return 'host';
  };
  const count = looks(t, () => rig.pcpu.runLoop(), look => {
    stopped.push(scheduling.isStopped(domid));
    if (look < 10) return;
    scheduling.unpauseDomain(domid);
    scheduling.endBriefStop();
  });
  assert.deepEqual([rig.runs, count, stopped], [[0, 0], 10, Array.from({ length: 10 }, () => true)]);
});

test('nobody looks for a vCPU that waits, is paused for long, or is waited for by a thread that sleeps; nor for ever', t => {
  const rig = new PcpuRig(1).start();
  const { scheduling, domid, machine, vcpus: [vcpu] } = rig;
  const looksFor = (): number => looks(t, () => scheduling.awaitReturn(vcpu!));
  const waiters = (machine.region('scheduler').offsetBytes + SCHEDULER.at.stopWaiters) / 4;
  assert.equal(scheduling.take(0), vcpu);
  scheduling.pauseDomain(domid);
  scheduling.putBack(vcpu!);
  assert.equal(looksFor(), 0);
  scheduling.beginBriefStop();
  machine.u32[waiters] = 1;
  assert.equal(looksFor(), 0);
  machine.u32[waiters] = 0;
  assert.ok(looksFor() > 1000);
  scheduling.unpauseDomain(domid);
  assert.equal(looksFor(), 0, 'it is there');
  assert.equal(scheduling.take(0), vcpu);
  assert.equal(scheduling.blockRunning(vcpu!, false) > 0, true);
  assert.equal(looksFor(), 0);
});

test('other work waits while a domain is stopped briefly; who has put it off is woken after that, and nobody else', t => {
  const rig = new PcpuRig(1);
  const { scheduling, machine } = rig;
  const idle = (machine.region('scheduler').offsetBytes + SCHEDULER.at.idleLow) / 4;
  let slept = 0;
  t.mock.method(scheduling, 'sleep', (pcpu: number, _millis: number, hasWork: () => boolean) => {
    assert.equal(hasWork(), false);
    slept++;
    machine.u32[idle] = 1 << pcpu;
    scheduling.endBriefStop();
    assert.equal(machine.u32[idle], 0, 'it is awake');
    assert.equal(hasWork(), true);
  });
  rig.onIdle = () => assert.equal(slept, 1);
  scheduling.beginBriefStop();
  rig.pcpu.runLoop();
  assert.equal(slept, 1);
  machine.u32[idle] = 1;
  scheduling.beginBriefStop();
  scheduling.endBriefStop();
  assert.equal(machine.u32[idle], 1);
});

test('before it is stopped, a domain is given some time for its vCPUs that run to show that they have cores', () => {
  const rig = new PcpuRig(2).start();
  const { scheduling, domid, clock, vcpus } = rig;
  const callsUntil = (isShown: (call: number) => boolean): number => {
    let calls = 0;
    scheduling.findOnCores(domid, clock, () => {
      calls++;
      assert.ok(vcpus.every((_, index) => rig.kicked(index)), 'their slices end');
      clock.nanos += 100;
      if (isShown(calls)) scheduling.setNanos(vcpus[0]!, VCPU_SCHEDULE.at.sliceStart, clock.nanos);
      clock.nanos += 100;
    });
    return calls;
  };
  assert.equal(callsUntil(() => false), 1, 'none has to, as none runs');
  assert.equal(scheduling.take(0), vcpus[0]);
  assert.equal(callsUntil(() => true), 1);
  assert.equal(callsUntil(call => call === 4), 4);
  const most = callsUntil(() => false);
  assert.ok(most > 4 && most < 100, `${most} times`);
});

test('when a domain ran on: at the start of the last first slice, or not yet', () => {
  const rig = new PcpuRig(2).start();
  const { scheduling, domid, clock } = rig;
  const answers: number[] = [];
  const ranOnAt = (since: number): void => { answers.push(scheduling.ranOnAt(domid, since, clock.nanos) - since); };
  const since = clock.nanos;
  ranOnAt(since);
  rig.behave = () => {
    clock.nanos += 1000;
    ranOnAt(since);
    if (rig.runs.length === 2) ranOnAt(clock.nanos - 500);
    if (rig.runs.length === 3) scheduling.close();
    return rig.runs.length < 2 ? 'slice' : 'wfi';
  };
  clock.nanos += 5000;
  rig.pcpu.runLoop();
  // One that waits for something is not missed.
  assert.deepEqual(answers, [0, 6000, 6000, 500, 7000]);
});

test('a shutdown stops all vCPUs, the one that asked for it at once; the host hears of it when none runs', () => {
  const rig = new PcpuRig(2).start();
  const toldWhenStopped: boolean[] = [];
  rig.scheduling.onShutDown(domid => toldWhenStopped.push(rig.scheduling.isStopped(domid)));
  rig.behave = () => {
    rig.machine.u32[(rig.machine.domainAddress(rig.domid) + DOMAIN.at.shutdown) / 4] = 1;
    rig.exitRequests = 0;
    rig.scheduling.shutDown(rig.domid);
    assert.equal(rig.exitRequests, 1);
    assert.deepEqual(toldWhenStopped, []);
    return 'host';
  };
  rig.pcpu.runLoop();
  assert.deepEqual(rig.runs, [0]);
  assert.deepEqual(toldWhenStopped, [true]);
});

test('the last of several pCPUs to let go of a vCPU tells the host of the shutdown, or whoever shut it down', () => {
  const rig = new PcpuRig(2).start();
  let told = 0;
  rig.scheduling.onShutDown(() => { told++; });
  const taken = [rig.scheduling.take(0), rig.scheduling.take(1)];
  rig.machine.u32[(rig.machine.domainAddress(rig.domid) + DOMAIN.at.shutdown) / 4] = 1;
  rig.scheduling.shutDown(rig.domid);
  rig.scheduling.putBack(taken[0]!);
  assert.equal(told, 0);
  // It happens to go to sleep just then.
  rig.scheduling.blockRunning(taken[1]!, false);
  assert.equal(told, 1);
  rig.scheduling.shutDown(rig.domid);
  assert.equal(told, 2);
});

test('an engine that throws ends the thread, and its vCPU counts as stopped', () => {
  const rig = new PcpuRig(1).start();
  rig.behave = () => { throw new Error('a bug'); };
  assert.throws(() => rig.pcpu.runLoop(), /a bug/);
  assert.equal(rig.scheduling.isStopped(rig.domid), true);
  rig.safePoints.stopWorld(() => {});
});

test('a vCPU can be taken away while it waits in the queue', () => {
  const rig = new PcpuRig(3).start();
  rig.scheduling.detach(rig.vcpus[1]!);
  rig.pcpu.runLoop();
  assert.deepEqual(rig.runs, [0, 2]);
});

test('stopping the world and flushing TLBs from inside a call return at once when nobody else runs', () => {
  const rig = new PcpuRig(2).start();
  let stopped = 0;
  rig.behave = () => {
    rig.safePoints.stopWorld(() => stopped++);
    rig.safePoints.flushTlbs(rig.domid, { except: rig.vcpus[0] });
    return 'wfi';
  };
  rig.pcpu.runLoop();
  assert.equal(stopped, 2);
  const requests = rig.vcpus.map(vcpu => rig.machine.u32[(vcpu + vcpuRecord.at.tlbFlushRequest) / 4]);
  assert.deepEqual(requests, [0, 2]);
});

