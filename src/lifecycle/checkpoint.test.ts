// Checkpoint, rollback and fork of domains whose "guest" is the test: what comes back, what is apart from then on, and
// that every frame is accounted for whatever runs out.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DOMAIN, HELD_FRAME, NO_GFN, VCPU_ENTRY } from '../abi/domain-record.ts';
import { GIC_VCPU } from '../abi/gic.ts';
import { FRAME_BYTES, FRAME_WORDS } from '../abi/machine-memory.ts';
import { VCPU_STATE } from '../abi/scheduler.ts';
import { VCPU_BYTES, vcpuRecord, xOffset } from '../abi/vcpu.ts';
import { EVTCHNSTAT } from '../abi/xen-event-channel.ts';
import { GTF_PERMIT_ACCESS } from '../abi/xen-grant-table.ts';
import { GUEST_CONSOLE_GFN, GUEST_RAM0_BASE, GUEST_XENSTORE_GFN, HVM_PARAM } from '../abi/xen.ts';
import { DomainBuilder } from '../hypervisor/domain.ts';
import type { NewDomain } from '../hypervisor/domain.ts';
import type { DomainRecord } from '../hypervisor/domain-record.ts';
import type { GrantMapping } from '../hypervisor/grant-table.ts';
import { heldMfn, mapHeldFrame } from '../hypervisor/held-frames.ts';
import { getHvmParam } from '../hypervisor/hvm-params.ts';
import { HypervisorThread, MAIN_THREAD } from '../hypervisor/thread.ts';
import { audit } from '../memory/audit.ts';
import { Heap } from '../memory/heap.ts';
import { MachineMemory } from '../memory/machine-memory.ts';
import { freezeDomain } from './checkpoint.ts';
import type { FrozenDomain } from './checkpoint.ts';
import { findDifferences } from './domain-state.ts';
import { forkDomain } from './fork.ts';
import { rollBackDomain } from './rollback.ts';

const RAM_GFN = GUEST_RAM0_BASE / FRAME_BYTES;
const RAM_PAGES = 4096;
const SHARED_INFO_GFN = RAM_GFN + 100;
/** Not one of those that the guest has in use for itself. */
const GRANT = 40;
const HANDLE = new Uint8Array(16).fill(7);

class Machine {
  nowNanos = 1e9;
  readonly thread: HypervisorThread;
  readonly builder: DomainBuilder;
  readonly frozen: FrozenDomain[] = [];
  readonly #records = new Set<DomainRecord>();
  #vcpus = 0;

  constructor(sizeBytes = 16 * 2 ** 20) {
    const memory = MachineMemory.create({
      sizeBytes, domainCount: 8, domainStrideBytes: 8192, vcpuCount: 16, vcpuStrideBytes: VCPU_BYTES, codeBytes: 0,
    });
    Heap.initialize(memory);
    const clock = { monotonicNanos: () => this.nowNanos, wallMillis: () => 0 };
    this.thread = new HypervisorThread(memory, MAIN_THREAD, clock);
    const { channels, grants, domains } = this.thread.hypercalls;
    this.builder = new DomainBuilder(this.thread.environment, channels, grants);
    assert(this.builder.initializeHost());
    this.#records.add(domains.record(0));
  }

