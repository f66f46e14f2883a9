// The small state of a domain (domain-state.ts) as sections of an image, and back. An image is a file, and a file may say
// anything: what the host would use as an index, an address or a count is checked here, once, before anything is made
// of it. What only the guest uses is the guest's business.
//
// The image says how the records of the host that wrote it are laid out; where that is not as here, they are put into
// this host's layout before they are looked at (state-layout.ts).

import { DOMAIN, EVENT_MODE, FIFO_PAGES_MAX, HELD_FRAME, NO_GFN, PORT, PORTS_PER_FRAME, PORT_FRAMES_MAX,
  PORT_LIMIT, VCPU_ENTRY } from '../abi/domain-record.ts';
import { GIC_DOMAIN, GIC_NO_TARGET, GIC_VCPU } from '../abi/gic.ts';
import { FRAME_BYTES, GFN_LIMIT } from '../abi/machine-memory.ts';
import { tlbOffsets, vcpuRecord } from '../abi/vcpu.ts';
import { NR_VIRQS } from '../abi/xen-event-channel.ts';
import { GRANT_FRAMES_MAX } from '../abi/xen-grant-table.ts';
import { RUNSTATE, vcpuInfo } from '../abi/xen-shared-info.ts';
import { GUEST_MAX_VCPUS } from '../abi/xen.ts';
import { imageError } from '../image/format.ts';
import type { StateSection } from '../image/format.ts';
import type { DomainState, SavedHeldFrame, SavedVcpu } from './domain-state.ts';
import { layoutOfVersion1 } from './old-layouts.ts';
import { UnknownField, ownLayout, ownLayoutText, parseLayout, translate, translateOffset } from './state-layout.ts';
import type { RecordName, StateLayout } from './state-layout.ts';

/** 1: without a layout. What is raised here is what names and zeros cannot say. */
const VERSION = 2;
const OLDEST_VERSION = 1;
/** FIFO control blocks are 64 bytes. */
const CONTROL_BYTES = 64;
const FIFO_PRIORITIES = 16;
const PORT_STATES = 6;

interface Summary {
  readonly version: number;
  readonly domid: number;
  readonly timeNanos: number;
  readonly monotonicNanos: number;
  /** Type hvm: it has registers of emulated devices, in which the guest may have written anything. */
  readonly isEmulated?: boolean;
  /** Numbers of the port tables that there are. */
  readonly ports: readonly number[];
  readonly vcpus: readonly { readonly address: number; readonly schedule: SavedVcpu['schedule'] }[];
  readonly held: readonly { readonly vcpuId: number; readonly offset: number; readonly gfn: number; readonly stored: boolean }[];
}

export function stateSections(state: DomainState): StateSection[] {
  const { domid, timeNanos, monotonicNanos, vcpus, held, ports, emulated } = state;
  const summary: Summary = {
    version: VERSION, domid, timeNanos, monotonicNanos,
    ...(emulated === undefined ? {} : { isEmulated: true }),
    ports: ports.flatMap((bytes, i) => (bytes === undefined ? [] : [i])),
    vcpus: vcpus.map(({ address, schedule }) => ({ address, schedule })),
    held: held.map(({ vcpuId, offset, gfn, bytes }) => ({ vcpuId, offset, gfn, stored: bytes !== undefined })),
  };
  const section = (name: string, bytes: Uint8Array): StateSection => ({ name, bytes });
  return [
    section('domain', Buffer.from(JSON.stringify(summary))),
    section('domain/layout', ownLayoutText),
    section('domain/record', state.record),
    section('domain/gic', state.gic),
    section('domain/console-log', state.consoleLog),
    ...(emulated === undefined ? [] : [section('domain/emulated', emulated)]),
    ...summary.ports.map((i) => section(`domain/ports/${i}`, ports[i]!)),
    ...vcpus.flatMap((vcpu, i) => [
      section(`domain/vcpu/${i}/registers`, vcpu.registers),
      section(`domain/vcpu/${i}/gic`, vcpu.gic),
      section(`domain/vcpu/${i}/entry`, vcpu.entry),
    ]),
    ...held.flatMap(({ bytes }, i) => (bytes === undefined ? [] : [section(`domain/held/${i}`, bytes)])),
  ];
}

/** What `decodeState` needs of an image. */
export interface SectionSource {
  readonly path: string;
  section(name: string): Uint8Array;
}

