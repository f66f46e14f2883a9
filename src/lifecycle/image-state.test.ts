// A domain's small state in an image: as this host writes it, as one with other records would have, and as hosts wrote
// it before images said how their records are laid out.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { DOMAIN, EVENT_MODE, NO_GFN, VCPU_ENTRY } from '../abi/domain-record.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { VCPU_BYTES, tlbOffsets, vcpuRecord } from '../abi/vcpu.ts';
import { ZazenError } from '../base/errors.ts';
import { GUEST_CONSOLE_GFN, GUEST_RAM0_BASE, HVM_PARAM } from '../abi/xen.ts';
import { DomainBuilder } from '../hypervisor/domain.ts';
import { HypervisorThread, MAIN_THREAD } from '../hypervisor/thread.ts';
import { Heap } from '../memory/heap.ts';
import { MachineMemory } from '../memory/machine-memory.ts';
import { freezeDomain } from './checkpoint.ts';
import { forkDomain } from './fork.ts';
import { decodeState, stateSections } from './image-state.ts';
import { ownLayout } from './state-layout.ts';
import type { FieldLayout, RecordLayout, RecordName, StateLayout } from './state-layout.ts';

const RAM_PAGES = 64;
const HANDLE = new Uint8Array(16).fill(7);

function setUp(hasEmulatedDevices = false) {
  const machine = MachineMemory.create({
    sizeBytes: 16 * 2 ** 20, domainCount: 8, domainStrideBytes: 8192, vcpuCount: 16, vcpuStrideBytes: VCPU_BYTES, codeBytes: 0,
  });
  Heap.initialize(machine);
  const thread = new HypervisorThread(machine, MAIN_THREAD, { monotonicNanos: () => 1e9, wallMillis: () => 0 });
  const { channels, grants } = thread.hypercalls;
  const builder = new DomainBuilder(thread.environment, channels, grants);
  assert(builder.initializeHost());
  const vcpuAddresses = [machine.vcpuAddress(0), machine.vcpuAddress(1)];
  const { domain } = builder.createDomain({ vcpuAddresses, handle: HANDLE, maxPages: RAM_PAGES, hasEmulatedDevices })!;
  assert(builder.addRam(domain, GUEST_RAM0_BASE / FRAME_BYTES, RAM_PAGES));
  thread.gic.resetDomain(domain.domid, vcpuAddresses);
  for (const address of vcpuAddresses) thread.scheduling.attach(address);
  thread.timers.setTime(domain.domid, 123_456);
  thread.timers.stopTime(domain.domid);
  for (const address of vcpuAddresses) {
    thread.scheduling.start(address, () => thread.resetVcpu(address, 0x4008_0000n, 0n));
  }
  const frozen = freezeDomain(thread, domain);
  assert(typeof frozen === 'object');
  return { thread, builder, machine, frozen };
}

type Sections = Map<string, Uint8Array>;
const sourceOf = (sections: Sections) => ({
  path: 'x.core',
  section: (name: string): Uint8Array => sections.get(name) ?? assert.fail(`no section ${name}`),
});
const sectionsOf = (state: Parameters<typeof stateSections>[0]): Sections =>
  new Map(stateSections(state).map(({ name, bytes }) => [name, bytes]));
const json = (value: unknown): Uint8Array => Buffer.from(JSON.stringify(value));
const parsed = (bytes: Uint8Array | undefined) => JSON.parse(Buffer.from(bytes!).toString());

test('a state comes back as it was', () => {
  for (const hasEmulatedDevices of [false, true]) {
    const { state } = setUp(hasEmulatedDevices).frozen;
    assert.deepEqual(decodeState(sourceOf(sectionsOf(state))), state);
  }
});

// ---- records that are laid out otherwise

/** Fields in another order, with gaps. `lengthen` adds elements to arrays. */
function relayout({ fields }: RecordLayout, seed: number[], lengthen: number): RecordLayout {
  const random = (i: number): number => seed[i % seed.length]!;
  let end = 0;
  const moved = Object.entries(fields).toSorted(([a], [b]) => random(a.length) - random(b.length))
    .map(([name, [, bytes, count, element]], i): [string, FieldLayout] => {
      const at = end + random(i);
      const elements = count === 1 ? 1 : count + lengthen;
      const inner = element && relayout(element, seed, 0);
      const size = inner?.bytes ?? bytes;
      end = at + size * elements;
      return [name, inner === undefined ? [at, size, elements] : [at, size, elements, inner]];
    });
  return { bytes: end + 3, fields: Object.fromEntries(moved) };
}

