// Operands of a decoded instruction. What register 31 means is settled here, at decode time: handlers have no branch
// for it. In the vCPU record general registers are slots of eight bytes: 0–30, 31 = SP, 32 = reads as zero,
// 33 = discards what is written.

export const SP_SLOT = 31;
export const ZERO_SLOT = 32;
export const DISCARD_SLOT = 33;

/**
 * One operand. `value` is a slot number (x), a register number (v) or the immediate; `place` is where an interpreter
 * record keeps it, in bytes from the record's start. Meanings hand operands to the Machine and look at neither.
 */
export interface Operand<K extends string = string> {
  readonly kind: K;
  readonly value: number | bigint;
  place: number;
}
export type Reg = Operand<'x'>;
export type VReg = Operand<'v'>;
/** 32-bit signed. */
export type Imm = Operand<'imm'>;
export type Imm64 = Operand<'imm64'>;
export type Operands = Readonly<Record<string, Operand>>;

const operand = <K extends string>(kind: K, value: number | bigint): Operand<K> => ({ kind, value, place: 0 });

/** A general register that is read; 31 is zero. */
export const xr = (n: number): Reg => operand('x', n === 31 ? ZERO_SLOT : n);
/** A general register that is written; 31 discards. */
export const xd = (n: number): Reg => operand('x', n === 31 ? DISCARD_SLOT : n);
/** A general register, read or written; 31 is SP. */
export const xsp = (n: number): Reg => operand('x', n);
export const vr = (n: number): VReg => operand('v', n);
export const imm = (value: number): Imm => operand('imm', value | 0);
export const imm64 = (value: bigint): Imm64 => operand('imm64', BigInt.asIntN(64, value));

/**
 * Decoded record, 16 bytes:
 *
 *      0      2      4      6      8      10     12          16
 *      ┌──────┬──────┬──────┬──────┬──────┬──────┬───────────┐
 *      │handlr│ u16  │ u16  │ u16  │ u16  │ u16  │ imm (i32) │   registers as byte offsets into the vCPU record
 *      └──────┴──────┴──────┴──────┴──────┴──────┴───────────┘
 *                                  └─ imm64 if there is one ─┘   (then at most three u16)
 */
export const RECORD_BYTES = 16;
export const RECORD_SHIFT = 4;
export const RECORD_IMM = 12;
export const RECORD_IMM64 = 8;

/** Gives every operand its place in the record; the order of the keys decides, so it is the same for every decode. */
export function placeOperands(operands: Operands): void {
  let next = 2;
  for (const key in operands) {
    const item = operands[key]!;
    if (item.kind === 'imm') item.place = RECORD_IMM;
    else if (item.kind === 'imm64') item.place = RECORD_IMM64;
    else {
      item.place = next;
      next += 2;
    }
  }
}
