// The shapes of regions: what is followed, where they end, and the facts about their control flow.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Assembler } from '../../a64/test-assembler.ts';
import { PAGE_INSTRUCTIONS, formRegion, isBackward } from './region.ts';
import type { Block, PageSource, Region } from './region.ts';

const TRAPS = new Set(['WFI', 'SVC', 'HVC']);

function form(write: (a: Assembler) => void, entry = 0, maximum?: number): Region | undefined {
  const words = new Uint32Array(PAGE_INSTRUCTIONS);
  const a = new Assembler(0n);
  write(a);
  words.set(a.words());
  return formRegion(words, entry, ({ row }) => TRAPS.has(row.name), { maximum, followsCalls: true });
}
const starts = (blocks: readonly Block[]): number[] => blocks.map(({ start }) => start);

test('a loop: its head is one, and the way back is a backward edge', () => {
  const { blocks, entry } = form(a => a.mov(0, 5).label('again').subs(0, 0, 1).bCond('ne', 'again').wfi())!;
  assert.deepEqual(starts(blocks), [0, 1, 3]);
  const [first, loop, after] = blocks as [Block, Block, Block];
  assert.equal(entry, first);
  assert.equal(loop.isLoopHead, true);
  assert.deepEqual(loop.successors, [loop, after]);
  assert.deepEqual([isBackward(loop, loop), isBackward(first, loop)], [true, false]);
  assert.deepEqual([loop.immediateDominator, after.immediateDominator], [first, loop]);
  // A trap ends the last block: nothing follows it.
  assert.equal(after.next, undefined);
});

test('two ways that meet: the meeting point has two forward edges and the fork as its dominator', () => {
  const { blocks } = form(a => a.cbz(0, 'else').add(1, 1, 1).b('end').label('else').add(1, 1, 2).label('end').svc(0))!;
  const end = blocks.find(({ start }) => start === 4)!;
  assert.equal(end.forwardEdges, 2);
  assert.equal(end.immediateDominator, blocks[0]);
});

test('an edge into the middle of a loop is no edge of the region', () => {
  // Two blocks that go to each other, both entered from outside: neither dominates the other.
  const { blocks } = form(a => a.cbz(0, 'b').label('a').add(1, 1, 1).cbz(2, 'end')
    .label('b').add(1, 1, 2).cbz(3, 'a').label('end').svc(0))!;
  assert.deepEqual(blocks.filter(({ isLoopHead }) => isLoopHead), []);
  for (const block of blocks) for (const successor of block.successors) assert.ok(!isBackward(block, successor));
});

test('calls of what is not known, indirect branches and targets in other pages end a region', () => {
  const region = form(a => a.emit('BL', { imm26: 2 * PAGE_INSTRUCTIONS }).add(0, 0, 1).ret())!;
  assert.deepEqual([region.instructionCount, region.blocks[0]!.successors], [1, []]);
  assert.equal(form(a => a.add(0, 0, 1).br(1).add(0, 0, 2))!.instructionCount, 2);
  assert.equal(form(a => a.emit('B', { imm26: 2 * PAGE_INSTRUCTIONS }))!.blocks[0]!.instructions[0]!.target, undefined);
});

test('calls of small functions are followed, and what returns from them goes on behind the call', () => {
  const { blocks, pages } = form(a => a.bl('f').add(1, 1, 1).bl('f').svc(0).label('f').cbz(0, 'end').add(2, 2, 1).label('end').ret())!;
  const wordsFrom = (block: Block, seen: Block[] = []): number[] => seen.includes(block) ? []
    : [...block.instructions.map(({ index }) => index), ...block.successors.slice(0, 1).flatMap(next => wordsFrom(next, [...seen, block]))];
  assert.deepEqual(wordsFrom(blocks[0]!), [0, 4, 6, 1, 2, 4, 6, 3]);
  assert.equal(new Set(blocks.map(({ start }) => start)).size, blocks.length);
  assert.deepEqual(pages, [{ distance: 0, content: 0n }]);
  // Not one that is long, nor one that never returns, nor itself again and again.
  const long = form(a => { a.bl('f').svc(0).label('f'); for (let i = 0; i < 60; i++) a.add(1, 1, 1); a.ret(); })!;
  assert.equal(long.instructionCount, 1);
  assert.equal(form(a => a.bl('f').svc(0).label('f').add(1, 1, 1).br(3))!.instructionCount, 1);
  assert.ok(form(a => a.label('f').cbz(0, 'end').bl('f').label('end').ret())!.instructionCount < 12);
});

