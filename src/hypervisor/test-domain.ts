// What the tests of this room share: a small machine, guests without a CPU whose virtual addresses are their physical
// ones, and records of what the hypervisor asked of interrupt controller, scheduler and TLBs.

import assert from 'node:assert/strict';
import { DOMAIN, DOMAIN_STATE } from '../abi/domain-record.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { VCPU_BYTES, xOffset } from '../abi/vcpu.ts';
import { GUEST_RAM0_BASE } from '../abi/xen.ts';
import type { Struct } from '../abi/struct.ts';
import { VcpuState } from '../cpu/vcpu-state.ts';
import { audit } from '../memory/audit.ts';
import { Heap } from '../memory/heap.ts';
import { MachineMemory } from '../memory/machine-memory.ts';
import { P2m } from '../memory/p2m.ts';
import { DomainBuilder } from './domain.ts';
import type { NewDomain } from './domain.ts';
import type { Environment, GuestAccess } from './environment.ts';
import { notifyHostOf } from './event-delivery.ts';
import { GuestStruct } from './guest-struct.ts';
import type { Caller } from './guest-struct.ts';
import { HostPorts } from './host-ports.ts';
import { Hypercalls } from './hypercalls.ts';

export const RAM_GFN = GUEST_RAM0_BASE / FRAME_BYTES;
export const RAM_PAGES = 512;
/** Guest addresses that the tests put arguments and shared pages at. */
export const ARGS = BigInt(GUEST_RAM0_BASE);
export const page = (index: number): number => RAM_GFN + index;

export class TestGuest {
  readonly domid: number;
  readonly callers: readonly Caller[];
  readonly made: NewDomain;
  readonly #machine: TestMachine;

  constructor(machine: TestMachine, made: NewDomain) {
    this.#machine = machine;
    this.made = made;
    this.domid = made.domain.domid;
    this.callers = Array.from({ length: made.domain.vcpuCount }, (_, vcpuId) => ({
      vcpuId, domain: made.domain, vcpu: new VcpuState(machine.memory, made.domain.vcpuAddress(vcpuId)),
    }));
  }

  /** A hypercall with these arguments in registers. @returns x0 */
  call(number: number, ...args: (number | bigint)[]): number {
    return this.callOn(0, number, ...args);
  }

  callOn(vcpuId: number, number: number, ...args: (number | bigint)[]): number {
    const caller = this.callers[vcpuId]!;
    this.#machine.mustRetry = false;
    caller.vcpu.setX(16, BigInt(number));
    for (const [i, arg] of args.entries()) caller.vcpu.set64(xOffset(i), BigInt.asUintN(64, BigInt(arg)));
    this.#machine.hypercalls.serve(caller);
    return Number(BigInt.asIntN(64, caller.vcpu.x(0)));
  }

  /** A hypercall `number(command, &structure)` whose fields are all u16, u32 or u64 by their distance. */
  op<K extends string>(
    number: number, command: number, type: Struct<K>, fields: Partial<Record<K, number | bigint>>,
  ): { result: number; out: GuestStruct } {
    this.write(ARGS, encode(type, fields));
    const result = this.call(number, command, ARGS);
    return { result, out: new GuestStruct(this.read(ARGS, type.sizeBytes)) };
  }

  write(va: bigint, bytes: Uint8Array): void {
    assert(this.#machine.access.copyToGuest(this.callers[0]!.vcpu, va, bytes));
  }

  read(va: bigint, sizeBytes: number): Uint8Array {
    const bytes = this.#machine.access.copyFromGuest(this.callers[0]!.vcpu, va, sizeBytes);
    assert(bytes);
    return bytes;
  }

  /** Index in u32 of a byte offset in a page of the guest's, as the guest would write to it. */
  word(gfn: number, offset = 0): number {
    const mfn = this.#machine.p2m.frameForWrite(this.made.domain.get(DOMAIN.at.p2mRoot), gfn);
    assert(mfn > 0);
    this.#machine.flushes.length = 0;
    this.#machine.p2m.releaseStale();
    return (mfn * FRAME_BYTES + offset) / 4;
  }
}

export function encode<K extends string>(type: Struct<K>, fields: Partial<Record<K, number | bigint>>): Uint8Array {
  const structure = GuestStruct.blank(type);
  const offsets = Object.values<number>(type.at);
  for (const [name, value] of Object.entries(fields) as [K, number | bigint][]) {
    const offset = type.at[name];
    const next = Math.min(type.sizeBytes, ...offsets.filter((other) => other > offset));
    if (next - offset >= 8 && offset % 8 === 0) structure.set64(offset, BigInt(value));
    else if (next - offset >= 4) structure.set32(offset, Number(value));
    else structure.set16(offset, Number(value));
  }
  return structure.bytes(0, type.sizeBytes);
}

export class TestMachine {
  readonly memory: MachineMemory;
  readonly heap: Heap;
  readonly p2m: P2m;
  readonly access: GuestAccess;
  readonly environment: Environment;
  readonly hypercalls: Hypercalls;
  readonly builder: DomainBuilder;
  readonly ports: HostPorts;
  nowNanos = 1_000_000;
  /** Guest frames that a hypercall cannot have now, or not for writing, and whether one has to be made again for it. */
  readonly missing = new Map<number, 'all' | 'for writing'>();
  mustRetry = false;
  /** Interrupt levels by "vCPU address:INTID". */
  readonly levels = new Map<string, boolean>();
  readonly woken: number[] = [];
  readonly blocked: { address: number; deadline: number | undefined }[] = [];
  readonly flushes: number[] = [];
  readonly changedDomains: number[] = [];
  #vcpus = 0;

