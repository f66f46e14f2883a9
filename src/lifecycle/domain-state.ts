// The small state of a stopped domain: everything but its memory. Taking it copies bytes and nothing else, because the
// guest stands still meanwhile; putting it back into a domain, the same one or a new one, is where numbers that mean
// something to one domain only (ids, addresses of vCPU records, frames, host times) are made to fit.
//
//   machine memory          DomainState              what is made to fit
//   ───────────────────────────────────────────────────────────────────────────────────────────────────────────────
//   domain record           record                   pauses and state stay the domain's own; tables and frames are new
//   ├─ vCPU entries         vcpus[].entry            address of the vCPU record, start of the present run state
//   ├─ ports                ports[]                  other ends: own id, the host's ports
//   ├─ console log          consoleLog
//   ├─ emulated devices     emulated                 locks are free; host ends say again what their devices are
//   ├─ grants in use        –                        none is: who uses grants is asked to let go before
//   └─ held frames          held[]                   found by GFN in the p2m that goes with the state
//   vCPU record, first 4K   vcpus[].registers        TLB addresses; TLBs are flushed before they are used
//   GIC_DOMAIN, GIC_VCPU    gic, vcpus[].gic         id, addresses; virtual time
//   VCPU_SCHEDULE           vcpus[].schedule         a vCPU that waits is woken: waits may end at any time

import {
  CONSOLE_LOG, DOMAIN, FIFO_PAGES_MAX, HELD_FRAME, NO_GFN, PORT, PORTS_PER_FRAME, PORT_FRAMES_MAX, VCPUS_PER_FRAME,
  VCPU_ENTRY,
} from '../abi/domain-record.ts';
import { EMULATED, EMULATED_LOCKS } from '../abi/emulated-devices.ts';
import { GIC_DOMAIN, GIC_VCPU } from '../abi/gic.ts';
import { FRAME_BYTES, P2M_KIND } from '../abi/machine-memory.ts';
import { vcpuRecord } from '../abi/vcpu.ts';
import { HVM_PARAM, WATCHDOG_TIMERS } from '../abi/xen.ts';
import { EVTCHNSTAT } from '../abi/xen-event-channel.ts';
import { assert } from '../base/assert.ts';
import type { DomainRecord } from '../hypervisor/domain-record.ts';
import { heldMfn, writeHeldFrame } from '../hypervisor/held-frames.ts';
import { getHvmParam } from '../hypervisor/hvm-params.ts';
import type { SavedSchedule } from '../hypervisor/scheduler.ts';
import type { HypervisorThread } from '../hypervisor/thread.ts';
import { entryKind, entryValue } from '../memory/p2m.ts';

/** A frame that the hypervisor held: where it was said, and what it was. */
export interface SavedHeldFrame {
  /** -1: in the domain record; otherwise in the entry of that vCPU. */
  readonly vcpuId: number;
  readonly offset: number;
  readonly gfn: number;
  /** Contents, of a frame that the guest's memory does not show; undefined: it is at `gfn`. */
  readonly bytes: Uint8Array | undefined;
}

export interface SavedVcpu {
  readonly address: number;
  readonly registers: Uint8Array;
  readonly gic: Uint8Array;
  readonly entry: Uint8Array;
  readonly schedule: SavedSchedule;
}

/** When taken from a domain, all bytes are views of one buffer: an allocation for each costs more than the copying. */
export interface DomainState {
  readonly domid: number;
  /** What the guest's counter said. */
  readonly timeNanos: number;
  /** Host time, to which run states and watchdogs refer. */
  readonly monotonicNanos: number;
  readonly record: Uint8Array;
  readonly gic: Uint8Array;
  readonly consoleLog: Uint8Array;
  /** Registers of emulated devices; undefined: the domain has none. */
  readonly emulated: Uint8Array | undefined;
  /** By number of the table's frame; undefined: the table has none there. */
  readonly ports: readonly (Uint8Array | undefined)[];
  readonly vcpus: readonly SavedVcpu[];
  readonly held: readonly SavedHeldFrame[];
}

