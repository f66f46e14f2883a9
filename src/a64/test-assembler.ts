// The assembler of the project's own tests, derived from the instruction table.
//
//   const a = new Assembler(0x4000_0000n);
//   a.mov(0, 0x1234_5678_9abcn).label('again').subs(0, 0, 1).bCond('ne', 'again').hvc(0);
//   machine.load(0x4000_0000, a.words());
//
// `emit` takes a row's name and the values of its fields and checks both: a field that does not exist or overflows, or
// fields that the row does not allow, are the test's error and throw. The methods below it are shorthands for what
// tests write often. Registers are numbers; 31 is XZR or SP, as the instruction has it. All forms are 64-bit unless
// the method's name or its options say otherwise.

import { decodeBitMasks } from './bit-masks.ts';
import { conditionNames } from './test-disassembler.ts';
import type { ConditionName } from './test-disassembler.ts';
import { encode } from './row.ts';
import type { Row } from './row.ts';
import { sysreg, systemRegister } from './system-registers.ts';
import { rows } from './table.ts';

export type SystemRegisterName = keyof typeof sysreg;

const sys = (op1: number, crn: number, crm: number, op2: number) => systemRegister(1, op1, crn, crm, op2);
/** Operations of SYS: cache and TLB maintenance, address translation. */
export const sysOperations = {
  'IC IALLUIS': sys(0, 7, 1, 0), 'IC IALLU': sys(0, 7, 5, 0), 'IC IVAU': sys(3, 7, 5, 1),
  'DC IVAC': sys(0, 7, 6, 1), 'DC CVAC': sys(3, 7, 10, 1), 'DC CVAU': sys(3, 7, 11, 1), 'DC CIVAC': sys(3, 7, 14, 1),
  'DC ZVA': sys(3, 7, 4, 1),
  'AT S1E1R': sys(0, 7, 8, 0), 'AT S1E1W': sys(0, 7, 8, 1), 'AT S1E0R': sys(0, 7, 8, 2), 'AT S1E0W': sys(0, 7, 8, 3),
  'TLBI VMALLE1': sys(0, 8, 7, 0), 'TLBI VAE1': sys(0, 8, 7, 1), 'TLBI ASIDE1': sys(0, 8, 7, 2),
  'TLBI VAAE1': sys(0, 8, 7, 3), 'TLBI VALE1': sys(0, 8, 7, 5), 'TLBI VAALE1': sys(0, 8, 7, 7),
  'TLBI VMALLE1IS': sys(0, 8, 3, 0), 'TLBI VAE1IS': sys(0, 8, 3, 1), 'TLBI ASIDE1IS': sys(0, 8, 3, 2),
  'TLBI VAAE1IS': sys(0, 8, 3, 3), 'TLBI VALE1IS': sys(0, 8, 3, 5), 'TLBI VAALE1IS': sys(0, 8, 3, 7),
} as const;
export type SysOperation = keyof typeof sysOperations;

/** PSTATE fields of MSR (immediate) by op1:op2. */
const pstateFields = { PAN: 0b000_100, SPSel: 0b000_101, DAIFSet: 0b011_110, DAIFClr: 0b011_111 } as const;

/** Register letter of a load or store and the shift of its scaled offset. */
const scaleOf = { B: 0, H: 1, W: 2, S: 2, X: 3, D: 3, Q: 4 } as const;
const memoryRows = {
  load: { B: 'LDRB W', H: 'LDRH W', W: 'LDR W', X: 'LDR X', S: 'LDR S', D: 'LDR D', Q: 'LDR Q' },
  store: { B: 'STRB W', H: 'STRH W', W: 'STR W', X: 'STR X', S: 'STR S', D: 'STR D', Q: 'STR Q' },
} as const;
/** B and H are bytes and half words of general registers; S, D and Q are SIMD&FP registers. */
export type AccessLetter = keyof typeof memoryRows.load;

const byName = Map.groupBy(rows, row => row.name);

/** The table's row of a name. */
export function rowNamed(name: string): Row {
  const found = byName.get(name);
  if (!found) throw new Error(`the instruction table has no row "${name}"`);
  if (found.length > 1) throw new Error(`the instruction table has several rows "${name}"`);
  return found[0]!;
}

