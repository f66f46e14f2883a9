// Advanced SIMD loads and stores of structures (Arm ARM C4.1.96): LD1–LD4 and ST1–ST4 of several structures or of one,
// and LD1R–LD4R.
//
// Registers follow each other modulo 32. Each instruction has three forms: without write-back, with that of its size,
// and with that of a register.

import { i32, i64 } from '../../wasm/scalar.ts';
import type { I32, I64, V128 } from '../../wasm/types.ts';
import { i16x8, i32x4, i64x2, i8x16, v128FromI64 } from '../../wasm/vector.ts';
import type { AccessSize, Machine } from '../machine.ts';
import { imm, vr, xr, xsp } from '../operand.ts';
import type { Imm, Operands, Reg, VReg } from '../operand.ts';
import { group } from '../row.ts';

const { name, rows, inst } = group('loads-stores-structures', { accessesMemory: true });

type WriteBack = 'none' | 'size' | 'register';
/** The bit that tells write-back, and the five bits of Rm. */
const FORMS: readonly (readonly [WriteBack, bit: '0' | '1', Rm: '00000' | '11111' | 'Rm:5', suffix: string])[] = [
  ['none', '0', '00000', ''],
  ['size', '1', '11111', ', post-index'],
  ['register', '1', 'Rm:5', ', post-index by register'],
];

type F = Readonly<Record<string, number>>;
function operandsFor(f: F, count: number, writeBack: WriteBack): Operands {
  const operands: Record<string, Operands[string]> = { n: xsp(f.Rn!) };
  if (writeBack === 'register') operands.m = xr(f.Rm!);
  for (let i = 0; i < count; i++) operands[`t${i}`] = vr((f.Rt! + i) & 31);
  return operands;
}
const registers = (o: Operands, count: number): VReg[] => Array.from({ length: count }, (_, i) => o[`t${i}`] as VReg);

function writeBackBase(m: Machine, o: Operands, writeBack: WriteBack, base: I64, sizeBytes: number): void {
  if (writeBack === 'none') return;
  const step = writeBack === 'size' ? i64.const(sizeBytes) : m.x(o.m as Reg);
  m.setX(o.n as Reg, i64.add(base, step));
}
const plus = (base: I64, offset: number): I64 => i64.add(base, i64.const(offset));

// ---- multiple structures

/** Memory is moved in pieces of 16 bytes; eight may be left over. */
function loadPieces(m: Machine, base: I64, sizeBytes: number): V128[] {
  const pieces: V128[] = [];
  for (let at = 0; at < sizeBytes; at += 16) {
    pieces.push(sizeBytes - at >= 16 ? m.load128(plus(base, at)) : m.f.let(v128FromI64(m.load(8, plus(base, at)))));
  }
  return pieces;
}
function storePieces(m: Machine, base: I64, sizeBytes: number, piece: (at: number) => V128): void {
  for (let at = 0; at < sizeBytes; at += 16) {
    if (sizeBytes - at >= 16) m.store128(plus(base, at), piece(at));
    else m.store(8, plus(base, at), i64x2.extract(piece(at), 0));
  }
}

/** A vector of bytes picked from several (pinned) ones: `bytes[i]` counts through all of them. */
function gather(sources: readonly V128[], bytes: readonly number[]): V128 {
  const first = sources[0]!;
  const start = i8x16.shuffle(first, sources[1] ?? first, bytes.map(byte => byte < 32 ? byte : 0));
  return sources.slice(2).reduce((picked, source, k) => i8x16.shuffle(picked, source,
    bytes.map((byte, i) => byte >> 4 === k + 2 ? 16 + (byte & 15) : i)), start);
}

interface Shape {
  /** Registers. */
  readonly count: number;
  /** Elements of a structure: the count, or 1 when the registers lie in memory one after the other. */
  readonly structure: number;
  readonly elementBytes: number;
  readonly registerBytes: 8 | 16;
}
const BYTES_OF_VECTOR = Array.from({ length: 16 }, (_, i) => i);

/** Where byte `j` of register `r` lies in memory. */
function placeInMemory(shape: Shape, r: number, j: number): number {
  const { structure, elementBytes, registerBytes } = shape;
  if (structure === 1) return r * registerBytes + j;
  const element = Math.floor(j / elementBytes);
  return (element * structure + r) * elementBytes + (j % elementBytes);
}