/** Calls back for every place of a domain that holds a frame now. With the lock. */
function forEachHeld(
  record: DomainRecord, visit: (vcpuId: number, offset: number, address: number, mfn: number, gfn: number) => void,
): void {
  const { u32 } = record.memory;
  const look = (vcpuId: number, offset: number, address: number) => {
    const mfn = u32[(address + HELD_FRAME.at.mfn) / 4]!;
    if (mfn !== 0) visit(vcpuId, offset, address, mfn, u32[(address + HELD_FRAME.at.gfn) / 4]!);
  };
  const { at } = DOMAIN;
  const inRecord = (offset: number) => look(-1, offset, record.address + offset);
  for (const field of [at.sharedInfo, at.console, at.xenstore]) inRecord(field);
  const fifoPages = Math.min(record.get(at.fifoPages), FIFO_PAGES_MAX);
  for (let i = 0; i < fifoPages; i++) inRecord(at.fifoArray + i * HELD_FRAME.sizeBytes);
  const grantFrames = record.get(at.grantFrames);
  for (let i = 0; i < grantFrames; i++) inRecord(at.grants + i * HELD_FRAME.sizeBytes);
  for (let vcpuId = 0; vcpuId < record.vcpuCount; vcpuId++) {
    const entry = record.vcpuEntry(vcpuId);
    for (const field of [VCPU_ENTRY.at.info, VCPU_ENTRY.at.control]) look(vcpuId, field, entry + field);
  }
}

// ---- taking ---------------------------------------------------------------------------------------------------------

/** Of a domain that is stopped, its virtual time included; with its lock. Allocates nothing but the copies. */
export function saveDomain(thread: HypervisorThread, record: DomainRecord): DomainState {
  const { machine, gic, timers, p2m, scheduling } = thread;
  const { domid, vcpuCount } = record;
  const root = record.get(DOMAIN.at.p2mRoot);
  const held: SavedHeldFrame[] = [];
  forEachHeld(record, (vcpuId, offset, _address, mfn, gfn) => {
    const entry = gfn === NO_GFN ? 0 : p2m.lookup(root, gfn);
    const isMapped = entryKind(entry) === P2M_KIND.frame && entryValue(entry) === mfn;
    held.push({ vcpuId, offset, gfn, bytes: isMapped ? undefined : machine.frameBytes(mfn).slice() });
  });
  const portFrames = portFramesOf(record);
  const portTables = portFrames.reduce((count, mfn) => count + Number(mfn !== 0), 0);
  const all = new Uint8Array(DOMAIN.sizeBytes + GIC_DOMAIN.sizeBytes + vcpuCount * SAVED_VCPU_BYTES
    + portTables * FRAME_BYTES + CONSOLE_LOG.sizeBytes + (record.get(DOMAIN.at.emulated) === 0 ? 0 : EMULATED.sizeBytes));
  let used = 0;
  const copy = (address: number, sizeBytes: number) => {
    const bytes = all.subarray(used, used + sizeBytes);
    bytes.set(machine.u8.subarray(address, address + sizeBytes));
    used += sizeBytes;
    return bytes;
  };
  const ports = portFrames.map((mfn) => (mfn === 0 ? undefined : copy(mfn * FRAME_BYTES, FRAME_BYTES)));
  const gicDomain = gic.domainAt(domid);
  const vcpus: SavedVcpu[] = [];
  gic.lock(gicDomain);
  for (let vcpuId = 0; vcpuId < vcpuCount; vcpuId++) {
    const entry = record.vcpuEntry(vcpuId);
    const address = record.vcpuAddress(vcpuId);
    vcpus.push({
      address,
      registers: copy(address, vcpuRecord.sizeBytes),
      gic: copy(gic.vcpuAt(address), GIC_VCPU.sizeBytes),
      entry: copy(entry, VCPU_ENTRY.sizeBytes),
      schedule: scheduling.save(address),
    });
  }
  const gicBytes = copy(gicDomain, GIC_DOMAIN.sizeBytes);
  gic.unlock(gicDomain);
  return {
    domid, vcpus, held, ports, gic: gicBytes,
    timeNanos: timers.time(domid),
    monotonicNanos: thread.clock.monotonicNanos(),
    record: copy(record.address, DOMAIN.sizeBytes),
    consoleLog: copy(record.get(DOMAIN.at.consoleLog) * FRAME_BYTES, CONSOLE_LOG.sizeBytes),
    emulated: record.get(DOMAIN.at.emulated) === 0 ? undefined
      : copy(record.get(DOMAIN.at.emulated) * FRAME_BYTES, EMULATED.sizeBytes),
  };
}

