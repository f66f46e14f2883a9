// The area of an image where its hot pages are stored a second time, one after the other. Where it lies is in the head of
// the file: so reading can begin before the notes say which pages they are, and what their checksums are.

import { FRAME_BYTES } from '../abi/machine-memory.ts';
import type { PageMemory } from './checksum.ts';
import type { DirectFile } from './direct-file.ts';
import { imageError } from './format.ts';
import { buffersOf } from './frame-buffers.ts';

export class HotArea {
  /** How many pages it has. */
  readonly pages: number;
  readonly #path: string;
  readonly #file: DirectFile;
  readonly #offset: number;

  constructor(path: string, file: DirectFile, offset: number, pages: number) {
    this.pages = pages;
    this.#path = path;
    this.#file = file;
    this.#offset = offset;
  }

  /**
   * Reads some of them, by one request; what was read is to be checked (`Image.findAlteredHotPages`).
   * @param first number of the first one in the area
   * @param mfns frames, of which long stretches should follow each other
   * @throws ZazenError ZAZEN_IMAGE_READ, _TRUNCATED
   */
  async read(machine: PageMemory, first: number, mfns: Uint32Array): Promise<void> {
    const bytesRead = await this.#file.read(buffersOf(machine, { mfns }), this.#offset + first * FRAME_BYTES)
      .catch((cause: NodeJS.ErrnoException) => {
        throw imageError('READ', this.#path, `its hot pages cannot be read (${cause.code})`, { cause });
      });
    if (bytesRead < mfns.length * FRAME_BYTES) throw imageError('TRUNCATED', this.#path, 'is cut short in its hot pages');
  }
}
