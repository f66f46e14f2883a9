// A disk: a chain of stores, the top one for what is written now. A state of it (for a checkpoint) is the chain as it is;
// taking one costs nothing, because the new top is made by the first write that follows.
//
//   disk ──► top (layer) ──► layer ──► raw file          a fork is another disk with a top of its own over the same chain
//                              ▲
//   state ─────────────────────┘                         rollback drops the top and goes on over the state's chain
//
// A disk with a home lives on in files: its newest layer is found again by the head beside it. What it has on top goes into
// what lies below as soon as no state needs that any more, so that in the end everything is in the file that the operator
// named. A disk without one (a fork's) has nameless layers, which end with it, and a flush of it has nothing to save.

import { randomBytes } from 'node:crypto';
import { unlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { assert } from '../../base/assert.ts';
import { ZazenError } from '../../base/errors.ts';
import { takeBuffer } from '../../lanes/buffers.ts';
import type { Borrower, LentFile } from '../../lanes/lending.ts';
import { bytesOf, slicePieces } from '../../lanes/pieces.ts';
import type { Pieces } from '../../lanes/pieces.ts';
import type { BlockFile } from './block-file.ts';
import { DiskNode, bottomOf, isNameless, readFrom, referenceTo } from './chain.ts';
import { copyLayer } from './copying.ts';
import type { DiskHome } from './disk-home.ts';
import { DiskLoan } from './disk-loan.ts';
import { asDiskError, diskError } from './errors.ts';
import { Layer, settled } from './layer.ts';
import { CLUSTER_BYTES, GRANULE_BYTES } from './layer-format.ts';
import { RangeLocks } from './range-locks.ts';
import type { BlockStore } from './store.ts';

export interface StateKeeper {
  held(): void;
  released(node: DiskNode): Promise<void>;
}

/** Of a disk, at one moment. It keeps the disk's files from being altered by others, too. */
export class DiskState {
  readonly node: DiskNode;
  readonly sizeBytes: number;
  readonly isReadOnly: boolean;
  readonly keeper: StateKeeper;
  #isReleased = false;

  constructor(node: DiskNode, { sizeBytes, isReadOnly }: Pick<Disk, 'sizeBytes' | 'isReadOnly'>, keeper: StateKeeper) {
    this.node = node;
    this.sizeBytes = sizeBytes;
    this.isReadOnly = isReadOnly;
    this.keeper = keeper;
    node.use();
    keeper.held();
  }

  /** The same once more, to be released on its own. */
  retain(): DiskState {
    return new DiskState(this.node, this, this.keeper);
  }

  /** Resolves when what was kept only for this state is gone; nobody needs to wait for that. */
  release(): Promise<void> {
    if (this.#isReleased) return Promise.resolve();
    this.#isReleased = true;
    return this.keeper.released(this.node);
  }
}

export interface DiskParts {
  /** What is there; undefined: nothing, all zero. */
  readonly node: DiskNode;
  /** The disk may write to the node itself. */
  readonly isTop: boolean;
  readonly sizeBytes: number;
  readonly isReadOnly: boolean;
  readonly home?: DiskHome | undefined;
  /** Of another disk, whose nodes these are. */
  readonly basis?: DiskState | undefined;
  /** False: what is discarded stays where it is. */
  readonly mayDiscard?: boolean | undefined;
}

/** More than this is put together only when a guest need not wait for it. */
const MERGED_AT_ONCE_BYTES = 16 * 2 ** 20;

export class Disk {
  readonly isReadOnly: boolean;
  readonly #home: DiskHome | undefined;
  readonly #mayDiscard: boolean;
  readonly #locks = new RangeLocks();
  /** Only while it is written to directly. */
  #top: DiskNode | undefined;
  /** What is read from: the top, or what a top is still to be put on. */
  #node: DiskNode;
  #sizeBytes: number;
  #making: Promise<DiskNode> | undefined;
  #states = 0;
  /** States of other disks that it went on from, one a disk. */
  readonly #bases = new Map<StateKeeper, DiskState>();
  /** Dropped, but the head may still name them. */
  readonly #doomed: DiskNode[] = [];
  readonly #flushes = new Set<Promise<void>>();
  #housekeeping: Promise<unknown> = Promise.resolve();
  /** Housekeeping waits while somebody needs the disk to stay as it is. */
  #gate: PromiseWithResolvers<void> | undefined;
  #closing: Promise<void> | undefined;
  #ended: Promise<void> | undefined;
  /** To the threads that serve its ring. */
  #loan: DiskLoan | undefined;
  /** Those who need that it is not lent. */
  #needed = 0;
  readonly #keeper: StateKeeper;

  constructor({ node, isTop, sizeBytes, isReadOnly, home, basis, mayDiscard = true }: DiskParts) {
    node.use();
    this.#mayDiscard = mayDiscard && !isReadOnly;
    this.#node = node;
    this.#top = isTop ? node : undefined;
    this.#sizeBytes = sizeBytes;
    this.isReadOnly = isReadOnly;
    this.#home = home;
    if (basis !== undefined) this.#bases.set(basis.keeper, basis);
    this.#keeper = {
      held: () => { this.#states++; },
      // A failure shows at the next flush.
      released: (state) => this.#keepHouse(() => this.#releaseState(state)).catch(() => {}),
    };
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }
  get isInLayers(): boolean {
    return this.#node.below !== undefined;
  }
  /** Whether what is written is to be found again after the process has ended. */
  get isLasting(): boolean {
    return this.#home !== undefined || this.isReadOnly;
  }
  /** The file that is read and written now, and those below it. */
  files(): BlockFile[] {
    const files: BlockFile[] = [];
    for (let node: DiskNode | undefined = this.#node; node !== undefined; node = node.below) files.push(node.store.file);
    return files;
  }
  get isDirect(): boolean {
    return this.files().every((file) => file.isDirect);
  }
  get canDiscard(): boolean {
    return this.#mayDiscard && (this.#top === undefined || this.#node.store.canDiscard);
  }

  // ---- reading and writing ------------------------------------------------------------------------------------------

  /** Fills the pieces, a multiple of 512 bytes at a multiple of 512. */
  async read(pieces: Pieces, offset: number): Promise<void> {
    if (this.#loan?.isPlain === false) await this.#takeBack();
    const reads: Promise<void>[] = [];
    readFrom(this.#node, pieces, offset, reads);
    await settled(reads);
  }

  /** As `read`. When it fails, some of it may have been written. */
  async write(pieces: Pieces, offset: number): Promise<void> {
    assert(!this.isReadOnly, 'the disk may be written');
    if (this.#loan?.isPlain === false) await this.#takeBack();
    const sizeBytes = bytesOf(pieces);
    const { store } = this.#node;
    const unit = this.#top === undefined ? GRANULE_BYTES : Math.max(store.kind === 'layer' ? GRANULE_BYTES : 1, store.file.alignBytes);
    const start = offset - offset % GRANULE_BYTES;
    const end = Math.ceil((offset + sizeBytes) / GRANULE_BYTES) * GRANULE_BYTES;
    const isWhole = offset % unit === 0 && (offset + sizeBytes) % unit === 0;
    const held = this.#locks.lock(start, end, !isWhole);
    const release = typeof held === 'function' ? held : await held;
    try {
      const top = this.#top ?? await this.#makeTop();
      if (top.store.kind === 'raw') await top.store.write(pieces, offset);
      else await this.#writeToLayer(top.store, pieces, offset, sizeBytes);
    } finally {
      release();
    }
  }

  /** Parts of granules first, each made whole. */
  async #writeToLayer(layer: BlockStore, pieces: Pieces, offset: number, sizeBytes: number): Promise<void> {
    const end = offset + sizeBytes;
    const wholeStart = Math.min(end, Math.ceil(offset / GRANULE_BYTES) * GRANULE_BYTES);
    const wholeEnd = Math.max(wholeStart, end - end % GRANULE_BYTES);
    const parts = [[offset, wholeStart], [wholeStart, wholeEnd], [wholeEnd, end]] as const;
    await settled(parts.filter(([from, to]) => from < to).map(([from, to]) => {
      const part = slicePieces(pieces, from - offset, to - from);
      const isWhole = from % GRANULE_BYTES === 0 && to % GRANULE_BYTES === 0;
      return isWhole || layer.has(from, to - from) ? layer.write(part, from) : this.#writePart(layer, part, from);
    }));
  }

  async #writePart(layer: BlockStore, pieces: Pieces, offset: number): Promise<void> {
    const start = offset - offset % GRANULE_BYTES;
    using buffer = takeBuffer(GRANULE_BYTES);
    await this.read([buffer.bytes], start);
    let at = offset - start;
    for (const piece of pieces) {
      buffer.bytes.set(piece, at);
      at += piece.length;
    }
    await layer.write([buffer.bytes], start);
  }

  /** Gives up the contents of a range, which reads as zero from then on; parts of granules keep theirs. */
  async discard(offset: number, sizeBytes: number): Promise<void> {
    assert(this.canDiscard, 'the disk can discard');
    if (this.#loan?.isPlain === false) await this.#takeBack();
    const isToEnd = offset + sizeBytes >= this.#sizeBytes;
    const start = Math.ceil(offset / GRANULE_BYTES) * GRANULE_BYTES;
    const end = isToEnd ? Math.ceil(this.#sizeBytes / GRANULE_BYTES) * GRANULE_BYTES : offset + sizeBytes - (offset + sizeBytes) % GRANULE_BYTES;
    if (start >= end) return;
    // A cluster that loses its last granule is freed: nobody may be writing to it.
    const held = this.#locks.lock(start - start % CLUSTER_BYTES, Math.ceil(end / CLUSTER_BYTES) * CLUSTER_BYTES, true);
    const release = typeof held === 'function' ? held : await held;
    try {
      const top = this.#top ?? await this.#makeTop();
      await top.store.discard(start, end - start);
    } finally {
      release();
    }
  }

  /** What was written before the call is found after a crash, unless the disk is one that does not last. */
  async flush(): Promise<void> {
    const flush = this.#flush();
    this.#flushes.add(flush);
    try {
      await flush;
    } finally {
      this.#flushes.delete(flush);
    }
  }

  async #flush(): Promise<void> {
    const home = this.#home;
    if (home === undefined) return this.#checkNothingLost();
    await this.#unlent(async () => {
      if (isNameless(this.#node)) await this.#adopt(home);
      await this.#saveChain(this.#node);
      await this.#settleHead();
    });
  }

  /** Of a disk that does not last, a guest must hear of a write that was not done after it had been answered. */
  #checkNothingLost(): void {
    if (this.#closing === undefined) for (const file of this.files()) file.checkNothingLost();
  }

  /** The disk was put back to a state of a fork: what only nameless layers have gets a layer with a name. */
  async #adopt(home: DiskHome): Promise<void> {
    const held = this.#locks.lock(0, Infinity, true);
    const release = typeof held === 'function' ? held : await held;
    try {
      if (!isNameless(this.#node)) return;
      const layers: DiskNode[] = [];
      let below = this.#node;
      for (; isNameless(below); below = below.below!) layers.unshift(below);
      const path = home.layerPath();
      const layer = await Layer.create(path, { sizeBytes: this.#sizeBytes, backing: await referenceTo(below.store, dirname(path)) });
      const node = new DiskNode(layer, below, 'own');
      node.use();
      for (const { store } of layers) await copyLayer(store as Layer, node);
      this.#doomed.push(this.#node);
      this.#node = node;
      this.#top = node;
      this.#leaveBases();
    } finally {
      release();
    }
  }

  #leaveBases(): void {
    for (const basis of this.#bases.values()) void basis.release();
    this.#bases.clear();
  }

  /** From the bottom: a layer is worth what lies below it. */
  async #saveChain(node: DiskNode): Promise<void> {
    if (!node.store.file.isWritable) return;
    if (node.below !== undefined) await this.#saveChain(node.below);
    await node.store.flush();
  }

  async #settleHead(): Promise<void> {
    if (this.#home === undefined) return;
    const doomed = this.#doomed.splice(0);
    try {
      await this.#home.point(() => this.#node.store.file.path);
    } catch (error) {
      this.#doomed.push(...doomed);
      throw error;
    }
    for (const node of doomed) await node.leave(true);
  }

  #makeTop(): Promise<DiskNode> {
    return this.#making ??= this.#makeLayer().then((layer) => {
      const below = this.#node;
      const node = new DiskNode(layer, below, this.#home === undefined ? 'nameless' : 'own');
      node.use();
      this.#top = this.#node = node;
      // The new one uses it now.
      void below.leave(false);
      return node;
    }).finally(() => {
      this.#making = undefined;
      // The state that it was made for may have gone meanwhile.
      if (this.#states === 0 && this.#closing === undefined) this.#keepHouse(() => this.#shortenAll()).catch(() => {});
    });
  }

  async #makeLayer(): Promise<Layer> {
    const below = this.#node;
    const sizeBytes = this.#sizeBytes;
    if (this.#home !== undefined) {
      const path = this.#home.layerPath();
      return Layer.create(path, { sizeBytes, backing: await referenceTo(below.store, dirname(path)) });
    }
    const backing = await referenceTo(below.store, '/');
    const name = `.zazen-${randomBytes(8).toString('hex')}.layer`;
    const folder = dirname(bottomOf(below).store.file.path);
    const layer = await Layer.create(join(folder, name), { sizeBytes, backing }).catch((error: unknown) => {
      // Images of everybody often lie where only few may write.
      if (error instanceof ZazenError && error.code === 'ZAZEN_DISK_UNREADABLE') return Layer.create(join(tmpdir(), name), { sizeBytes, backing });
      throw error;
    });
    await unlink(layer.file.path);
    return layer;
  }

  // ---- the threads that serve its ring ------------------------------------------------------------------------------

  /** For as long as nothing else is asked of the disk. While the next write makes a layer, for reading only. */
  lend(borrower: Borrower): LentFile | undefined {
    if (this.#loan !== undefined || this.#needed > 0 || this.#making !== undefined || this.#closing !== undefined) return undefined;
    this.#loan = DiskLoan.begin({
      node: this.#node, isTop: this.#top !== undefined, sizeBytes: this.#sizeBytes, isReadOnly: this.isReadOnly,
      isVolatile: this.#home === undefined, borrower,
      ended: () => { this.#loan = undefined; },
    });
    return this.#loan?.file;
  }

  #takeBack(): Promise<void> {
    return this.#unlent(() => Promise.resolve());
  }
  /** Does what nobody else may do anything with the disk's files for. */
  async #unlent(work: () => Promise<void>): Promise<void> {
    this.#needed++;
    try {
      if (this.#loan !== undefined) await this.#loan.takeBack();
      await work();
    } finally {
      this.#needed--;
    }
  }

  // ---- states -------------------------------------------------------------------------------------------------------

  /** Resolves when nothing is going on behind the guest's back, and nothing begins there until `resume`. */
  async quiesce(): Promise<void> {
    const before = this.#housekeeping;
    this.#gate ??= Promise.withResolvers();
    await before;
  }
  resume(): void {
    this.#gate?.resolve();
    this.#gate = undefined;
  }

  /**
   * The disk as it is, for as long as the state is held. When it is quiesced, and nothing is being read or written.
   * @param isReadOnly whether disks that are made of the state are
   */
  freeze(isReadOnly = this.isReadOnly): DiskState {
    assert(this.#making === undefined && this.#loan === undefined, 'nothing is being written');
    this.#top = undefined;
    return new DiskState(this.#node, { sizeBytes: this.#sizeBytes, isReadOnly }, this.#keeper);
  }

  /** Puts the disk back to a state of its own, or of a disk of the same family. As for `freeze`. */
  restore(state: DiskState): void {
    assert(this.#making === undefined && this.#loan === undefined, 'nothing is being written');
    this.#sizeBytes = state.sizeBytes;
    this.#top = undefined;
    if (state.node === this.#node) return;
    state.node.use();
    this.#doomed.push(this.#node);
    this.#node = state.node;
    if (state.keeper !== this.#keeper && !this.#bases.has(state.keeper)) this.#bases.set(state.keeper, state.retain());
    this.#keepHouse(() => this.#home === undefined ? this.#dropDoomed() : this.flush()).catch(() => {});
  }

  /** A disk of its own that goes on from a state; it does not last. */
  static fork(state: DiskState): Disk {
    const { node, sizeBytes, isReadOnly } = state;
    return new Disk({ node, isTop: false, sizeBytes, isReadOnly, basis: state.retain() });
  }

  async #dropDoomed(): Promise<void> {
    for (const node of this.#doomed.splice(0)) await node.leave(true);
  }

  /** Work behind the guest's back, one thing at a time. A failure shows at the next flush, which does the same again. */
  #keepHouse(work: () => Promise<void>): Promise<void> {
    const gate = this.#gate;
    const done = this.#housekeeping.then(() => gate?.promise).then(work);
    this.#housekeeping = done.catch(() => {});
    return done;
  }

  async #releaseState(node: DiskNode): Promise<void> {
    await node.leave(node !== this.#node);
    this.#states--;
    if (this.#states === 0 && this.#closing !== undefined) await this.#end();
    else await this.#shortenAll();
  }

  async #shortenAll(): Promise<void> {
    while (await this.#shorten());
  }

  /** Where nobody else needs what lies under a layer, the two become one. @returns whether anything has changed */
  async #shorten(): Promise<boolean> {
    // How much a layer has is known when it is not lent.
    if (this.#loan !== undefined) await this.#takeBack();
    if (this.isReadOnly || this.#making !== undefined) return false;
    if (this.#top === undefined && this.#mayWrite(this.#node)) {
      // Nothing was written since the state: the store is written to again.
      this.#top = this.#node;
      return true;
    }
    let above: DiskNode | undefined;
    for (let node = this.#node; node.below !== undefined; node = node.below) {
      if (this.#mayWrite(node.below) && this.#mayMerge(node)) return this.#merge(node, above);
      above = node;
    }
    return false;
  }

  #mayWrite(node: DiskNode): boolean {
    // Another disk's stores are none of this one's, even when it is the last to use them.
    const isMine = (this.#home === undefined) === (node.origin === 'nameless');
    return isMine && node.users === 1 && node.store.file.isWritable;
  }

  /** While the topmost one falls, writes wait. */
  #mayMerge(node: DiskNode): boolean {
    return node !== this.#node || this.#closing !== undefined || (node.store as Layer).dataBytes <= MERGED_AT_ONCE_BYTES;
  }

  async #merge(node: DiskNode, above: DiskNode | undefined): Promise<boolean> {
    node.isChanging = true;
    try {
      // Forks have it in their chains as well.
      await Promise.all([...node.loans].map((loan) => loan.takeBack()));
      return await this.#mergeUnlent(node, above);
    } finally {
      node.isChanging = false;
    }
  }

  async #mergeUnlent(node: DiskNode, above: DiskNode | undefined): Promise<boolean> {
    const held = node === this.#node ? this.#locks.lock(0, Infinity, true) : () => {};
    const release = typeof held === 'function' ? held : await held;
    try {
      const below = node.below!;
      // A write that came before has put a new top on it.
      if ((above === undefined && node !== this.#node) || !this.#mayWrite(below)) return false;
      const layer = node.store as Layer;
      // Its flushes fail, and the store below would know nothing of that.
      layer.file.checkNothingLost();
      await this.#home?.point(() => this.#node.store.file.path, true);
      await copyLayer(layer, below);
      if (below.store.sizeBytes !== layer.sizeBytes) await below.store.resize(layer.sizeBytes);
      if (this.#home !== undefined) {
        await below.store.flush();
        // From here on the layer above lies on what lies below this one; on the disk as well.
        if (above?.store instanceof Layer) await above.store.setBacking(await referenceTo(below.store, dirname(above.store.file.path)));
        else await this.#home.point(() => below.store.file.path);
      }
      // A flush of the layer that goes must not find it gone half-way.
      while (this.#flushes.size > 0) await Promise.allSettled(this.#flushes);
      await node.fall();
      await this.#home?.point(() => this.#node.store.file.path, false);
      return true;
    } finally {
      release();
    }
  }

  /** Grows or shrinks the disk. Bytes, a multiple of 512. @throws ZazenError ZAZEN_DISK_SIZE, _IO */
  async resize(sizeBytes: number): Promise<void> {
    const { path } = this.#node.store.file;
    if (this.isReadOnly) throw diskError('SIZE', path, 'is read-only');
    if (!(sizeBytes > 0 && sizeBytes % 512 === 0)) throw diskError('SIZE', path, 'its size must be a multiple of 512 bytes');
    try {
      await this.#keepHouse(() => this.#unlent(() => this.#resize(sizeBytes)));
    } catch (error) {
      throw asDiskError(path, error);
    }
  }

  async #resize(sizeBytes: number): Promise<void> {
    const held = this.#locks.lock(0, Infinity, true);
    const release = typeof held === 'function' ? held : await held;
    try {
      const top = this.#top ?? await this.#makeTop();
      const tail = Math.min(GRANULE_BYTES - sizeBytes % GRANULE_BYTES, this.#sizeBytes - sizeBytes);
      if (top.store.kind === 'layer' && sizeBytes % GRANULE_BYTES !== 0 && tail > 0) {
        using zeros = takeBuffer(tail);
        zeros.bytes.fill(0);
        await this.#writeToLayer(top.store, [zeros.bytes], sizeBytes, tail);
      }
      await top.store.resize(sizeBytes);
      this.#sizeBytes = sizeBytes;
    } finally {
      release();
    }
    await this.flush();
  }

  /** Makes what was written last, if the disk lasts. States that are held stay good, and the disk locked until they go. */
  close(): Promise<void> {
    return this.#closing ??= this.#close();
  }

  async #close(): Promise<void> {
    this.resume();
    await this.#housekeeping;
    await this.#loan?.takeBack();
    try {
      await (this.#states > 0 ? this.flush() : this.#end());
    } catch (error) {
      throw asDiskError(this.#node.store.file.path, error);
    }
  }

  #end(): Promise<void> {
    return this.#ended ??= this.#giveUp();
  }

  async #giveUp(): Promise<void> {
    try {
      while (this.#home !== undefined && await this.#shorten());
      await this.flush();
    } finally {
      await this.#dropDoomed();
      // Of what a fork was the last to need, nobody will look for a file.
      await this.#node.leave(this.#bases.size > 0 && this.#home === undefined);
      await this.#home?.release();
      this.#leaveBases();
    }
  }
}
