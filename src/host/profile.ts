// Where a guest's time goes: samples of its vCPUs' stacks, and the files that viewers open.
//
//   pCPU: every interval of a vCPU's time ─► stack ─► message ─► main thread: stacks counted ─► names ─► file
//
// Addresses are the guest's word.

import { DOMAIN } from '../abi/domain-record.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import { vcpuRecord } from '../abi/vcpu.ts';
import { ZazenError } from '../base/errors.ts';
import type { DomainRecord } from '../hypervisor/domain-record.ts';
import { GuestKernel } from '../image/guest-kernel/guest-kernel.ts';
import { findVmcoreinfo } from '../lifecycle/vmcoreinfo.ts';
import type { MachineMemory } from '../memory/machine-memory.ts';
import type { P2m } from '../memory/p2m.ts';
import type { CpuProfile, Profile } from './types.ts';

/** Words of a sample (sample.ts) before its addresses. */
const SAMPLE_HEADER_WORDS = 4;
/** Distinct stacks; those beyond are counted as one. */
const STACKS_MAX = 1 << 17;
const SAMPLES_MAX = 1 << 21;
const NANOS_PER_MICRO = 1000;
const PAGE_MASK = 0xfffn;
const PHYSICAL_BYTES = 2 ** 40;
const USER = '[user]';
const OTHERS = '[other stacks]';

/** Gives a kernel address its function's name. */
export type NameOf = (address: bigint) => string | undefined;

interface Stack {
  readonly isUser: boolean;
  /** Innermost first. */
  readonly addresses: readonly bigint[];
}

/** Collects samples of a domain. */
export class StackSamples {
  readonly #numbers = new Map<string, number>();
  readonly #stacks: (Stack | undefined)[] = [undefined];
  /** By sample: the stack's number, and for how long. */
  readonly #order: number[] = [];
  readonly #micros: number[] = [];

  add(sample: BigUint64Array): void {
    if (this.#order.length === SAMPLES_MAX) return;
    const isUser = sample[2] === 0n;
    // What a process does is told by its page: it has no names here.
    const addresses = [...sample.subarray(SAMPLE_HEADER_WORDS)].map(address => isUser ? address & ~PAGE_MASK : address);
    const key = `${isUser ? 'u' : 'k'}${addresses.join(',')}`;
    let number = this.#numbers.get(key);
    if (number === undefined && this.#stacks.length < STACKS_MAX) {
      number = this.#stacks.push({ isUser, addresses }) - 1;
      this.#numbers.set(key, number);
    }
    this.#order.push(number ?? 0);
    this.#micros.push(Number(sample[3]!) / NANOS_PER_MICRO);
  }

  /** @param root name of what all of it is in */
  finish(root: string, nameOf: NameOf): Profile {
    const names = new Map<bigint, string>();
    const known = (address: bigint): string => {
      let name = names.get(address);
      if (name === undefined) names.set(address, name = nameOf(address) ?? `0x${address.toString(16)}`);
      return name;
    };
    const named = this.#stacks.map((stack): string[] => {
      if (stack === undefined) return [OTHERS];
      if (stack.isUser) return [USER, ...stack.addresses.map(address => `0x${address.toString(16)}`).toReversed()];
      // A return address lies behind the call; the call may be the last of its function.
      return stack.addresses.map((address, i) => known(i === 0 ? address : address - 4n)).toReversed();
    });
    return new FinishedProfile(root, named, this.#order, this.#micros);
  }
}

class FinishedProfile implements Profile {
  readonly #root: string;
  readonly #stacks: readonly (readonly string[])[];
  readonly #order: readonly number[];
  readonly #micros: readonly number[];

  constructor(root: string, stacks: readonly (readonly string[])[], order: readonly number[], micros: readonly number[]) {
    this.#root = root;
    this.#stacks = stacks;
    this.#order = order;
    this.#micros = micros;
  }

  get samples(): number { return this.#order.length; }
  get cpuMicros(): number { return this.#micros.reduce((sum, micros) => sum + micros, 0); }

  toFolded(): string {
    const totals = new Map<string, number>();
    this.#order.forEach((stack, i) => {
      const line = [this.#root, ...this.#stacks[stack]!].map(name => name.replaceAll(/[;\s]/g, '_')).join(';');
      totals.set(line, (totals.get(line) ?? 0) + this.#micros[i]!);
    });
    return [...totals].map(([line, micros]) => `${line} ${Math.max(1, Math.round(micros))}\n`).toSorted().join('');
  }

  toCpuProfile(): CpuProfile {
    const nodes: CpuProfile['nodes'] = [];
    const children = new Map<string, number>();
    const nodeOf = (parent: number, name: string): number => {
      const key = `${parent} ${name}`;
      const found = children.get(key);
      if (found !== undefined) return found;
      const id = nodes.length + 1;
      nodes.push({
        id, hitCount: 0, children: [],
        callFrame: { functionName: name, scriptId: '0', url: '', lineNumber: -1, columnNumber: -1 },
      });
      if (parent > 0) nodes[parent - 1]!.children.push(id);
      children.set(key, id);
      return id;
    };
    const root = nodeOf(0, '(root)');
    const domain = nodeOf(root, this.#root);
    const leaves = this.#stacks.map(names => names.reduce(nodeOf, domain));
    const samples = this.#order.map(stack => leaves[stack]!);
    for (const id of samples) nodes[id - 1]!.hitCount++;
    const timeDeltas = this.#micros.map(micros => Math.max(1, Math.round(micros)));
    return { nodes, startTime: 0, endTime: timeDeltas.reduce((sum, micros) => sum + micros, 0), samples, timeDeltas };
  }
}

/**
 * Names from the kernel's own table in the guest's memory, which must stand still meanwhile. A guest that has none gets
 * addresses.
 */
export function kernelNames(machine: MachineMemory, p2m: P2m, record: DomainRecord): NameOf {
  const root = record.get(DOMAIN.at.p2mRoot);
  const vcpus = Array.from({ length: record.vcpuCount }, (_, id) => {
    const address = record.vcpuAddress(id);
    return { registers: machine.u8.slice(address, address + vcpuRecord.sizeBytes) };
  });
  // Where there is no memory, zeros are read.
  const banks = [{ guestAddress: 0, sizeBytes: PHYSICAL_BYTES }];
  try {
    const { vmcoreinfo } = findVmcoreinfo(machine, { root, state: { domid: record.domid, vcpus } }, banks);
    const { symbols } = new GuestKernel({
      path: 'the guest', banks,
      read(gfn, count) {
        const bytes = new Uint8Array(count * FRAME_BYTES);
        for (let i = 0; i < count; i++) {
          const mfn = p2m.frameForRead(root, gfn + i);
          if (mfn > 0) bytes.set(machine.u8.subarray(mfn * FRAME_BYTES, (mfn + 1) * FRAME_BYTES), i * FRAME_BYTES);
        }
        return bytes;
      },
    }, vmcoreinfo);
    return address => symbols.find(address)?.name;
  } catch (error) {
    if (error instanceof ZazenError) return () => undefined;
    throw error;
  }
}
