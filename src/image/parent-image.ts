// The image that an incremental one builds on, as its writer sees it: is it one to build on, and which pages does it have
// already? Pages are told apart by their checksums alone, so nothing but heads and notes of the chain is read.
// docs/decisions/2026-11-21-unchanged-pages-by-checksum.md says why that is enough.

import * as nodeFiles from 'node:fs/promises';
import type { FileSystem } from './direct-file.ts';
import { CHAIN_MAX, imageError } from './format.ts';
import type { ImageHeader, ParentReference } from './format.ts';
import { openImage } from './image.ts';
import type { Image } from './image.ts';
import { PageMap } from './page-map.ts';
import type { ParentPages } from './page-writer.ts';

interface Layer {
  readonly map: PageMap;
  /** Two words for each stored page. */
  readonly checksums: Uint32Array;
}

export class ParentImage implements ParentPages {
  readonly header: ImageHeader;
  readonly reference: ParentReference;
  readonly paths: readonly string[];
  readonly #layers: readonly Layer[];

  private constructor(image: Image) {
    const { header, reference } = image;
    this.header = header;
    this.reference = reference;
    const paths: string[] = [];
    const layers: Layer[] = [];
    for (let one: Image | undefined = image; one !== undefined; one = one.parent) {
      const { pageMap, checksums } = one.pages.describe();
      paths.push(one.path);
      layers.push({ map: new PageMap(one.banks, pageMap), checksums });
    }
    this.paths = paths;
    this.#layers = layers;
  }

  /**
   * The file is closed when this returns: what is needed of it is in memory.
   * @throws ZazenError as `openImage`; ZAZEN_IMAGE_PARENT when the chain has all the files that one may have
   */
  static async open(path: string, files: FileSystem = nodeFiles): Promise<ParentImage> {
    await using image = await openImage(path, { files });
    const parent = new ParentImage(image);
    if (parent.paths.length >= CHAIN_MAX) {
      throw imageError('PARENT', path, `is the last of a chain of ${CHAIN_MAX} images, and no chain is longer`,
        { hint: 'save without a parent' });
    }
    return parent;
  }

  has(gfn: number, low: number, high: number): boolean {
    for (const { map, checksums } of this.#layers) {
      const state = map.state(gfn);
      if (state === 'parent') continue;
      if (state !== 'stored') return false;
      const rank = map.rank(map.pageOf(gfn));
      return checksums[2 * rank] === low && checksums[2 * rank + 1] === high;
    }
    return false;
  }
}