const SAVED_VCPU_BYTES = vcpuRecord.sizeBytes + GIC_VCPU.sizeBytes + VCPU_ENTRY.sizeBytes;

/** Frames of the table of ports, up to the last one that there is; 0: none there. With the lock. */
function portFramesOf(record: DomainRecord): number[] {
  const { u32 } = record.memory;
  const first = (record.address + DOMAIN.at.portFrames) / 4;
  let end = first + PORT_FRAMES_MAX;
  while (end > first && u32[end - 1] === 0) end--;
  return Array.from(u32.subarray(first, end));
}

/**
 * After the domain's p2m was shared: what the hypervisor writes, and what it sees the guest write, must be frames that
 * are the domain's alone. With the lock; the caller settles the p2m afterwards.
 * @returns false when out of frames; what has been exchanged is good
 */
export function holdExclusively(thread: HypervisorThread, record: DomainRecord, state: DomainState): boolean {
  const { environment, p2m, heap } = thread;
  const root = record.get(DOMAIN.at.p2mRoot);
  return state.held.every(({ vcpuId, offset, gfn, bytes }) => {
    if (bytes !== undefined) return true;
    const address = (vcpuId < 0 ? record.address : record.vcpuEntry(vcpuId)) + offset;
    const before = heldMfn(environment, address);
    const mfn = p2m.pinForWrite(root, gfn);
    if (mfn <= 0) return false;
    writeHeldFrame(environment, address, mfn, gfn);
    heap.unpin(before);
    return true;
  });
}

// ---- putting back ---------------------------------------------------------------------------------------------------

/** Memory and tables for a state, complete, before anything of the domain that gets it is given up. */
export interface PreparedDomain {
  readonly root: number;
  readonly vcpuFrames: readonly number[];
  readonly portFrames: readonly number[];
  readonly activeFrames: readonly number[];
  readonly consoleLog: number;
  /** 0: none. */
  readonly emulated: number;
  /** Pinned, in the order of the state's `held`. */
  readonly held: readonly number[];
  /** Its channels to the host are as in the state, and stay; otherwise they wait for their other ends. */
  readonly isConnected: boolean;
}

/**
 * @param domid the account that is charged
 * @param frozenRoot the p2m that goes with the state
 * @returns undefined when out of frames; nothing is kept then
 */
export function prepareDomain(
  thread: HypervisorThread, domid: number, state: DomainState, frozenRoot: number,
): PreparedDomain | undefined {
  const { heap, p2m, machine } = thread;
  assert(!p2m.stale, 'stale translations of other domains are still to be flushed');
  const root = p2m.share(frozenRoot, domid);
  if (root === 0) return undefined;
  const frames: number[] = [];
  const held: number[] = [];
  const allocate = (): number => {
    const mfn = heap.allocate(domid, true);
    if (mfn === 0) throw OUT_OF_FRAMES;
    frames.push(mfn);
    return mfn;
  };
  const allocateEmpty = (count: number) => Array.from({ length: count }, () => {
    const mfn = allocate();
    machine.zeroFrame(mfn);
    return mfn;
  });
  try {
    for (const { gfn, bytes } of state.held) {
      let mfn: number;
      if (bytes === undefined) mfn = p2m.pinForWrite(root, gfn);
      else {
        mfn = heap.allocate(domid, true);
        if (mfn !== 0) {
          machine.u8.set(bytes, mfn * FRAME_BYTES);
          heap.frames.mappingToPin(mfn);
        }
      }
      if (mfn <= 0) throw OUT_OF_FRAMES;
      held.push(mfn);
    }
    return {
      root, held, isConnected: false,
      vcpuFrames: allocateEmpty(Math.ceil(state.vcpus.length / VCPUS_PER_FRAME)),
      portFrames: state.ports.map((bytes) => (bytes === undefined ? 0 : allocate())),
      activeFrames: allocateEmpty(savedField(state, DOMAIN.at.grantFrames)),
      consoleLog: allocate(),
      emulated: state.emulated === undefined ? 0 : allocate(),
    };
  } catch (error) {
    if (error !== OUT_OF_FRAMES) throw error;
    p2m.releaseStale();
    for (const mfn of held) heap.unpin(mfn);
    for (const mfn of frames) heap.release(mfn);
    p2m.release(root);
    return undefined;
  } finally {
    // No TLB has seen this tree.
    p2m.releaseStale();
  }
}
const OUT_OF_FRAMES = Symbol('out of frames');

