// What the Advanced SIMD definition files share: which lane sizes an instruction has, and meanings made from operations
// on lanes, for vector and scalar forms alike.

import type { V128 } from '../../wasm/types.ts';
import type { Machine } from '../machine.ts';
import { vr } from '../operand.ts';
import type { VReg } from '../operand.ts';
import { Lanes, scalarWidth, vectorWidth } from './lanes.ts';
import type { Signedness, Size } from './lanes.ts';

export type Bit = '0' | '1';
export type Bits3 = `${Bit}${Bit}${Bit}`;
export type Bits4 = `${Bit}${Bits3}`;
export type Bits5 = `${Bit}${Bits4}`;

/** The U bit of an encoding says which. */
export const signs: readonly { sign: Signedness; U: Bit }[] = [{ sign: 'S', U: '0' }, { sign: 'U', U: '1' }];

// Lane sizes an instruction exists for.
export const ALL = [0, 1, 2, 3];
export const TO_WORD = [0, 1, 2];
export const HALF_AND_WORD = [1, 2];
export const BYTE = [0];
export const HALF = [1];
export const WORD = [2];
export const DOUBLEWORD = [3];
export const NONE: readonly Size[] = [];

/** A vector of one 64-bit lane does not exist: that is the scalar form. */
export const vectorAllowed = (sizes: readonly Size[]) => (f: { size: number; Q: number }): boolean =>
  sizes.includes(f.size) && (f.size < 3 || f.Q === 1);
export const scalarAllowed = (sizes: readonly Size[]) => (f: { size: number }): boolean => sizes.includes(f.size);

export interface TwoVectors { d: VReg; n: VReg }
export interface ThreeVectors extends TwoVectors { m: VReg }
export const twoVectors = (f: { Rd: number; Rn: number }) => ({ d: vr(f.Rd), n: vr(f.Rn) });
export const threeVectors = (f: { Rd: number; Rn: number; Rm: number }) =>
  ({ d: vr(f.Rd), n: vr(f.Rn), m: vr(f.Rm) });

/** `n` is pinned; `d` (the old destination) is not. */
export type UnaryOperation = (l: Lanes, n: V128, d: V128) => V128;
/** `n` and `m` are pinned; `d` (the old destination) is not. */
export type BinaryOperation = (l: Lanes, n: V128, m: V128, d: V128) => V128;

export function unary(l: Lanes, o: TwoVectors, operation: UnaryOperation): void {
  const n = l.let(l.m.q(o.n));
  l.write(o.d, operation(l, n, l.m.q(o.d)));
}
export function binary(l: Lanes, o: ThreeVectors, operation: BinaryOperation): void {
  const n = l.let(l.m.q(o.n));
  const m = l.let(l.m.q(o.m));
  l.write(o.d, operation(l, n, m, l.m.q(o.d)));
}

// The lanes of a form, from the fields that its meaning is specialised for.
export const vectorLanes = (m: Machine, s: { Q: number }, size: Size): Lanes => new Lanes(m, size, vectorWidth(s.Q));
export const scalarLanes = (m: Machine, size: Size): Lanes => new Lanes(m, size, scalarWidth(size));
