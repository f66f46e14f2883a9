import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DOMAIN } from '../abi/domain-record.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { DOMID_SELF, ERRNO, HVM_PARAM, HYPERVISOR, SCHEDOP, schedPoll, xenHvmParam } from '../abi/xen.ts';
import {
  EVTCHNOP, EVTCHNSTAT, evtchnAllocUnbound, evtchnBindInterdomain, evtchnBindIpi, evtchnBindVcpu, evtchnBindVirq,
  evtchnPort, evtchnReset, evtchnStatus,
} from '../abi/xen-event-channel.ts';
import { sharedInfo, vcpuInfo } from '../abi/xen-shared-info.ts';
import { ARGS, TestMachine } from './test-domain.ts';
import type { TestGuest } from './test-domain.ts';

const EVENT = HYPERVISOR.event_channel_op;

/** Byte address of the guest's shared_info. */
const shared = (guest: TestGuest) => guest.made.domain.get(DOMAIN.at.sharedInfo) * FRAME_BYTES;

function bit(machine: TestMachine, address: number, n: number): number {
  return (machine.memory.u32[address / 4 + (n >>> 5)]! >>> (n & 31)) & 1;
}

/** Does what a guest does in its upcall. @returns the ports that were pending and not masked */
function takeEvents(machine: TestMachine, guest: TestGuest): number[] {
  const { u8, u32 } = machine.memory;
  const base = shared(guest);
  u8[base + vcpuInfo.at.evtchn_upcall_pending] = 0;
  const ports: number[] = [];
  for (let word = 0; word < 64; word++) {
    if (bit(machine, base + vcpuInfo.at.evtchn_pending_sel, word) === 0) continue;
    for (let port = word * 64; port < word * 64 + 64; port++) {
      if (bit(machine, base + sharedInfo.at.evtchn_pending, port) === 0) continue;
      if (bit(machine, base + sharedInfo.at.evtchn_mask, port) === 1) continue;
      u32[(base + sharedInfo.at.evtchn_pending) / 4 + (port >>> 5)]! &= ~(1 << (port & 31));
      ports.push(port);
    }
  }
  u32.fill(0, (base + vcpuInfo.at.evtchn_pending_sel) / 4, (base + vcpuInfo.at.evtchn_pending_sel) / 4 + 2);
  machine.hypercalls.channels.delivery.syncUpcall(guest.made.domain, 0);
  return ports;
}

function status(guest: TestGuest, port: number): { status: number; vcpu: number; dom: number; port: number } {
  const { result, out } = guest.op(EVENT, EVTCHNOP.status, evtchnStatus, { dom: DOMID_SELF, port });
  assert.equal(result, 0);
  const { at } = evtchnStatus;
  return { status: out.u32(at.status), vcpu: out.u32(at.vcpu), dom: out.u16(at.uDom), port: out.u32(at.uPort) };
}

test('the console and xenstore channels connect guest and host both ways', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest();
  const { out } = guest.op(HYPERVISOR.hvm_op, 1, xenHvmParam, { domid: DOMID_SELF, index: HVM_PARAM.STORE_EVTCHN });
  const port = out.u32(xenHvmParam.at.value);
  assert.deepEqual(status(guest, port),
    { status: EVTCHNSTAT.interdomain, vcpu: 0, dom: 0, port: guest.made.xenstorePort });

  let calls = 0;
  machine.ports.listen(guest.made.xenstorePort, () => { calls++; });
  machine.ports.deliver();
  calls = 0;
  const doorbell = machine.ports.doorbell;
  assert.equal(guest.op(EVENT, EVTCHNOP.send, evtchnPort, { port }).result, 0);
  assert.equal(guest.op(EVENT, EVTCHNOP.send, evtchnPort, { port }).result, 0);
  assert.notEqual(machine.ports.doorbell, doorbell);
  machine.ports.deliver();
  assert.equal(calls, 1);
  machine.ports.deliver();
  assert.equal(calls, 1);

  machine.ports.notify(guest.made.xenstorePort);
  assert.equal(machine.level(guest), true);
  assert.deepEqual(machine.woken, [guest.made.domain.vcpuAddress(0)]);
  assert.deepEqual(takeEvents(machine, guest), [port]);
  assert.equal(machine.level(guest), false);
});