test('what is in other pages belongs to a region, as far as it is known what that is', () => {
  const page = (write: (a: Assembler) => void): Uint32Array => {
    const words = new Uint32Array(PAGE_INSTRUCTIONS);
    const a = new Assembler(0n);
    write(a);
    words.set(a.words());
    return words;
  };
  const sources = new Map<number, PageSource>([-1, 1, 7, 8, 9].map((distance, i) => [distance, {
    words: page(a => a.add(5, 5, i).ret()), content: BigInt(distance + 10), isReached: () => true,
  }]));
  const words = page(a => a.padTo(4 * 1016).nop().nop().emit('B.cond', { imm19: -1019 }).emit('BL', { imm26: 7 * 1024 - 1019 })
    .emit('BL', { imm26: 8 * 1024 - 1020 }).emit('BL', { imm26: 9 * 1024 - 1021 }));
  const formed = (known: readonly number[]) =>
    formRegion(words, 1016, () => false, { followsCalls: true, neighbour: distance => known.includes(distance) ? sources.get(distance) : undefined })!;
  const distances = (region: Region): number[] => region.pages.map(({ distance }) => distance);
  // Not into a fourth page beside its own.
  assert.deepEqual(distances(formed([-1, 1, 7, 8, 9])), [0, -1, 7, 8]);
  assert.deepEqual(formed([7]).pages, [{ distance: 0, content: 0n }, { distance: 7, content: 17n }]);
  assert.equal(formed([7]).blocks.flatMap(({ instructions }) => instructions).filter(({ page: each }) => each === 1).length, 2);
  assert.notEqual(formed([7]).key, formed([7, 8]).key);
  const inner = sources.get(7)!;
  const before = formed([7]).key;
  sources.set(7, { ...inner, content: 99n });
  assert.notEqual(formed([7]).key, before, 'another content, though the instructions are the same');
  sources.set(7, { ...inner, isReached: () => false });
  assert.deepEqual(distances(formed([7])), [0]);
});

test('nothing where there is no instruction; the end of the page and the largest size end a region', () => {
  assert.equal(form(a => a.udf()), undefined);
  const words = new Uint32Array(PAGE_INSTRUCTIONS).fill(new Assembler().add(0, 0, 1).words()[0]!);
  const atEnd = formRegion(words, PAGE_INSTRUCTIONS - 3, () => false)!;
  assert.deepEqual([atEnd.instructionCount, atEnd.blocks[0]!.next], [3, PAGE_INSTRUCTIONS]);
  const limited = formRegion(words, 0, () => false, { maximum: 10 })!;
  assert.deepEqual([limited.instructionCount, limited.blocks[0]!.next], [10, 10]);
});