/** `encode` with checks: names of fields, their ranges (signed or unsigned), and the row's own condition. */
export function encodeChecked(row: Row, values: Readonly<Record<string, number>>): number {
  const all: Record<string, number> = {};
  for (const name of row.fields.keys()) all[name] = 0;
  for (const [name, value] of Object.entries(values)) {
    const field = row.fields.get(name);
    if (!field) throw new Error(`${row.name} has no field ${name}; it has ${[...row.fields.keys()].join(', ')}`);
    const size = 2 ** field.bits;
    if (!Number.isInteger(value) || value < -size / 2 || value >= size) {
      throw new Error(`${row.name}: ${value} does not fit into the ${field.bits} bits of ${name}`);
    }
    all[name] = value & (size - 1);
  }
  if (!row.when(all)) throw new Error(`${row.name} is not allocated with ${JSON.stringify(values)}`);
  return encode(row, all);
}

interface Fixup {
  readonly index: number;
  readonly label: string;
  readonly row: Row;
  readonly values: Readonly<Record<string, number>>;
}

export class Assembler {
  readonly origin: bigint;
  readonly #words: number[] = [];
  readonly #labels = new Map<string, number>();
  readonly #fixups: Fixup[] = [];

  /** @param origin address of the first word, for labels and PC-relative instructions. */
  constructor(origin: bigint | number = 0n) {
    this.origin = BigInt(origin);
  }