/** The record as a host with the other layout would have it. */
function rewrite(bytes: Uint8Array, own: RecordLayout, other: RecordLayout): Uint8Array {
  const records = bytes.length / own.bytes;
  const out = new Uint8Array(records * other.bytes);
  for (let i = 0; i < records; i++) {
    for (const [name, [at, size, count, inner]] of Object.entries(own.fields)) {
      const [otherAt, otherSize, , otherInner] = other.fields[name]!;
      for (let k = 0; k < count; k++) {
        const element = bytes.subarray(i * own.bytes + at + k * size, i * own.bytes + at + (k + 1) * size);
        out.set(inner && otherInner ? rewrite(element, inner, otherInner) : element, i * other.bytes + otherAt + k * otherSize);
      }
    }
  }
  return out;
}

const recordOfSection = (name: string): RecordName | undefined => {
  if (name === 'domain/record') return 'domain';
  if (name === 'domain/gic') return 'gicDomain';
  if (name === 'domain/console-log') return 'consoleLog';
  if (name === 'domain/emulated') return 'emulated';
  if (name.startsWith('domain/ports/')) return 'port';
  const part = /^domain\/vcpu\/\d+\/(\w+)$/.exec(name)?.[1];
  return ({ registers: 'vcpu', gic: 'gicVcpu', entry: 'vcpuEntry' } as const)[part as 'gic'];
};

function inLayout(sections: Sections, layout: StateLayout): Sections {
  const out: Sections = new Map();
  for (const [name, bytes] of sections) {
    const record = recordOfSection(name);
    out.set(name, record === undefined ? bytes : rewrite(bytes, ownLayout[record], layout[record]));
  }
  const summary = parsed(sections.get('domain'));
  for (const held of summary.held) {
    const place = held.vcpuId < 0 ? 'domain' : 'vcpuEntry';
    const [name, [at, size]] = Object.entries(ownLayout[place].fields)
      .find(([, [first, bytes, count]]) => held.offset >= first && held.offset < first + bytes * count)!;
    const [otherAt, otherSize] = layout[place].fields[name]!;
    held.offset = otherAt + (held.offset - at) / size * otherSize;
  }
  out.set('domain', json(summary));
  out.set('domain/layout', json(layout));
  return out;
}

test('a state from a host with other records: fields are found by their names', () => {
  const { state } = setUp(true).frozen;
  const sections = sectionsOf(state);
  fc.assert(fc.property(fc.array(fc.nat(20), { minLength: 3, maxLength: 9 }), fc.nat(3), (seed, lengthen) => {
    const layout = Object.fromEntries(Object.entries(ownLayout)
      .map(([name, record]) => [name, relayout(record, seed, name === 'port' ? 0 : lengthen)])) as StateLayout;
    assert.deepEqual(decodeState(sourceOf(inLayout(sections, layout))), state);
  }), { numRuns: 30 });
});

test('fields that only one of two hosts has', () => {
  const { state } = setUp().frozen;
  const sections = sectionsOf(state);
  const { handle, ...fewer } = ownLayout.domain.fields;
  const withDomain = (domain: unknown): Sections => new Map([...sections, ['domain/layout', json({ ...ownLayout, domain })]]);
  const without = decodeState(sourceOf(withDomain({ ...ownLayout.domain, fields: fewer })));
  const [at, , count] = handle!;
  const expected = state.record.slice();
  expected.fill(0, at, at + count);
  assert.deepEqual(without, { ...state, record: expected }, 'what the image does not have is zero');

  const more = { ...ownLayout.domain.fields, future: [at, 1, 1] };
  const withMore = (record: Uint8Array) => () =>
    decodeState(sourceOf(withDomain({ ...ownLayout.domain, fields: more }).set('domain/record', record)));
  assert.throws(withMore(state.record), { code: 'ZAZEN_IMAGE_VERSION', message: /something in domain\/record .*: future/ });
  const record = state.record.slice();
  record[at] = 0;
  assert.deepEqual(withMore(record)().record, record, 'zero says nothing that this host would have to know');

  const narrow = { ...ownLayout.domain.fields, portFrames: [ownLayout.domain.fields['portFrames']![0], 2, 64] };
  assert.equal(decodeState(sourceOf(withDomain({ ...ownLayout.domain, fields: narrow }))).vcpus.length, 2);
});

