// A region: instructions that are compiled into one function, with one entry. It follows both ways of a conditional
// branch, the target of an unconditional one, calls of small functions and the returns from them, into a few other pages
// as well; and ends at other calls, indirect branches, whatever goes to the hypervisor, and its size.
//
//    entry ─► block ─► block ◄──┐         every block knows its predecessors, its immediate dominator and whether it
//               │        │      │         is the head of a loop; an edge that would enter a loop in its middle (the
//               └──► block ─────┘         control flow is irreducible there) is none: it leaves the region instead
//
// A region knows nothing of addresses: the same instructions at the same places of other pages are the same region. Of
// other pages than its first it knows how far they are from that, and all that is in them, by a number
// (page-contents.ts): emitted code looks, where control passes into one, whether that is what is there.

import type { Fields, Row } from '../../a64/row.ts';
import { operandsOf } from '../../a64/row.ts';
import type { Operands } from '../../a64/operand.ts';
import { decode, handlerNumber } from '../../a64/table.ts';

export const PAGE_INSTRUCTIONS = 1024;
/**
 * Instructions of a region at most, and branches: code without many branches is worth compiling in one piece however long
 * it is (the rounds of a hash), while of code with many only a small part runs each time. Where calls are followed, in what
 * has been hot for long, more of it does; what has just been found is worth less, and others wait for it to be compiled.
 */
export const REGION_MAX = 640;
const BRANCHES_MAX = 16;
const BRANCHES_MAX_WITH_CALLS = 48;
/** Pages that a region has instructions of at most. */
export const REGION_PAGES_MAX = 4;
/** Of a function that is followed into: instructions; calls of one within another; and how many a region follows. */
const CALLEE_MAX = 40;
const CALL_DEPTH_MAX = 2;
const CALLS_MAX = 8;

/**
 * A place in a region tells three things: the call that the code was followed through (0: none), as the same function may be
 * there several times; the page, by its number in `Region.pages`; and the instruction in the page. In the first page,
 * outside of calls, it is the instruction alone. PAGE_INSTRUCTIONS is what comes behind a page.
 */
const PAGE_PLACES = 2 * PAGE_INSTRUCTIONS;
export const placeOf = (call: number, page: number, index: number): number =>
  (call * REGION_PAGES_MAX + page) * PAGE_PLACES + index;
export const indexOf = (place: number): number => place % PAGE_PLACES;
export const pageOf = (place: number): number => Math.floor(place / PAGE_PLACES) % REGION_PAGES_MAX;
const callOf = (place: number): number => Math.floor(place / (PAGE_PLACES * REGION_PAGES_MAX));

