// Emits a region as one WebAssembly function. Control flow becomes structured after Ramsey, "Beyond Relooper" (2022):
// a block is emitted where its one forward edge comes from; a block where several meet is placed behind a Wasm block in
// its immediate dominator, and edges to it leave that; a loop's head begins a Wasm loop.
//
// First a survey emits every instruction into nothing, to learn which registers and flags it uses; then, before the
// real pass, the states in which control reaches each block are settled.

import { SP_SLOT } from '../../a64/operand.ts';
import type { Operands, Reg } from '../../a64/operand.ts';
import { staticsOf } from '../../a64/table.ts';
import { assert } from '../../base/assert.ts';
import type { FunctionBuilder, Label } from '../../wasm/function.ts';
import { RegionMachine } from './region-machine.ts';
import type { PathState, RegionContext } from './region-machine.ts';
import { isBackward } from './region.ts';
import type { Block, Instruction, Region } from './region.ts';

/** What an instruction does, as far as its row and statics decide it. */
interface Nature {
  readonly endsInTrap: boolean;
  readonly setsFlags: boolean;
  /** Keys of the operands that it writes. */
  readonly writes: readonly string[];
}

/** By handler number. */
export type Natures = Map<number, Nature>;

export class RegionEmitter {
  readonly #context: RegionContext;
  readonly #newFunction: () => FunctionBuilder;
  readonly #natures: Natures;

  /**
   * @param natures those that are known; more are added
   * @param newFunction a builder for code that is thrown away
   */
  constructor(context: RegionContext, natures: Natures, newFunction: () => FunctionBuilder) {
    this.#context = context;
    this.#natures = natures;
    this.#newFunction = newFunction;
  }

  #natureOf(instruction: Instruction): Nature {
    const known = this.#natures.get(instruction.handler);
    if (known !== undefined) return known;
    const machine = new RegionMachine(this.#newFunction(), this.#context, 0, -1, () => {});
    const goesOn = emitInstruction(machine, instruction);
    const nature = {
      endsInTrap: !goesOn && !instruction.row.ends,
      setsFlags: machine.state.flags !== 'record',
      writes: Object.keys(instruction.operands).filter(key => machine.written.has(instruction.operands[key] as Reg)),
    };
    this.#natures.set(instruction.handler, nature);
    return nature;
  }

  readonly endsInTrap = (instruction: Instruction): boolean => this.#natureOf(instruction).endsInTrap;