/** @throws ZazenError ZAZEN_IMAGE_FORMAT, ZAZEN_IMAGE_VERSION */
export function decodeState(image: SectionSource): DomainState {
  const check: (holds: boolean, what: string) => asserts holds = (holds, what) => {
    if (!holds) throw imageError('FORMAT', image.path, `has a state that no guest can be in: ${what}`);
  };
  const summary = parseSummary(image, check);
  const layout = layoutIn(image, summary.version, check);
  const bytes = (name: string, sizeBytes: number): Uint8Array => {
    const section = image.section(name);
    check(section.length === sizeBytes, `${name} has ${section.length} bytes`);
    return section.slice();
  };
  const records = (name: string, record: RecordName, count = 1): Uint8Array => {
    const section = bytes(name, count * layout[record].bytes);
    if (layout === ownLayout) return section;
    try {
      return translate(section, layout[record], ownLayout[record]);
    } catch (error) {
      if (!(error instanceof UnknownField)) throw error;
      throw imageError('VERSION', image.path, `has something in ${name} that this host does not know: ${error.message}`,
        { hint: 'restore it with the Zazen that wrote it' });
    }
  };
  const vcpuCount = summary.vcpus.length;
  const vcpus = summary.vcpus.map(({ address, schedule }, i): SavedVcpu => {
    const vcpu = {
      address, schedule,
      registers: records(`domain/vcpu/${i}/registers`, 'vcpu'),
      gic: records(`domain/vcpu/${i}/gic`, 'gicVcpu'),
      entry: records(`domain/vcpu/${i}/entry`, 'vcpuEntry'),
    };
    checkVcpu(vcpu, i, check);
    return vcpu;
  });
  const ports: (Uint8Array | undefined)[] = [];
  for (const i of summary.ports) {
    ports[i] = records(`domain/ports/${i}`, 'port', PORTS_PER_FRAME);
    checkPorts(ports[i], vcpuCount, check);
  }
  const record = records('domain/record', 'domain');
  checkRecord(record, vcpuCount, check);
  const gic = records('domain/gic', 'gicDomain');
  check(word(gic, GIC_DOMAIN.at.vcpuCount) === vcpuCount, 'the interrupt controller has other vCPUs');
  check(gic.subarray(GIC_DOMAIN.at.target, GIC_DOMAIN.at.vcpus)
    .every((target, i) => i >= GIC_DOMAIN.at.vcpus - GIC_DOMAIN.at.target || target < vcpuCount || target === GIC_NO_TARGET),
  'an interrupt goes to no vCPU');
  const held = summary.held.map(({ vcpuId, offset: savedOffset, gfn, stored }, i): SavedHeldFrame => {
    const place = vcpuId < 0 ? 'domain' : 'vcpuEntry';
    const offset = translateOffset(savedOffset, layout[place], ownLayout[place]) ?? -1;
    check(isHeldPlace(vcpuId, offset, vcpuCount, record) && (gfn === NO_GFN ? stored : gfn < GFN_LIMIT), 'a page of the hypervisor');
    return { vcpuId, offset, gfn, bytes: stored ? bytes(`domain/held/${i}`, FRAME_BYTES) : undefined };
  });
  const places = new Set(held.map(({ vcpuId, offset }) => `${vcpuId} ${offset}`));
  check(places.size === held.length, 'two pages of the hypervisor in one place');
  for (const field of [DOMAIN.at.sharedInfo, DOMAIN.at.console, DOMAIN.at.xenstore]) check(places.has(`-1 ${field}`), 'a page is missing');
  const { domid, timeNanos, monotonicNanos } = summary;
  return {
    domid, timeNanos, monotonicNanos, record, gic, ports, vcpus, held,
    consoleLog: records('domain/console-log', 'consoleLog'),
    emulated: summary.isEmulated === true ? records('domain/emulated', 'emulated') : undefined,
  };
}

type Check = (holds: boolean, what: string) => asserts holds;

function layoutIn(image: SectionSource, version: number, check: Check): StateLayout {
  if (version === OLDEST_VERSION) return layoutOfVersion1(image.section('domain/record').length);
  const text = image.section('domain/layout');
  if (Buffer.compare(text, ownLayoutText) === 0) return ownLayout;
  const layout = parseLayout(text);
  check(layout !== undefined, 'its layout');
  return layout;
}

function parseSummary(image: SectionSource, check: Check): Summary {
  let summary: Partial<Summary>;
  try {
    summary = JSON.parse(Buffer.from(image.section('domain')).toString()) as Partial<Summary>;
  } catch (cause) {
    throw imageError('FORMAT', image.path, 'has a state that cannot be read', { cause });
  }
  const { version = 0 } = summary;
  if (!Number.isInteger(version) || version < OLDEST_VERSION || version > VERSION) {
    throw imageError('VERSION', image.path,
      `has a state of version ${String(version)}, this host knows ${OLDEST_VERSION} to ${VERSION}`);
  }
  const { ports, vcpus, held, domid, timeNanos, monotonicNanos } = summary;
  const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
  check(isCount(domid) && [timeNanos, monotonicNanos].every((time) => Number.isFinite(time)), 'its times');
  check(Array.isArray(vcpus) && vcpus.length >= 1 && vcpus.length <= GUEST_MAX_VCPUS, 'its number of vCPUs');
  check(vcpus.every((vcpu) => isCount(vcpu?.address)
    && [vcpu.schedule?.isOnline, vcpu.schedule?.wasStarted, vcpu.schedule?.goesOffline].every((flag) => typeof flag === 'boolean')),
  'its vCPUs');
  check(Array.isArray(ports) && ports.every((i, at) => isCount(i) && i < PORT_FRAMES_MAX && (at === 0 || i > ports[at - 1]!)), 'its ports');
  check(Array.isArray(held) && held.length <= FIFO_PAGES_MAX + GRANT_FRAMES_MAX + 3 + 2 * vcpus.length
    && held.every((frame) => Number.isSafeInteger(frame?.vcpuId) && isCount(frame.offset) && isCount(frame.gfn)
      && typeof frame.stored === 'boolean'), 'its pages');
  return summary as Summary;
}

