// The disassembler: an instruction word as readable text, derived from the instruction table. The row's name, then its
// operands in the table's order; not the syntax of the Arm ARM, but stable, and enough to read a trace by.
//
//   ADD (immediate) x0, sp, #16      B.cond ne 0x40000008      MRS x3, SCTLR_EL1      udf 0x00000000

import { DISCARD_SLOT, SP_SLOT, ZERO_SLOT } from './operand.ts';
import type { Operand } from './operand.ts';
import type { Fields, Row } from './row.ts';
import { sysreg } from './system-registers.ts';
import { decode } from './table.ts';

export type ConditionName = (typeof conditionNames)[number];
/** In the order of their codes. */
export const conditionNames = [
  'eq', 'ne', 'cs', 'cc', 'mi', 'pl', 'vs', 'vc', 'hi', 'ls', 'ge', 'lt', 'gt', 'le', 'al', 'nv',
] as const;

const registerNames = new Map<number, string>(Object.entries(sysreg).map(([name, encoding]) => [encoding, name]));
/** Operands that repeat a field or are fixed: the old value of a register that is written, the link register. */
const IMPLIED = new Set(['old', 'old2', 'link']);
/** Operands of loads and stores whose width the letter in the row's name gives; the others are addresses. */
const TRANSFERRED = new Set(['t', 't2', 's', 's2']);

/**
 * @param pc address of the instruction, for targets of branches and PC-relative addresses.
 */
export function disassemble(word: number, pc: bigint | number = 0n): string {
  const found = decode(word >>> 0);
  if (!found) return `udf 0x${(word >>> 0).toString(16).padStart(8, '0')}`;
  const { row, fields } = found;
  const condition = fields['cond'] === undefined ? [] : [conditionNames[fields['cond']]!];
  const operands = Object.entries(row.operands(fields))
    .filter(([key]) => !IMPLIED.has(key))
    .map(([key, operand]) => operandText(row, fields, key, operand, BigInt(pc)));
  const rest = remainingFields(row, fields, operands.length > 0);
  return [row.name, ...condition, operands.join(', '), rest].filter(part => part !== '').join(' ');
}

function operandText(row: Row, fields: Fields, key: string, operand: Operand, pc: bigint): string {
  const { kind, value } = operand;
  if (kind === 'v') return `v${value}`;
  if (kind === 'x') return registerText(value as number, isNarrow(row, fields, key));
  if (kind === 'imm64') return `#0x${BigInt.asUintN(64, value as bigint).toString(16)}`;
  if (key === 'register') return registerNames.get(value as number) ?? systemRegisterText(value as number);
  if (key === 'operation') return systemRegisterText(value as number);
  const isRelative = key === row.branch || row.name === 'ADR' || row.name.endsWith('(literal)');
  if (isRelative) return addressText(pc + BigInt(value));
  if (row.name === 'ADRP') return addressText((pc & ~0xfffn) + (BigInt(value) << 12n));
  return `#${value}`;
}

function registerText(slot: number, isNarrow32: boolean): string {
  const letter = isNarrow32 ? 'w' : 'x';
  if (slot === SP_SLOT) return isNarrow32 ? 'wsp' : 'sp';
  return slot === ZERO_SLOT || slot === DISCARD_SLOT ? `${letter}zr` : `${letter}${slot}`;
}
function isNarrow(row: Row, fields: Fields, key: string): boolean {
  return fields['sf'] === 0 || (TRANSFERRED.has(key) && / W\b/.test(row.name));
}

function systemRegisterText(encoding: number): string {
  const [crn, crm] = [(encoding >>> 7) & 15, (encoding >>> 3) & 15];
  return `S${encoding >>> 14}_${(encoding >>> 11) & 7}_C${crn}_C${crm}_${encoding & 7}`;
}
function addressText(address: bigint): string {
  return `0x${BigInt.asUintN(64, address).toString(16)}`;
}

/** What the operands do not show: the fields that the row is specialised for, or all if it has no operands. */
function remainingFields(row: Row, fields: Fields, hasOperands: boolean): string {
  const names = hasOperands ? row.statics : [...row.fields.keys()];
  const shown = names.filter(name => name !== 'cond' && name !== 'sf').map(name => `${name}=${fields[name]}`);
  return shown.length === 0 ? '' : `{${shown.join(' ')}}`;
}
