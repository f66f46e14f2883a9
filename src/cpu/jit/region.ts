// A region: instructions of one page that are compiled into one function, with one entry. It follows both ways of a
// conditional branch and the target of an unconditional one, and ends at calls, indirect branches, whatever goes to
// the hypervisor, the end of the page, and its size.
//
//    entry ─► block ─► block ◄──┐         every block knows its predecessors, its immediate dominator and whether it
//               │        │      │         is the head of a loop; an edge that would enter a loop in its middle (the
//               └──► block ─────┘         control flow is irreducible there) is none: it leaves the region instead
//
// A region knows nothing of addresses: the same instructions at the same places of another page are the same region.

import type { Fields, Row } from '../../a64/row.ts';
import { operandsOf } from '../../a64/row.ts';
import type { Operands } from '../../a64/operand.ts';
import { decode, handlerNumber } from '../../a64/table.ts';

export const PAGE_INSTRUCTIONS = 1024;
/**
 * Instructions of a region at most, and branches: code without many branches is worth compiling in one piece however long
 * it is (the rounds of a hash), while of code with many only a small part runs each time.
 */
export const REGION_MAX = 640;
const BRANCHES_MAX = 48;

export interface Instruction {
  /** Place in the page. */
  readonly index: number;
  readonly word: number;
  readonly row: Row;
  readonly fields: Fields;
  readonly operands: Operands;
  /** What the interpreter's record of this instruction holds. */
  readonly handler: number;
  /** Place in the page that a direct branch goes to; undefined for others and for targets outside. */
  readonly target: number | undefined;
}

export interface Block {
  /** Place of its first instruction. */
  readonly start: number;
  readonly instructions: Instruction[];
  /** Blocks that control goes to, without leaving the region. */
  readonly successors: Block[];
  /** Place of the instruction that follows when the last one does not branch; undefined if control cannot get there. */
  next: number | undefined;
  /** Position in reverse postorder. */
  order: number;
  immediateDominator: Block | undefined;
  isLoopHead: boolean;
  /** In some loop. */
  isInLoop: boolean;
  /** Edges into it from blocks before it. */
  forwardEdges: number;
}

export interface Region {
  readonly entry: Block;
  /** In reverse postorder. */
  readonly blocks: readonly Block[];
  readonly instructionCount: number;
  /** Tells regions apart: equal strings, equal instructions at equal places. */
  readonly key: string;
}

/** Whether an instruction always ends in a trap: known only when its meaning is emitted, so the emitter tells. */
export type EndsInTrap = (instruction: Instruction) => boolean;

/** Whether some vCPU has got to a place in the page, as far as that is known. */
export type IsReached = (index: number) => boolean;

/** @returns undefined when there is nothing to compile at the entry */
export function formRegion(
  words: Uint32Array, entry: number, endsInTrap: EndsInTrap, maximum = REGION_MAX, isReached: IsReached = () => true,
): Region | undefined {
  const { found, leaders } = explore(words, entry, endsInTrap, maximum, isReached);
  if (!found.has(entry)) return undefined;
  const blocks = makeBlocks(found, leaders, endsInTrap);
  const first = blocks.get(entry)!;
  const ordered = reversePostorder(first);
  findDominators(ordered);
  dropIrreducible(ordered);
  for (const block of ordered) {
    if (block.isLoopHead) for (const inner of loopOf(block, ordered)) inner.isInLoop = true;
  }
  const indices = [...found.keys()].toSorted((a, b) => a - b);
  const key = `${entry}:${indices.map(index => `${index}=${found.get(index)!.word.toString(36)}`).join()}`;
  return { entry: first, blocks: ordered, instructionCount: found.size, key };
}

export function decodeAt(words: Uint32Array, index: number): Instruction | undefined {
  const word = words[index]!;
  const decoded = decode(word);
  if (decoded === undefined) return undefined;
  const { row, fields } = decoded;
  const operands = operandsOf(row, fields);
  let target: number | undefined;
  let far = false;
  if (row.branch !== undefined) {
    const place = index + (operands[row.branch]!.value as number) / 4;
    far = place < 0 || place >= PAGE_INSTRUCTIONS;
    if (!far) target = place;
  }
  return { index, word, row, fields, operands, handler: handlerNumber(row, fields, far), target };
}

/** A call's target is another region's: what comes back from there comes back to the entry of yet another. */
const isCall = ({ operands }: Instruction): boolean => 'link' in operands;