function loadStructures(m: Machine, o: Operands, shape: Shape, writeBack: WriteBack): void {
  const { count, registerBytes } = shape;
  const base = m.f.let(m.x(o.n as Reg));
  const sizeBytes = count * registerBytes;
  const pieces = loadPieces(m, base, sizeBytes);
  writeBackBase(m, o, writeBack, base, sizeBytes);
  registers(o, count).forEach((register, r) => {
    const places = BYTES_OF_VECTOR.map(j => j < registerBytes ? placeInMemory(shape, r, j) : 0);
    const inPlace = places.every((place, j) => place === 16 * r + j);
    const value = inPlace ? pieces[r]! : gather(pieces, places);
    if (registerBytes === 16) m.setQ(register, value);
    else m.setD(register, i64x2.extract(value, 0));
  });
}

function storeStructures(m: Machine, o: Operands, shape: Shape, writeBack: WriteBack): void {
  const { count, registerBytes } = shape;
  const base = m.f.let(m.x(o.n as Reg));
  const sizeBytes = count * registerBytes;
  const sources = registers(o, count).map(register => m.f.let(m.q(register)));
  // The inverse of placeInMemory: for each byte of memory the byte among the registers.
  const origin = Array<number>(sizeBytes).fill(0);
  for (let r = 0; r < count; r++) {
    for (let j = 0; j < registerBytes; j++) origin[placeInMemory(shape, r, j)] = 16 * r + j;
  }
  storePieces(m, base, sizeBytes, at => {
    const bytes = BYTES_OF_VECTOR.map(k => origin[at + k] ?? 0);
    const inPlace = bytes.every((byte, k) => byte === at + k);
    return inPlace ? sources[at / 16]! : gather(sources, bytes);
  });
  writeBackBase(m, o, writeBack, base, sizeBytes);
}

/** Opcode, registers, elements of a structure. */
const multiple = [
  ['0111', 1, 1], ['1010', 2, 1], ['0110', 3, 1], ['0010', 4, 1], ['1000', 2, 2], ['0100', 3, 3], ['0000', 4, 4],
] as const;
for (const [opcode, count, structure] of multiple) {
  for (const [L, mnemonic, move] of [['1', 'LD', loadStructures], ['0', 'ST', storeStructures]] as const) {
    for (const [writeBack, bit, Rm, suffix] of FORMS) {
      const registerCount = structure === 1 ? `, ${count} register${count === 1 ? '' : 's'}` : '';
      const rowName = `${mnemonic}${structure} (multiple structures${registerCount}${suffix})`;
      if (structure === 1) {
        inst(rowName, `0 Q 001100 ${bit} ${L} 0 ${Rm} ${opcode} size:2 Rn:5 Rt:5`, {
          statics: ['Q'],
          operands: f => operandsFor(f, count, writeBack),
          fp: true,
          meaning: (m, o, s) =>
            move(m, o, { count, structure, elementBytes: 1, registerBytes: s.Q ? 16 : 8 }, writeBack),
        });
      } else {
        inst(rowName, `0 Q 001100 ${bit} ${L} 0 ${Rm} ${opcode} size:2 Rn:5 Rt:5`, {
          statics: ['Q', 'size'],
          when: f => f.Q === 1 || f.size < 3,
          operands: f => operandsFor(f, count, writeBack),
          fp: true,
          meaning: (m, o, s) =>
            move(m, o, { count, structure, elementBytes: 1 << s.size, registerBytes: s.Q ? 16 : 8 }, writeBack),
        });
      }
    }
  }
}

// ---- a single structure: one lane of each register, in the register's memory form

const laneLoads = [i64.load8U, i64.load16U, i64.load32U, i64.load] as const;
const laneStores = [i64.store8, i64.store16, i64.store32, i64.store] as const;

