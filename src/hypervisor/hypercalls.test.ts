import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { DOMAIN } from '../abi/domain-record.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import {
  DOMID_SELF, ERRNO, HVM_PARAM, HYPERVISOR, SCHEDOP, SHUTDOWN, VCPUOP, XENFEAT, XENVER, multicallEntry, schedShutdown,
  schedWatchdog, vcpuRegisterVcpuInfo, xenFeatureInfo, xenHvmParam,
} from '../abi/xen.ts';
import { RUNSTATE, XEN_RUNSTATE_UPDATE, sharedInfo, vcpuInfo, vcpuRunstateInfo } from '../abi/xen-shared-info.ts';
import { seed } from '../memory/test-memory.ts';
import { readConsoleLog } from './console-io.ts';
import { GuestStruct } from './guest-struct.ts';
import { enterRunstate, publishRunstate } from './runstate.ts';
import { ARGS, RAM_PAGES, TestMachine, page } from './test-domain.ts';
import type { TestGuest } from './test-domain.ts';

const text = (guest: TestGuest, sizeBytes: number) =>
  new TextDecoder().decode(guest.read(ARGS, sizeBytes)).replace(/\0.*$/s, '');

test('version', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest();
  const version = (command: number) => guest.call(HYPERVISOR.xen_version, command, ARGS);
  assert.equal(version(XENVER.version), (4 << 16) | 17);
  assert.equal(version(XENVER.extraversion), 0);
  assert.equal(text(guest, 16), '.0-zazen');
  assert.equal(version(XENVER.capabilities), 0);
  assert.equal(text(guest, 1024), 'xen-3.0-aarch64');
  assert.equal(version(XENVER.pagesize), 4096);
  assert.equal(version(XENVER.guest_handle), 0);
  assert.ok(guest.read(ARGS, 16).every((byte) => byte === 0x5a));
  assert.equal(version(XENVER.build_id), -ERRNO.ENODATA);
  assert.equal(version(99), -ERRNO.ENOSYS);
  assert.equal(guest.call(HYPERVISOR.xen_version, XENVER.extraversion, 0), -ERRNO.EFAULT);
  const features = guest.op(HYPERVISOR.xen_version, XENVER.get_features, xenFeatureInfo, { submap_idx: 0 });
  assert.ok((features.out.u32(xenFeatureInfo.at.submap) & (1 << XENFEAT.auto_translated_physmap)) !== 0);
});

test('unknown hypercalls do not exist', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest();
  for (const number of [0, 15, 33, 36, 38, 63, 64, 2 ** 32 + HYPERVISOR.xen_version]) {
    assert.equal(guest.call(number, 0, 0), -ERRNO.ENOSYS);
  }
  assert.equal(guest.callers[0]!.vcpu.x(0), BigInt.asUintN(64, BigInt(-ERRNO.ENOSYS)));
});

test('HVM parameters are read by the guest, and not changed by it', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest();
  const param = (op: number, index: number, value = 0n, domid = DOMID_SELF) => {
    const { result, out } = guest.op(HYPERVISOR.hvm_op, op, xenHvmParam, { domid, index, value });
    return { result, value: out.u64(xenHvmParam.at.value) };
  };
  assert.equal(param(1, HVM_PARAM.CONSOLE_PFN).value, 0x39000n);
  assert.equal(param(1, HVM_PARAM.STORE_PFN).value, 0x39001n);
  const via = param(1, HVM_PARAM.CALLBACK_IRQ).value;
  assert.equal(via, (2n << 56n) | 0x200n | 31n);
  assert.equal(param(0, HVM_PARAM.CALLBACK_IRQ, via).result, 0);
  assert.equal(param(0, HVM_PARAM.CALLBACK_IRQ, 30n).result, -ERRNO.EINVAL);
  assert.equal(param(0, HVM_PARAM.STORE_PFN, 1n).result, -ERRNO.EPERM);
  assert.equal(param(1, 1000).result, -ERRNO.EINVAL);
  assert.equal(param(1, 1, 0n, 0).result, -ERRNO.EPERM);
});

