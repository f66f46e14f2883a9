// Reads all of one image file again: head and notes against their digests, stored pages against their checksums, and
// the places of all other pages, which must be zero. As a reader accepts one layout only, that is every byte of it.

import { BLOCK_BYTES, imageError } from './format.ts';
import { Scratch } from './direct-file.ts';
import { readAreas } from './open-file.ts';
import type { ImageFile } from './open-file.ts';

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
    const problems: VerifyProblem[] = [];
    let problemCount = 0;
    const report = (gfn: number, message: string): void => {
      if (problemCount++ < PROBLEMS_MAX) problems.push({ path, gfn, message });
    };
    for (let page = 0; page < map.pageCount; page += CHUNK_PAGES) {
      options.signal?.throwIfAborted();
      const count = Math.min(CHUNK_PAGES, map.pageCount - page);
      await readChunk(image, page, count, scratch);
      checkChunk(image, page, count, scratch, report);
      const bytesDone = BLOCK_BYTES * (page + count + 1);
      options.onProgress?.({ path, bytesDone, fileBytes });
    }
    return { bytesRead: fileBytes, pagesChecked: map.pageCount, problemCount, problems };
  });
}

async function readChunk({ path, file }: ImageFile, page: number, count: number, scratch: Scratch): Promise<void> {
  const buffer = scratch.blocks(0, count);
  const bytesRead = await file.read([buffer], BLOCK_BYTES * (page + 1)).catch((cause: NodeJS.ErrnoException) => {
    throw imageError('READ', path, `cannot be read (${cause.code})`, { cause });
  });
  if (bytesRead < buffer.length) throw imageError('TRUNCATED', path, 'is cut short among its pages');
}

function checkChunk(
  { map, content }: ImageFile, page: number, count: number, scratch: Scratch,
  report: (gfn: number, message: string) => void,
): void {
  let rank = map.rank(page);
  const found = new Uint32Array(2);
  for (let k = 0; k < count; k++) {
    const gfn = map.gfnOf(page + k);
    const [isZero] = scratch.hasher.hashPages(k, 1, gfn, found, 0);
    if (map.state(gfn) === 'stored') {
      const isRight = found[0] === content.checksums[2 * rank] && found[1] === content.checksums[2 * rank + 1];
      if (!isRight) report(gfn, `page ${gfn} is not what was written`);
      rank++;
    } else if (!isZero) {
      report(gfn, `page ${gfn} is not stored here, but its place is not empty`);
    }
  }
}
