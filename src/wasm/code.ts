// A growable buffer of WebAssembly bytes, with the number encodings of the binary format (section 5.2 of the core
// specification). Everything else in this room writes through it.

import type { ValType } from './types.ts';

export class Code {
  #bytes = new Uint8Array(256);
  #length = 0;
  /** Address type of the memory that loads and stores in this code refer to; an i32 address is widened when it is i64. */
  readonly addressType: 'i32' | 'i64';

  constructor(addressType: 'i32' | 'i64' = 'i32') {
    this.addressType = addressType;
  }

  get length(): number {
    return this.#length;
  }

  bytes(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }

  #reserve(extra: number): void {
    if (this.#length + extra <= this.#bytes.length) return;
    const larger = new Uint8Array(Math.max(this.#bytes.length * 2, this.#length + extra));
    larger.set(this.bytes());
    this.#bytes = larger;
  }

  byte(value: number): void {
    if (this.#length === this.#bytes.length) this.#reserve(1);
    this.#bytes[this.#length++] = value;
  }

  raw(bytes: ArrayLike<number>): void {
    this.#reserve(bytes.length);
    this.#bytes.set(bytes, this.#length);
    this.#length += bytes.length;
  }

  /** Unsigned LEB128 of an integer below 2^53. */
  unsigned(value: number): void {
    while (value >= 0x80) {
      this.byte((value % 0x80) | 0x80);
      value = Math.floor(value / 0x80);
    }
    this.byte(value);
  }

  /** Signed LEB128 of a 32-bit integer. */
  signed32(value: number): void {
    value |= 0;
    for (;;) {
      const low = value & 0x7f;
      value >>= 7;
      if ((value === 0 && (low & 0x40) === 0) || (value === -1 && (low & 0x40) !== 0)) return this.byte(low);
      this.byte(low | 0x80);
    }
  }

  /** Signed LEB128 of a 64-bit integer; a value outside the signed range is taken modulo 2^64. */
  signed64(value: bigint): void {
    value = BigInt.asIntN(64, value);
    for (;;) {
      const low = Number(value & 0x7fn);
      value >>= 7n;
      if ((value === 0n && (low & 0x40) === 0) || (value === -1n && (low & 0x40) !== 0)) return this.byte(low);
      this.byte(low | 0x80);
    }
  }

  name(text: string): void {
    const utf8 = new TextEncoder().encode(text);
    this.unsigned(utf8.length);
    this.raw(utf8);
  }

  /** An opcode: one byte, or a prefix (0xfc, 0xfd, 0xfe) in bits 16–23 and its LEB128 sub-opcode below. */
  opcode(code: number): void {
    if (code < 0x100) return this.byte(code);
    this.byte(code >>> 16);
    this.unsigned(code & 0xffff);
  }
}

const valTypeCodes: Record<ValType, number> = { i32: 0x7f, i64: 0x7e, f32: 0x7d, f64: 0x7c, v128: 0x7b };

export function valTypeCode(type: ValType): number {
  return valTypeCodes[type];
}
