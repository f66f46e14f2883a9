// Emits a region as one WebAssembly function. Control flow becomes structured after Ramsey, "Beyond Relooper" (2022):
// a block is emitted where its one forward edge comes from; a block where several meet is placed behind a Wasm block in
// its immediate dominator, and edges to it leave that; a loop's head begins a Wasm loop.
//
// First a survey emits every instruction into nothing, to learn which registers and flags it uses; then, before the
// real pass, the states in which control reaches each block are settled (path-states.ts).

import type { Operand } from '../../a64/operand.ts';
import { staticsOf } from '../../a64/table.ts';
import { assert } from '../../base/assert.ts';
import type { FunctionBuilder, Label } from '../../wasm/function.ts';
import { settleStates } from './path-states.ts';
import type { BlockState, Effects } from './path-states.ts';
import { RegionMachine, atMerge } from './region-machine.ts';
import type { FlagState, PathState, RegionContext } from './region-machine.ts';
import { REGION_PAGES_MAX, isBackward } from './region.ts';
import type { Block, Instruction, Region, RegionPage } from './region.ts';
import { allRegisters, noRegisters, registersOf, union } from './register-set.ts';

/** What an instruction does, as far as its row and statics decide it. */
interface Nature {
  readonly endsInTrap: boolean;
  readonly setsFlags: boolean;
  readonly accesses: boolean;
  readonly forgets: boolean;
  /** Keys of the operands whose registers it writes, and of those that it needs the values of. */
  readonly writes: readonly string[];
  readonly reads: readonly string[];
}

/** For instructions that are only looked at. */
const ANY_PAGES: readonly RegionPage[] = Array.from({ length: REGION_PAGES_MAX }, () => ({ distance: 0, content: 0n }));

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
    const machine = new RegionMachine(this.#newFunction(), this.#context, 0, ANY_PAGES, allRegisters, () => {});
    let goesOn = false;
    machine.around(() => { goesOn = emitInstruction(machine, instruction, { reads: allRegisters }); });
    const keysOf = (found: ReadonlySet<Operand>): string[] =>
      Object.keys(instruction.operands).filter(key => found.has(instruction.operands[key]!));
    const nature = {
      endsInTrap: !goesOn && !instruction.row.ends,
      setsFlags: machine.state.flags !== 'record',
      accesses: machine.accesses,
      forgets: machine.forgets,
      writes: keysOf(machine.written),
      reads: keysOf(machine.read),
    };
    this.#natures.set(instruction.handler, nature);
    return nature;
  }

  readonly endsInTrap = (instruction: Instruction): boolean => this.#natureOf(instruction).endsInTrap;

  #effectsOf(instruction: Instruction): Effects {
    const { writes, reads, setsFlags, accesses, forgets } = this.#natureOf(instruction);
    const named = (keys: readonly string[]) => registersOf(keys.map(key => instruction.operands[key]!));
    return { reads: named(reads), writes: named(writes), setsFlags, accesses, forgets };
  }

  /** @param f of (record, vcpu, fuel), empty */
  emit(f: FunctionBuilder, region: Region): void {
    const effects = new Map(region.blocks.flatMap(block => block.instructions)
      .map(instruction => [instruction, this.#effectsOf(instruction)]));
    const states = settleStates(region, effects);
    const used = [...effects.values()].reduce((all, { reads, writes }) => union(all, union(reads, writes)), noRegisters);
    const machine = new RegionMachine(f, this.#context, region.entry.start, region.pages, used, target => structure.follow(target));
    const structure = new Structure(f, machine, region, states, effects);
    machine.around(() => structure.emit());
  }
}

function emitInstruction(machine: RegionMachine, instruction: Instruction, { reads }: Pick<Effects, 'reads'>): boolean {
  const { row, operands, handler } = instruction;
  return machine.instruction(instruction, reads, () => row.meaning(machine, operands, staticsOf(row, handler).statics));
}

class Structure {
  readonly #f: FunctionBuilder;
  readonly #machine: RegionMachine;
  readonly #states: ReadonlyMap<Block, BlockState>;
  readonly #effects: ReadonlyMap<Instruction, Effects>;
  readonly #blockAt: ReadonlyMap<number, Block>;
  readonly #labels = new Map<Block, Label>();
  /** Blocks placed by their dominator, in reverse postorder. */
  readonly #placed = new Map<Block, Block[]>();
  /** What the flags are behind an instruction that sets them. */
  readonly #flagsOf = new Map<Instruction, FlagState>();
  readonly #entry: Block;
  #current: Block;
  /** Of the current instruction. */
  #place = 0;

  constructor(
    f: FunctionBuilder, machine: RegionMachine, { blocks, entry }: Region, states: ReadonlyMap<Block, BlockState>,
    effects: ReadonlyMap<Instruction, Effects>,
  ) {
    this.#f = f;
    this.#machine = machine;
    this.#states = states;
    this.#effects = effects;
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
    this.#tree(this.#entry, this.#arrive(this.#entry));
    // Every path ends in a tail call.
    this.#f.unreachable();
  }

  /** Before control goes to a block: makes its state true. @returns what is known there */
  #arrive(to: Block): PathState {
    const machine = this.#machine;
    const { isMerge, available, dirty, flags, pages } = this.#states.get(to)!;
    if (!isMerge) return { ...machine.state, isInLoop: to.isInLoop };
    if (flags === 'merged') machine.mergeFlags();
    machine.makeAvailable(available);
    return {
      available, dirty, pages, ...atMerge, isInLoop: to.isInLoop,
      flags: typeof flags === 'string' ? flags : this.#flagsOf.get(flags)!,
    };
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
    let arrived: PathState | undefined;
    this.#f.block(label => {
      this.#labels.set(last, label);
      this.#within(block, placed.slice(0, -1), state);
      arrived = this.#arrivals.get(last);
    });
    assert(arrived !== undefined, 'a block that nobody goes to is placed');
    this.#tree(last, arrived);
  }
  readonly #arrivals = new Map<Block, PathState>();

  #block(block: Block, state: PathState): void {
    const machine = this.#machine;
    machine.state = { ...state };
    this.#current = block;
    for (const instruction of block.instructions) {
      this.#place = instruction.place;
      const effects = this.#effects.get(instruction)!;
      const goesOn = emitInstruction(machine, instruction, effects);
      if (!goesOn) return;
      if (effects.setsFlags) this.#flagsOf.set(instruction, machine.state.flags);
      // A taken branch may have emitted other blocks.
      this.#current = block;
    }
    assert(block.next !== undefined, 'control falls out of a block that has no next instruction');
    this.#place = block.instructions.at(-1)!.place;
    this.follow(block.next);
  }

  /** The edge from the current instruction to a place. */
  follow(target: number): void {
    const from = this.#current;
    const machine = this.#machine;
    const to = this.#blockAt.get(target);
    if (to === undefined || !from.successors.includes(to)) return machine.leaveTo(this.#place, target);
    machine.pass(this.#place, target);
    const state = this.#arrive(to);
    const backward = isBackward(from, to);
    if (backward) machine.leaveIfDue(target);
    if (backward || to.forwardEdges > 1) {
      this.#arrivals.set(to, state);
      return this.#f.br(this.#labels.get(to)!);
    }
    const place = this.#place;
    this.#tree(to, state);
    this.#place = place;
  }
}