/** Most pages that are put back one by one. */
const REVERTED_PAGES_MAX = 2048;
const places = new Uint32Array(2 * REVERTED_PAGES_MAX);

/** What `findDifferences` has found, in `places`: good until it is called again, or the domain's p2m changes. */
export interface Differences {
  readonly root: number;
  readonly sequence: number;
  /** -1: too many. */
  readonly count: number;
}

/** What differs in a domain's memory from a frozen one. The domain may run; if it changes, this is to be done again. */
export function findDifferences({ p2m }: HypervisorThread, record: DomainRecord, frozenRoot: number): Differences {
  const root = record.get(DOMAIN.at.p2mRoot);
  const sequence = p2m.sequence(root);
  return { root, sequence, count: p2m.differences(root, frozenRoot, places) };
}

/**
 * Puts a stopped domain's memory back in place, if its tables and held frames are where the state has them and not too
 * much is different; costs what is different and allocates nothing. The caller restores the rest, then settles the p2m.
 * Its channels to others are closed, unless they are the very ones that it had, to console and store.
 * @param found from `findDifferences`, when the domain may still have been running
 * @returns what `prepareDomain` gives, made of what the domain has; undefined: nothing was done
 */
export function revertDomain(
  thread: HypervisorThread, record: DomainRecord, state: DomainState, frozenRoot: number, found: Differences,
): PreparedDomain | undefined {
  const { p2m, machine } = thread;
  const own = tablesOf(record, state);
  if (own === undefined) return undefined;
  const { count } = p2m.isAsOf(found.root, found.sequence) ? found : findDifferences(thread, record, frozenRoot);
  if (count < 0) return undefined;
  const { u32 } = machine;
  // Pages that the hypervisor writes stay in their frames: what changes is what is in them.
  const held = new Set(own.held.filter((_, i) => state.held[i]!.bytes === undefined));
  const copies: number[] = [];
  let kept = 0;
  for (let i = 0; i < 2 * count; i += 2) {
    const entry = u32[places[i]!]!;
    const wanted = u32[places[i + 1]!]!;
    if (entryKind(entry) === P2M_KIND.frame && held.has(entryValue(entry))) {
      if (entryKind(wanted) !== P2M_KIND.frame) return undefined;
      copies.push(entryValue(entry), entryValue(wanted));
    } else {
      places[2 * kept] = places[i]!;
      places[2 * kept + 1] = places[i + 1]!;
      kept++;
    }
  }
  // One that is missing is out of the domain's sight, or not its alone.
  if (copies.length !== 2 * held.size || !p2m.applyDifferences(own.root, places, kept)) return undefined;
  const { channels } = thread.hypercalls;
  const toHost = [HVM_PARAM.STORE_EVTCHN, HVM_PARAM.CONSOLE_EVTCHN].map((param) => Number(getHvmParam(record, param)));
  const isConnected = channels.isConnectedAs(record, state.ports, toHost);
  // While the old memory is still there: closing takes back events that are on their way.
  if (!isConnected) channels.disconnect(record);
  for (let i = 0; i < copies.length; i += 2) machine.copyFrame(copies[i]!, copies[i + 1]!);
  state.held.forEach(({ bytes }, i) => { if (bytes !== undefined) machine.u8.set(bytes, own.held[i]! * FRAME_BYTES); });
  for (const mfn of own.activeFrames) machine.zeroFrame(mfn);
  return { ...own, isConnected };
}