export interface Instruction {
  /** In the region. */
  readonly place: number;
  /** Number of the page in `Region.pages`, and which instruction of the page it is. */
  readonly page: number;
  readonly index: number;
  readonly word: number;
  readonly row: Row;
  readonly fields: Fields;
  readonly operands: Operands;
  /** What the interpreter's record of this instruction holds. */
  readonly handler: number;
  /**
   * Place that a direct branch goes to; of a return, where the call that was followed comes back to. Undefined for others,
   * for calls that are not followed, and for targets in pages that the region has nothing of.
   */
  readonly target: number | undefined;
  /** Place of the instruction that follows; of one that never goes on there, no matter. */
  readonly next: number;
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

/** A page that a region has instructions of. */
export interface RegionPage {
  /** Pages from the one that the region begins in, which is the first and has 0. */
  readonly distance: number;
  /** What is in it, by number (page-contents.ts); 0n for the first. */
  readonly content: bigint;
}

export interface Region {
  readonly entry: Block;
  /** In reverse postorder. */
  readonly blocks: readonly Block[];
  readonly pages: readonly RegionPage[];
  readonly instructionCount: number;
  /** Tells regions apart: equal strings, equal instructions at equal places, and other pages with equal contents. */
  readonly key: string;
}

/** Whether an instruction always ends in a trap: known only when its meaning is emitted, so the emitter tells. */
export type EndsInTrap = (instruction: Instruction) => boolean;

/** Whether some vCPU has got to a place in the page, as far as that is known. */
export type IsReached = (index: number) => boolean;

/** A page that a region may go on in. */
export interface PageSource {
  readonly words: Uint32Array;
  readonly content: bigint;
  readonly isReached: IsReached;
}
/** The page so many pages away from the one that the region begins in, if it is known what is there. */
export type Neighbour = (distance: number) => PageSource | undefined;

export interface FormOptions {
  /** Instructions at most. */
  readonly maximum?: number | undefined;
  /** Left out: everything is. */
  readonly isReached?: IsReached | undefined;
  readonly neighbour?: Neighbour;
  /** Into small functions, and more branches: it makes a region twice as large or more. */
  readonly followsCalls?: boolean;
}

/** @returns undefined when there is nothing to compile at the entry */
export function formRegion(
  words: Uint32Array, entry: number, endsInTrap: EndsInTrap, options: FormOptions = {},
): Region | undefined {
  const exploration = new Exploration(words, endsInTrap, options);
  exploration.explore(entry);
  const { found, leaders, pages, calls } = exploration;
  if (!found.has(entry)) return undefined;
  const blocks = makeBlocks(found, leaders, endsInTrap);
  const first = blocks.get(entry)!;
  const ordered = reversePostorder(first);
  findDominators(ordered);
  dropIrreducible(ordered);
  for (const block of ordered) {
    if (block.isLoopHead) for (const inner of loopOf(block, ordered)) inner.isInLoop = true;
  }
  const places = [...found.keys()].toSorted((a, b) => a - b);
  const key = [
    `${entry}:${places.map(place => `${place}=${found.get(place)!.word.toString(36)}`).join()}`,
    ...pages.slice(1).map(({ distance, source }) => `${distance}=${source.content.toString(36)}`),
    ...calls.slice(1).map(({ from }) => from),
  ].join('|');
  return {
    entry: first, blocks: ordered, instructionCount: found.size, key,
    pages: pages.map(({ distance, source: { content } }) => ({ distance, content })),
  };
}

/** What an instruction is wherever it stands in a region. `target`: from the start of the page; it may lie outside. */
type Decoded = Pick<Instruction, 'word' | 'row' | 'fields' | 'operands' | 'handler' | 'target'>;

function decodeAt(words: Uint32Array, index: number): Decoded | undefined {
  if (!isInPage(index)) return undefined;
  const word = words[index]!;
  const decoded = decode(word);
  if (decoded === undefined) return undefined;
  const { row, fields } = decoded;
  const operands = operandsOf(row, fields);
  const target = row.branch === undefined ? undefined : index + (operands[row.branch]!.value as number) / 4;
  const far = target !== undefined && !isInPage(target);
  return { word, row, fields, operands, handler: handlerNumber(row, fields, far), target };
}

const isInPage = (index: number): boolean => index >= 0 && index < PAGE_INSTRUCTIONS;
const isCall = (operands: Operands): boolean => 'link' in operands;
const isReturn = (row: Row): boolean => row.name === 'RET';

interface Call {
  /** Place of the call, and where it comes back to. */
  readonly from: number;
  readonly returnsTo: number;
  readonly depth: number;
}

class Exploration {
  readonly found = new Map<number, Instruction>();
  readonly leaders = new Set<number>();
  readonly pages: { readonly distance: number; readonly source: PageSource }[];
  readonly calls: Call[] = [{ from: -1, returnsTo: -1, depth: 0 }];
  readonly #waiting: number[] = [];
  readonly #neighbour: Neighbour;
  readonly #endsInTrap: EndsInTrap;
  readonly #maximum: number;
  readonly #callsMax: number;
  readonly #branchesMax: number;
  #branches = 0;

  constructor(words: Uint32Array, endsInTrap: EndsInTrap, options: FormOptions) {
    const { maximum = REGION_MAX, isReached = () => true, neighbour = () => undefined, followsCalls = false } = options;
    this.pages = [{ distance: 0, source: { words, isReached, content: 0n } }];
    this.#neighbour = neighbour;
    this.#endsInTrap = endsInTrap;
    this.#maximum = maximum;
    this.#callsMax = followsCalls ? CALLS_MAX : 0;
    this.#branchesMax = followsCalls ? BRANCHES_MAX_WITH_CALLS : BRANCHES_MAX;
  }

  explore(entry: number): void {
    this.#lead(entry);
    for (let start = this.#waiting.shift(); start !== undefined; start = this.#waiting.shift()) {
      for (let place: number | undefined = start; place !== undefined;) {
        if (this.found.has(place)) {
          this.leaders.add(place);
          break;
        }
        place = this.#take(place);
      }
    }
  }

  /** Something begins at a place, and is looked at in its turn. */
  #lead(place: number): void {
    this.leaders.add(place);
    if (!this.found.has(place)) this.#waiting.push(place);
  }

  /** @returns the place to go on at */
  #take(place: number): number | undefined {
    const isFull = this.found.size >= this.#maximum || this.#branches >= this.#branchesMax;
    const { source: { words, isReached } } = this.pages[pageOf(place)]!;
    const index = indexOf(place);
    const decoded = isFull ? undefined : decodeAt(words, index);
    if (decoded === undefined) return undefined;
    const { row } = decoded;
    const target = this.#targetOf(place, decoded);
    const next = row.ends ? place + 1 : this.#near(place, index + 1) ?? place + 1;
    const instruction = { ...decoded, place, page: pageOf(place), index, target, next };
    this.found.set(place, instruction);
    if (target !== undefined) {
      if (isInPage(indexOf(target)) && this.pages[pageOf(target)]!.source.isReached(indexOf(target))) this.#lead(target);
      else this.leaders.add(target);
    }
    if (row.ends || this.#endsInTrap(instruction)) return undefined;
    // Where control passes into another page, a block begins.
    if (pageOf(next) !== pageOf(place)) this.leaders.add(next);
    if (row.branch === undefined) return next;
    this.leaders.add(next);
    this.#branches++;
    return pageOf(next) !== pageOf(place) || isReached(index + 1) ? next : undefined;
  }