  constructor(sizeBytes = 8 * 1024 * 1024) {
    this.memory = MachineMemory.create({
      sizeBytes, domainCount: 8, domainStrideBytes: 8192, vcpuCount: 16, vcpuStrideBytes: VCPU_BYTES, codeBytes: 0,
    });
    Heap.initialize(this.memory);
    this.heap = new Heap(this.memory, 0);
    this.p2m = new P2m(this.heap);
    this.access = this.#flatAccess();
    this.environment = {
      memory: this.memory,
      heap: this.heap,
      p2m: this.p2m,
      guest: this.access,
      clock: { monotonicNanos: () => this.nowNanos, wallMillis: () => 0 },
      interrupts: { setInterruptLevel: (address, intid, level) => { this.levels.set(`${address}:${intid}`, level); } },
      scheduler: {
        wake: (address) => { this.woken.push(address); },
        block: (address, deadline) => { this.blocked.push({ address, deadline }); },
        yield: () => undefined,
        isOnline: () => true,
        setOnline: () => true,
        pauseChanged: () => undefined,
        shutDown: (domid) => notifyHostOf(this.hypercalls.domains.record(0), domid),
      },
      stage2: {
        flush: (domid) => {
          const record = this.hypercalls.domains.record(domid);
          assert.equal(record.get(DOMAIN.at.lock), 0, 'TLBs flushed with the lock of the domain held');
          this.flushes.push(domid);
        },
      },
    };
    this.hypercalls = new Hypercalls(this.environment);
    this.builder = new DomainBuilder(this.environment, this.hypercalls.channels, this.hypercalls.grants);
    assert(this.builder.initializeHost());
    this.ports = new HostPorts(this.hypercalls.channels, (domid) => this.changedDomains.push(domid));
  }

  createGuest(vcpus = 1, ramPages = RAM_PAGES): TestGuest {
    const vcpuAddresses = Array.from({ length: vcpus }, () => this.memory.vcpuAddress(this.#vcpus++ % 16));
    const handle = new Uint8Array(16).fill(0x5a);
    const made = this.builder.createDomain({ vcpuAddresses, handle, maxPages: ramPages });
    assert(made);
    assert(this.builder.addRam(made.domain, RAM_GFN, ramPages));
    return new TestGuest(this, made);
  }

  destroy(guest: TestGuest): void {
    this.p2m.release(this.builder.destroyDomain(guest.made.domain));
    this.heap.tearDown.finish();
    this.builder.forgetDomain(guest.made.domain);
  }

  level(guest: TestGuest, vcpuId = 0): boolean {
    return this.levels.get(`${guest.made.domain.vcpuAddress(vcpuId)}:31`) ?? false;
  }

  /** Every frame is accounted for. @param roots of trees that are no domain's */
  audit(roots: readonly number[] = []): void {
    const claims = Array.from({ length: 8 }, (_, domid) => this.hypercalls.domains.record(domid))
      .filter((record) => record.get(DOMAIN.at.state) !== DOMAIN_STATE.free)
      .map((record) => this.builder.claims(record));
    const report = audit(this.heap, {
      roots: [...claims.flatMap((claim) => [...claim.roots]), ...roots],
      held: claims.flatMap((claim) => [...claim.held]),
      pins: claims.flatMap((claim) => [...claim.pins]),
      readClean: true,
    });
    assert.deepEqual(report.problems, []);
  }

  #flatAccess(): GuestAccess {
    const inPages = (vcpu: VcpuState, va: bigint, sizeBytes: number, isWriting: boolean, isRepeatable: boolean,
      visit: (host: number, at: number, count: number) => void): boolean => {
      const record = [1, 2, 3, 4, 5, 6, 7].map((domid) => this.hypercalls.domains.record(domid)).find((candidate) =>
        Array.from({ length: candidate.vcpuCount }, (_, id) => candidate.vcpuAddress(id)).includes(vcpu.address));
      if (record === undefined || va + BigInt(sizeBytes) > 2n ** 39n) return false;
      for (let at = 0; at < sizeBytes;) {
        const address = Number(va) + at;
        const gfn = Math.floor(address / FRAME_BYTES);
        const missing = this.missing.get(gfn);
        if (missing === 'all' || (missing !== undefined && isWriting)) {
          this.mustRetry ||= isRepeatable;
          return false;
        }
        const mfn = this.p2m.frameForWrite(record.get(DOMAIN.at.p2mRoot), gfn);
        if (mfn <= 0) return false;
        this.p2m.releaseStale();
        const count = Math.min(sizeBytes - at, FRAME_BYTES - (address % FRAME_BYTES));
        visit(mfn * FRAME_BYTES + (address % FRAME_BYTES), at, count);
        at += count;
      }
      return true;
    };
    return {
      copyFromGuest: (vcpu, va, sizeBytes, willAnswer = false) => {
        const bytes = new Uint8Array(sizeBytes);
        const complete = inPages(vcpu, va, sizeBytes, willAnswer, true, (host, at, count) =>
          bytes.set(this.memory.u8.subarray(host, host + count), at));
        return complete ? bytes : undefined;
      },
      copyToGuest: (vcpu, va, bytes, isRepeatable = false) => inPages(vcpu, va, bytes.length, true, isRepeatable, (host, at, count) =>
        this.memory.u8.set(bytes.subarray(at, at + count), host)),
      mustRetry: () => this.mustRetry,
    };
  }
}

/** For test-sender.ts: a thread that sends events from ports of the host. */
export interface SenderTask {
  readonly memory: WebAssembly.Memory;
  readonly agent: number;
  /** Host port, and the index in u32 of the event word at the other end. */
  readonly ports: readonly { readonly hostPort: number; readonly word: number }[];
  readonly rounds: number;
  /** [0]: threads that have finished, [1]: because an event did not arrive. */
  readonly finished: Int32Array;
}
