import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import fc from 'fast-check';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { ERRNO, HYPERVISOR } from '../abi/xen.ts';
import {
  EVTCHNOP, EVTCHN_FIFO_LINKED, EVTCHN_FIFO_LINK_BITS, EVTCHN_FIFO_LINK_MASK, EVTCHN_FIFO_MASKED, EVTCHN_FIFO_PENDING,
  evtchnBindIpi, evtchnBindVcpu, evtchnExpandArray, evtchnFifoControlBlock, evtchnInitControl, evtchnPort,
  evtchnSetPriority,
} from '../abi/xen-event-channel.ts';
import { vcpuInfo } from '../abi/xen-shared-info.ts';
import { vcpuRegisterVcpuInfo } from '../abi/xen.ts';
import { seed } from '../memory/test-memory.ts';
import { vcpuInfoAddress } from './event-delivery.ts';
import { ARGS, TestMachine, page } from './test-domain.ts';
import type { SenderTask, TestGuest } from './test-domain.ts';

const EVENT = HYPERVISOR.event_channel_op;
const CONTROL_PAGE = 10;
const ARRAY_PAGE = 20;

/** A guest that uses FIFO events: the consumer's side, written from the protocol. */
class Consumer {
  readonly machine: TestMachine;
  readonly guest: TestGuest;
  /** Where each vCPU is in each of its queues. */
  readonly #heads: number[][];
  readonly #arrayWord: number;

  constructor(vcpus: number) {
    this.machine = new TestMachine();
    this.guest = this.machine.createGuest(vcpus);
    this.#heads = Array.from({ length: vcpus }, () => Array.from({ length: 16 }, () => 0));
    for (let vcpu = 0; vcpu < vcpus; vcpu++) {
      this.#registerInfo(vcpu);
      const { result, out } = this.guest.op(EVENT, EVTCHNOP.init_control, evtchnInitControl,
        { control_gfn: page(CONTROL_PAGE + vcpu), offset: 128, vcpu });
      assert.equal(result, 0);
      assert.equal(out.u32(evtchnInitControl.at.link_bits), EVTCHN_FIFO_LINK_BITS);
    }
    const array = this.guest.word(page(ARRAY_PAGE));
    this.machine.memory.u32.fill(EVTCHN_FIFO_MASKED, array, array + 1024);
    assert.equal(this.expand(ARRAY_PAGE), 0);
    this.#arrayWord = this.guest.word(page(ARRAY_PAGE));
  }