  #targetOf(place: number, { row, operands, target }: Decoded): number | undefined {
    const call = callOf(place);
    if (isReturn(row)) return call === 0 ? undefined : this.calls[call]!.returnsTo;
    if (target === undefined) return undefined;
    return isCall(operands) ? this.#follow(place, target) : this.#near(place, target);
  }

  /** The place of an instruction, counted from the start of a place's page. */
  #near(place: number, index: number): number | undefined {
    if (isInPage(index)) return placeOf(callOf(place), pageOf(place), index);
    const page = this.#pageAt(this.#distanceOf(place, index), index & (PAGE_INSTRUCTIONS - 1));
    return page === undefined ? undefined : placeOf(callOf(place), page, index & (PAGE_INSTRUCTIONS - 1));
  }
  #distanceOf(place: number, index: number): number {
    return this.pages[pageOf(place)]!.distance + Math.floor(index / PAGE_INSTRUCTIONS);
  }
  #sourceAt(distance: number): PageSource | undefined {
    const known = this.pages.find(page => page.distance === distance);
    return known?.source ?? (this.pages.length < REGION_PAGES_MAX ? this.#neighbour(distance) : undefined);
  }
  /** The number of a page, for an instruction there that some vCPU has got to. */
  #pageAt(distance: number, index: number): number | undefined {
    const known = this.pages.findIndex(page => page.distance === distance);
    const source = this.#sourceAt(distance);
    if (source === undefined || !source.isReached(index)) return undefined;
    return known >= 0 ? known : this.pages.push({ distance, source }) - 1;
  }

  /** A call: the place of the function, if it is followed. */
  #follow(place: number, target: number): number | undefined {
    const depth = this.calls[callOf(place)]!.depth + 1;
    if (this.calls.length > this.#callsMax || depth > CALL_DEPTH_MAX) return undefined;
    const [distance, index] = [this.#distanceOf(place, target), target & (PAGE_INSTRUCTIONS - 1)];
    if (!this.#isSmall(distance, index, depth)) return undefined;
    const page = this.#pageAt(distance, index);
    const returnsTo = this.#near(place, indexOf(place) + 1);
    if (page === undefined || returnsTo === undefined) return undefined;
    return placeOf(this.calls.push({ from: place, returnsTo, depth }) - 1, page, index);
  }

  /** Whether a function is short, and can be followed to its end. */
  #isSmall(distance: number, entry: number, depth: number): boolean {
    const source = this.#sourceAt(distance);
    if (source === undefined || !source.isReached(entry)) return false;
    const { words, isReached } = source;
    const seen = new Set<number>();
    const waiting = [entry];
    let returns = false;
    for (let start = waiting.pop(); start !== undefined; start = waiting.pop()) {
      for (let index = start; isInPage(index) && !seen.has(index); index++) {
        const decoded = decodeAt(words, index);
        if (decoded === undefined) break;
        if (seen.size >= CALLEE_MAX) return false;
        seen.add(index);
        const { row, operands, target } = decoded;
        returns ||= isReturn(row);
        if (target !== undefined && isCall(operands)) {
          const inner = distance + Math.floor(target / PAGE_INSTRUCTIONS);
          if (depth >= CALL_DEPTH_MAX || !this.#isSmall(inner, target & (PAGE_INSTRUCTIONS - 1), depth + 1)) break;
          continue;
        }
        if (target !== undefined && isInPage(target) && isReached(target)) waiting.push(target);
        const instruction = { ...decoded, place: index, page: 0, index, target: undefined, next: index + 1 };
        if (row.ends || this.#endsInTrap(instruction)) break;
        if (target !== undefined && !isReached(index + 1)) break;
      }
    }
    return returns;
  }
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
    for (let place = start; ;) {
      const instruction = found.get(place);
      if (instruction === undefined || (place !== start && leaders.has(place))) {
        block.next = place;
        break;
      }
      block.instructions.push(instruction);
      if (instruction.row.ends || endsInTrap(instruction)) break;
      place = instruction.next;
    }
  }
  for (const block of blocks.values()) {
    const { target } = block.instructions.at(-1)!;
    for (const place of new Set([target, block.next])) {
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
