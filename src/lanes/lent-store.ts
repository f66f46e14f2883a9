// Where the bytes of a disk are, for the threads that serve its ring: in one file, place by place, or in a chain of files
// (lent-chain.ts).

/** Part of a request, in one file or in none: bytes that are zero. */
export interface Extent {
  /** NOWHERE: zeros. */
  readonly fd: number;
  /** Place in the file. */
  readonly at: number;
  /** Place in the request. */
  readonly from: number;
  sizeBytes: number;
}
export const NOWHERE = -1;

export interface LentStore {
  /** @returns what makes up a part of the disk, in order; undefined: the host has to look */
  find(offset: number, sizeBytes: number): Extent[] | undefined;
  /** Where it is to be written. @returns as `find`; nothing is zeros */
  findForWrite(offset: number, sizeBytes: number): Extent[] | undefined;
  /** What was looked for last is there. */
  written(): void;
}

export class LentPlainFile implements LentStore {
  readonly #fd: number;

  constructor(fd: number) {
    this.#fd = fd;
  }
  find(offset: number, sizeBytes: number): Extent[] {
    return [{ fd: this.#fd, at: offset, from: 0, sizeBytes }];
  }
  findForWrite(offset: number, sizeBytes: number): Extent[] {
    return this.find(offset, sizeBytes);
  }
  written(): void {}
}

/** Appends an extent, to the one before if it goes on from there. */
export function addExtent(extents: Extent[], extent: Extent): void {
  const last = extents.at(-1);
  const goesOn = last !== undefined && last.fd === extent.fd && (extent.fd === NOWHERE || last.at + last.sizeBytes === extent.at);
  if (goesOn) last.sizeBytes += extent.sizeBytes;
  else extents.push(extent);
}
