// What is remembered of the host's frames is forgotten when it must be: also between slices, when the hypervisor writes
// to the memory of a vCPU that has not run since.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { vcpuRecord } from '../abi/vcpu.ts';
import { GUEST_BASE, createTestMachine } from './test-machine.ts';

const PAGE = GUEST_BASE + 0x10_0000;
const OTHER = PAGE + 0x1000;
const LDRB_W0_X1 = 0x39400020;
const STRB_W0_X1 = 0x39000020;
const HVC = 0xd4000002;

/** A machine whose page PAGE leads to the frame of another once `exchange` was called. */
function machineWithExchange() {
  const m = createTestMachine();
  const gfn = PAGE / 4096;
  const frames = { of: (guestFrame: number) => m.machine.firstFrame + guestFrame - GUEST_BASE / 4096 };
  let exchanged = false;
  m.host.frameForRead = (_vcpu, guestFrame) => frames.of(exchanged && guestFrame === gfn ? gfn + 1 : guestFrame);
  m.host.frameForWrite = (vcpu, guestFrame) => m.host.frameForRead(vcpu, guestFrame);
  const byteAt = (address: number): number => m.ram[address - GUEST_BASE]!;
  const write = (value: number): void => {
    assert.ok(m.engine.data.copyToGuest(m.vcpu, BigInt(PAGE), Uint8Array.of(value)));
  };
  return { ...m, byteAt, write, exchange: () => { exchanged = true; } };
}

test('a frame is asked for once', () => {
  const { host, engine, vcpu } = createTestMachine();
  let asked = 0;
  const answer = host.frameForRead.bind(host);
  host.frameForRead = (v, guestFrame) => { asked++; return answer(v, guestFrame); };
  for (let i = 0; i < 5; i++) assert.ok(engine.data.copyFromGuest(vcpu, BigInt(PAGE), 8));
  assert.equal(asked, 1);
});

test('after a flush was asked for, the hypervisor writes where the page is now', () => {
  const { engine, vcpu, write, exchange, byteAt } = machineWithExchange();
  write(1);
  exchange();
  engine.requestTlbFlush(vcpu.address);
  write(2);
  assert.deepEqual([byteAt(PAGE), byteAt(OTHER)], [1, 2]);
});

test('what the guest has just used, a hypercall finds in the TLB, until that is flushed', () => {
  const { engine, vcpu, load, ram, write, exchange, byteAt } = machineWithExchange();
  vcpu.setX(1, BigInt(PAGE));
  load(GUEST_BASE, [LDRB_W0_X1, STRB_W0_X1, HVC]);
  ram[PAGE - GUEST_BASE] = 7;
  vcpu.set64(vcpuRecord.at.pcBase, BigInt(GUEST_BASE));
  assert.equal(engine.run(vcpu, 100), 'host');
  const { translation } = engine;
  const translate = translation.translateIgnoringPan.bind(translation);
  let walks = 0;
  translation.translateIgnoringPan = (...place) => { walks++; return translate(...place); };
  assert.deepEqual(engine.data.copyFromGuest(vcpu, BigInt(PAGE), 1), Uint8Array.of(7));
  write(8);
  assert.deepEqual([walks, byteAt(PAGE)], [0, 8]);
  exchange();
  engine.requestTlbFlush(vcpu.address);
  write(9);
  assert.deepEqual(engine.data.copyFromGuest(vcpu, BigInt(PAGE), 1), Uint8Array.of(9));
  assert.deepEqual([walks, byteAt(PAGE), byteAt(OTHER)], [2, 8, 9]);
});

test('so it does in another thread, which finds what this one has remembered', () => {
  const { vcpu, addVcpu, host, write, exchange, byteAt, engine } = machineWithExchange();
  const other = addVcpu(1);
  const there = other.engine.vcpu(vcpu.address);
  let asked = 0;
  other.host.frameForWrite = (v, guestFrame) => { asked++; return host.frameForWrite(v, guestFrame); };
  write(1);
  assert.ok(other.engine.data.copyToGuest(there, BigInt(PAGE), Uint8Array.of(3)));
  assert.deepEqual([asked, byteAt(PAGE)], [0, 3]);
  exchange();
  engine.requestTlbFlush(vcpu.address);
  assert.ok(other.engine.data.copyToGuest(there, BigInt(PAGE), Uint8Array.of(2)));
  assert.deepEqual([asked, byteAt(PAGE), byteAt(OTHER)], [1, 3, 2]);
  write(4);
  assert.deepEqual([byteAt(PAGE), byteAt(OTHER)], [3, 4]);
});

test('nothing is remembered in a record that no thread has run', () => {
  const { vcpu, write, exchange, byteAt } = machineWithExchange();
  write(1);
  exchange();
  vcpu.set32(vcpuRecord.at.lastPcpu, 0);
  write(2);
  assert.deepEqual([byteAt(PAGE), byteAt(OTHER)], [1, 2]);
});

test('of a frame that is replaced only what was made from it goes', () => {
  const { machine, host, engine, vcpu, ram, load } = createTestMachine();
  // LDRB W0, [X1]; LDRB W2, [X3]; HVC #0
  const program = [0x3940_0020, 0x3940_0062, 0xd400_0002];
  load(GUEST_BASE, program);
  const gfn = PAGE / 4096;
  const frameOf = (guestFrame: number): number => machine.firstFrame + guestFrame - GUEST_BASE / 4096;
  const asked: number[] = [];
  let exchanged = false;
  host.frameForRead = (_vcpu, guestFrame) => {
    asked.push(guestFrame);
    return frameOf(exchanged && guestFrame === gfn ? gfn + 2 : guestFrame);
  };
  ram[0x10_0000] = 1;
  ram[0x10_1000] = 2;
  ram[0x10_2000] = 3;
  const run = (): bigint[] => {
    vcpu.setX(1, BigInt(PAGE));
    vcpu.setX(3, BigInt(OTHER));
    vcpu.set64(vcpuRecord.at.pcBase, BigInt(GUEST_BASE));
    assert.equal(engine.run(vcpu, 100), 'host');
    return [vcpu.x(0), vcpu.x(2)];
  };
  assert.deepEqual(run(), [1n, 2n]);
  assert.deepEqual(run(), [1n, 2n]);
  assert.deepEqual(asked.splice(0), [GUEST_BASE / 4096, gfn, gfn + 1]);
  exchanged = true;
  engine.forgetFrame(vcpu, frameOf(gfn));
  assert.deepEqual(run(), [3n, 2n]);
  assert.deepEqual(asked.splice(0), [gfn]);
  // The page that the code is in.
  engine.forgetFrame(vcpu, frameOf(GUEST_BASE / 4096));
  assert.deepEqual(run(), [3n, 2n]);
  assert.deepEqual(asked, [GUEST_BASE / 4096]);
});

test('a vCPU that has never run is not asked to flush: it does so before it runs', () => {
  const { engine, vcpu, addVcpu } = createTestMachine();
  const other = addVcpu(1).vcpu;
  engine.takeOver(vcpu);
  for (const { address } of [vcpu, other]) engine.requestTlbFlush(address);
  assert.deepEqual([vcpu, other].map(each => each.get32(vcpuRecord.at.tlbFlushRequest)), [1, 0]);
});
