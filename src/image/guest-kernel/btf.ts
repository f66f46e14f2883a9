// BTF: the kernel's description of its own types, which it carries in its image (Linux: Documentation/bpf/btf.rst).
// Here only as far as it takes to find a member of a structure by name.
//
//   header, 24 bytes │ types: 12 bytes each, then what their kind adds │ strings, each ended by a zero
//
// The bytes are the guest's: every index, length and depth is checked, and what is wrong is a ZazenError.

import { viewOf } from './guest-memory.ts';
import { guestKernelError } from './vmcoreinfo.ts';

export const BTF_HEADER_BYTES = 24;
/** Magic 0xEB9F, version 1, no flags, and the header's own length. */
export const BTF_MAGIC = Uint8Array.of(0x9f, 0xeb, 1, 0, BTF_HEADER_BYTES, 0, 0, 0);
const BTF_BYTES_MAX = 2 ** 25;
const TYPES_MAX = 2 ** 20;
const DEPTH_MAX = 32;
const NAME_BYTES_MAX = 512;
/** Members looked at in search of one. */
const STEPS_MAX = 2 ** 18;
const TYPE_BYTES = 12;
const MEMBER_BYTES = 12;

const KIND = {
  int: 1, pointer: 2, array: 3, struct: 4, union: 5, enum: 6, forward: 7, typedef: 8, volatile: 9, const: 10,
  restrict: 11, function: 12, functionProto: 13, variable: 14, section: 15, float: 16, declTag: 17, typeTag: 18, enum64: 19,
} as const;
const MODIFIERS: readonly number[] = [KIND.typedef, KIND.volatile, KIND.const, KIND.restrict, KIND.typeTag];

/** Bytes that a kind adds for each of `vlen`, and in any case. */
const EXTRA: readonly { each: number; once: number }[] = (() => {
  const extra = Array.from({ length: 20 }, () => ({ each: 0, once: 0 }));
  for (const kind of [KIND.int, KIND.variable, KIND.declTag]) extra[kind]!.once = 4;
  extra[KIND.array]!.once = 12;
  for (const kind of [KIND.struct, KIND.union, KIND.section, KIND.enum64]) extra[kind]!.each = MEMBER_BYTES;
  for (const kind of [KIND.enum, KIND.functionProto]) extra[kind]!.each = 8;
  return extra;
})();

export interface Member {
  readonly offsetBytes: number;
  readonly sizeBytes: number;
}

interface Found {
  readonly offsetBits: number;
  readonly type: number;
}

/** Sizes of the whole, from the header at its start; undefined if these bytes are no header of a kernel's BTF. */
export function btfBytes(header: Uint8Array): number | undefined {
  if (header.length < BTF_HEADER_BYTES || BTF_MAGIC.some((byte, i) => header[i] !== byte)) return undefined;
  const view = viewOf(header);
  const [typesAt, typesBytes, stringsAt, stringsBytes] = [8, 12, 16, 20].map((at) => view.getUint32(at, true));
  const sizeBytes = BTF_HEADER_BYTES + stringsAt! + stringsBytes!;
  return typesAt === 0 && stringsAt === typesBytes && sizeBytes <= BTF_BYTES_MAX ? sizeBytes : undefined;
}

export class Btf {
  readonly #path: string;
  readonly #view: DataView;
  readonly #bytes: Uint8Array;
  readonly #stringsAt: number;
  /** Where each type lies; type 0 is void. */
  readonly #types: number[] = [0];
  readonly #structs = new Map<string, number>();
  #steps = 0;

