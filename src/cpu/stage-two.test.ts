// What is remembered of the host's frames is forgotten when it must be: also between slices, when the hypervisor writes
// to the memory of a vCPU that has not run since.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { vcpuRecord } from '../abi/vcpu.ts';
import { GUEST_BASE, createTestMachine } from './test-machine.ts';

const PAGE = GUEST_BASE + 0x10_0000;
const OTHER = PAGE + 0x1000;

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

test('so it does for a vCPU that another thread has run meanwhile', () => {
  const { vcpu, write, exchange, byteAt } = machineWithExchange();
  write(1);
  exchange();
  vcpu.set32(vcpuRecord.at.lastPcpu, 5);
  write(2);
  assert.deepEqual([byteAt(PAGE), byteAt(OTHER)], [1, 2]);
});