  #registerInfo(vcpu: number): void {
    const bytes = new DataView(new ArrayBuffer(vcpuRegisterVcpuInfo.sizeBytes));
    bytes.setBigUint64(0, BigInt(page(5)), true);
    bytes.setUint32(8, vcpu * 64, true);
    this.guest.write(ARGS, new Uint8Array(bytes.buffer));
    assert.equal(this.guest.call(HYPERVISOR.vcpu_op, 10, vcpu, ARGS), 0);
  }

  expand(index: number): number {
    return this.guest.op(EVENT, EVTCHNOP.expand_array, evtchnExpandArray, { array_gfn: page(index) }).result;
  }

  newPort(vcpu: number): number {
    const { result, out } = this.guest.op(EVENT, EVTCHNOP.bind_ipi, evtchnBindIpi, { vcpu });
    assert.equal(result, 0);
    return out.u32(evtchnBindIpi.at.port);
  }

  wordIndex(port: number): number {
    return this.#arrayWord + port;
  }

  word(port: number): number {
    return Atomics.load(this.machine.memory.u32, this.wordIndex(port));
  }

  #control(vcpu: number): number {
    return this.guest.word(page(CONTROL_PAGE + vcpu), 128);
  }

  #change(port: number, change: (word: number) => number): number {
    const { u32 } = this.machine.memory;
    for (;;) {
      const before = this.word(port);
      if (Atomics.compareExchange(u32, this.#arrayWord + port, before, change(before) >>> 0) === before) return before;
    }
  }

  mask(port: number): void {
    this.#change(port, (word) => word | EVTCHN_FIFO_MASKED);
  }

  /** As Linux does: without a hypercall when nothing is pending. */
  unmask(port: number): void {
    if ((this.word(port) & EVTCHN_FIFO_PENDING) === 0) this.#change(port, (word) => word & ~EVTCHN_FIFO_MASKED);
    else assert.equal(this.guest.op(EVENT, EVTCHNOP.unmask, evtchnPort, { port }).result, 0);
  }

  send(port: number): void {
    assert.equal(this.guest.op(EVENT, EVTCHNOP.send, evtchnPort, { port }).result, 0);
  }

  setPriority(port: number, priority: number): void {
    assert.equal(this.guest.op(EVENT, EVTCHNOP.set_priority, evtchnSetPriority, { port, priority }).result, 0);
  }

  #upcallAt(vcpu: number): number {
    return vcpuInfoAddress(this.guest.made.domain, vcpu) + vcpuInfo.at.evtchn_upcall_pending;
  }

  upcall(vcpu: number): boolean {
    return Atomics.load(this.machine.memory.u8, this.#upcallAt(vcpu)) === 1;
  }

  /** Takes at most `limit` events out of a vCPU's queues, the most urgent first. @returns the handled ports */
  consume(vcpu: number, limit = Infinity): number[] {
    const { u8, u32 } = this.machine.memory;
    Atomics.store(u8, this.#upcallAt(vcpu), 0);
    const control = this.#control(vcpu);
    const heads = this.#heads[vcpu]!;
    let ready = Atomics.exchange(u32, control, 0);
    const handled: number[] = [];
    for (let taken = 0; ready !== 0 && taken < limit; taken++) {
      const priority = 31 - Math.clz32(ready & -ready);
      const head = control + evtchnFifoControlBlock.at.head / 4 + priority;
      const port = heads[priority] === 0 ? Atomics.load(u32, head) : heads[priority]!;
      const word = this.#change(port, (old) => old & ~(EVTCHN_FIFO_LINKED | EVTCHN_FIFO_LINK_MASK));
      heads[priority] = word & EVTCHN_FIFO_LINK_MASK;
      if (heads[priority] === 0) ready &= ~(1 << priority);
      if ((word & EVTCHN_FIFO_PENDING) !== 0 && (word & EVTCHN_FIFO_MASKED) === 0) {
        this.#change(port, (old) => old & ~EVTCHN_FIFO_PENDING);
        handled.push(port);
      }
      ready |= Atomics.exchange(u32, control, 0);
    }
    // An upcall that ends early (interrupted) comes again.
    Atomics.or(u32, control, ready);
    if (ready !== 0) Atomics.store(u8, this.#upcallAt(vcpu), 1);
    return handled;
  }
}

test('events are linked by priority and in order', () => {
  const consumer = new Consumer(1);
  consumer.consume(0);
  const ports = [0, 1, 2, 3].map(() => consumer.newPort(0));
  for (const port of ports) consumer.unmask(port);
  consumer.setPriority(ports[3]!, 0);
  for (const port of ports) consumer.send(port);
  consumer.send(ports[0]!);
  assert.equal(consumer.upcall(0), true);
  assert.deepEqual(consumer.consume(0), [ports[3], ports[0], ports[1], ports[2]]);
  assert.equal(consumer.upcall(0), false);
  consumer.send(ports[2]!);
  assert.deepEqual(consumer.consume(0), [ports[2]]);
});

test('a masked event is pending, and tells nobody', () => {
  const consumer = new Consumer(1);
  consumer.consume(0);
  const port = consumer.newPort(0);
  consumer.send(port);
  assert.equal(consumer.upcall(0), false);
  assert.equal(consumer.word(port), (EVTCHN_FIFO_MASKED | EVTCHN_FIFO_PENDING) >>> 0);
  consumer.unmask(port);
  assert.equal(consumer.upcall(0), true);
  assert.deepEqual(consumer.consume(0), [port]);
});

test('an event that has moved to another queue is not taken for the tail of its old one', () => {
  const consumer = new Consumer(1);
  consumer.consume(0);
  const [moved, old, urgent] = [0, 1, 2].map(() => consumer.newPort(0)) as [number, number, number];
  for (const port of [moved, old, urgent]) consumer.unmask(port);
  consumer.send(moved);
  assert.deepEqual(consumer.consume(0), [moved]);
  for (const port of [moved, urgent]) consumer.setPriority(port, 3);
  for (const port of [moved, old, urgent]) consumer.send(port);
  assert.deepEqual(consumer.consume(0), [moved, urgent, old]);
});

test('an event moves to the queue of another vCPU', () => {
  const consumer = new Consumer(2);
  const { out } = consumer.guest.op(EVENT, EVTCHNOP.alloc_unbound, evtchnBindVcpu, { port: 0x7ff0, vcpu: 0 });
  const port = out.u32(4);
  const remote = consumer.machine.ports.bind(consumer.guest.domid, port, () => undefined);
  assert.ok(remote > 0);
  consumer.unmask(port);
  consumer.machine.ports.notify(remote);
  assert.ok(consumer.consume(0).includes(port));
  assert.equal(consumer.guest.op(EVENT, EVTCHNOP.bind_vcpu, evtchnBindVcpu, { port, vcpu: 1 }).result, 0);
  consumer.machine.ports.notify(remote);
  assert.deepEqual(consumer.consume(0), []);
  assert.deepEqual(consumer.consume(1), [port]);
});

test('events from before there was a word for them are not lost', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest();
  machine.ports.notify(guest.made.consolePort);
  assert.equal(guest.op(EVENT, EVTCHNOP.init_control, evtchnInitControl, { control_gfn: page(1) }).result, 0);
  machine.ports.notify(guest.made.xenstorePort);
  assert.equal(guest.op(EVENT, EVTCHNOP.expand_array, evtchnExpandArray, { array_gfn: page(2) }).result, 0);
  const words = guest.word(page(2));
  for (const port of [1, 2]) assert.ok((machine.memory.u32[words + port]! & EVTCHN_FIFO_PENDING) !== 0);
  assert.equal(machine.memory.u32[guest.word(page(1))], 1 << 7);
  machine.audit();
});

test('the guest cannot register nonsense', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest();
  const init = (fields: Partial<Record<keyof typeof evtchnInitControl.at, number>>) =>
    guest.op(EVENT, EVTCHNOP.init_control, evtchnInitControl, fields).result;
  assert.equal(guest.op(EVENT, EVTCHNOP.expand_array, evtchnExpandArray, { array_gfn: page(2) }).result,
    -ERRNO.EOPNOTSUPP);
  assert.equal(init({ control_gfn: 1 }), -ERRNO.EINVAL);
  assert.equal(init({ control_gfn: 2 ** 40 }), -ERRNO.EINVAL);
  assert.equal(init({ control_gfn: page(1), offset: 4 }), -ERRNO.EINVAL);
  assert.equal(init({ control_gfn: page(1), offset: FRAME_BYTES - 64 }), -ERRNO.EINVAL);
  assert.equal(init({ control_gfn: page(1), vcpu: 1 }), -ERRNO.ENOENT);
  assert.equal(init({ control_gfn: page(1) }), 0);
  assert.equal(init({ control_gfn: page(1) }), -ERRNO.EINVAL);
  for (let i = 0; i < 16; i++) {
    assert.equal(guest.op(EVENT, EVTCHNOP.expand_array, evtchnExpandArray, { array_gfn: page(2) }).result, 0);
  }
  assert.equal(guest.op(EVENT, EVTCHNOP.expand_array, evtchnExpandArray, { array_gfn: page(2) }).result,
    -ERRNO.ENOSPC);
  machine.audit();
  machine.destroy(guest);
  machine.audit();
});