test('code with many branches is cut: sooner where calls are not followed yet', () => {
  const words = new Uint32Array(PAGE_INSTRUCTIONS);
  const a = new Assembler(0n);
  const BRANCHES = 60;
  for (let i = 0; i < BRANCHES; i++) a.add(0, 0, 1).cbz(1, 'end');
  words.set(a.label('end').wfi().words());
  const branchesOf = (followsCalls: boolean): number => {
    const { blocks } = formRegion(words, 0, ({ row }) => TRAPS.has(row.name), { followsCalls })!;
    return blocks.flatMap(({ instructions }) => instructions).filter(({ row }) => row.branch !== undefined).length;
  };
  const [first, later] = [branchesOf(false), branchesOf(true)];
  assert.ok(first > 8 && 2 * first < later && later < BRANCHES, `${first} and ${later} branches`);
  // Nothing else cuts it: as many instructions without branches are one region.
  const straight = new Uint32Array(PAGE_INSTRUCTIONS);
  const b = new Assembler(0n);
  for (let i = 0; i < 2 * BRANCHES; i++) b.add(0, 0, 1);
  straight.set(b.wfi().words());
  assert.equal(formRegion(straight, 0, ({ row }) => TRAPS.has(row.name))!.instructionCount, 2 * BRANCHES + 1);
});

test('what nobody has got to is left out: targets of branches, and what follows one that is always taken', () => {
  const words = new Uint32Array(PAGE_INSTRUCTIONS);
  words.set(new Assembler(0n).label('again').cbz(3, 'error').subs(0, 0, 1).bCond('ne', 'again').add(1, 1, 1).svc(0)
    .label('error').add(2, 2, 2).svc(0).words());
  const formed = (reached: readonly number[]) => formRegion(words, 0, ({ row }) => TRAPS.has(row.name), { isReached: index => reached.includes(index) })!;
  assert.deepEqual(starts(formed([0, 1, 2, 3, 4, 5, 6]).blocks).toSorted(), [0, 1, 3, 5]);
  assert.deepEqual(starts(formed([0, 1, 2, 3, 4]).blocks).toSorted(), [0, 1, 3]);
  const loop = formed([0, 1, 2]);
  assert.deepEqual(starts(loop.blocks), [0, 1]);
  assert.deepEqual([loop.entry.isLoopHead, loop.blocks[1]!.next, loop.blocks[1]!.successors], [true, 3, [loop.entry]]);
});

test('equal instructions at equal places have the same key, others not', () => {
  const one = form(a => a.add(0, 0, 1).svc(0))!;
  assert.equal(one.key, form(a => a.add(0, 0, 1).svc(0).add(3, 3, 3))!.key);
  assert.notEqual(one.key, form(a => a.add(0, 0, 2).svc(0))!.key);
  assert.notEqual(one.key, form(a => a.nop().add(0, 0, 1).svc(0), 1)!.key);
});

test('random control flow: every block is dominated as it says, and every loop by its head', () => {
  const branch = fc.record({ at: fc.nat(39), to: fc.nat(39), isConditional: fc.boolean() });
  fc.assert(fc.property(fc.array(branch, { maxLength: 20 }), branches => {
    const words = new Uint32Array(PAGE_INSTRUCTIONS).fill(new Assembler().add(0, 0, 1).words()[0]!, 0, 40);
    for (const { at, to, isConditional } of branches) {
      const offset = to - at;
      words[at] = isConditional ? (0xb4000000 | ((offset & 0x7ffff) << 5)) >>> 0 : (0x14000000 | (offset & 0x3ffffff)) >>> 0;
    }
    const { blocks, entry } = formRegion(words, 0, () => false)!;
    const without = (removed: Block): Set<Block> => {
      const seen = new Set<Block>();
      const waiting = removed === entry ? [] : [entry];
      for (let block = waiting.pop(); block !== undefined; block = waiting.pop()) {
        if (seen.has(block) || block === removed) continue;
        seen.add(block);
        waiting.push(...block.successors);
      }
      return seen;
    };
    for (const block of blocks) {
      const dominator = block.immediateDominator;
      assert.equal(dominator === undefined, block === entry);
      if (dominator !== undefined) assert.ok(!without(dominator).has(block), `${dominator.start} dominates ${block.start}`);
      for (const successor of block.successors) {
        if (isBackward(block, successor)) assert.ok(successor.isLoopHead && !without(successor).has(block));
      }
    }
  }));
});
