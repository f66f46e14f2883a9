// What is known where control reaches each block of a region: which registers are in locals, which of them differ from
// the vCPU record, and which instruction has set the flags. Where a block has one way to it, what is known there goes on
// as it is; where ways meet, all of them have to agree, and the edges see to it: they load what only others have.

import type { Block, Instruction, Region } from './region.ts';
import { isBackward, loopOf, pageOf } from './region.ts';
import { allRegisters, intersection, isEqual, noRegisters, union } from './register-set.ts';
import type { RegisterSet } from './register-set.ts';

/** Of one instruction. */
export interface Effects {
  readonly reads: RegisterSet;
  readonly writes: RegisterSet;
  readonly setsFlags: boolean;
  /** Outside of loops changed registers are stored before that. */
  readonly accesses: boolean;
  /** It makes a call that may change translations, and goes on. */
  readonly forgets: boolean;
}

/** Where the flags are: in the record, differently on different ways, or as this instruction has set them. */
type FlagsFrom = 'record' | 'merged' | Instruction;

export interface BlockState {
  /** Several ways lead here, and the rest of the state holds for all of them; else it is what the one way has. */
  readonly isMerge: boolean;
  readonly available: RegisterSet;
  readonly dirty: RegisterSet;
  readonly flags: FlagsFrom;
  /** Pages that are known to be what the region was made for, one bit each. */
  readonly pages: number;
}

interface BlockEffects {
  readonly touched: RegisterSet;
  /** Written since the last time that registers were stored. */
  readonly written: RegisterSet;
  readonly stores: boolean;
  readonly flags: Instruction | undefined;
}

function effectsOfBlock(block: Block, effects: ReadonlyMap<Instruction, Effects>): BlockEffects {
  let touched = noRegisters;
  let written = noRegisters;
  let stores = false;
  let flags: Instruction | undefined;
  for (const instruction of block.instructions) {
    const { reads, writes, setsFlags, accesses } = effects.get(instruction)!;
    touched = union(touched, union(reads, writes));
    if (accesses && !block.isInLoop) {
      stores = true;
      // What it writes before an access of its own is no more than this.
      written = noRegisters;
    }
    written = union(written, writes);
    if (setsFlags) flags = instruction;
  }
  return { touched, written, stores, flags };
}

export function settleStates({ blocks, entry }: Region, effects: ReadonlyMap<Instruction, Effects>): Map<Block, BlockState> {
  const own = new Map(blocks.map(block => [block, effectsOfBlock(block, effects)]));
  const dirty = settleDirty(blocks, own);
  const flags = settleFlags(blocks, entry, own);
  const pages = settlePages(blocks, entry, effects);
  const states = new Map<Block, BlockState>();
  /** Common to all forward ways to the block, so far. */
  const common = new Map<Block, RegisterSet>([[entry, noRegisters]]);
  for (const block of blocks) {
    const isMerge = block.isLoopHead || block.forwardEdges > 1;
    let available = common.get(block)!;
    if (isMerge) available = union(available, dirty.get(block)!);
    // What a loop uses is loaded before it.
    if (block.isLoopHead) for (const inner of loopOf(block, blocks)) available = union(available, own.get(inner)!.touched);
    states.set(block, { isMerge, available, dirty: dirty.get(block)!, flags: flags.get(block)!, pages: pages.get(block)! });
    const behind = union(available, own.get(block)!.touched);
    for (const successor of block.successors) {
      if (!isBackward(block, successor)) common.set(successor, intersection(common.get(successor) ?? allRegisters, behind));
    }
  }
  return states;
}

function settleDirty(blocks: readonly Block[], own: ReadonlyMap<Block, BlockEffects>): Map<Block, RegisterSet> {
  const dirty = new Map(blocks.map(block => [block, noRegisters]));
  for (let changed = true; changed;) {
    changed = false;
    for (const block of blocks) {
      const { written, stores } = own.get(block)!;
      const behind = stores ? written : union(dirty.get(block)!, written);
      for (const successor of block.successors) {
        const before = dirty.get(successor)!;
        const now = union(before, behind);
        if (isEqual(before, now)) continue;
        dirty.set(successor, now);
        changed = true;
      }
    }
  }
  return dirty;
}

function settleFlags(blocks: readonly Block[], entry: Block, own: ReadonlyMap<Block, BlockEffects>): Map<Block, FlagsFrom> {
  const flags = new Map<Block, FlagsFrom>([[entry, 'record']]);
  for (let changed = true; changed;) {
    changed = false;
    for (const block of blocks) {
      const behind = own.get(block)!.flags ?? flags.get(block)!;
      for (const successor of block.successors) {
        const before = flags.get(successor);
        const now = before === undefined || before === behind ? behind : 'merged';
        if (before === now) continue;
        flags.set(successor, now);
        changed = true;
      }
    }
  }
  return flags;
}

/** A page that control has passed into is known until something may have changed translations; the current one stays. */
function settlePages(blocks: readonly Block[], entry: Block, effects: ReadonlyMap<Instruction, Effects>): Map<Block, number> {
  const pages = new Map(blocks.map(block => [block, -1]));
  pages.set(entry, 1);
  for (let changed = true; changed;) {
    changed = false;
    for (const block of blocks) {
      const forgets = block.instructions.some(instruction => effects.get(instruction)!.forgets);
      const behind = forgets ? 1 << pageOf(block.start) : pages.get(block)!;
      for (const successor of block.successors) {
        const before = pages.get(successor)!;
        const now = before & (behind | (1 << pageOf(successor.start)));
        if (before === now) continue;
        pages.set(successor, now);
        changed = true;
      }
    }
  }
  return pages;
}
