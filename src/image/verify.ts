// Reads all of one image file again: head and notes against their digests, stored pages against their checksums, those
// that are stored twice both times, and the places of all other pages, which must be zero. As a reader accepts one
// layout only, that is every byte of it.

import { FRAME_BYTES } from '../abi/machine-memory.ts';
import type { PageHasher } from './checksum.ts';
import { BLOCK_BYTES, imageError } from './format.ts';
import { Scratch } from './direct-file.ts';
import { readAreas } from './open-file.ts';
import type { ImageFile } from './open-file.ts';
import type { PageMap } from './page-map.ts';

export interface VerifyOptions {
  /** Bytes of the current file of the chain. */
  readonly onProgress?: (progress: { path: string; bytesDone: number; fileBytes: number }) => void;
  readonly signal?: AbortSignal;
}

export interface VerifyProblem {
  readonly path: string;
  readonly gfn: number;
  readonly message: string;
}

export interface VerifyResult {
  readonly bytesRead: number;
  readonly pagesChecked: number;
  readonly problemCount: number;
  /** The first ones of each file. */
  readonly problems: readonly VerifyProblem[];
}

const PROBLEMS_MAX = 16;
const CHUNK_PAGES = Scratch.sizeBytes / BLOCK_BYTES;

/** @throws ZazenError ZAZEN_IMAGE_CHECKSUM, _FORMAT, _TRUNCATED, _READ; the signal's reason when aborted */
export async function verifyPages(image: ImageFile, options: VerifyOptions): Promise<VerifyResult> {
  return Scratch.use(async (scratch) => {
    const { path, file, digest, fileBytes, map } = image;
    const { size } = await file.handle.stat();
    const areas = await readAreas(path, file, size, scratch);
    if (areas.digest !== digest) throw imageError('CHECKSUM', path, 'was replaced since it was opened');
    const tables = { map, checksums: image.content.checksums };
    const problems: VerifyProblem[] = [];
    let problemCount = 0;
    let page = 0;
    for (const { guestAddress, sizeBytes } of image.banks) {
      const endGfn = (guestAddress + sizeBytes) / FRAME_BYTES;
      for (let gfn = guestAddress / FRAME_BYTES; gfn < endGfn; gfn += CHUNK_PAGES) {
        options.signal?.throwIfAborted();
        const count = Math.min(CHUNK_PAGES, endGfn - gfn);
        await readChunk(image, BLOCK_BYTES * (page + 1), count, scratch);
        for (const bad of findAlteredPages(tables, scratch.hasher, gfn, 0, count)) {
          if (problemCount++ < PROBLEMS_MAX) problems.push({ path, gfn: bad, message: describeProblem(image, bad) });
        }
        page += count;
        options.onProgress?.({ path, bytesDone: BLOCK_BYTES * (page + 1), fileBytes });
      }
    }
    for (const bad of await findAlteredHotPages(image, scratch)) {
      const message = `the second copy of page ${bad} is not what was written`;
      if (problemCount++ < PROBLEMS_MAX) problems.push({ path, gfn: bad, message });
    }
    return { bytesRead: fileBytes, pagesChecked: map.pageCount, problemCount, problems };
  });
}

const describeProblem = ({ map }: ImageFile, gfn: number) => map.state(gfn) === 'stored'
  ? `page ${gfn} is not what was written` : `page ${gfn} is not stored here, but its place is not empty`;

async function findAlteredHotPages(image: ImageFile, scratch: Scratch): Promise<number[]> {
  const { map, layout, content: { checksums, hotGfns } } = image;
  if (hotGfns.length === 0) return [];
  await readChunk(image, layout.hotOffset, hotGfns.length, scratch);
  return [...findAlteredCopies({ map, checksums }, scratch.hasher, hotGfns, hotGfns.keys())];
}

async function readChunk({ path, file }: ImageFile, offset: number, count: number, scratch: Scratch): Promise<void> {
  const buffer = scratch.blocks(0, count);
  const bytesRead = await file.read([buffer], offset).catch((cause: NodeJS.ErrnoException) => {
    throw imageError('READ', path, `cannot be read (${cause.code})`, { cause });
  });
  if (bytesRead < buffer.length) throw imageError('TRUNCATED', path, 'is cut short among its pages');
}

interface PageTables {
  readonly map: PageMap;
  readonly checksums: Uint32Array;
}

/** GFNs of those stored pages that are not as they were written, of which each was read into a frame of its own. */
export function* findAlteredCopies(
  { map, checksums }: PageTables, hasher: PageHasher, gfns: Uint32Array, mfns: Iterable<number>,
): Generator<number> {
  const found = new Uint32Array(2);
  let i = 0;
  for (const mfn of mfns) {
    const gfn = gfns[i++]!;
    hasher.hashPages(mfn, 1, gfn, found, 0);
    const rank = map.rank(map.pageOf(gfn));
    if (found[0] !== checksums[2 * rank] || found[1] !== checksums[2 * rank + 1]) yield gfn;
  }
}

/**
 * GFNs of the pages that are not as they were written, of those that have been read from their places in the file into
 * consecutive frames: stored pages by their checksums; the places of all others are zero.
 */
export function* findAlteredPages(
  { map, checksums }: PageTables, hasher: PageHasher, gfn: number, mfn: number, count: number,
): Generator<number> {
  const found = new Uint32Array(2 * count);
  const zeroPages = hasher.hashPages(mfn, count, gfn, found, 0);
  let rank = map.rank(map.pageOf(gfn));
  for (let k = 0; k < count; k++) {
    if (map.state(gfn + k) !== 'stored') {
      if (!zeroPages[k]) yield gfn + k;
      continue;
    }
    if (found[2 * k] !== checksums[2 * rank] || found[2 * k + 1] !== checksums[2 * rank + 1]) yield gfn + k;
    rank++;
  }
}