  /** Address of the next word. */
  get here(): bigint {
    return this.origin + BigInt(4 * this.#words.length);
  }

  label(name: string): this {
    if (this.#labels.has(name)) throw new Error(`the label ${name} is defined twice`);
    this.#labels.set(name, this.#words.length);
    return this;
  }

  /** Address of a label that has been defined. */
  addressOf(name: string): bigint {
    return this.origin + BigInt(4 * this.#indexOf(name));
  }
  #indexOf(name: string): number {
    const index = this.#labels.get(name);
    if (index === undefined) throw new Error(`the label ${name} is not defined`);
    return index;
  }

  /** The program, with all labels resolved. */
  words(): number[] {
    for (const { index, label, row, values } of this.#fixups) {
      const distance = 4 * (this.#indexOf(label) - index);
      this.#words[index] = encodeChecked(row, { ...values, ...offsetFields(row, distance) });
    }
    return [...this.#words];
  }

  word(...values: number[]): this {
    for (const value of values) this.#words.push(value >>> 0);
    return this;
  }
  /** Fills with NOP up to an offset from the origin. */
  padTo(offsetBytes: number): this {
    if (offsetBytes < 4 * this.#words.length) throw new Error('the program has passed that offset');
    while (4 * this.#words.length < offsetBytes) this.nop();
    return this;
  }

  /** An instruction of the table. */
  emit(rowName: string, values: Readonly<Record<string, number>> = {}): this {
    return this.word(encodeChecked(rowNamed(rowName), values));
  }
  /** A PC-relative instruction of the table (branches, ADR, literal loads) with a label as its target. */
  emitTo(rowName: string, label: string, values: Readonly<Record<string, number>> = {}): this {
    this.#fixups.push({ index: this.#words.length, label, row: rowNamed(rowName), values });
    return this.word(0);
  }

  // ---- moves and arithmetic

  /** Any 64-bit value in the fewest of MOVZ, MOVN and MOVK; a bitmask immediate in one ORR. */
  mov(rd: number, value: bigint | number): this {
    const wanted = BigInt.asUintN(64, BigInt(value));
    const parts = [0, 1, 2, 3].map(hw => Number((wanted >> BigInt(16 * hw)) & 0xffffn));
    const inverted = parts.filter(part => part === 0xffff).length > parts.filter(part => part === 0).length;
    const background = inverted ? 0xffff : 0;
    const [first = 0, ...others] = [0, 1, 2, 3].filter(hw => parts[hw] !== background);
    const mask = others.length > 0 ? bitMaskFields(wanted) : undefined;
    if (mask) return this.emit('ORR (immediate)', { sf: 1, ...mask, Rn: 31, Rd: rd });
    if (inverted) this.emit('MOVN', { sf: 1, hw: first, imm16: parts[first]! ^ 0xffff, Rd: rd });
    else this.emit('MOVZ', { sf: 1, hw: first, imm16: parts[first]!, Rd: rd });
    for (const hw of others) this.emit('MOVK', { sf: 1, hw, imm16: parts[hw]!, Rd: rd });
    return this;
  }
  movReg(rd: number, rm: number): this { return this.emit('MOV (register)', { sf: 1, Rm: rm, Rd: rd }); }
  /** MOV to or from SP. */
  movSp(rd: number, rn: number): this { return this.add(rd, rn, 0); }
  /** Immediates up to 4095; a register is written `addReg`. */
  add(rd: number, rn: number, value: number): this {
    return this.emit('ADD (immediate)', { sf: 1, imm12: value, Rn: rn, Rd: rd });
  }
  sub(rd: number, rn: number, value: number): this { return this.emit('SUB (immediate)',
    { sf: 1, imm12: value, Rn: rn, Rd: rd }); }
  subs(rd: number, rn: number, value: number): this {
    return this.emit('SUBS (immediate)', { sf: 1, imm12: value, Rn: rn, Rd: rd });
  }
  cmp(rn: number, value: number): this { return this.subs(31, rn, value); }
  addReg(rd: number, rn: number, rm: number): this {
    return this.emit('ADD (register)', { sf: 1, Rm: rm, Rn: rn, Rd: rd });
  }
  eorReg(rd: number, rn: number, rm: number): this { return this.emit('EOR (register)',
    { sf: 1, Rm: rm, Rn: rn, Rd: rd }); }
  madd(rd: number, rn: number, rm: number, ra: number): this {
    return this.emit('MADD', { sf: 1, Rm: rm, Ra: ra, Rn: rn, Rd: rd });
  }
  nop(): this { return this.emit('HINT'); }

  // ---- memory

  /** With an unsigned offset, a multiple of the size. */
  ldr(rt: number, rn: number, offsetBytes = 0, size: AccessLetter = 'X'): this {
    return this.emit(`${memoryRows.load[size]} (unsigned offset)`, scaled(rt, rn, offsetBytes, size));
  }
  str(rt: number, rn: number, offsetBytes = 0, size: AccessLetter = 'X'): this {
    return this.emit(`${memoryRows.store[size]} (unsigned offset)`, scaled(rt, rn, offsetBytes, size));
  }
  ldtr(rt: number, rn: number): this { return this.emit('LDTR X (unprivileged)', { Rn: rn, Rt: rt }); }
  sttr(rt: number, rn: number): this { return this.emit('STTR X (unprivileged)', { Rn: rn, Rt: rt }); }
  ldp(rt: number, rt2: number, rn: number): this {
    return this.emit('LDP X (signed offset)', { Rt: rt, Rt2: rt2, Rn: rn });
  }
  stp(rt: number, rt2: number, rn: number): this { return this.emit('STP X (signed offset)',
    { Rt: rt, Rt2: rt2, Rn: rn }); }
  ldxr(rt: number, rn: number): this { return this.emit('LDXR X', { Rs: 31, Rt2: 31, Rn: rn, Rt: rt }); }
  stxr(rs: number, rt: number, rn: number): this { return this.emit('STXR X', { Rs: rs, Rt2: 31, Rn: rn, Rt: rt }); }
  ldar(rt: number, rn: number): this { return this.emit('LDAR X', { Rs: 31, Rt2: 31, Rn: rn, Rt: rt }); }
  stlr(rt: number, rn: number): this { return this.emit('STLR X', { Rs: 31, Rt2: 31, Rn: rn, Rt: rt }); }
  /** Of 64 bits. */
  ldadd(rs: number, rt: number, rn: number): this { return this.emit('LDADD', { size: 3, Rs: rs, Rn: rn, Rt: rt }); }
  cas(rs: number, rt: number, rn: number): this { return this.emit('CAS', { size: 3, Rs: rs, Rn: rn, Rt: rt }); }

  // ---- branches

  b(label: string): this { return this.emitTo('B', label); }
  bl(label: string): this { return this.emitTo('BL', label); }
  bCond(condition: ConditionName, label: string): this {
    return this.emitTo('B.cond', label, { cond: conditionNames.indexOf(condition) });
  }
  cbz(rt: number, label: string): this { return this.emitTo('CBZ', label, { sf: 1, Rt: rt }); }
  cbnz(rt: number, label: string): this { return this.emitTo('CBNZ', label, { sf: 1, Rt: rt }); }
  tbz(rt: number, bit: number, label: string): this {
    return this.emitTo('TBZ', label, { b5: bit >> 5, b40: bit & 31, Rt: rt });
  }
  tbnz(rt: number, bit: number, label: string): this { return this.emitTo('TBNZ', label,
    { b5: bit >> 5, b40: bit & 31, Rt: rt }); }
  adr(rd: number, label: string): this { return this.emitTo('ADR', label, { Rd: rd }); }
  br(rn: number): this { return this.emit('BR', { Rn: rn }); }
  blr(rn: number): this { return this.emit('BLR', { Rn: rn }); }
  ret(rn = 30): this { return this.emit('RET', { Rn: rn }); }

  // ---- exceptions and system

  svc(immediate: number): this { return this.emit('SVC', { imm16: immediate }); }
  hvc(immediate: number): this { return this.emit('HVC', { imm16: immediate }); }
  brk(immediate: number): this { return this.emit('BRK', { imm16: immediate }); }
  eret(): this { return this.emit('ERET'); }
  /** Permanently UNDEFINED. */
  udf(): this { return this.word(0); }
  wfi(): this { return this.emit('WFI'); }
  wfe(): this { return this.emit('WFE'); }
  isb(): this { return this.emit('ISB', { CRm: 15 }); }
  dsb(): this { return this.emit('DSB', { CRm: 15 }); }
  mrs(rt: number, register: SystemRegisterName | number): this { return this.#moveSystem('MRS', register, rt); }
  msr(register: SystemRegisterName | number, rt: number): this {
    return this.#moveSystem('MSR (register)', register, rt);
  }
  #moveSystem(rowName: string, register: SystemRegisterName | number, rt: number): this {
    const encoding = typeof register === 'number' ? register : sysreg[register];
    return this.emit(rowName, { o0: (encoding >>> 14) & 1, ...encodingFields(encoding), Rt: rt });
  }
  msrImmediate(field: keyof typeof pstateFields, immediate: number): this {
    const bits = pstateFields[field];
    return this.emit('MSR (immediate)', { op1: bits >>> 3, CRm: immediate, op2: bits & 7 });
  }
  /** TLBI, IC, DC, AT. */
  sys(operation: SysOperation, rt = 31): this {
    return this.emit('SYS', { ...encodingFields(sysOperations[operation]), Rt: rt });
  }
}

function encodingFields(encoding: number): Record<string, number> {
  return { op1: (encoding >>> 11) & 7, CRn: (encoding >>> 7) & 15, CRm: (encoding >>> 3) & 15, op2: encoding & 7 };
}

function scaled(rt: number, rn: number, offsetBytes: number, size: AccessLetter): Record<string, number> {
  return { imm12: offsetBytes / 2 ** scaleOf[size], Rn: rn, Rt: rt };
}

/** The fields that hold a PC-relative distance; the range check is the encoder's. */
function offsetFields(row: Row, distanceBytes: number): Record<string, number> {
  if (row.fields.has('immhi')) return { immlo: distanceBytes & 3, immhi: distanceBytes >> 2 };
  const name = [...row.fields.keys()].find(key => /^imm(14|19|26)$/.test(key));
  if (name === undefined) throw new Error(`${row.name} has no PC-relative target`);
  const words = distanceBytes / 4;
  const half = 2 ** (row.fields.get(name)!.bits - 1);
  if (words < -half || words >= half) throw new Error(`${row.name}: the target is out of reach`);
  return { [name]: words };
}

let bitMasks: Map<bigint, Record<'N' | 'immr' | 'imms', number>> | undefined;
/** N, immr and imms of a 64-bit bitmask immediate, or undefined if the value is none. There are 5334 of them. */
export function bitMaskFields(value: bigint): Record<'N' | 'immr' | 'imms', number> | undefined {
  if (!bitMasks) {
    bitMasks = new Map();
    for (let all = 0; all < 1 << 13; all++) {
      const fields = { N: all >> 12, immr: (all >> 6) & 63, imms: all & 63 };
      const mask = decodeBitMasks(fields.N, fields.imms, fields.immr);
      if (mask !== undefined && !bitMasks.has(mask)) bitMasks.set(mask, fields);
    }
  }
  return bitMasks.get(BigInt.asUintN(64, value));
}
