// A raw file, or a block device, as the lowest store of a disk: byte N of the disk is byte N of the file.

import { BLKIF_SECTOR_BYTES } from '../../abi/xen-block.ts';
import type { Pieces } from '../../lanes/pieces.ts';
import type { BlockFile } from './block-file.ts';
import { RUN } from './store.ts';
import type { BlockStore, Run } from './store.ts';

export class RawStore implements BlockStore {
  readonly kind = 'raw';
  readonly granuleBytes = BLKIF_SECTOR_BYTES;
  readonly file: BlockFile;
  #sizeBytes: number;

  constructor(file: BlockFile) {
    this.file = file;
    // What does not fill a sector cannot be reached.
    this.#sizeBytes = file.sizeBytes - file.sizeBytes % BLKIF_SECTOR_BYTES;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  runs(offset: number, sizeBytes: number): Run[] {
    const dataBytes = Math.max(0, Math.min(sizeBytes, this.#sizeBytes - offset));
    const runs: Run[] = [];
    if (dataBytes > 0) runs.push({ kind: RUN.data, offset, sizeBytes: dataBytes, at: offset });
    if (dataBytes < sizeBytes) {
      runs.push({ kind: RUN.zero, offset: offset + dataBytes, sizeBytes: sizeBytes - dataBytes, at: 0 });
    }
    return runs;
  }

  write(pieces: Pieces, offset: number): Promise<void> {
    return this.file.write(pieces, offset);
  }

  has(): boolean {
    return true;
  }

  get canDiscard(): boolean {
    return this.file.canPunch;
  }

  /** Zeros written out would take space instead of giving it back. */
  async discard(offset: number, sizeBytes: number): Promise<boolean> {
    const end = Math.min(offset + sizeBytes, this.#sizeBytes);
    return this.canDiscard && (offset >= end || await this.file.punch(offset, end - offset));
  }

  flush(): Promise<void> {
    return this.file.sync();
  }

  async resize(sizeBytes: number): Promise<void> {
    await this.file.truncate(sizeBytes);
    this.#sizeBytes = sizeBytes;
  }

  close(): Promise<void> {
    return this.file.close();
  }
  abandon(): Promise<void> {
    return this.file.close();
  }
}