test('layouts and versions that make no sense are refused', () => {
  const sections = sectionsOf(setUp().frozen.state);
  const refused = (changes: Record<string, Uint8Array>, code: string): void => {
    const altered = new Map([...sections, ...Object.entries(changes)]);
    assert.throws(() => decodeState(sourceOf(altered)), { code: `ZAZEN_IMAGE_${code}` });
  };
  const domain = (change: unknown): Uint8Array => json({ ...ownLayout, domain: change });
  const { bytes, fields } = ownLayout.domain;
  const deep = (depth: number): unknown => ({ bytes: 8, fields: depth === 0 ? {} : { a: [0, 8, 1, deep(depth - 1)] } });
  const bad = [
    Buffer.from('{'), json(null), json([]), json({}), domain(undefined), domain(null), domain({ bytes }),
    domain({ bytes: -1, fields }), domain({ bytes: 2 ** 40, fields }), domain(deep(20)),
    ...[[0, 4], [bytes, 4, 1], [0, 4, 1e15], [0, 0, 2 ** 40], [0.5, 4, 1], [0, 4, 1, { bytes: 8, fields: {} }]]
      .map((lock) => domain({ bytes, fields: { lock } })),
  ];
  for (const layout of bad) refused({ 'domain/layout': layout }, 'FORMAT');
  // A layout that fits itself, and nothing else.
  refused({ 'domain/layout': domain({ bytes: bytes + 8, fields }) }, 'FORMAT');
  refused({ 'domain/layout': domain({ bytes, fields: {} }) }, 'FORMAT');
  for (const version of [0, 3, 1.5, '2', null]) {
    refused({ domain: json({ ...parsed(sections.get('domain')), version }) }, 'VERSION');
  }
});

test('altered layouts give a state that was checked, or a typed error', () => {
  const sections = sectionsOf(setUp(true).frozen.state);
  const text = Buffer.from(sections.get('domain/layout')!).toString();
  const numbers = [...text.matchAll(/\d+/g)];
  const changes = fc.array(fc.tuple(fc.nat(numbers.length - 1), fc.oneof(fc.nat(5000), fc.constantFrom(-1, 2 ** 32, 2 ** 53))),
    { minLength: 1, maxLength: 4 });
  fc.assert(fc.property(changes, (list) => {
    let altered = text;
    for (const [i, value] of list.toSorted(([a], [b]) => b - a)) {
      const { index, 0: { length } } = numbers[i]!;
      altered = altered.slice(0, index) + String(value) + altered.slice(index + length);
    }
    try {
      decodeState(sourceOf(new Map([...sections, ['domain/layout', Buffer.from(altered)]])));
    } catch (error) {
      assert(error instanceof ZazenError, String(error));
    }
  }), { numRuns: 200 });
});

// ---- version 1

/** As hosts wrote it that knew no emulated devices: sections by name and length, words that are not zero by offset. */
const OLD = `
domain/record 1664 0:1 4:2 8:1*2 28:180 32:40*2 40:4003f 44:7070707*4 60:1 68:181 132:17c 136:ffffffff 140:17b 144:39000
  148:178 152:39001 156:17f 172:3 180:177 564:1 568:17d 572:ffffffff 1080:17e 1336:21f 1340:2000000 1344:39001 1352:1
  1472:39000 1480:2 1648:20000000 1652:41f2a05f
domain/gic 2240 0:1 4:50 8:1 1708:60000 2224:e0000000 2228:41cdcc73 2236:41cdcd65
domain/console-log 2052
domain/ports/0 4096 16:702 28:1 32:702 44:2
domain/vcpu/0/registers 4096 0:48000000 856:1 880:40080000 904:67000 908:69000 912:6b000 916:1 924:1*2 932:3c0
  1024:ffffffff*2 1744:80000000
domain/vcpu/0/gic 128 0:1 8:6 28:ffff 68:2 72:3
domain/vcpu/0/entry 512 0:60000 192:3 204:41cdcd65
domain/held/0 4096
domain/held/3 4096`;
const OLD_SUMMARY = {
  version: 1, domid: 1, timeNanos: 123_456, monotonicNanos: 1e9, ports: [0],
  vcpus: [{ address: 393_216, schedule: { isOnline: true, wasStarted: true, goesOffline: false } }],
  held: [
    { vcpuId: -1, offset: 132, gfn: NO_GFN, stored: true }, { vcpuId: -1, offset: 140, gfn: 233_472, stored: false },
    { vcpuId: -1, offset: 148, gfn: 233_473, stored: false }, { vcpuId: -1, offset: 568, gfn: NO_GFN, stored: true },
  ],
};

