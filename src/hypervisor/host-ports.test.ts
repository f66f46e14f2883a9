import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HOST_LISTENER } from '../abi/domain-record.ts';
import { HostPorts } from './host-ports.ts';
import { TestMachine } from './test-domain.ts';
import { notifyHostOf } from './event-delivery.ts';

test('an answer that is there when the host looks is delivered at once, an old ring ends no wait', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest();
  const host = machine.hypercalls.domains.record(0);
  machine.ports.deliver();
  const seen = machine.ports.doorbell;
  notifyHostOf(host, guest.domid);
  machine.ports.deliverWithin(seen, 60_000, () => machine.changedDomains.length > 0);
  assert.deepEqual(machine.changedDomains, [guest.domid]);
  // Something else rings first: what has come is delivered, and the wait goes on until its time is over.
  const before = machine.ports.doorbell;
  notifyHostOf(host, guest.domid);
  let looks = 0;
  machine.ports.deliverWithin(before, 1, () => { looks++; return false; });
  assert.deepEqual(machine.changedDomains, [guest.domid, guest.domid]);
  assert.ok(looks >= 2);
});

test('events of a port are for the main thread or for who has a ring, whichever it was last given to', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest();
  const { channels } = machine.hypercalls;
  const guestPort = channels.allocUnbound(guest.made.domain, 0);
  let heard = 0;
  const port = machine.ports.bind(guest.domid, guestPort, () => { heard++; });
  machine.ports.deliver();
  const rung = (): number => machine.memory.i32[machine.ports.diskDoorbellIndex]!;
  const counts = (): number[] => {
    channels.send(guest.made.domain, guestPort);
    machine.ports.deliver();
    return [heard, rung()];
  };
  heard = 0;
  assert.deepEqual(counts(), [1, 0]);
  machine.ports.route(port, 7);
  assert.deepEqual(counts(), [1, 1]);
  // A thread that serves rings itself is asked first, and may leave it to the disk thread.
  const asked: number[] = [];
  for (const [isDone, rings] of [[true, 1], [false, 2]] as const) {
    channels.serveLane = (lane) => {
      asked.push(lane);
      // No lock is held: it may tell the guest.
      channels.send(machine.hypercalls.domains.record(0), port);
      return isDone;
    };
    assert.deepEqual(counts(), [1, rings]);
  }
  assert.deepEqual(asked, [7, 7]);
  machine.ports.route(port, undefined);
  assert.deepEqual(counts(), [2, 2], 'and those in between are not delivered late');
  assert.equal(asked.length, 2);
  channels.serveLane = undefined;
  machine.ports.route(port, 0);
  machine.ports.close(port);
  const again = machine.ports.bind(guest.domid, guestPort, () => { heard++; });
  assert.equal(again, port);
  machine.ports.deliver();
  heard = 0;
  assert.deepEqual(counts(), [1, 2], 'a port that is used again is the main thread\'s');
});

test('what the network thread has bound and what it is told wakes it, and nobody else', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest();
  const { channels, domains } = machine.hypercalls;
  const heard: string[] = [];
  const network = new HostPorts(channels, (domid) => heard.push(`domain ${domid}`), HOST_LISTENER.network);
  const [ours, theirs] = [channels.allocUnbound(guest.made.domain, 0), channels.allocUnbound(guest.made.domain, 0)];
  machine.ports.deliver();
  const [before, mainBefore] = [network.doorbell, machine.ports.doorbell];
  const port = network.bind(guest.domid, ours, () => heard.push('ours'));
  assert(network.doorbell !== before, 'a new port is pending, as Xen has it');
  network.deliver();
  channels.send(guest.made.domain, ours);
  notifyHostOf(domains.record(0), guest.domid, HOST_LISTENER.network);
  assert.equal(machine.ports.doorbell, mainBefore);
  network.deliver();
  assert.deepEqual(heard, ['ours', `domain ${guest.domid}`, 'ours']);
  machine.ports.bind(guest.domid, theirs, () => heard.push('theirs'));
  assert(machine.ports.doorbell !== mainBefore);
  machine.ports.deliver();
  network.deliver();
  assert.deepEqual(heard.splice(0), ['ours', `domain ${guest.domid}`, 'ours', 'theirs']);
  assert.deepEqual(machine.changedDomains, []);
  // An event of a port that is closed is none of its next user's.
  channels.send(guest.made.domain, ours);
  network.close(port);
  const again = machine.ports.bind(guest.domid, ours, () => heard.push('again'));
  assert.equal(again, port);
  network.deliver();
  machine.ports.deliver();
  assert.deepEqual(heard, ['again']);
});