  /**
   * @param path of the image, for messages
   * @param bytes as long as `btfBytes` says
   * @throws ZazenError ZAZEN_GUEST_KERNEL
   */
  constructor(path: string, bytes: Uint8Array) {
    this.#path = path;
    this.#bytes = bytes;
    this.#view = viewOf(bytes);
    if (btfBytes(bytes) !== bytes.length) throw this.#error('have a wrong header');
    this.#stringsAt = BTF_HEADER_BYTES + this.#view.getUint32(12, true);
    let at = BTF_HEADER_BYTES;
    while (at < this.#stringsAt) {
      const { kind, count } = this.#info(at);
      const extra = EXTRA[kind];
      if (extra === undefined || kind === 0) throw this.#error('are of an unknown kind');
      if (this.#types.length > TYPES_MAX) throw this.#error('are too many');
      // Names are read only of what is looked for: tens of thousands are not.
      if (kind === KIND.struct) this.#structs.set(this.#string(this.#view.getUint32(at, true)), this.#types.length);
      this.#types.push(at);
      at += TYPE_BYTES + extra.once + extra.each * count;
    }
    if (at !== this.#stringsAt) throw this.#error('are cut short');
  }

  has(structure: string): boolean {
    return this.#structs.has(structure);
  }

  /**
   * @param member of `structure`, or of one within it: `tasks.next`; members of unnamed structures count as its own
   * @throws ZazenError ZAZEN_GUEST_KERNEL when there is none
   */
  member(structure: string, member: string): Member {
    const found = this.tryMember(structure, member);
    if (found === undefined) throw this.#error(`have no ${structure}.${member}`);
    return found;
  }

  tryMember(structure: string, member: string): Member | undefined {
    let type = this.#structs.get(structure);
    let offsetBits = 0;
    this.#steps = 0;
    for (const name of member.split('.')) {
      const found = type === undefined ? undefined : this.#find(type, name, 0);
      if (found === undefined) return undefined;
      offsetBits += found.offsetBits;
      type = found.type;
    }
    return { offsetBytes: Math.floor(offsetBits / 8), sizeBytes: this.#sizeOf(type!) };
  }

  #find(type: number, name: string, depth: number): Found | undefined {
    if (depth > DEPTH_MAX) throw this.#error('are nested too deep');
    const at = this.#typeAt(this.#resolve(type));
    const { kind, count, isBitfields } = this.#info(at);
    if (kind !== KIND.struct && kind !== KIND.union) return undefined;
    for (let i = 0; i < count; i++) {
      if (this.#steps++ === STEPS_MAX) throw this.#error('are nested too deep');
      const member = at + TYPE_BYTES + i * MEMBER_BYTES;
      const nameAt = this.#u32(member);
      const memberType = this.#u32(member + 4);
      const place = this.#u32(member + 8);
      const offsetBits = isBitfields ? place & 0xff_ffff : place;
      if (nameAt === 0) {
        const inner = this.#find(memberType, name, depth + 1);
        if (inner !== undefined) return { offsetBits: offsetBits + inner.offsetBits, type: inner.type };
      } else if (this.#string(nameAt) === name) {
        return { offsetBits, type: memberType };
      }
    }
    return undefined;
  }

  /** Through typedefs and qualifiers. */
  #resolve(type: number): number {
    let at = type;
    for (let depth = 0; depth < DEPTH_MAX; depth++) {
      const place = this.#typeAt(at);
      if (!MODIFIERS.includes(this.#info(place).kind)) return at;
      at = this.#u32(place + 8);
    }
    throw this.#error('are nested too deep');
  }

  #sizeOf(type: number): number {
    let elements = 1;
    let inner = type;
    for (let depth = 0; depth < DEPTH_MAX; depth++) {
      inner = this.#resolve(inner);
      const at = this.#typeAt(inner);
      const { kind } = this.#info(at);
      if (kind === KIND.pointer) return 8 * elements;
      if (kind !== KIND.array) return this.#u32(at + 8) * elements;
      elements *= this.#u32(at + TYPE_BYTES + 8);
      inner = this.#u32(at + TYPE_BYTES);
    }
    throw this.#error('are nested too deep');
  }

  #typeAt(type: number): number {
    const at = this.#types[type];
    if (at === undefined || type === 0) throw this.#error(`do not hold type ${type}`);
    return at;
  }

  #info(at: number): { kind: number; count: number; isBitfields: boolean } {
    const info = this.#u32(at + 4);
    return { kind: (info >>> 24) & 0x1f, count: info & 0xffff, isBitfields: info >>> 31 === 1 };
  }

  #u32(at: number): number {
    if (at + 4 > this.#stringsAt) throw this.#error('are cut short');
    return this.#view.getUint32(at, true);
  }

  #string(offset: number): string {
    const start = this.#stringsAt + offset;
    const name = this.#bytes.subarray(start, start + NAME_BYTES_MAX);
    const end = name.indexOf(0);
    if (end < 0) throw this.#error('have a name outside of their strings');
    return Buffer.from(name.buffer, name.byteOffset, end).toString('latin1');
  }

  #error(what: string) {
    return guestKernelError(this.#path, `its types (BTF) ${what}`);
  }
}
