// VMCOREINFO: what a Linux kernel writes down about itself for whoever reads its dump. The kernel keeps it in its own
// memory as an ELF note at the start of a page (Linux: kernel/crash_core.c):
//
//   0          4          8        12                    24
//   ┌──────────┬──────────┬────────┬─────────────────────┬──────────────────────────────┐
//   │ namesz 11│ descsz   │ type 0 │ "VMCOREINFO\0", pad │ text, descsz bytes: KEY=value lines
//   └──────────┴──────────┴────────┴─────────────────────┴──────────────────────────────┘
//
// The text is the guest's, so anything; what is asked for is checked when it is asked for.

import { ZazenError } from '../../base/errors.ts';
import { VMCOREINFO_BYTES_MAX } from '../format.ts';

export const VMCOREINFO_TEXT_OFFSET = 24;
/** "VMCOREINFO\0\0" as words. */
const NAME_WORDS = [0x4f434d56, 0x4e494552, 0x00004f46] as const;
const NAME_BYTES = 11;
const HEADER_WORDS = 6;
const VALUE_LENGTH_MAX = 256;

/**
 * The size of the text of the note that starts at this word, or 0 if no such note does.
 * @param words memory, of which at least six words follow `at`
 */
export function vmcoreinfoBytesAt(words: Uint32Array, at: number): number {
  if (words[at] !== NAME_BYTES || words[at + 2] !== 0) return 0;
  if (NAME_WORDS.some((word, i) => words[at + HEADER_WORDS / 2 + i] !== word)) return 0;
  const sizeBytes = words[at + 1]!;
  return sizeBytes <= VMCOREINFO_BYTES_MAX ? sizeBytes : 0;
}

/** What a kernel says of itself. Errors are ZAZEN_GUEST_KERNEL: the image is fine, its guest cannot be understood. */
export class Vmcoreinfo {
  readonly path: string;
  readonly #values = new Map<string, string>();

  /** @param path of the image, for messages */
  constructor(path: string, text: Uint8Array) {
    this.path = path;
    for (const line of new TextDecoder('latin1').decode(text.subarray(0, VMCOREINFO_BYTES_MAX)).split('\n')) {
      const equals = line.indexOf('=');
      const value = line.slice(equals + 1);
      if (equals > 0 && value.length <= VALUE_LENGTH_MAX) this.#values.set(line.slice(0, equals), value);
    }
  }

  /** Undefined for bytes that no kernel would have written: not text, or without what every kernel says. */
  static parse(path: string, text: Uint8Array): Vmcoreinfo | undefined {
    if (!text.every((byte) => byte === 0x0a || byte >= 0x20 && byte < 0x7f)) return undefined;
    const info = new Vmcoreinfo(path, text);
    return info.#values.has('OSRELEASE') && info.#values.has('PAGESIZE') ? info : undefined;
  }

  get release(): string { return this.#text('OSRELEASE'); }
  get pageBytes(): number { return this.#decimal('PAGESIZE'); }

  has(key: string): boolean {
    return this.#values.has(key);
  }

  /** Virtual address of a variable or function. */
  symbol(name: string): bigint {
    const value = this.#text(`SYMBOL(${name})`);
    if (!/^[\da-f]{1,16}$/i.test(value)) throw guestKernelError(this.path, `its VMCOREINFO has no address for ${name}`);
    return BigInt(`0x${value}`);
  }

  /** Addresses of all that it names. */
  symbols(): bigint[] {
    return [...this.#values.keys()].flatMap((key) => {
      const name = /^SYMBOL\((\w+)\)$/.exec(key)?.[1];
      return name === undefined ? [] : [this.symbol(name)];
    });
  }

  /** Byte offset of `structure.member`. */
  offset(name: string): number { return this.#decimal(`OFFSET(${name})`); }
  /** In bytes. */
  size(name: string): number { return this.#decimal(`SIZE(${name})`); }
  /** Elements of an array. */
  length(name: string): number { return this.#decimal(`LENGTH(${name})`); }

  /** A number that fits 64 bits, as an unsigned one. */
  number(name: string): bigint {
    const value = this.#text(`NUMBER(${name})`);
    if (!/^(-?\d{1,20}|0x[\da-f]{1,16})$/i.test(value)) {
      throw guestKernelError(this.path, `its VMCOREINFO has no number ${name}`);
    }
    return BigInt.asUintN(64, BigInt(value));
  }

  #decimal(key: string): number {
    const value = this.#text(key);
    if (!/^\d{1,9}$/.test(value)) throw guestKernelError(this.path, `its VMCOREINFO has a wrong value for ${key}`);
    return Number(value);
  }

  #text(key: string): string {
    const value = this.#values.get(key);
    if (value === undefined) {
      throw guestKernelError(this.path, `its VMCOREINFO does not tell ${key}`,
        'the kernel may be older or newer than what this Zazen knows');
    }
    return value;
  }
}

/** What stands in the guest's memory makes no sense to a reader. */
export function guestKernelError(path: string, what: string, hint?: string): ZazenError {
  return new ZazenError('ZAZEN_GUEST_KERNEL', `image ${path}: the guest's kernel cannot be read: ${what}`,
    hint === undefined ? {} : { hint });
}
