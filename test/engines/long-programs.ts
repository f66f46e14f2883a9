// Random programs of thousands of instructions: arithmetic of all kinds, memory, loops, calls, indirect branches and code
// that rewrites itself; what they have made of registers and memory they leave in memory.
//
//   program  ┌─ load registers from the data
//            ├─ pieces, in loops, in functions, over several pages
//            └─ store registers behind the data; write(1, all of it); exit(0)
//
// x24–x30 and SP belong to the frame of the program: x27 its data, x28 what is left to do at most, x26 loops, x24, x25 what
// rewriting needs, x29 where to go.

import { Assembler } from '../../src/a64/test-assembler.ts';
import { fieldsOf, operandsOf } from '../../src/a64/row.ts';
import { rows } from '../../src/a64/table.ts';
import type { Row } from '../../src/a64/row.ts';
import type { SeededRandom } from '../../src/base/random.ts';
import { MEMORY_GROUPS, existingVariants, randomCase } from '../differential/instruction-cases.ts';

export const CODE_ADDRESS = 0x4001_0000;
export const CODE_BYTES_MAX = 0x1_0000;
export const DATA_ADDRESS = 0x4010_0000;
/** Memory that pieces work on, and behind it registers. */
export const WORK_BYTES = 1024;
const VECTORS_AT = WORK_BYTES + 256;
export const DATA_BYTES = VECTORS_AT + 512 + 16;
const FIRST_RESERVED = 24;
const SYS_WRITE = 64;
const SYS_EXIT = 93;

/** Instructions of registers alone, whose results QEMU's and our CPU agree on. */
const computing: readonly Row[] = rows.filter(row => !MEMORY_GROUPS.has(row.group) && row.branch === undefined
  && row.undifferentiable === undefined && !row.ends
  && /^(data-processing|fp-|simd-|crypto)/.test(row.group));

export interface LongProgramOptions {
  readonly pieces: number;
  /** Instructions that fault or trap are among them; whoever runs the program has to go on behind them. */
  readonly faults: boolean;
}

/** An address where nothing is. */
const NOWHERE = 0x9000_0000n;

class Writer {
  readonly a = new Assembler(CODE_ADDRESS);
  readonly #random: SeededRandom;
  readonly #options: LongProgramOptions;
  #labels = 0;

  constructor(random: SeededRandom, options: LongProgramOptions) {
    this.#random = random;
    this.#options = options;
  }

  #label(what: string): string { return `${what} ${this.#labels++}`; }

  /** One instruction that changes none of the program's own registers, nor reads the PC. */
  computation(): number {
    const random = this.#random;
    for (;;) {
      const row = random.pick(computing);
      if (row.name === 'ADR' || row.name === 'ADRP') continue;
      const made = randomCase(row, random.pick(existingVariants(row)), random);
      if (made === undefined || made.words.length !== 1) continue;
      const operands = Object.values(operandsOf(row, fieldsOf(row, made.word)));
      if (operands.some(({ kind, value }) => kind === 'x' && (value as number) >= FIRST_RESERVED && (value as number) < 32)) continue;
      return made.word;
    }
  }