function oldSections(): Sections {
  const sections: Sections = new Map([['domain', json(OLD_SUMMARY)]]);
  for (const entry of OLD.trim().split(/\n(?! )/)) {
    const [name, length, ...words] = entry.split(/\s+/);
    const bytes = new Uint8Array(Number(length));
    const view = new DataView(bytes.buffer);
    for (const word of words) {
      const [, at, value, count = 1] = /^(\d+):([0-9a-f]+)(?:\*(\d+))?$/.exec(word)!;
      for (let i = 0; i < Number(count); i++) view.setUint32(Number(at) + 4 * i, Number.parseInt(value!, 16), true);
    }
    sections.set(name!, bytes);
  }
  return sections;
}

test('a state of version 1, from before there were emulated devices, is read and becomes a domain', () => {
  const state = decodeState(sourceOf(oldSections()));
  const field = (bytes: Uint8Array, at: number): number => new DataView(bytes.buffer, bytes.byteOffset).getUint32(at, true);
  const { at } = DOMAIN;
  assert.equal(state.record.length, DOMAIN.sizeBytes);
  assert.equal(state.emulated, undefined);
  assert.deepEqual(
    [at.vcpuCount, at.emulated, at.eventMode, at.portHint, at.fifoPages, at.grantFrames, at.maxPages]
      .map((place) => field(state.record, place)),
    [1, 0, EVENT_MODE.twoLevel, 3, 0, 1, RAM_PAGES]);
  assert.deepEqual(state.held.map(({ offset, gfn, bytes }) => [offset, gfn, bytes?.length]), [
    [at.sharedInfo, NO_GFN, FRAME_BYTES], [at.console, GUEST_CONSOLE_GFN, undefined],
    [at.xenstore, GUEST_CONSOLE_GFN + 1, undefined], [at.grants, NO_GFN, FRAME_BYTES],
  ]);
  const [vcpu] = state.vcpus;
  assert.deepEqual([vcpuRecord.at.pcBase, vcpuRecord.at.x, vcpuRecord.at.el].map((place) => field(vcpu!.registers, place)),
    [0x4008_0000, 0x4800_0000, 1]);
  assert.equal(field(vcpu!.registers, vcpuRecord.at.tlbExec), vcpu!.address + tlbOffsets[1].exec);
  assert.equal(field(vcpu!.entry, VCPU_ENTRY.at.awaitsResume), 0);

  const { thread, builder, machine, frozen } = setUp();
  const fork = forkDomain(thread, builder, { state, root: frozen.root }, [machine.vcpuAddress(5)], HANDLE)!;
  assert.equal(fork.vcpuCount, 1);
  assert(thread.scheduling.shares.get(fork.domid).weight > 0, 'it has the usual share of the pCPUs');
  assert.deepEqual([fork.get(at.portHint), fork.get(at.grantFrames)], [3, 1]);
  assert.equal(Number(machine.u64[(fork.address + at.hvmParams) / 8 + HVM_PARAM.CONSOLE_EVTCHN]), 2);
  assert.equal(fork.getDouble(at.watchdogNanos), 5e9);
  assert.equal(thread.timers.time(fork.domid), 123_456);
});

test('a version 1 of the last host before layouts is told apart by the length of its record', () => {
  const sections = oldSections();
  const record = sections.get('domain/record')!;
  // Four bytes for `emulated`, and four more for the alignment of what comes behind the tables.
  const later = new Uint8Array(1672);
  later.set(record.subarray(0, 160));
  later.set(record.subarray(160, 1336), 164);
  later.set(record.subarray(1336), 1344);
  const summary = structuredClone(OLD_SUMMARY);
  summary.held[3]!.offset += 4;
  const state = decodeState(sourceOf(new Map([...sections, ['domain/record', later], ['domain', json(summary)]])));
  assert.deepEqual(state, decodeState(sourceOf(sections)));
  sections.set('domain/record', record.subarray(4));
  assert.throws(() => decodeState(sourceOf(sections)), { code: 'ZAZEN_IMAGE_FORMAT' });
});
