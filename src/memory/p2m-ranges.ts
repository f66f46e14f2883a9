// What a p2m maps, as ranges in ascending order. For trees that nobody changes meanwhile: frozen ones.

import { FRAME_WORDS, P2M_ENTRIES, P2M_KIND, P2M_LEVEL_BITS } from '../abi/machine-memory.ts';
import type { PageStretch } from './image-pages.ts';
import type { MachineMemory } from './machine-memory.ts';
import { entryKind, entryValue } from './p2m.ts';

/** Guest frames gfn … gfn+count-1, in consecutive machine frames from `mfn` on; mfn 0: all zero. */
export interface P2mRange {
  gfn: number;
  count: number;
  mfn: number;
  /** The tree `base` has the very same frames there. */
  isInBase: boolean;
}

const ROOT_LEVEL = 2;

/**
 * Neighbours are put together where they go on from each other.
 * @param base root of another frozen tree, to tell what differs from it; what both share costs no comparison
 */
export function* p2mRanges(machine: MachineMemory, root: number, base = 0): Generator<Readonly<P2mRange>> {
  const words = machine.u32;
  // The way down to where the walk is, by level. A node of the base is 0 where it has none.
  const nodes = [0, 0, root];
  const bases = [0, 0, base];
  const indices = [0, 0, 0];
  const gfns = [0, 0, 0];
  let level = ROOT_LEVEL;
  let last: P2mRange | undefined;
  while (level <= ROOT_LEVEL) {
    const index = indices[level]!++;
    if (index === P2M_ENTRIES) {
      level++;
      continue;
    }
    const entry = words[nodes[level]! * FRAME_WORDS + 2 * index]!;
    const kind = entryKind(entry);
    if (kind !== P2M_KIND.node && kind !== P2M_KIND.frame && kind !== P2M_KIND.zero) continue;
    const baseEntry = bases[level] === 0 ? 0 : words[bases[level]! * FRAME_WORDS + 2 * index]!;
    const count = 2 ** (P2M_LEVEL_BITS * level);
    const gfn = gfns[level]! + index * count;
    if (kind === P2M_KIND.node) {
      level--;
      nodes[level] = entryValue(entry);
      bases[level] = entryKind(baseEntry) === P2M_KIND.node ? entryValue(baseEntry) : 0;
      indices[level] = 0;
      gfns[level] = gfn;
      continue;
    }
    const mfn = kind === P2M_KIND.frame ? entryValue(entry) : 0;
    const isInBase = mfn !== 0 && baseEntry === entry;
    if (last !== undefined && last.gfn + last.count === gfn && last.isInBase === isInBase
      && (last.mfn === 0 ? mfn === 0 : mfn === last.mfn + last.count)) {
      last.count += count;
      continue;
    }
    if (last !== undefined) yield last;
    last = { gfn, count, mfn, isInBase };
  }
  if (last !== undefined) yield last;
}

/** Where a tree has memory, of whatever kind; a tenth of the time of `p2mRanges`. */
export function mappedStretches({ u32 }: MachineMemory, root: number): PageStretch[] {
  const stretches: { gfn: number; count: number }[] = [];
  let last = { gfn: 0, count: 0 };
  const visit = (node: number, level: number, first: number): void => {
    const count = 2 ** (P2M_LEVEL_BITS * level);
    for (let i = 0, word = node * FRAME_WORDS; i < P2M_ENTRIES; i++, word += 2) {
      const kind = entryKind(u32[word]!);
      const gfn = first + i * count;
      if (kind === P2M_KIND.absent) continue;
      if (kind === P2M_KIND.node) visit(entryValue(u32[word]!), level - 1, gfn);
      else if (last.count > 0 && last.gfn + last.count === gfn) last.count += count;
      else stretches.push(last = { gfn, count });
    }
  };
  visit(root, ROOT_LEVEL, 0);
  return stretches;
}