  #access(): void {
    const { a } = this;
    const random = this.#random;
    const register = random.below(FIRST_RESERVED);
    const place = 8 * random.below(WORK_BYTES / 8 - 2);
    switch (random.below(7)) {
      case 0: case 1: return void a.ldr(register, 27, place);
      case 2: case 3: return void a.str(register, 27, place);
      case 4: return void a.ldr(register, 27, place + random.below(8), 'B');
      case 5: return void a.add(24, 27, place).ldp(register, (register + 1) % FIRST_RESERVED, 24);
      default: return void a.add(24, 27, place).ldadd(register, random.below(FIRST_RESERVED), 24);
    }
  }

  /** A slot whose instruction is another one each time that control comes here. */
  #rewriting(): void {
    const { a } = this;
    const [table, slot, over] = [this.#label('table'), this.#label('slot'), this.#label('over')];
    a.emit('UBFM', { sf: 1, N: 1, immr: 0, imms: 1, Rn: 28, Rd: 24 }).adr(25, table)
      .emit('LDR W (register)', { Rm: 24, option: 3, S: 1, Rn: 25, Rt: 25 })
      .adr(24, slot).str(25, 24, 0, 'W').sys('DC CVAU', 24).dsb().sys('IC IVAU', 24).dsb().isb()
      .label(slot).nop().b(over).label(table);
    for (let i = 0; i < 4; i++) a.word(this.computation());
    a.label(over);
  }

  #branching(): void {
    const { a } = this;
    const random = this.#random;
    const over = this.#label('over');
    const register = random.below(FIRST_RESERVED);
    switch (random.below(4)) {
      case 0: a.cbz(register, over); break;
      case 1: a.tbnz(register, random.below(64), over); break;
      case 2: a.adr(29, over).br(29); break;
      default: a.bCond(random.pick(['eq', 'ne', 'cs', 'cc', 'mi', 'vs', 'hi', 'ge', 'lt', 'gt'] as const), over);
    }
    for (let i = 0, n = random.below(4); i < n; i++) a.word(this.computation());
    a.label(over);
  }

  #fault(): void {
    const { a } = this;
    switch (this.#random.below(4)) {
      case 0: return void a.udf();
      case 1: return void a.svc(this.#random.below(1000));
      case 2: return void a.mov(24, NOWHERE).ldr(this.#random.below(FIRST_RESERVED), 24);
      default: return void a.mov(24, NOWHERE).str(0, 24);
    }
  }

  /** @param functions labels of what may be called */
  piece(functions: readonly string[]): void {
    const { a } = this;
    const random = this.#random;
    switch (random.below(16)) {
      case 0: case 1: case 2: return this.#access();
      case 3: case 4: return this.#branching();
      case 5: if (functions.length > 0) a.bl(random.pick(functions)); return;
      case 6: if (functions.length > 0) a.adr(29, random.pick(functions)).blr(29); return;
      case 7: if (random.below(6) === 0) this.#rewriting(); return;
      case 8: if (this.#options.faults) this.#fault(); return;
      default: a.word(this.computation());
    }
  }

  loop(functions: readonly string[]): void {
    const { a } = this;
    const [start, out] = [this.#label('loop'), this.#label('out')];
    a.mov(26, 2 + this.#random.below(30)).label(start).subs(28, 28, 1).bCond('eq', out);
    for (let i = 0, n = 3 + this.#random.below(20); i < n; i++) this.piece(functions);
    a.sub(26, 26, 1).cbnz(26, start).label(out);
  }
}

/** The program's words, to be at CODE_ADDRESS, executable and writable. */
export function longProgram(random: SeededRandom, options: LongProgramOptions): number[] {
  const writer = new Writer(random, options);
  const { a } = writer;
  const functions = ['f0', 'f1', 'f2', 'f3', 'f4', 'f5'];
  a.mov(27, DATA_ADDRESS).mov(28, 3000).add(24, 27, VECTORS_AT);
  for (let n = 0; n < 32; n++) a.emit('LDR Q (post-index)', { Rt: n, Rn: 24, imm9: 16 });
  for (let n = 0; n < FIRST_RESERVED; n++) a.ldr(n, 27, WORK_BYTES + 8 * n);
  a.b('start');
  for (const name of functions) {
    a.label(name);
    for (let i = 0, n = 3 + random.below(12); i < n; i++) writer.piece([]);
    a.ret();
    if (random.below(3) === 0) a.padTo((Math.floor(Number(a.here - a.origin) / 4096) + 1) * 4096);
  }
  a.label('start');
  for (let i = 0; i < options.pieces; i++) {
    writer.loop(functions);
    if (random.below(6) !== 0) continue;
    const label = `page ${i}`;
    // Over the end of the page, or far away.
    a.b(label).padTo((Math.floor(Number(a.here - a.origin) / 4096) + 1) * 4096 - 8 * random.below(2)).label(label);
  }
  for (let n = 0; n < FIRST_RESERVED; n++) a.str(n, 27, WORK_BYTES + 8 * n);
  a.mrs(0, 'NZCV').str(0, 27, WORK_BYTES + 8 * FIRST_RESERVED).add(24, 27, VECTORS_AT);
  for (let n = 0; n < 32; n++) a.emit('STR Q (post-index)', { Rt: n, Rn: 24, imm9: 16 });
  a.mov(0, 1).mov(1, DATA_ADDRESS).mov(2, DATA_BYTES).mov(8, SYS_WRITE).svc(0x7777).mov(0, 0).mov(8, SYS_EXIT).svc(0x7777);
  const words = a.words();
  if (4 * words.length > CODE_BYTES_MAX) throw new Error('the program is too long');
  return words;
}
