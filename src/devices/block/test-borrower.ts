// Reads and writes a disk as the threads that serve its ring do, for tests: whenever it is to be had, until it is wanted back.

import { readvSync, writevSync } from 'node:fs';
import { LaneTable } from '../../lanes/lane.ts';
import type { Lendable, LentFile } from '../../lanes/lending.ts';
import { LentChain } from '../../lanes/lent-chain.ts';
import { LentPlainFile, NOWHERE } from '../../lanes/lent-store.ts';
import type { Extent, LentStore } from '../../lanes/lent-store.ts';

interface BorrowedDisk {
  readonly file: LentFile;
  readonly store: LentStore;
  wasWritten: boolean;
}

export class TestBorrower {
  readonly #lend: NonNullable<Lendable['lend']>;
  readonly #maps: LaneTable['maps'];
  #borrowed: BorrowedDisk | undefined;
  /** How often it could do what it was asked for. */
  reads = 0;
  writes = 0;
  writesInLayers = 0;
  /** A request is under way: the disk is given back by `end`. */
  isBusy = false;
  onWrite: (bytes: Uint8Array, at: number) => void = () => {};

  constructor(lend: NonNullable<Lendable['lend']>, maps = new LaneTable().maps) {
    this.#lend = lend;
    this.#maps = maps;
  }

  get isLent(): boolean {
    return this.#borrowed !== undefined;
  }
  #borrow(): BorrowedDisk | undefined {
    if (this.#borrowed !== undefined) return this.#borrowed;
    const file = this.#lend({ maps: this.#maps, takeBack: () => this.takeBack() });
    if (file === undefined) return undefined;
    this.#borrowed = { file, store: file.chain === 0 ? new LentPlainFile(file.fd) : new LentChain(this.#maps, file.chain), wasWritten: false };
    return this.#borrowed;
  }
  takeBack(): void {
    if (!this.isBusy) this.end();
  }
  end(): void {
    const borrowed = this.#borrowed;
    this.#borrowed = undefined;
    borrowed?.file.giveBack(borrowed.wasWritten);
  }

  /** @returns false: that is the host's, who has the disk again */
  read(bytes: Uint8Array, offset: number): boolean {
    const borrowed = this.#borrow();
    const places = isFor(borrowed, bytes, offset) ? borrowed.store.find(offset, bytes.length) : undefined;
    if (places === undefined) return this.#leave();
    for (const { fd, at, part } of partsOf(places, bytes)) {
      if (fd === NOWHERE) part.fill(0);
      else if (readvSync(fd, [part], at) !== part.length) return this.#leave();
    }
    this.reads++;
    return true;
  }

  /** As `read`. */
  write(bytes: Uint8Array, offset: number): boolean {
    const borrowed = this.#borrow();
    const places = isFor(borrowed, bytes, offset) && borrowed.file.isWritable ? borrowed.store.findForWrite(offset, bytes.length) : undefined;
    if (places === undefined) return this.#leave();
    for (const { fd, at, part } of partsOf(places, bytes)) {
      this.onWrite(part, at);
      if (writevSync(fd, [part], at) !== part.length) throw new Error('written in part');
    }
    borrowed!.store.written();
    borrowed!.wasWritten = true;
    this.writes++;
    if (borrowed!.file.chain !== 0) this.writesInLayers++;
    return true;
  }

  #leave(): false {
    this.takeBack();
    return false;
  }
}

function isFor(borrowed: BorrowedDisk | undefined, bytes: Uint8Array, offset: number): borrowed is BorrowedDisk {
  if (borrowed === undefined) return false;
  const { alignBytes, sizeBytes } = borrowed.file;
  return bytes.length % alignBytes === 0 && offset % alignBytes === 0 && offset + bytes.length <= sizeBytes;
}

function partsOf(places: readonly Extent[], bytes: Uint8Array): { fd: number; at: number; part: Uint8Array }[] {
  return places.map(({ fd, at, from, sizeBytes }) => ({ fd, at, part: bytes.subarray(from, from + sizeBytes) }));
}