function explore(words: Uint32Array, entry: number, endsInTrap: EndsInTrap, maximum: number, isReached: IsReached) {
  const found = new Map<number, Instruction>();
  const leaders = new Set([entry]);
  const waiting = [entry];
  let branches = 0;
  for (let start = waiting.shift(); start !== undefined; start = waiting.shift()) {
    for (let index = start; index < PAGE_INSTRUCTIONS; index++) {
      if (found.has(index)) {
        leaders.add(index);
        break;
      }
      const instruction = found.size < maximum && branches < BRANCHES_MAX ? decodeAt(words, index) : undefined;
      if (instruction === undefined) break;
      found.set(index, instruction);
      const { row, target } = instruction;
      if (target !== undefined && !isCall(instruction)) {
        leaders.add(target);
        if (!found.has(target) && isReached(target)) waiting.push(target);
      }
      if (row.ends || endsInTrap(instruction)) break;
      if (row.branch === undefined) continue;
      leaders.add(index + 1);
      branches++;
      if (!isReached(index + 1)) break;
    }
  }
  return { found, leaders };
}

function makeBlocks(found: ReadonlyMap<number, Instruction>, leaders: ReadonlySet<number>, endsInTrap: EndsInTrap): Map<number, Block> {
  const blocks = new Map<number, Block>();
  for (const start of leaders) {
    if (!found.has(start)) continue;
    const block: Block = {
      start, instructions: [], successors: [], next: undefined,
      order: -1, immediateDominator: undefined, isLoopHead: false, isInLoop: false, forwardEdges: 0,
    };
    blocks.set(start, block);
    for (let index = start; ; index++) {
      const instruction = found.get(index);
      if (instruction === undefined || (index > start && leaders.has(index))) {
        block.next = index;
        break;
      }
      block.instructions.push(instruction);
      if (instruction.row.ends || endsInTrap(instruction)) break;
    }
  }
  for (const block of blocks.values()) {
    const last = block.instructions.at(-1)!;
    const places = [isCall(last) ? undefined : last.target, block.next];
    for (const place of new Set(places)) {
      const successor = place === undefined ? undefined : blocks.get(place);
      if (successor !== undefined) block.successors.push(successor);
    }
  }
  return blocks;
}

function reversePostorder(entry: Block): Block[] {
  const ordered: Block[] = [];
  const seen = new Set<Block>([entry]);
  const path: { block: Block; next: number }[] = [{ block: entry, next: 0 }];
  while (path.length > 0) {
    const top = path.at(-1)!;
    const successor = top.block.successors[top.next++];
    if (successor === undefined) {
      ordered.push(top.block);
      path.pop();
    } else if (!seen.has(successor)) {
      seen.add(successor);
      path.push({ block: successor, next: 0 });
    }
  }
  ordered.reverse();
  ordered.forEach((block, order) => { block.order = order; });
  return ordered;
}

/** Cooper, Harvey and Kennedy, "A simple, fast dominance algorithm". */
function findDominators(ordered: readonly Block[]): void {
  const predecessors = new Map<Block, Block[]>(ordered.map(block => [block, []]));
  for (const block of ordered) for (const successor of block.successors) predecessors.get(successor)!.push(block);
  const entry = ordered[0]!;
  entry.immediateDominator = entry;
  for (let changed = true; changed;) {
    changed = false;
    for (const block of ordered.slice(1)) {
      let dominator: Block | undefined;
      for (const predecessor of predecessors.get(block)!) {
        if (predecessor.immediateDominator === undefined) continue;
        dominator = dominator === undefined ? predecessor : commonDominator(dominator, predecessor);
      }
      if (block.immediateDominator !== dominator) {
        block.immediateDominator = dominator;
        changed = true;
      }
    }
  }
  entry.immediateDominator = undefined;
}

function commonDominator(a: Block, b: Block): Block {
  while (a !== b) {
    while (a.order > b.order) a = a.immediateDominator!;
    while (b.order > a.order) b = b.immediateDominator!;
  }
  return a;
}

function dominates(a: Block, b: Block): boolean {
  let block: Block | undefined = b;
  while (block !== undefined && block.order > a.order) block = block.immediateDominator;
  return block === a;
}

export const isBackward = (from: Block, to: Block): boolean => to.order <= from.order;

/** The blocks of the loop that a block is the head of. */
export function loopOf(head: Block, ordered: readonly Block[]): Set<Block> {
  const loop = new Set([head]);
  // Backwards: a block's successors have been looked at before it, but for those behind edges that go back.
  for (let changed = true; changed;) {
    changed = false;
    for (const block of ordered.slice(head.order + 1).toReversed()) {
      if (loop.has(block) || !block.successors.some(successor => loop.has(successor))) continue;
      if (!dominates(head, block)) continue;
      loop.add(block);
      changed = true;
    }
  }
  return loop;
}

function dropIrreducible(ordered: readonly Block[]): void {
  for (const block of ordered) {
    for (const successor of [...block.successors]) {
      if (!isBackward(block, successor)) successor.forwardEdges++;
      else if (dominates(successor, block)) successor.isLoopHead = true;
      else block.successors.splice(block.successors.indexOf(successor), 1);
    }
  }
}