const word = (bytes: Uint8Array, offset: number): number =>
  new DataView(bytes.buffer, bytes.byteOffset, bytes.length).getUint32(offset, true);

function checkRecord(record: Uint8Array, vcpuCount: number, check: Check): void {
  const { at } = DOMAIN;
  check(word(record, at.vcpuCount) === vcpuCount, 'the record has other vCPUs');
  check(word(record, at.grantFrames) <= GRANT_FRAMES_MAX && word(record, at.fifoPages) <= FIFO_PAGES_MAX, 'its tables');
  const mode = word(record, at.eventMode);
  check(mode === EVENT_MODE.twoLevel || mode === EVENT_MODE.fifo, 'its event channels');
  check(word(record, at.portHint) <= PORT_LIMIT, 'its ports');
}

/** Emitted code reaches through the TLB addresses, which are made to fit, and starts at the record if there is one. */
function checkVcpu({ address, registers, gic, entry }: SavedVcpu, index: number, check: Check): void {
  const { at } = vcpuRecord;
  const el = word(registers, at.el);
  check((el === 0 || el === 1) && word(registers, at.spSel) <= 1, 'its exception level');
  const tlb = tlbOffsets[el as 0 | 1];
  const view = new DataView(registers.buffer, registers.byteOffset, registers.length);
  view.setUint32(at.tlbRead, address + tlb.read, true);
  view.setUint32(at.tlbWrite, address + tlb.write, true);
  view.setUint32(at.tlbExec, address + tlb.exec, true);
  check(word(registers, at.record) === 0, 'a vCPU in the middle of its code');
  check(word(gic, GIC_VCPU.at.index) === index, 'the order of its vCPUs');
  check(word(entry, VCPU_ENTRY.at.infoOffset) <= FRAME_BYTES - vcpuInfo.sizeBytes && word(entry, VCPU_ENTRY.at.infoOffset) % 4 === 0
    && word(entry, VCPU_ENTRY.at.controlOffset) <= FRAME_BYTES - CONTROL_BYTES && word(entry, VCPU_ENTRY.at.controlOffset) % 4 === 0,
  'what its vCPUs share');
  check(word(entry, VCPU_ENTRY.at.runstate) < Object.keys(RUNSTATE).length, 'the run state of a vCPU');
  for (let virq = 0; virq < NR_VIRQS; virq++) check(word(entry, VCPU_ENTRY.at.virqPorts + 4 * virq) < PORT_LIMIT, 'a VIRQ');
}

function checkPorts(table: Uint8Array, vcpuCount: number, check: Check): void {
  const view = new DataView(table.buffer, table.byteOffset, table.length);
  for (let port = 0; port < PORTS_PER_FRAME; port++) {
    const at = port * PORT.sizeBytes;
    check(table[at + PORT.at.state]! < PORT_STATES && table[at + PORT.at.priority]! < FIFO_PRIORITIES
      && table[at + PORT.at.linkedPriority]! < FIFO_PRIORITIES && view.getUint16(at + PORT.at.vcpu, true) < vcpuCount
      && view.getUint16(at + PORT.at.linkedVcpu, true) < vcpuCount && view.getUint32(at + PORT.at.remotePort, true) < PORT_LIMIT,
    'an event channel');
  }
}

/** The places that domain-state.ts looks at, and no others. */
function isHeldPlace(vcpuId: number, offset: number, vcpuCount: number, record: Uint8Array): boolean {
  const { at } = DOMAIN;
  if (vcpuId !== -1) {
    return vcpuId >= 0 && vcpuId < vcpuCount && (offset === VCPU_ENTRY.at.info || offset === VCPU_ENTRY.at.control);
  }
  if (offset === at.sharedInfo || offset === at.console || offset === at.xenstore) return true;
  const isElement = (first: number, count: number): boolean =>
    offset >= first && offset < first + count * HELD_FRAME.sizeBytes && (offset - first) % HELD_FRAME.sizeBytes === 0;
  return isElement(at.fifoArray, word(record, at.fifoPages)) || isElement(at.grants, word(record, at.grantFrames));
}
