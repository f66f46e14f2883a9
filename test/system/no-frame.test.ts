// Instructions that need a frame which cannot be had now: they stop before anything has happened, and are executed
// when there is one.

import assert from 'node:assert/strict';
import { vcpuRecord } from '../../src/abi/vcpu.ts';
import { NO_FRAME } from '../../src/cpu/host.ts';
import { DATA, PROGRAM, systemTest } from './guest.ts';
import type { Guest } from './guest.ts';

const at = vcpuRecord.at;
const PAGE = 4096n;

/** While `frame` is in the set, it cannot be had. */
function missing(g: Guest): Set<number> {
  const { host } = g.m;
  const [read, write] = [host.frameForRead.bind(host), host.frameForWrite.bind(host)];
  const frames = new Set<number>();
  host.frameForRead = (vcpu, frame) => frames.has(frame) ? NO_FRAME : read(vcpu, frame);
  host.frameForWrite = (vcpu, frame) => frames.has(frame) ? NO_FRAME : write(vcpu, frame);
  return frames;
}

const frameOf = (address: bigint): number => Number(address / PAGE);

systemTest('loads, stores and fetches wait for their frame', g => {
  const frames = missing(g);
  g.write64(DATA, 7n);
  g.vcpu.setX(1, DATA);
  g.program(a => a.ldr(2, 1).add(2, 2, 1).str(2, 1).hvc(1));
  frames.add(frameOf(DATA));
  g.vcpu.set64(at.pcBase, PROGRAM);
  for (let i = 0; i < 3; i++) assert.equal(g.m.engine.run(g.vcpu, 100), 'noFrame');
  assert.deepEqual([g.vcpu.get64(at.pcBase), g.read64(DATA)], [PROGRAM, 7n]);
  frames.clear();
  assert.equal(g.m.engine.run(g.vcpu, 100), 'host');
  assert.equal(g.read64(DATA), 8n);
  frames.add(frameOf(PROGRAM));
  g.m.engine.flushTlb(g.vcpu);
  g.vcpu.set64(at.pcBase, PROGRAM);
  assert.equal(g.m.engine.run(g.vcpu, 100), 'noFrame');
  frames.clear();
  assert.equal(g.m.engine.run(g.vcpu, 100), 'host');
  assert.equal(g.read64(DATA), 9n);
});

systemTest('a hypercall whose arguments cannot be had is made again, and has done nothing before', g => {
  const frames = missing(g);
  const { host, engine } = g.m;
  let calls = 0;
  let effects = 0;
  host.hvc = (vcpu) => {
    calls++;
    const bytes = engine.data.copyFromGuest(vcpu, vcpu.x(1), 16, true);
    if (bytes !== undefined) {
      effects++;
      vcpu.setX(0, engine.data.copyToGuest(vcpu, vcpu.x(1), bytes.map(byte => byte + 1)) ? 0n : 1n);
    }
    engine.requestExit('host');
    return true;
  };
  g.write64(DATA + PAGE - 8n, 1n);
  g.vcpu.setX(0, 5n);
  g.vcpu.setX(1, DATA + PAGE - 8n);
  g.program(a => a.hvc(1).hvc(2));
  g.vcpu.set64(at.pcBase, PROGRAM);
  // The second of the two pages that the arguments lie in.
  frames.add(frameOf(DATA + PAGE));
  assert.equal(engine.run(g.vcpu, 100), 'noFrame');
  assert.deepEqual([calls, effects, g.vcpu.x(0), g.vcpu.get64(at.pcBase)], [1, 0, 5n, PROGRAM]);
  frames.clear();
  assert.equal(engine.run(g.vcpu, 100), 'host');
  assert.deepEqual([calls, effects, g.vcpu.x(0), g.vcpu.get64(at.pcBase)], [2, 1, 0n, PROGRAM + 4n]);
  assert.equal(g.read64(DATA + PAGE - 8n), 0x0101_0101_0101_0102n);
});

systemTest('later accesses of a hypercall wait as well, if it says so; what it leaves in its arguments stays', g => {
  const frames = missing(g);
  const { host, engine } = g.m;
  const { data } = engine;
  /** Adds up words of a list, one by one, and puts the sum elsewhere. */
  host.hvc = (vcpu) => {
    let [sum, place, count] = [vcpu.x(0), vcpu.x(1), vcpu.x(2)];
    for (; count > 0n; count--, place += 8n) {
      const bytes = data.copyFromGuest(vcpu, place, 8);
      if (bytes === undefined) break;
      sum += new BigUint64Array(bytes.buffer)[0]!;
    }
    const isTold = count === 0n && data.copyToGuest(vcpu, vcpu.x(3), new Uint8Array(new BigUint64Array([sum]).buffer), true);
    assert.equal(data.mustRetry, !isTold);
    [sum, place, count].forEach((value, i) => vcpu.setX(i, value));
    engine.requestExit('host');
    return true;
  };
  for (const i of [0n, 1n, 2n, 3n]) g.write64(DATA + PAGE - 16n + 8n * i, 10n ** i);
  [0n, DATA + PAGE - 16n, 4n, DATA + 2n * PAGE].forEach((value, i) => g.vcpu.setX(i, value));
  g.program(a => a.hvc(1).hvc(2));
  g.vcpu.set64(at.pcBase, PROGRAM);
  const [list, answer] = [frameOf(DATA + PAGE), frameOf(DATA + 2n * PAGE)];
  frames.add(list).add(answer);
  for (let i = 0; i < 2; i++) assert.equal(engine.run(g.vcpu, 100), 'noFrame');
  assert.deepEqual([g.vcpu.x(0), g.vcpu.x(1), g.vcpu.x(2), g.vcpu.get64(at.pcBase)], [11n, DATA + PAGE, 2n, PROGRAM]);
  frames.delete(list);
  assert.equal(engine.run(g.vcpu, 100), 'noFrame');
  assert.deepEqual([g.vcpu.x(0), g.vcpu.x(2), g.vcpu.get64(at.pcBase)], [1111n, 0n, PROGRAM]);
  frames.clear();
  assert.equal(engine.run(g.vcpu, 100), 'host');
  assert.deepEqual([g.read64(DATA + 2n * PAGE), g.vcpu.get64(at.pcBase)], [1111n, PROGRAM + 4n]);
});

systemTest('an answer that cannot be repeated does not wait, nor does what the hypervisor tells between calls', g => {
  const frames = missing(g);
  const { host, engine } = g.m;
  let written: boolean | undefined;
  host.hvc = (vcpu) => {
    written = engine.data.copyToGuest(vcpu, DATA, new Uint8Array(8));
    engine.requestExit('host');
    return true;
  };
  g.program(a => a.hvc(1).hvc(2));
  g.vcpu.set64(at.pcBase, PROGRAM);
  frames.add(frameOf(DATA));
  assert.equal(engine.run(g.vcpu, 100), 'host');
  assert.deepEqual([written, g.vcpu.get64(at.pcBase)], [false, PROGRAM + 4n]);
});