test('a vcpu_info is registered once, and takes along what was pending', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest(2);
  const register = (vcpu: number, mfn: number | bigint, offset: number) => {
    const args = GuestStruct.blank(vcpuRegisterVcpuInfo);
    args.set64(0, BigInt(mfn));
    args.set32(8, offset);
    guest.write(ARGS, args.bytes(0, 16));
    return guest.call(HYPERVISOR.vcpu_op, VCPUOP.register_vcpu_info, vcpu, ARGS);
  };
  assert.equal(register(0, page(4), FRAME_BYTES - 40), -ERRNO.EINVAL);
  assert.equal(register(0, page(4), 4), -ERRNO.EINVAL);
  assert.equal(register(0, 1, 0), -ERRNO.EINVAL);
  assert.equal(register(2, page(4), 0), -ERRNO.ENOENT);
  assert.equal(register(1, page(4), 64), 0);
  assert.equal(machine.level(guest, 1), true);
  assert.equal(register(1, page(5), 64), -ERRNO.EINVAL);
  const info = guest.word(page(4), 64);
  assert.equal(machine.memory.u8[info * 4 + vcpuInfo.at.evtchn_upcall_pending], 1);
  // The guest gives the page away: events go on to a frame that nobody else gets.
  const { domain } = guest.made;
  assert.ok(machine.p2m.unmap(domain.get(DOMAIN.at.p2mRoot), page(4)));
  machine.p2m.releaseStale();
  machine.audit();
  machine.hypercalls.channels.delivery.syncUpcall(domain, 1);
  assert.equal(machine.level(guest, 1), true);
  machine.destroy(guest);
  machine.audit();
});

for (const vcpus of [1, 2]) test(`runstate of ${vcpus}: times add up, in the hypercall and in the registered area`, () => {
  const machine = new TestMachine();
  const guest = machine.createGuest(vcpus);
  const { domain } = guest.made;
  const AREA = ARGS + 2048n;
  enterRunstate(domain, 0, RUNSTATE.running, machine.nowNanos += 1000);
  const info = () => {
    assert.equal(guest.call(HYPERVISOR.vcpu_op, VCPUOP.get_runstate_info, 0, ARGS), 0);
    return new GuestStruct(guest.read(ARGS, vcpuRunstateInfo.sizeBytes));
  };
  machine.nowNanos += 50;
  const { at } = vcpuRunstateInfo;
  assert.equal(info().u32(at.state), RUNSTATE.running);
  assert.deepEqual([0, 1, 2, 3].map((i) => info().number(at.time + 8 * i)), [50, 0, 0, 1000]);
  guest.write(ARGS, new Uint8Array(new BigUint64Array([AREA]).buffer));
  assert.equal(guest.call(HYPERVISOR.vcpu_op, VCPUOP.register_runstate_memory_area, 0, ARGS), 0);
  enterRunstate(domain, 0, RUNSTATE.blocked, machine.nowNanos += 50);
  enterRunstate(domain, 0, RUNSTATE.running, machine.nowNanos += 7);
  const entries: bigint[] = [];
  const copyToGuest = machine.access.copyToGuest.bind(machine.access);
  machine.access.copyToGuest = (vcpu, va, bytes) => {
    const done = copyToGuest(vcpu, va, bytes);
    entries.push(new GuestStruct(guest.read(AREA, 48)).u64(at.state_entry_time));
    return done;
  };
  publishRunstate(machine.environment, guest.callers[0]!);
  const area = new GuestStruct(guest.read(AREA, 48));
  assert.deepEqual([0, 1, 2, 3].map((i) => area.number(at.time + 8 * i)), [100, 0, 7, 1000]);
  assert.equal(guest.call(HYPERVISOR.vm_assist, 0, 5), 0);
  entries.length = 0;
  publishRunstate(machine.environment, guest.callers[0]!);
  // The mark is for other vCPUs that read meanwhile.
  assert.deepEqual(entries.map((time) => (time & XEN_RUNSTATE_UPDATE) !== 0n), vcpus === 1 ? [false] : [true, true, false]);
  assert.equal(guest.call(HYPERVISOR.vm_assist, 0, 1), -ERRNO.EINVAL);
});