  vcpuAddresses(count: number): number[] {
    assert(this.#vcpus + count <= 16);
    return Array.from({ length: count }, () => this.thread.machine.vcpuAddress(this.#vcpus++));
  }
  create(vcpus = 1): NewDomain {
    const { thread } = this;
    const vcpuAddresses = this.vcpuAddresses(vcpus);
    const made = this.builder.createDomain({ vcpuAddresses, handle: HANDLE, maxPages: RAM_PAGES });
    assert(made && this.builder.addRam(made.domain, RAM_GFN, RAM_PAGES));
    thread.gic.resetDomain(made.domain.domid, vcpuAddresses);
    for (const address of vcpuAddresses) thread.scheduling.attach(address);
    thread.timers.setTime(made.domain.domid, 0);
    thread.timers.stopTime(made.domain.domid);
    thread.scheduling.start(vcpuAddresses[0]!, () => thread.resetVcpu(vcpuAddresses[0]!, 0x1000n, 0n));
    this.#records.add(made.domain);
    return made;
  }
  freeze(record: DomainRecord): FrozenDomain | undefined {
    const frozen = freezeDomain(this.thread, record);
    if (typeof frozen !== 'object') return undefined;
    this.frozen.push(frozen);
    return frozen;
  }
  drop(frozen: FrozenDomain): void {
    this.frozen.splice(this.frozen.indexOf(frozen), 1);
    this.thread.p2m.release(frozen.root);
  }
  /** @param untilStopped what the guest still does when what differs has been looked for */
  rollBack(record: DomainRecord, frozen: FrozenDomain, untilStopped: () => void = () => {}): boolean {
    const found = findDifferences(this.thread, record, frozen.root);
    untilStopped();
    const rolledBack = rollBackDomain(this.thread, this.builder, record, frozen, found);
    if (rolledBack === undefined) return false;
    if (rolledBack.oldRoot !== 0) this.thread.p2m.release(rolledBack.oldRoot);
    return true;
  }
  fork(frozen: FrozenDomain, vcpuAddresses = this.vcpuAddresses(frozen.state.vcpus.length)): DomainRecord | undefined {
    const record = forkDomain(this.thread, this.builder, frozen, vcpuAddresses, new Uint8Array(16).fill(9));
    if (record !== undefined) this.#records.add(record);
    return record;
  }
  destroy(record: DomainRecord): void {
    this.#records.delete(record);
    this.thread.p2m.release(this.builder.destroyDomain(record));
    this.thread.heap.tearDown.finish();
    this.builder.forgetDomain(record);
  }

  /** As Linux does: all that the hypervisor offers is mapped. */
  mapHeld(record: DomainRecord): void {
    const places = [[DOMAIN.at.sharedInfo, SHARED_INFO_GFN], [DOMAIN.at.grants, GUEST_CONSOLE_GFN - 1]] as const;
    for (const [field, gfn] of places) {
      assert.equal(mapHeldFrame(this.thread.environment, record, record.address + field, gfn), 0);
    }
  }

  /** Index in u32 of the first word of a guest page, as the guest would write to it. */
  word(record: DomainRecord, gfn: number): number {
    const mfn = this.thread.p2m.frameForWrite(record.get(DOMAIN.at.p2mRoot), gfn);
    assert(mfn > 0);
    this.thread.p2m.releaseStale();
    return mfn * FRAME_WORDS;
  }
  write(record: DomainRecord, gfn: number, value: number): void {
    this.thread.machine.u32[this.word(record, gfn)] = value;
  }
  read(record: DomainRecord, gfn: number): number {
    const mfn = this.thread.p2m.pinForRead(record.get(DOMAIN.at.p2mRoot), gfn);
    assert(mfn > 0);
    const value = this.thread.machine.u32[mfn * FRAME_WORDS]!;
    this.thread.heap.unpin(mfn);
    return value;
  }

  audit(): void {
    this.thread.heap.tearDown.finish();
    const claims = [...this.#records].map((record) => this.builder.claims(record));
    const report = audit(this.thread.heap, {
      roots: [...claims.flatMap(({ roots }) => [...roots]), ...this.frozen.map(({ root }) => root)],
      held: claims.flatMap(({ held }) => [...held]), pins: claims.flatMap(({ pins }) => [...pins]), readClean: true,
    });
    assert.deepEqual(report.problems, []);
  }
}

test('memory and registers come back, in place and anew, and the host sees the page that the guest writes', () => {
  const machine = new Machine(64 * 2 ** 20);
  const { domain, consoleMfn } = machine.create();
  const { u64 } = machine.thread.machine;
  machine.mapHeld(domain);
  const x5 = (domain.vcpuAddress(0) + xOffset(5)) / 8;
  for (let page = 0; page < RAM_PAGES; page++) if (page !== 100) machine.write(domain, RAM_GFN + page, 1);
  const held = [SHARED_INFO_GFN, GUEST_CONSOLE_GFN - 1, GUEST_CONSOLE_GFN, GUEST_XENSTORE_GFN];
  for (const gfn of held) machine.write(domain, gfn, 11);
  u64[x5] = 55n;
  const frozen = machine.freeze(domain)!;
  const consoleNow = domain.get(DOMAIN.at.console + HELD_FRAME.at.mfn);
  assert.notEqual(consoleNow, consoleMfn, 'the checkpoint keeps the old page');
  assert.equal(machine.word(domain, GUEST_CONSOLE_GFN), consoleNow * FRAME_WORDS);
  // The second time more is dirty than is put back page by page.
  for (const dirtied of [50, 3000]) {
    for (let page = 0; page < dirtied; page++) machine.write(domain, RAM_GFN + (page < 100 ? page : page + 1), 2);
    for (const gfn of held) machine.write(domain, gfn, 22);
    u64[x5] = 66n;
    machine.nowNanos += 5e6;
    assert(machine.rollBack(domain, frozen));
    assert.equal(machine.read(domain, RAM_GFN), 1);
    assert.equal(machine.read(domain, RAM_GFN + 40), 1);
    assert.deepEqual(held.map((gfn) => machine.read(domain, gfn)), [11, 11, 11, 11]);
    assert.equal(u64[x5], 55n);
    const mfn = domain.get(DOMAIN.at.console + HELD_FRAME.at.mfn);
    assert.equal(machine.word(domain, GUEST_CONSOLE_GFN), mfn * FRAME_WORDS);
    assert.equal(mfn === consoleNow, dirtied === 50, 'only much is put back anew');
    machine.audit();
  }
  machine.drop(frozen);
  machine.destroy(domain);
  machine.audit();
});

test('what a guest writes until it has stopped is put back as well, in place', () => {
  const machine = new Machine();
  const { domain } = machine.create();
  machine.mapHeld(domain);
  const pages = Array.from({ length: 600 }, (_, page) => RAM_GFN + page).filter((gfn) => gfn !== SHARED_INFO_GFN);
  for (const gfn of pages) machine.write(domain, gfn, 1);
  const frozen = machine.freeze(domain)!;
  const root = domain.get(DOMAIN.at.p2mRoot);
  const write = (first: number, count: number): void => {
    for (const gfn of pages.slice(first, first + count)) machine.write(domain, gfn, 2);
  };
  write(0, 10);
  // In a node that is its own already, and in one that is not yet; and nothing more.
  for (const untilStopped of [() => write(5, 10), () => write(595, 5), () => {}]) {
    assert(machine.rollBack(domain, frozen, untilStopped));
    assert.equal(domain.get(DOMAIN.at.p2mRoot), root, 'little is put back in place');
    for (const gfn of pages) assert.equal(machine.read(domain, gfn), 1, `page ${gfn}`);
    machine.audit();
  }
});

test('what the hypervisor offers and the guest has not mapped comes back in place, and anew once it is mapped', () => {
  const machine = new Machine();
  const { domain } = machine.create();
  const { u32 } = machine.thread.machine;
  const fields = [DOMAIN.at.sharedInfo, DOMAIN.at.grants];
  // Words that nobody else writes to.
  const words = (): number[] => fields.map((field) => heldMfn(machine.thread.environment, domain.address + field) * FRAME_WORDS + 1000);
  const write = (value: number): void => { for (const word of words()) u32[word] = value; };
  machine.write(domain, RAM_GFN, 1);
  write(1);
  const frozen = machine.freeze(domain)!;
  const root = domain.get(DOMAIN.at.p2mRoot);
  for (const isMapped of [false, true]) {
    machine.write(domain, RAM_GFN, 2);
    write(2);
    if (isMapped) machine.mapHeld(domain);
    assert(machine.rollBack(domain, frozen));
    assert.equal(domain.get(DOMAIN.at.p2mRoot) === root, !isMapped);
    assert.deepEqual(words().map((word) => u32[word]), [1, 1]);
    assert.equal(machine.read(domain, RAM_GFN), 1);
    assert.deepEqual(fields.map((field) => domain.get(field + HELD_FRAME.at.gfn)), [NO_GFN, NO_GFN]);
    machine.audit();
  }
  machine.drop(frozen);
  machine.destroy(domain);
  machine.audit();
});

/** Where in u32 it stands which interrupts of a vCPU wait, and which ones the guest is in the middle of. */
const gicFields = ({ gic }: HypervisorThread) => (record: DomainRecord, vcpuId: number): number[] =>
  (['enabled', 'pending', 'active', 'pmr', 'ap1r0'] as const)
    .map((name) => (gic.vcpuAt(record.vcpuAddress(vcpuId)) + GIC_VCPU.at[name]) / 4);

test('a fork is a domain of its own, with the same contents', () => {
  const machine = new Machine();
  const { domain } = machine.create(2);
  const { thread } = machine;
  machine.write(domain, RAM_GFN + 7, 77);
  machine.nowNanos += 1e6;
  const port = thread.hypercalls.channels.bindIpi(domain, 1);
  const loop = thread.hypercalls.channels.allocUnbound(domain, domain.domid);
  const interrupts = gicFields(thread);
  const wanted = [[0x8000_0021, 0x20, 1, 0xf0, 0x10], [6, 2, 4, 0x80, 0x100]];
  for (const [vcpuId, values] of wanted.entries()) {
    for (const [i, index] of interrupts(domain, vcpuId).entries()) thread.machine.u32[index] = values[i]!;
  }
  const frozen = machine.freeze(domain)!;
  const fork = machine.fork(frozen)!;
  assert.notEqual(fork.domid, domain.domid);
  assert.equal(machine.read(fork, RAM_GFN + 7), 77);
  machine.write(fork, RAM_GFN + 7, 78);
  machine.write(domain, RAM_GFN + 7, 79);
  assert.deepEqual([fork, domain].map((record) => machine.read(record, RAM_GFN + 7)), [78, 79]);
  for (let vcpuId = 0; vcpuId < 2; vcpuId++) {
    const address = fork.vcpuAddress(vcpuId);
    assert.equal(thread.gic.domidOf(address), fork.domid);
    assert.equal(thread.gic.indexOf(address), vcpuId);
    assert.deepEqual(interrupts(fork, vcpuId).map((index) => thread.machine.u32[index]!), wanted[vcpuId]);
    const field = (offset: number) => thread.machine.u32[(address + offset) / 4]!;
    const tlb = field(vcpuRecord.at.tlbRead);
    if (vcpuId === 0) assert(tlb > address && tlb < address + VCPU_BYTES, 'its own TLBs');
    assert.equal(field(vcpuRecord.at.lastPcpu), 0, 'which are flushed before it runs');
  }
  assert.equal(thread.scheduling.get(fork.vcpuAddress(0), 'state'), VCPU_STATE.runnable);
  assert.equal(thread.scheduling.get(fork.vcpuAddress(1), 'state'), VCPU_STATE.offline);
  assert.equal(thread.timers.time(fork.domid), thread.timers.time(domain.domid));
  const { channels } = thread.hypercalls;
  assert.equal(fork.portState(port), EVTCHNSTAT.ipi);
  assert.equal(channels.status(fork, loop)!.remote, fork.domid);
  const consolePort = Number(getHvmParam(fork, HVM_PARAM.CONSOLE_EVTCHN));
  assert(channels.bindInterdomain(channels.domains.record(0), fork.domid, consolePort) > 0, 'it waits for the host');
  // A fork of a fork goes back to what the first one was.
  const later = machine.freeze(fork)!;
  const grandchild = machine.fork(later)!;
  assert.equal(machine.read(grandchild, RAM_GFN + 7), 78);
  assert(machine.rollBack(grandchild, frozen));
  assert.equal(machine.read(grandchild, RAM_GFN + 7), 77);
  machine.audit();
  for (const one of [frozen, later]) machine.drop(one);
  for (const one of [domain, fork, grandchild]) machine.destroy(one);
  machine.audit();
});

test('pages of the hypervisor that the guest has not mapped come along, too', () => {
  const machine = new Machine();
  const { domain } = machine.create();
  const heldAt = (record: DomainRecord) => record.address + DOMAIN.at.sharedInfo;
  const { u32 } = machine.thread.machine;
  const sharedMfn = (record: DomainRecord) => u32[(heldAt(record) + HELD_FRAME.at.mfn) / 4]!;
  assert.equal(u32[(heldAt(domain) + HELD_FRAME.at.gfn) / 4], NO_GFN);
  u32[sharedMfn(domain) * FRAME_WORDS] = 123;
  const frozen = machine.freeze(domain)!;
  u32[sharedMfn(domain) * FRAME_WORDS] = 321;
  const fork = machine.fork(frozen)!;
  assert.equal(u32[sharedMfn(fork) * FRAME_WORDS], 123);
  assert(machine.rollBack(domain, frozen));
  assert.equal(u32[sharedMfn(domain) * FRAME_WORDS], 123);
  machine.drop(frozen);
  machine.audit();
});

test('time stands still between checkpoint and what is made of it', () => {
  const machine = new Machine();
  const { timers } = machine.thread;
  const { domain } = machine.create();
  const { f64 } = machine.thread.machine;
  timers.startTime(domain.domid);
  machine.nowNanos += 4e6;
  timers.stopTime(domain.domid);
  // By the host's clock: when a watchdog is due, and since when the vCPU is in its runstate.
  const hostTimes = (record: DomainRecord): number[] => [
    record.getDouble(DOMAIN.at.watchdogNanos) - machine.nowNanos,
    machine.nowNanos - f64[(record.vcpuEntry(0) + VCPU_ENTRY.at.runstateEntryNanos) / 8]!,
  ];
  domain.setDouble(DOMAIN.at.watchdogNanos, machine.nowNanos + 7e6);
  const times = hostTimes(domain);
  const frozen = machine.freeze(domain)!;
  timers.startTime(domain.domid);
  machine.nowNanos += 9e6;
  const fork = machine.fork(frozen)!;
  assert.equal(timers.time(fork.domid), 4e6);
  assert.deepEqual(hostTimes(fork), times);
  machine.nowNanos += 9e6;
  timers.startTime(fork.domid);
  machine.nowNanos += 1e6;
  assert.equal(timers.time(fork.domid), 5e6);
  timers.stopTime(domain.domid);
  assert(machine.rollBack(domain, frozen));
  assert.deepEqual(hostTimes(domain), times);
  timers.startTime(domain.domid);
  assert.equal(timers.time(domain.domid), 4e6);
  machine.drop(frozen);
});

test('grants in use: no checkpoint, and a rollback that they outlive', () => {
  const machine = new Machine(64 * 2 ** 20);
  const { domain } = machine.create();
  const { thread } = machine;
  const { grants } = thread.hypercalls;
  const { u32, u8 } = thread.machine;
  const table = heldMfn(thread.environment, domain.address + DOMAIN.at.grants) * FRAME_WORDS;
  u32[table + 2 * GRANT + 1] = RAM_GFN + 5;
  u32[table + 2 * GRANT] = GTF_PERMIT_ACCESS;
  machine.write(domain, RAM_GFN + 5, 5);
  const use = (): GrantMapping => {
    const mapping = grants.map(domain.domid, GRANT, true);
    assert(typeof mapping === 'object');
    return mapping;
  };
  const used = use();
  assert.equal(freezeDomain(thread, domain), 'busy');
  grants.unmap(used);
  const frozen = machine.freeze(domain)!;
  for (const dirtied of [50, 3000]) {
    for (let page = 0; page < dirtied; page++) machine.write(domain, RAM_GFN + page, 2);
    const mapping = use();
    assert(machine.rollBack(domain, frozen));
    assert.equal(machine.read(domain, RAM_GFN + 5), 5);
    assert.equal(grants.usesOf(domain), 0);
    const header = u8.slice(0, FRAME_BYTES);
    grants.unmap(mapping);
    assert.equal(grants.usesOf(domain), 0);
    assert.deepEqual(u8.slice(0, FRAME_BYTES), header);
    machine.audit();
  }
  machine.drop(frozen);
  machine.destroy(domain);
  machine.audit();
});

test('whenever frames run out, the domain is as before and none is lost', () => {
  const machine = new Machine();
  const { heap } = machine.thread;
  const { domain } = machine.create();
  machine.write(domain, RAM_GFN, 5);
  const first = machine.freeze(domain)!;
  const taken: number[] = [];
  for (let mfn = heap.allocate(0); mfn !== 0; mfn = heap.allocate(0)) taken.push(mfn);
  const outcomes: boolean[] = [];
  const vcpuAddresses = machine.vcpuAddresses(1);
  for (let left = 0; left < 40; left++) {
    const fork = machine.fork(first, vcpuAddresses);
    if (fork !== undefined) machine.destroy(fork);
    const second = machine.freeze(domain);
    if (second !== undefined) machine.drop(second);
    heap.tearDown.finish();
    assert.equal(machine.read(domain, RAM_GFN), 5);
    outcomes.push(fork !== undefined);
    heap.release(taken.pop()!);
  }
  assert(outcomes.includes(false) && outcomes.at(-1), 'both outcomes were seen');
  for (const mfn of taken) heap.release(mfn);
  machine.drop(first);
  machine.audit();
  machine.destroy(domain);
  machine.audit();
});