function loadLane(m: Machine, o: Operands, count: number, log2: number, lane: I32, writeBack: WriteBack): void {
  const sizeBytes = 1 << log2;
  const base = m.f.let(m.x(o.n as Reg));
  const values = Array.from({ length: count }, (_, i) => m.load(sizeBytes as AccessSize, plus(base, i * sizeBytes)));
  writeBackBase(m, o, writeBack, base, count * sizeBytes);
  registers(o, count).forEach((register, i) => {
    m.f.do(laneStores[log2]!(i32.add(m.vAddress(register), lane), values[i]!));
  });
}
function storeLane(m: Machine, o: Operands, count: number, log2: number, lane: I32, writeBack: WriteBack): void {
  const sizeBytes = 1 << log2;
  const base = m.f.let(m.x(o.n as Reg));
  registers(o, count).forEach((register, i) => {
    const value = laneLoads[log2]!(i32.add(m.vAddress(register), lane));
    m.store(sizeBytes as AccessSize, plus(base, i * sizeBytes), value);
  });
  writeBackBase(m, o, writeBack, base, count * sizeBytes);
}

type LaneFields = { Q: number; S: number; size: number };
/** The lane's offset in the register; undefined where the encoding is of another size or reserved. */
function laneOffset({ Q, S, size }: LaneFields, log2: number): number | undefined {
  const bits = (Q << 3) | (S << 2) | size; // the byte offset, but for D, whose size field is 01
  if (log2 === 3) return size === 1 && S === 0 ? Q << 3 : undefined;
  return bits & ((1 << log2) - 1) ? undefined : bits;
}

// Element size and the two bits of the opcode that tell it; S and D share theirs.
const lanes = [['B', '00', 0], ['H', '01', 1], ['S', '10', 2], ['D', '10', 3]] as const;
/** Registers, with the R bit and the opcode's lowest. */
const counts = [[1, '0', '0'], [2, '1', '0'], [3, '0', '1'], [4, '1', '1']] as const;

for (const [letter, opcode, log2] of lanes) {
  for (const [count, R, low] of counts) {
    for (const [L, mnemonic, move] of [['1', 'LD', loadLane], ['0', 'ST', storeLane]] as const) {
      for (const [writeBack, bit, Rm, suffix] of FORMS) {
        const rowName = `${mnemonic}${count} (single structure, ${letter}${suffix})`;
        const pattern = `0 Q 001101 ${bit} ${L} ${R} ${Rm} ${opcode} ${low} S size:2 Rn:5 Rt:5` as const;
        // Six registers leave no room for the lane in a record: there it is specialised for.
        if (count === 4 && writeBack === 'register') {
          inst(rowName, pattern, {
            statics: ['Q', 'S', 'size'],
            when: f => laneOffset(f, log2) !== undefined,
            operands: f => operandsFor(f, count, writeBack),
            fp: true,
            meaning: (m, o, s) => move(m, o, count, log2, i32.const(laneOffset(s, log2)!), writeBack),
          });
        } else {
          inst(rowName, pattern, {
            when: f => laneOffset(f, log2) !== undefined,
            operands: f => ({ ...operandsFor(f, count, writeBack), lane: imm(laneOffset(f, log2) ?? 0) }),
            fp: true,
            meaning: (m, o) => move(m, o, count, log2, m.f.let(m.imm(o.lane as Imm)), writeBack),
          });
        }
      }
    }
  }
}

// ---- one structure to all lanes

function splat(value: I64, log2: number): V128 {
  const low = i32.wrapI64(value);
  return [() => i8x16.splat(low), () => i16x8.splat(low), () => i32x4.splat(low), () => i64x2.splat(value)][log2]!();
}

for (const [count, R, low] of counts) {
  for (const [writeBack, bit, Rm, suffix] of FORMS) {
    inst(`LD${count}R${suffix}`, `0 Q 001101 ${bit} 1 ${R} ${Rm} 11 ${low} 0 size:2 Rn:5 Rt:5`, {
      statics: ['Q', 'size'],
      operands: f => operandsFor(f, count, writeBack),
      fp: true,
      meaning: (m, o, s) => {
        const sizeBytes = 1 << s.size;
        const base = m.f.let(m.x(o.n as Reg));
        const values = Array.from({ length: count },
          (_, i) => m.load(sizeBytes as AccessSize, plus(base, i * sizeBytes)));
        writeBackBase(m, o, writeBack, base, count * sizeBytes);
        registers(o, count).forEach((register, i) => {
          const all = splat(values[i]!, s.size);
          if (s.Q) m.setQ(register, all);
          else m.setD(register, i64x2.extract(all, 0));
        });
      },
    });
  }
}

export default { name, rows };