test('shutdown, with its reason, reaches the host', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest();
  const { domain } = guest.made;
  machine.ports.deliver();
  const run = (reason: number) =>
    guest.op(HYPERVISOR.sched_op, SCHEDOP.shutdown, schedShutdown, { reason }).result;
  assert.equal(run(6), -ERRNO.EINVAL);
  machine.ports.deliver();
  assert.deepEqual(machine.changedDomains, []);
  assert.equal(run(SHUTDOWN.reboot), 0);
  assert.equal(run(SHUTDOWN.crash), 0);
  machine.ports.deliver();
  assert.deepEqual(machine.changedDomains, [guest.domid]);
  assert.equal(domain.get(DOMAIN.at.shutdown) - 1, SHUTDOWN.reboot);
});

test('a watchdog that is not fed ends the domain', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest();
  const { domain } = guest.made;
  const set = (id: number, timeout: number) =>
    guest.op(HYPERVISOR.sched_op, SCHEDOP.watchdog, schedWatchdog, { id, timeout }).result;
  assert.equal(set(1, 5), -ERRNO.EINVAL);
  assert.equal(set(0, 5), 1);
  assert.equal(set(0, 9), 2);
  assert.equal(set(0, 9), -ERRNO.ENOSPC);
  assert.equal(set(3, 9), -ERRNO.EINVAL);
  assert.equal(machine.hypercalls.sched.checkWatchdogs(domain), machine.nowNanos + 5e9);
  machine.nowNanos += 4e9;
  assert.equal(set(1, 5), 0);
  assert.equal(set(2, 0), 0);
  machine.nowNanos += 4.5e9;
  assert.equal(machine.hypercalls.sched.checkWatchdogs(domain), machine.nowNanos + 0.5e9);
  assert.equal(domain.get(DOMAIN.at.shutdown), 0);
  machine.nowNanos += 1e9;
  machine.hypercalls.sched.checkWatchdogs(domain);
  assert.equal(domain.get(DOMAIN.at.shutdown) - 1, SHUTDOWN.watchdog);
});

test('console_io keeps the latest text', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest();
  machine.ports.deliver();
  const write = (line: string) => {
    guest.write(ARGS, new TextEncoder().encode(line));
    return guest.call(HYPERVISOR.console_io, 0, line.length, ARGS);
  };
  assert.equal(write('hello'), 0);
  machine.ports.deliver();
  assert.deepEqual(machine.changedDomains, [guest.domid]);
  let log = readConsoleLog(guest.made.domain, 0);
  assert.equal(new TextDecoder().decode(log.bytes), 'hello');
  write('x'.repeat(3000));
  log = readConsoleLog(guest.made.domain, log.cursor);
  assert.equal(log.lost, 3000 - 2048);
  assert.equal(log.bytes.length, 2048);
  assert.equal(readConsoleLog(guest.made.domain, log.cursor).bytes.length, 0);
  assert.equal(guest.call(HYPERVISOR.console_io, 0, 0x7fff_ffff, ARGS), -ERRNO.E2BIG);
  assert.equal(guest.call(HYPERVISOR.console_io, 0, 10, 0), -ERRNO.EFAULT);
  assert.equal(guest.call(HYPERVISOR.console_io, 1, 10, ARGS), 0);
});

test('a multicall answers for each call, and does not nest', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest();
  const entries = [[HYPERVISOR.xen_version, XENVER.pagesize], [HYPERVISOR.multicall, 0], [50, 0]];
  for (const [i, [op, arg]] of entries.entries()) {
    const entry = GuestStruct.blank(multicallEntry);
    entry.set64(multicallEntry.at.op, BigInt(op!));
    entry.set64(multicallEntry.at.args, BigInt(arg!));
    guest.write(ARGS + BigInt(64 * i), entry.bytes(0, 64));
  }
  assert.equal(guest.call(HYPERVISOR.multicall, ARGS, 3), 0);
  const results = entries.map((_, i) => new BigInt64Array(guest.read(ARGS + BigInt(64 * i), 64).buffer)[1]);
  assert.deepEqual(results, [4096n, BigInt(-ERRNO.EINVAL), BigInt(-ERRNO.ENOSYS)]);
  assert.equal(guest.call(HYPERVISOR.multicall, ARGS, 0xffff_ffff), -ERRNO.EINVAL);
  assert.equal(guest.call(HYPERVISOR.multicall, 0, 1), -ERRNO.EFAULT);
});