  /** @param f of (record, vcpu, fuel), empty */
  emit(f: FunctionBuilder, region: Region): void {
    const states = this.#settleStates(region);
    const machine = new RegionMachine(f, this.#context, region.entry.start, usedRegisters(region), target => structure.follow(target));
    const structure = new Structure(f, machine, region, states);
    structure.emit();
  }

  #writtenIn(block: Block): number {
    let mask = 0;
    for (const instruction of block.instructions) {
      const { operands } = instruction;
      for (const key of this.#natureOf(instruction).writes) mask |= registersIn({ [key]: operands[key]! });
    }
    return mask;
  }

  /** What may be dirty, and where the flags are, when control reaches each block. */
  #settleStates({ blocks, entry }: Region): Map<Block, PathState> {
    const written = new Map(blocks.map(block => [block, this.#writtenIn(block)]));
    const setsFlags = new Map(blocks.map(block => [block, block.instructions.some(i => this.#natureOf(i).setsFlags)]));
    const dirty = new Map<Block, number>(blocks.map(block => [block, 0]));
    const flagsChanged = new Set<Block>();
    for (let changed = true; changed;) {
      changed = false;
      for (const block of blocks) {
        const dirtyOut = dirty.get(block)! | written.get(block)!;
        const flagsOut = flagsChanged.has(block) || setsFlags.get(block)!;
        for (const successor of block.successors) {
          const dirtyIn = dirty.get(successor)! | dirtyOut;
          if (dirtyIn === dirty.get(successor) && (!flagsOut || flagsChanged.has(successor))) continue;
          dirty.set(successor, dirtyIn);
          if (flagsOut) flagsChanged.add(successor);
          changed = true;
        }
      }
    }
    return new Map(blocks.map(block => {
      const isMerge = block.isLoopHead || block.forwardEdges > 1 || block === entry;
      // A block with one way to it takes over the flags as they are there.
      const flags = isMerge && flagsChanged.has(block) ? 'merged' : 'record';
      return [block, { dirty: dirty.get(block)!, flags, fpChecked: false }];
    }));
  }
}

function emitInstruction(machine: RegionMachine, instruction: Instruction): boolean {
  const { row, operands, handler } = instruction;
  return machine.instruction(instruction, () => row.meaning(machine, operands, staticsOf(row, handler).statics));
}

function registersIn(operands: Operands): number {
  let mask = 0;
  for (const key in operands) {
    const { kind, value } = operands[key]!;
    if (kind === 'x' && (value as number) <= SP_SLOT) mask |= 1 << (value as number);
  }
  return mask;
}
function usedRegisters({ blocks }: Region): number {
  return blocks.flatMap(block => block.instructions).reduce((mask, { operands }) => mask | registersIn(operands), 0);
}

class Structure {
  readonly #f: FunctionBuilder;
  readonly #machine: RegionMachine;
  readonly #states: ReadonlyMap<Block, PathState>;
  readonly #blockAt: ReadonlyMap<number, Block>;
  readonly #labels = new Map<Block, Label>();
  /** Blocks placed by their dominator, in reverse postorder. */
  readonly #placed = new Map<Block, Block[]>();
  readonly #entry: Block;
  #current: Block;
  #place = 0;

  constructor(f: FunctionBuilder, machine: RegionMachine, { blocks, entry }: Region, states: ReadonlyMap<Block, PathState>) {
    this.#f = f;
    this.#machine = machine;
    this.#states = states;
    this.#blockAt = new Map(blocks.map(block => [block.start, block]));
    this.#entry = entry;
    this.#current = entry;
    for (const block of blocks) {
      if (block.forwardEdges < 2) continue;
      const dominator = block.immediateDominator!;
      this.#placed.set(dominator, [...this.#placed.get(dominator) ?? [], block]);
    }
  }

  emit(): void {
    const state = this.#states.get(this.#entry)!;
    this.#machine.state = { dirty: 0, flags: 'record', fpChecked: false };
    if (state.flags === 'merged') this.#machine.mergeFlags();
    this.#tree(this.#entry, this.#entry.isLoopHead ? state : this.#machine.state);
    // Every path ends in a tail call.
    this.#f.unreachable();
  }

  /** A block and all that it dominates. */
  #tree(block: Block, state: PathState): void {
    if (!block.isLoopHead) return this.#within(block, this.#placed.get(block) ?? [], state);
    this.#f.loop(label => {
      this.#labels.set(block, label);
      this.#within(block, this.#placed.get(block) ?? [], state);
    });
  }

  #within(block: Block, placed: readonly Block[], state: PathState): void {
    if (placed.length === 0) return this.#block(block, state);
    const last = placed.at(-1)!;
    this.#f.block(label => {
      this.#labels.set(last, label);
      this.#within(block, placed.slice(0, -1), state);
    });
    this.#tree(last, this.#states.get(last)!);
  }

  #block(block: Block, state: PathState): void {
    const machine = this.#machine;
    machine.state = { ...state };
    this.#current = block;
    for (const instruction of block.instructions) {
      this.#place = instruction.index;
      if (!emitInstruction(machine, instruction)) return;
      // A taken branch may have emitted other blocks.
      this.#current = block;
    }
    assert(block.next !== undefined, 'control falls out of a block that has no next instruction');
    this.#place = block.next - 1;
    this.follow(block.next);
  }

  /** The edge from the current instruction to a place in the page. */
  follow(target: number): void {
    const from = this.#current;
    const machine = this.#machine;
    machine.addFuel(this.#place, target);
    const to = this.#blockAt.get(target);
    if (to === undefined || !from.successors.includes(to)) return this.#leave(target);
    const state = this.#states.get(to)!;
    const backward = isBackward(from, to);
    if (state.flags === 'merged') machine.mergeFlags();
    if (backward) machine.leaveIfDue(target);
    if (backward || to.forwardEdges > 1) return this.#f.br(this.#labels.get(to)!);
    const place = this.#place;
    const { dirty } = state;
    this.#tree(to, to.isLoopHead ? state : { ...machine.state, dirty });
    this.#place = place;
  }

  #leave(target: number): void {
    // Only a way back can make a circle.
    if (target <= this.#place) this.#machine.leaveIfDue(target);
    this.#machine.leaveTo(target);
  }
}