/** What a domain has, if it has exactly what the state needs. */
function tablesOf(record: DomainRecord, state: DomainState): Omit<PreparedDomain, 'isConnected'> | undefined {
  const { at } = DOMAIN;
  const tables = (field: number, count: number) => {
    const first = (record.address + field) / 4;
    return [...record.memory.u32.subarray(first, first + count)];
  };
  const portFrames = portFramesOf(record);
  const held: number[] = [];
  let matches = portFrames.length === state.ports.length
    && portFrames.every((mfn, i) => (mfn !== 0) === (state.ports[i] !== undefined))
    && record.get(at.grantFrames) === savedField(state, at.grantFrames)
    && (record.get(at.emulated) !== 0) === (state.emulated !== undefined);
  forEachHeld(record, (vcpuId, offset, _address, mfn, gfn) => {
    const saved = state.held[held.length];
    matches &&= saved !== undefined && (saved.bytes === undefined || saved.gfn === NO_GFN)
      && saved.vcpuId === vcpuId && saved.offset === offset && saved.gfn === gfn;
    held.push(mfn);
  });
  if (!matches || held.length !== state.held.length) return undefined;
  return {
    root: record.get(at.p2mRoot), held, portFrames, consoleLog: record.get(at.consoleLog), emulated: record.get(at.emulated),
    vcpuFrames: tables(at.vcpuFrames, Math.ceil(state.vcpus.length / VCPUS_PER_FRAME)),
    activeFrames: tables(at.activeFrames, record.get(at.grantFrames)),
  };
}

function savedField(state: DomainState, offset: number): number {
  return new DataView(state.record.buffer, state.record.byteOffset).getUint32(offset, true);
}

/** Fields of the record that belong to the domain as the host has it, or that are written anew. */
const KEPT_FIELDS = ['lock', 'state', 'incarnation', 'pauseCount', 'stalled'] as const;

/**
 * Fills an empty domain (`emptyDomain`, `claimDomain`) with a prepared state. It is stopped and stays so, its virtual
 * time included; no vCPU of it has a translation or a deadline left. Its channels to others wait for their other ends, but
 * for those that stay.
 * @param handle UUID, 16 bytes
 */
export function restoreDomain(
  thread: HypervisorThread, record: DomainRecord, state: DomainState, prepared: PreparedDomain,
  vcpuAddresses: readonly number[], handle: Uint8Array,
): void {
  assert(vcpuAddresses.length === state.vcpus.length, 'a state of another number of vCPUs');
  const passedNanos = thread.clock.monotonicNanos() - state.monotonicNanos;
  record.locked(() => {
    restoreRecord(thread, record, state, prepared, handle);
    restorePorts(record, state, prepared);
    state.vcpus.forEach((saved, vcpuId) => restoreEntry(record, saved, vcpuId, vcpuAddresses[vcpuId]!, passedNanos));
    for (let id = 0; id < WATCHDOG_TIMERS; id++) {
      const field = DOMAIN.at.watchdogNanos + 8 * id;
      const due = record.getDouble(field);
      if (due !== 0) record.setDouble(field, due + passedNanos);
    }
    state.held.forEach(({ vcpuId, offset, gfn, bytes }, i) => {
      const base = vcpuId < 0 ? record.address : record.vcpuEntry(vcpuId);
      writeHeldFrame(thread.environment, base + offset, prepared.held[i]!, bytes === undefined ? gfn : NO_GFN);
    });
    restoreInterrupts(thread, record.domid, state, vcpuAddresses);
    thread.timers.setTime(record.domid, state.timeNanos);
    state.vcpus.forEach((saved, vcpuId) => {
      restoreRegisters(thread, saved, vcpuAddresses[vcpuId]!);
      thread.scheduling.restore(vcpuAddresses[vcpuId]!, saved.schedule);
    });
  });
}

