// What a p2m maps, as ranges in ascending order. For trees that nobody changes meanwhile: frozen ones.

import { P2M_ENTRIES, P2M_KIND, P2M_LEVEL_BITS } from '../abi/machine-memory.ts';
import type { MachineMemory } from './machine-memory.ts';
import { entryKind, entryValue } from './p2m.ts';

/** Guest frames gfn … gfn+count-1, in consecutive machine frames from `mfn` on; mfn 0: all zero. */
export interface P2mRange {
  gfn: number;
  count: number;
  mfn: number;
}

const ROOT_LEVEL = 2;

/** Neighbours are put together where they go on from each other. */
export function* p2mRanges(machine: MachineMemory, root: number): Generator<Readonly<P2mRange>> {
  let last: P2mRange | undefined;
  for (const range of visit(machine, root, ROOT_LEVEL, 0)) {
    const goesOn = last !== undefined && last.gfn + last.count === range.gfn
      && (last.mfn === 0 ? range.mfn === 0 : range.mfn === last.mfn + last.count);
    if (goesOn) last!.count += range.count;
    else {
      if (last !== undefined) yield last;
      last = range;
    }
  }
  if (last !== undefined) yield last;
}

function* visit(machine: MachineMemory, node: number, level: number, firstGfn: number): Generator<P2mRange> {
  const span = 2 ** (P2M_LEVEL_BITS * level);
  for (let index = 0; index < P2M_ENTRIES; index++) {
    const entry = machine.u32[node * 1024 + 2 * index]!;
    const gfn = firstGfn + index * span;
    const kind = entryKind(entry);
    if (kind === P2M_KIND.node) yield* visit(machine, entryValue(entry), level - 1, gfn);
    else if (kind === P2M_KIND.frame) yield { gfn, count: 1, mfn: entryValue(entry) };
    else if (kind === P2M_KIND.zero) yield { gfn, count: span, mfn: 0 };
  }
}
