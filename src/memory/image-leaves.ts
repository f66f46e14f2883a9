// Makes trees independent of a template that is complete: wherever a tree still says "in the image", it gets what the
// template has there, frames and whole nodes of them. Needs no frames.

import { FRAME_WORDS, P2M_ENTRIES, P2M_KIND } from '../abi/machine-memory.ts';
import { assert } from '../base/assert.ts';
import { MAPPINGS_NEARLY_FULL } from './frame-table.ts';
import type { Heap } from './heap.ts';
import { entryKind, entryValue } from './p2m.ts';

/**
 * @param roots of frozen trees, which are changed only as replaceImagePage does; of others while no thread uses them
 * @param template root of a tree without image entries
 * @param image its number
 * @returns false if something of the template is counted too often to be shared once more: the trees are as good as
 *   before, and still need it
 */
export function resolveImageLeaves(heap: Heap, roots: Iterable<number>, template: number, image: number): boolean {
  const words = heap.memory.u32;
  const seen = new Set<number>();
  const visit = (node: number, source: number): boolean => {
    if (node === source || seen.has(node)) return true;
    seen.add(node);
    for (let i = 0; i < 2 * P2M_ENTRIES; i += 2) {
      const word = node * FRAME_WORDS + i;
      const entry = Atomics.load(words, word);
      const kind = entryKind(entry);
      if (kind !== P2M_KIND.node && !(kind === P2M_KIND.image && words[word + 1] === image)) continue;
      const wanted = words[source * FRAME_WORDS + i]!;
      if (kind === P2M_KIND.image) {
        const isLoaded = entryKind(wanted) === P2M_KIND.node || entryKind(wanted) === P2M_KIND.frame;
        assert(isLoaded, 'the template is not complete');
        if (heap.frames.mappings(entryValue(wanted)) >= MAPPINGS_NEARLY_FULL) return false;
        assert(heap.frames.retain(entryValue(wanted)), 'so many threads there are not');
        if (Atomics.compareExchange(words, word, entry, wanted) !== entry) {
          // Somebody was faster; what is there now may be a node with more to do.
          heap.frames.dropMappingIfShared(entryValue(wanted));
          i -= 2;
        }
      } else if (entryKind(wanted) === P2M_KIND.node && !visit(entryValue(entry), entryValue(wanted))) {
        return false;
      }
    }
    return true;
  };
  for (const root of roots) if (!visit(root, template)) return false;
  return true;
}