function restoreRecord(
  { machine, hypercalls: { grants } }: HypervisorThread, record: DomainRecord, state: DomainState,
  prepared: PreparedDomain, handle: Uint8Array,
): void {
  const { at } = DOMAIN;
  const kept = KEPT_FIELDS.map((field) => record.get(at[field]));
  // Not the lock: others wait for it.
  machine.u8.set(state.record.subarray(at.state), record.address + at.state);
  KEPT_FIELDS.forEach((field, i) => { if (field !== 'lock') record.set(at[field], kept[i]!); });
  machine.u8.set(handle, record.address + at.handle);
  // The tables of grants in use are empty from now on.
  grants.forgetUses(record);
  record.set(at.p2mRoot, prepared.root);
  record.set(at.consoleLog, prepared.consoleLog);
  machine.u8.set(state.consoleLog, prepared.consoleLog * FRAME_BYTES);
  record.set(at.emulated, prepared.emulated);
  if (state.emulated !== undefined) {
    machine.u8.set(state.emulated, prepared.emulated * FRAME_BYTES);
    for (const lock of EMULATED_LOCKS) machine.u32[(prepared.emulated * FRAME_BYTES + lock) / 4] = 0;
  }
  prepared.vcpuFrames.forEach((mfn, i) => record.set(at.vcpuFrames + 4 * i, mfn));
  prepared.activeFrames.forEach((mfn, i) => record.set(at.activeFrames + 4 * i, mfn));
}

function restorePorts(record: DomainRecord, state: DomainState, prepared: PreparedDomain): void {
  const { u8, u32 } = record.memory;
  state.ports.forEach((bytes, i) => {
    if (bytes === undefined) return;
    const table = prepared.portFrames[i]! * FRAME_BYTES;
    u8.set(bytes, table);
    record.set(DOMAIN.at.portFrames + 4 * i, prepared.portFrames[i]!);
    for (let at = table; at < table + PORTS_PER_FRAME * PORT.sizeBytes; at += PORT.sizeBytes) {
      const portState = u8[at + PORT.at.state]!;
      if (portState !== EVTCHNSTAT.interdomain && portState !== EVTCHNSTAT.unbound) continue;
      const isOwn = u32[(at + PORT.at.remote) / 4] === state.domid;
      if (isOwn) u32[(at + PORT.at.remote) / 4] = record.domid;
      else if (!prepared.isConnected && portState === EVTCHNSTAT.interdomain) {
        u8[at + PORT.at.state] = EVTCHNSTAT.unbound;
        u32[(at + PORT.at.remotePort) / 4] = 0;
      }
    }
  });
}

function restoreEntry(
  record: DomainRecord, saved: SavedVcpu, vcpuId: number, address: number, passedNanos: number,
): void {
  const entry = record.vcpuEntry(vcpuId);
  record.memory.u8.set(saved.entry, entry);
  record.memory.u32[(entry + VCPU_ENTRY.at.address) / 4] = address;
  record.memory.f64[(entry + VCPU_ENTRY.at.runstateEntryNanos) / 8]! += passedNanos;
}

function restoreInterrupts(
  { gic, machine }: HypervisorThread, domid: number, state: DomainState, vcpuAddresses: readonly number[],
): void {
  const at = gic.domainAt(domid);
  gic.lock(at);
  machine.u8.set(state.gic.subarray(GIC_DOMAIN.at.ctlr), at + GIC_DOMAIN.at.ctlr);
  vcpuAddresses.forEach((address, index) => {
    gic.set(at + GIC_DOMAIN.at.vcpus + 4 * index, address);
    const vcpu = gic.vcpuAt(address);
    machine.u8.set(state.vcpus[index]!.gic, vcpu);
    gic.set(vcpu + GIC_VCPU.at.domid, domid);
  });
  gic.unlock(at);
}

/** The first pCPU that runs the vCPU takes it for one that another pCPU ran, and flushes its TLBs. */
function restoreRegisters({ machine }: HypervisorThread, saved: SavedVcpu, address: number): void {
  const { at } = vcpuRecord;
  const { u8, u32 } = machine;
  const field = (offset: number) => (address + offset) >>> 2;
  const flushRequest = Atomics.load(u32, field(at.tlbFlushRequest));
  u8.set(saved.registers, address);
  const moved = address - saved.address;
  for (const tlb of [at.tlbRead, at.tlbWrite, at.tlbExec]) u32[field(tlb)]! += moved;
  u32.fill(0xffff_ffff, field(at.exclusiveAddress), field(at.exclusiveAddress) + 2);
  u32[field(at.lastPcpu)] = 0;
  u32[field(at.running)] = 0;
  u32[field(at.pending)] = 0;
  u32[field(at.tlbFlushDone)] = flushRequest;
  Atomics.store(u32, field(at.tlbFlushRequest), flushRequest + 1);
}