test('the doorbell wakes a main thread that sleeps', async () => {
  const machine = new TestMachine();
  const guest = machine.createGuest();
  machine.ports.deliver();
  const sleep = machine.ports.untilDoorbell(machine.ports.doorbell);
  machine.hypercalls.channels.send(guest.made.domain, 1);
  await sleep;
  await machine.ports.untilDoorbell(machine.ports.doorbell - 1);
});

test('a masked event waits for its unmasking', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest();
  const mask = (shared(guest) + sharedInfo.at.evtchn_mask) / 4;
  takeEvents(machine, guest);
  machine.memory.u32[mask]! |= 1 << 2;
  machine.ports.notify(guest.made.consolePort);
  assert.equal(machine.level(guest), false);
  assert.equal(guest.op(EVENT, EVTCHNOP.unmask, evtchnPort, { port: 2 }).result, 0);
  assert.equal(machine.level(guest), true);
  assert.deepEqual(takeEvents(machine, guest), [2]);
});

test('an event that comes while the interrupt is taken down is not lost', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest();
  takeEvents(machine, guest);
  assert.equal(machine.level(guest), false);
  const { interrupts } = machine.environment;
  const setInterruptLevel = interrupts.setInterruptLevel.bind(interrupts);
  interrupts.setInterruptLevel = (address, intid, level) => {
    if (!level) machine.ports.notify(guest.made.consolePort);
    setInterruptLevel(address, intid, level);
  };
  machine.hypercalls.channels.delivery.syncUpcall(guest.made.domain, 0);
  assert.equal(machine.level(guest), true);
});

test('two guests connect, one closes, the other end waits again', () => {
  const machine = new TestMachine();
  const a = machine.createGuest();
  const b = machine.createGuest();
  const unbound = a.op(EVENT, EVTCHNOP.alloc_unbound, evtchnAllocUnbound, { dom: DOMID_SELF, remote_dom: b.domid });
  assert.equal(unbound.result, 0);
  const portA = unbound.out.u32(evtchnAllocUnbound.at.port);
  const bind = () => b.op(EVENT, EVTCHNOP.bind_interdomain, evtchnBindInterdomain,
    { remote_dom: a.domid, remote_port: portA });
  const bound = bind();
  assert.equal(bound.result, 0);
  const portB = bound.out.u32(evtchnBindInterdomain.at.local_port);
  assert.ok(takeEvents(machine, b).includes(portB), 'a new binding starts pending');
  assert.equal(bind().result, -ERRNO.EINVAL);

  takeEvents(machine, a);
  assert.equal(b.op(EVENT, EVTCHNOP.send, evtchnPort, { port: portB }).result, 0);
  assert.deepEqual(takeEvents(machine, a), [portA]);
  assert.equal(b.op(EVENT, EVTCHNOP.close, evtchnPort, { port: portB }).result, 0);
  assert.deepEqual(status(a, portA), { status: EVTCHNSTAT.unbound, vcpu: 0, dom: b.domid, port: 0 });
  assert.equal(a.op(EVENT, EVTCHNOP.send, evtchnPort, { port: portA }).result, 0);
  assert.equal(bind().result, 0);
  assert.equal(status(b, portB).status, EVTCHNSTAT.interdomain, 'the lowest free port is used again');

  // A third domain may not take the place.
  const c = machine.createGuest();
  b.op(EVENT, EVTCHNOP.close, evtchnPort, { port: portB });
  assert.equal(c.op(EVENT, EVTCHNOP.bind_interdomain, evtchnBindInterdomain,
    { remote_dom: a.domid, remote_port: portA }).result, -ERRNO.EINVAL);
  assert.equal(a.op(EVENT, EVTCHNOP.alloc_unbound, evtchnAllocUnbound, { dom: b.domid, remote_dom: 0 }).result,
    -ERRNO.EPERM);
  assert.equal(a.op(EVENT, EVTCHNOP.alloc_unbound, evtchnAllocUnbound, { dom: DOMID_SELF, remote_dom: 7 }).result,
    -ERRNO.ESRCH);
});