/** Steps of guest and senders in any order. */
const step = fc.record({
  action: fc.constantFrom('send', 'send', 'send', 'mask', 'unmask', 'priority', 'consume', 'consumeOne'),
  port: fc.nat(5),
  priority: fc.nat(15),
});

test('against a model: every unmasked event is handled once, and none is invented', () => {
  fc.assert(fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
    const consumer = new Consumer(2);
    for (const vcpu of [0, 1]) consumer.consume(vcpu);
    const ports = [0, 1, 2, 3, 4, 5].map((i) => consumer.newPort(i % 2));
    const pending = new Set<number>();
    const masked = new Set(ports);
    const handle = (vcpu: number, limit?: number) => {
      for (const port of consumer.consume(vcpu, limit)) {
        assert.ok(pending.delete(port), `port ${port} was not pending`);
        assert.ok(!masked.has(port), `port ${port} was masked`);
      }
    };
    const takeAll = () => {
      for (const vcpu of [0, 1]) {
        for (let rounds = 0; consumer.upcall(vcpu) && rounds < 100; rounds++) handle(vcpu);
      }
      for (const port of pending) assert.ok(masked.has(port), `the event of port ${port} was lost`);
    };
    for (const { action, port: index, priority } of steps) {
      const port = ports[index]!;
      switch (action) {
        case 'send':
          pending.add(port);
          consumer.send(port);
          break;
        case 'mask':
          masked.add(port);
          consumer.mask(port);
          break;
        case 'unmask':
          masked.delete(port);
          consumer.unmask(port);
          break;
        case 'priority':
          consumer.setPriority(port, priority);
          break;
        case 'consumeOne':
          handle(index % 2, 1);
          break;
        default: takeAll();
      }
    }
    takeAll();
    for (const port of ports) consumer.unmask(port);
    masked.clear();
    takeAll();
    assert.equal(pending.size, 0);
  }), { seed, numRuns: 150 });
});

test('threads that send at the same time lose no event', async () => {
  const SENDERS = 2;
  const consumer = new Consumer(1);
  consumer.consume(0);
  const { machine, guest } = consumer;
  // How many threads have finished, and how many of them because an event of theirs did not arrive.
  const finished = new Int32Array(new SharedArrayBuffer(8));
  const workers = Array.from({ length: SENDERS }, (_, agent) => {
    const ports = [0, 1, 2].map(() => {
      const { out } = guest.op(EVENT, EVTCHNOP.alloc_unbound, evtchnBindVcpu, { port: 0x7ff0, vcpu: 0 });
      const port = out.u32(4);
      const hostPort = machine.ports.bind(guest.domid, port, () => undefined);
      consumer.unmask(port);
      return { hostPort, word: consumer.wordIndex(port) };
    });
    const workerData: SenderTask = { memory: machine.memory.memory, agent: agent + 1, ports, rounds: 3000, finished };
    return new Worker(new URL('./test-sender.ts', import.meta.url), { workerData });
  });
  const exits = workers.map((worker) => once(worker, 'exit'));
  let idle = 0;
  while (Atomics.load(finished, 0) < SENDERS) {
    if (consumer.upcall(0)) consumer.consume(0);
    // Workers start only when the main thread lets them.
    else if (++idle % 1000 === 0) await new Promise((resolve) => { setImmediate(resolve); });
  }
  await Promise.all(exits);
  assert.equal(finished[1], 0);
  machine.audit();
});
