// The few A64 encodings that the oracle's driver needs, with labels. Deliberately apart from the product's assembler in
// src/a64: what judges the instruction table must not be built from it.

/** Condition codes of B.cond. */
export const CONDITION = { EQ: 0, NE: 1, HS: 2 } as const;

/** System registers as the o0:op1:CRn:CRm:op2 field of MRS and MSR, in place. */
export const SYSTEM_REGISTER = { NZCV: 0x1b4200, FPCR: 0x1b4400, FPSR: 0x1b4420, TPIDR_EL0: 0x1bd040 } as const;

/** Register number 31 where the encoding means SP. */
export const SP = 31;

interface Fixup {
  at: number;
  label: string;
  patch: (offsetBytes: number) => number;
}

/** Collects words at a known address; `finish` resolves the labels. */
export class DriverAssembler {
  readonly #base: number;
  readonly #words: number[] = [];
  readonly #labels = new Map<string, number>();
  readonly #fixups: Fixup[] = [];

  /** @param base virtual address of the first word */
  constructor(base: number) {
    this.#base = base;
  }

  /** Virtual address of the next word. */
  get address(): number {
    return this.#base + 4 * this.#words.length;
  }

  label(name: string): void {
    this.#labels.set(name, this.#words.length);
  }

  /** Address of a label defined so far. */
  addressOf(name: string): number {
    return this.#base + 4 * this.#wordOf(name);
  }

  word(value: number): void {
    this.#words.push(value >>> 0);
  }

  /** A little-endian 64-bit datum. */
  quad(value: bigint): void {
    this.word(Number(value & 0xffffffffn));
    this.word(Number((value >> 32n) & 0xffffffffn));
  }

  /** Zero words (which are UDF #0) up to the next multiple of `bytes` from the base. */
  align(bytes: number): void {
    while ((4 * this.#words.length) % bytes !== 0) this.word(0);
  }

  finish(): Uint32Array {
    for (const { at, label, patch } of this.#fixups) {
      this.#words[at] = (this.#words[at]! | patch(4 * (this.#wordOf(label) - at))) >>> 0;
    }
    return Uint32Array.from(this.#words);
  }

  /** MOVZ and MOVK until `value` is in Xd. */
  movImmediate(d: number, value: bigint): void {
    const unsigned = BigInt.asUintN(64, value);
    this.word(0xd2800000 | (Number(unsigned & 0xffffn) << 5) | d);
    for (let hw = 1; hw < 4; hw++) {
      const part = Number((unsigned >> BigInt(16 * hw)) & 0xffffn);
      if (part !== 0) this.word(0xf2800000 | (hw << 21) | (part << 5) | d);
    }
  }

  /** ADD Xd|SP, Xn|SP, #imm (0 to 4095). */
  addImmediate(d: number, n: number, immediate: number): void {
    this.word(0x91000000 | (immediate << 10) | (n << 5) | d);
  }

  /** SUBS Xd, Xn, #imm. */
  subsImmediate(d: number, n: number, immediate: number): void {
    this.word(0xf1000000 | (immediate << 10) | (n << 5) | d);
  }

  compare(n: number, m: number): void {
    this.word(0xeb00001f | (m << 16) | (n << 5));
  }

  ldrX(t: number, n: number, offset: number): void {
    this.word(0xf9400000 | ((offset / 8) << 10) | (n << 5) | t);
  }

  strX(t: number, n: number, offset: number): void {
    this.word(0xf9000000 | ((offset / 8) << 10) | (n << 5) | t);
  }

  ldrW(t: number, n: number, offset: number): void {
    this.word(0xb9400000 | ((offset / 4) << 10) | (n << 5) | t);
  }

  ldpX(t1: number, t2: number, n: number, offset: number): void {
    this.word(0xa9400000 | pair(t1, t2, n, offset / 8));
  }

  stpX(t1: number, t2: number, n: number, offset: number): void {
    this.word(0xa9000000 | pair(t1, t2, n, offset / 8));
  }

  ldpQ(t1: number, t2: number, n: number, offset: number): void {
    this.word(0xad400000 | pair(t1, t2, n, offset / 16));
  }

  stpQ(t1: number, t2: number, n: number, offset: number): void {
    this.word(0xad000000 | pair(t1, t2, n, offset / 16));
  }

  /** LDP Qt1, Qt2, [Xn], #32. */
  ldpQPostIndex(t1: number, t2: number, n: number): void {
    this.word(0xacc00000 | pair(t1, t2, n, 2));
  }

  /** STP Qt1, Qt2, [Xn], #32. */
  stpQPostIndex(t1: number, t2: number, n: number): void {
    this.word(0xac800000 | pair(t1, t2, n, 2));
  }

  ldrLiteral(t: number, label: string): void {
    this.#fix(label, (offset) => ((offset / 4) & 0x7ffff) << 5);
    this.word(0x58000000 | t);
  }

  adr(d: number, label: string): void {
    this.#fix(label, (offset) => ((offset & 3) << 29) | (((offset >> 2) & 0x7ffff) << 5));
    this.word(0x10000000 | d);
  }

  branch(label: string): void {
    this.#fix(label, (offset) => (offset / 4) & 0x3ffffff);
    this.word(0x14000000);
  }

  branchIf(condition: number, label: string): void {
    this.#fix(label, (offset) => ((offset / 4) & 0x7ffff) << 5);
    this.word(0x54000000 | condition);
  }

  /** TBNZ Xt, #63. */
  branchIfNegative(t: number, label: string): void {
    this.#fix(label, (offset) => ((offset / 4) & 0x3fff) << 5);
    this.word(0xb7f80000 | t);
  }

  branchRegister(n: number): void {
    this.word(0xd61f0000 | (n << 5));
  }

  mrs(t: number, systemRegister: number): void {
    this.word(0xd5200000 | systemRegister | t);
  }

  msr(systemRegister: number, t: number): void {
    this.word(0xd5000000 | systemRegister | t);
  }

  clrex(): void {
    this.word(0xd5033f5f);
  }

  ret(): void {
    this.word(0xd65f03c0);
  }

  /** A Linux system call with immediate arguments where given; the result is in X0. */
  svc(number: number, args: readonly (bigint | undefined)[]): void {
    args.forEach((value, n) => {
      if (value !== undefined) this.movImmediate(n, value);
    });
    this.movImmediate(8, BigInt(number));
    this.word(0xd4000001);
  }

  #fix(label: string, patch: Fixup['patch']): void {
    this.#fixups.push({ at: this.#words.length, label, patch });
  }

  #wordOf(label: string): number {
    const word = this.#labels.get(label);
    if (word === undefined) throw new Error(`driver assembler: no label ${label}`);
    return word;
  }
}

function pair(t1: number, t2: number, n: number, scaledOffset: number): number {
  return ((scaledOffset & 0x7f) << 15) | (t2 << 10) | (n << 5) | t1;
}
