// What a disk is made of: a store has some of the disk's contents and leaves the rest to the store below it. A raw file has
// everything and nothing below; a layer has what was written since it was put on top.

import type { Pieces } from '../../lanes/pieces.ts';
import type { BlockFile } from './block-file.ts';

export const RUN = { data: 0, zero: 1, below: 2 } as const;

/** Part of a disk that one store answers for in one way. Bytes. */
export interface Run {
  readonly kind: (typeof RUN)[keyof typeof RUN];
  /** Place on the disk. */
  readonly offset: number;
  readonly sizeBytes: number;
  /** Place in the file, of data. */
  readonly at: number;
}

export interface BlockStore {
  readonly kind: 'raw' | 'layer';
  readonly file: BlockFile;
  /** Of the disk that it is the store of. */
  readonly sizeBytes: number;
  /** Multiples of this are written without looking at what was there. */
  readonly granuleBytes: number;
  /** Runs that make up a part of the disk, in order; none is empty. */
  runs(offset: number, sizeBytes: number): Run[];
  /** Whole granules, or parts of granules that it has; nobody else may write to these granules meanwhile. */
  write(pieces: Pieces, offset: number): Promise<void>;
  /** Whether all granules that this part of the disk touches are here. */
  has(offset: number, sizeBytes: number): boolean;
  readonly canDiscard: boolean;
  /** Makes whole granules read as zero. @returns false when it cannot, and has done nothing */
  discard(offset: number, sizeBytes: number): Promise<boolean>;
  /** What was written before the call survives whatever comes after it. */
  flush(): Promise<void>;
  resize(sizeBytes: number): Promise<void>;
  close(): Promise<void>;
  /** Closes it as it is: nobody will open it again. */
  abandon(): Promise<void>;
}

/** Appends a run, to the one before if it goes on from there. */
export function addRun(runs: Run[], run: Run): void {
  const last = runs.at(-1);
  if (last !== undefined && last.kind === run.kind && last.offset + last.sizeBytes === run.offset
    && (run.kind !== RUN.data || last.at + last.sizeBytes === run.at)) {
    runs[runs.length - 1] = { ...last, sizeBytes: last.sizeBytes + run.sizeBytes };
  } else runs.push(run);
}