test('the wall clock', () => {
  const machine = new TestMachine();
  const guest = machine.createGuest();
  machine.builder.setWallClock(guest.made.domain, 5_000_000_000_123);
  const base = guest.made.domain.get(DOMAIN.at.sharedInfo) * 1024;
  const field = (name: 'wc_version' | 'wc_sec' | 'wc_sec_hi' | 'wc_nsec') =>
    machine.memory.u32[base + sharedInfo.at[name] / 4]!;
  assert.equal(field('wc_version') % 2, 0);
  assert.equal(field('wc_sec_hi') * 2 ** 32 + field('wc_sec'), 5_000_000_000);
  assert.equal(field('wc_nsec'), 123_000_000);
  machine.builder.setWallClock(guest.made.domain, 1);
  assert.equal(field('wc_version'), 4);
});

test('domains that do not fit leave nothing behind', () => {
  const machine = new TestMachine(3 * 1024 * 1024);
  const guests: TestGuest[] = [];
  const config = { vcpuAddresses: [machine.memory.vcpuAddress(0)], handle: new Uint8Array(16), maxPages: 16 };
  // Takes the heap down to fewer and fewer frames, so that each step of the making fails once.
  const taken: number[] = [];
  const leave = (frames: number) => {
    const { total, used } = machine.heap.stats();
    for (let i = frames; i < total - used; i++) taken.push(machine.heap.allocate(0));
  };
  let made = 0;
  for (let frames = 0; frames < 30; frames++) {
    leave(frames);
    const domain = machine.builder.createDomain(config);
    if (domain !== undefined) {
      made++;
      machine.p2m.release(machine.builder.destroyDomain(domain.domain));
      machine.heap.tearDown.finish();
      machine.builder.forgetDomain(domain.domain);
    }
    while (taken.length > 0) machine.heap.release(taken.pop()!);
    machine.audit();
  }
  assert.ok(made > 0 && made < 30);
  for (let i = 0; i < 7; i++) guests.push(machine.createGuest(1, 4));
  assert.equal(machine.builder.createDomain(config), undefined, 'no id is left');
  for (const guest of guests) machine.destroy(guest);
  machine.audit();
});

const address = fc.oneof(
  fc.constant(ARGS), fc.bigInt({ min: ARGS, max: ARGS + 0x3000n }), fc.constantFrom(0n, 2n ** 64n - 1n, 2n ** 48n),
);
const small = fc.bigInt({ min: 0n, max: 40n });
const argument = fc.oneof(address, small, small, fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }));
/** Words that make sense more often than not: ids, small numbers, guest frames, addresses. */
const word = fc.oneof(small, fc.constant(BigInt(DOMID_SELF)),
  fc.bigInt({ min: BigInt(page(0)), max: BigInt(page(20)) }), address, fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }));
const call = fc.record({
  number: fc.oneof(fc.constantFrom(...Object.values(HYPERVISOR)), fc.nat(70)),
  args: fc.array(argument, { minLength: 5, maxLength: 5 }),
  memory: fc.array(word, { minLength: 1, maxLength: 12 }),
  vcpu: fc.nat(1),
});

test('whatever a guest calls with, the host goes on and every frame stays accounted for', () => {
  fc.assert(fc.property(fc.array(call, { minLength: 20, maxLength: 120 }), (calls) => {
    const machine = new TestMachine(4 * 1024 * 1024);
    const guest = machine.createGuest(2);
    const bystander = machine.createGuest();
    machine.memory.u32[bystander.word(page(0))] = 0x600d;
    for (const { number, args, memory, vcpu } of calls) {
      machine.access.copyToGuest(guest.callers[0]!.vcpu, ARGS, new Uint8Array(new BigUint64Array(memory).buffer));
      guest.callOn(vcpu, number, ...args);
      machine.ports.notify(guest.made.consolePort);
    }
    machine.ports.deliver();
    assert.equal(machine.memory.u32[bystander.word(page(0))], 0x600d);
    assert.equal(bystander.made.domain.get(DOMAIN.at.pages), RAM_PAGES);
    machine.audit();
    machine.destroy(guest);
    machine.destroy(bystander);
    machine.audit();
  }), { seed, numRuns: 60 });
});