test('IPIs and VIRQs notify the vCPU that they are bound to', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest(2);
  const { channels } = machine.hypercalls;
  const ipi = guest.op(EVENT, EVTCHNOP.bind_ipi, evtchnBindIpi, { vcpu: 0 }).out.u32(evtchnBindIpi.at.port);
  takeEvents(machine, guest);
  guest.op(EVENT, EVTCHNOP.send, evtchnPort, { port: ipi });
  assert.deepEqual(takeEvents(machine, guest), [ipi]);
  guest.op(EVENT, EVTCHNOP.send, evtchnPort, { port: ipi });
  guest.op(EVENT, EVTCHNOP.close, evtchnPort, { port: ipi });
  assert.equal(guest.op(EVENT, EVTCHNOP.bind_ipi, evtchnBindIpi, { vcpu: 0 }).out.u32(evtchnBindIpi.at.port), ipi);
  assert.deepEqual(takeEvents(machine, guest), [], 'a new port does not inherit the event of the old one');
  assert.equal(guest.op(EVENT, EVTCHNOP.bind_ipi, evtchnBindIpi, { vcpu: 2 }).result, -ERRNO.ENOENT);
  assert.equal(guest.op(EVENT, EVTCHNOP.bind_vcpu, evtchnBindVcpu, { port: ipi, vcpu: 1 }).result, -ERRNO.EINVAL);

  const bindVirq = (virq: number, vcpu: number) => guest.op(EVENT, EVTCHNOP.bind_virq, evtchnBindVirq, { virq, vcpu });
  assert.equal(channels.raiseVirq(guest.made.domain, 3), false);
  const virq = bindVirq(3, 0).out.u32(evtchnBindVirq.at.port);
  assert.equal(bindVirq(3, 0).result, -ERRNO.EEXIST);
  assert.equal(bindVirq(3, 1).result, -ERRNO.EINVAL, 'a global VIRQ is bound on vCPU 0');
  assert.equal(bindVirq(24, 0).result, -ERRNO.EINVAL);
  assert.equal(bindVirq(0, 1).result, 0);
  assert.equal(channels.raiseVirq(guest.made.domain, 3), true);
  assert.deepEqual(takeEvents(machine, guest), [virq]);
  assert.equal(guest.op(EVENT, EVTCHNOP.send, evtchnPort, { port: virq }).result, -ERRNO.EINVAL);
  assert.equal(guest.op(EVENT, EVTCHNOP.close, evtchnPort, { port: virq }).result, 0);
  assert.equal(channels.raiseVirq(guest.made.domain, 3), false);
  assert.equal(bindVirq(3, 0).result, 0);
});

test('poll sleeps until an event, even a masked one', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest();
  const { domain } = guest.made;
  takeEvents(machine, guest);
  machine.memory.u32[(shared(guest) + sharedInfo.at.evtchn_mask) / 4]! |= 1 << 2;
  const poll = () => {
    guest.write(ARGS + 256n, new Uint8Array(new Uint32Array([2]).buffer));
    return guest.op(HYPERVISOR.sched_op, SCHEDOP.poll, schedPoll, { ports: ARGS + 256n, nr_ports: 1, timeout: 7000 });
  };
  assert.equal(poll().result, 0);
  assert.deepEqual(machine.blocked, [{ address: domain.vcpuAddress(0), deadline: 7000 }]);
  machine.woken.length = 0;
  machine.ports.notify(guest.made.consolePort);
  assert.deepEqual(machine.woken, [domain.vcpuAddress(0)]);
  assert.equal(poll().result, 0);
  assert.equal(machine.blocked.length, 1, 'an event that is there already needs no sleep');
});

test('ports: no number is good that is not in use, and the table ends', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest();
  for (const port of [0, 3, 4095, 4096, 16384, 0x7fff_ffff, 0xffff_ffff]) {
    for (const op of [EVTCHNOP.close, EVTCHNOP.send, EVTCHNOP.unmask]) {
      assert.equal(guest.op(EVENT, op, evtchnPort, { port }).result, -ERRNO.EINVAL);
    }
  }
  let result = 0;
  let ports = 0;
  for (; result === 0 && ports < 5000; ports++) {
    ({ result } = guest.op(EVENT, EVTCHNOP.bind_ipi, evtchnBindIpi, { vcpu: 0 }));
  }
  assert.equal(result, -ERRNO.ENOSPC);
  assert.equal(ports, 4096 - 2);
  assert.equal(guest.op(EVENT, EVTCHNOP.reset, evtchnReset, { dom: DOMID_SELF }).result, 0);
  assert.equal(status(guest, 1).status, EVTCHNSTAT.closed);
  machine.audit();
  machine.destroy(guest);
  machine.audit();
});
