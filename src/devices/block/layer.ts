// A copy-on-write layer: the store of what was written to a disk since the layer was put on top of another store. The
// format is in layer-format.ts; its map is in memory while the layer is open.
//
// What is written goes to the file at once; the map's pages follow with the next flush, in this order:
//
//   pages as they are now are copied ─► data and new places durable ─► pages written ─► pages durable ─► freed clusters free
//
// So a map never names data that might not be there, and a cluster is not used anew while a map on the disk may name it.
// Whatever is killed whenever: opening finds the map of the last flush that ended, or of the one under way.

import { randomUUID } from 'node:crypto';
import { unlink } from 'node:fs/promises';
import { assert } from '../../base/assert.ts';
import { takeBuffer } from '../../lanes/buffers.ts';
import type { MapPages } from '../../lanes/map-pages.ts';
import { bytesOf, slicePieces } from '../../lanes/pieces.ts';
import type { Pieces } from '../../lanes/pieces.ts';
import { BlockFile } from './block-file.ts';
import { asDiskError, diskError } from './errors.ts';
import {
  ALL_GRANULES, BACKING_PATH_MAX_BYTES, CLUSTER_BYTES, DIRECTORY_OFFSET, ENTRIES_PER_PAGE, EntryPage, FIRST_CLUSTER,
  GRANULE_BYTES, LAYER_SIZE_MAX_BYTES, MAP_PAGE_SPAN_BYTES, PAGE_BYTES, PAGE_KIND, PAIR_BYTES, encodeHeader,
} from './layer-format.ts';
import type { BackingReference, LayerHeader } from './layer-format.ts';
import { loadLayer } from './layer-loader.ts';
import type { LoadedLayer } from './layer-loader.ts';
import { SharedMap } from './shared-map.ts';
import { RUN, addRun } from './store.ts';
import type { BlockStore, Run } from './store.ts';

export interface NewLayer {
  /** Of the disk, bytes: a multiple of 512. */
  readonly sizeBytes: number;
  readonly backing?: BackingReference | undefined;
}

export class Layer implements BlockStore {
  readonly kind = 'layer';
  readonly canDiscard = true;
  readonly granuleBytes = GRANULE_BYTES;
  readonly file: BlockFile;
  #header: LayerHeader;
  #headerSequence: number;
  readonly #directory: EntryPage[];
  readonly #map: Map<number, EntryPage>;
  /** First cluster that was never used. */
  #end: number;
  #free: number[];
  /** Free once a map that does not name them is durable. */
  #freed: number[] = [];
  /** Places for pairs of map pages in the cluster that was taken for them last. */
  readonly #pairs: number[] = [];
  #dataClusters: number;
  /** The header says that the layer is being written to. */
  #begun: Promise<void> | undefined;
  #hasBegun = false;
  #flushing: Promise<void> | undefined;
  #nextFlush: Promise<void> | undefined;
  /** Since it was lent for the first time. */
  #shared: SharedMap | undefined;

  private constructor(file: BlockFile, loaded: LoadedLayer) {
    this.file = file;
    this.#header = loaded.header;
    this.#headerSequence = loaded.headerSequence;
    this.#directory = loaded.directory;
    this.#map = loaded.map;
    this.#end = loaded.end;
    this.#free = loaded.free;
    this.#dataClusters = loaded.dataClusters;
  }

  /** Makes an empty layer; the file must not exist. @throws ZazenError ZAZEN_DISK_* */
  static async create(path: string, { sizeBytes, backing }: NewLayer): Promise<Layer> {
    checkSize(path, sizeBytes);
    if (backing !== undefined && Buffer.byteLength(backing.path) > BACKING_PATH_MAX_BYTES) {
      throw diskError('SPEC', path, 'the path of its backing file is too long');
    }
    const file = await BlockFile.open(path, 'create');
    try {
      const header = { uuid: randomUUID(), sizeBytes, generation: 1, isClean: true, backing };
      await file.truncate(FIRST_CLUSTER * CLUSTER_BYTES);
      const layer = new Layer(file, {
        header, headerSequence: 0, directory: [], map: new Map(), end: FIRST_CLUSTER, free: [], dataClusters: 0,
      });
      await layer.#writeHeader({});
      return layer;
    } catch (error) {
      await file.close();
      // Made here, and of no use to anybody.
      await unlink(path).catch(() => {});
      throw asDiskError(path, error);
    }
  }

  /** @throws ZazenError ZAZEN_DISK_* */
  static async open(path: string, mode: 'read' | 'write'): Promise<Layer> {
    const file = await BlockFile.open(path, mode);
    try {
      return new Layer(file, await loadLayer(file));
    } catch (error) {
      await file.close();
      throw asDiskError(path, error);
    }
  }

  get header(): LayerHeader {
    return this.#header;
  }
  get sizeBytes(): number {
    return this.#header.sizeBytes;
  }
  /** Of the disk, that this layer has clusters for. */
  get dataBytes(): number {
    return this.#dataClusters * CLUSTER_BYTES;
  }

  // ---- what is where ----------------------------------------------------------------------------------------------

  runs(offset: number, sizeBytes: number): Run[] {
    const runs: Run[] = [];
    const end = offset + sizeBytes;
    for (let at = offset; at < end;) {
      const granule = Math.floor(at / GRANULE_BYTES);
      const next = Math.min(end, (granule + 1) * GRANULE_BYTES);
      addRun(runs, this.#runAt(granule, at, next - at));
      at = next;
    }
    return runs;
  }

  #runAt(granule: number, offset: number, sizeBytes: number): Run {
    const { page, entry, bit } = this.#find(granule * GRANULE_BYTES);
    if (page !== undefined && (page.present(entry) & bit) !== 0) {
      return { kind: RUN.data, offset, sizeBytes, at: page.cluster(entry) * CLUSTER_BYTES + offset % CLUSTER_BYTES };
    }
    const isZero = page !== undefined && (page.zero(entry) & bit) !== 0;
    return { kind: isZero ? RUN.zero : RUN.below, offset, sizeBytes, at: 0 };
  }

  has(offset: number, sizeBytes: number): boolean {
    return this.runs(offset, sizeBytes).every(({ kind }) => kind === RUN.data);
  }

  #find(offset: number): { page: EntryPage | undefined; entry: number; bit: number } {
    const cluster = Math.floor(offset / CLUSTER_BYTES);
    return {
      page: this.#map.get(Math.floor(cluster / ENTRIES_PER_PAGE)), entry: cluster % ENTRIES_PER_PAGE,
      bit: 1 << ((offset % CLUSTER_BYTES) / GRANULE_BYTES),
    };
  }

  #findOrMake(offset: number): { page: EntryPage; entry: number } {
    const { page, entry } = this.#find(offset);
    if (page !== undefined) return { page, entry };
    const index = Math.floor(offset / MAP_PAGE_SPAN_BYTES);
    const made = new EntryPage(PAGE_KIND.map, index, 0);
    this.#map.set(index, made);
    this.#shared?.add(made);
    return { page: made, entry };
  }

  /** All that is here, data and zeros, by place on the disk. */
  *allRuns(): Generator<Run> {
    for (const index of [...this.#map.keys()].toSorted((a, b) => a - b)) {
      const runs = this.runs(index * MAP_PAGE_SPAN_BYTES, MAP_PAGE_SPAN_BYTES);
      for (const run of runs) if (run.kind !== RUN.below) yield run;
    }
  }

  // ---- writing ----------------------------------------------------------------------------------------------------

  async write(pieces: Pieces, offset: number): Promise<void> {
    await this.#begin();
    const sizeBytes = bytesOf(pieces);
    const runs: Run[] = [];
    for (let at = offset; at < offset + sizeBytes;) {
      const next = Math.min(offset + sizeBytes, at - at % CLUSTER_BYTES + CLUSTER_BYTES);
      const place = this.#place(at) * CLUSTER_BYTES + at % CLUSTER_BYTES;
      addRun(runs, { kind: RUN.data, offset: at, sizeBytes: next - at, at: place });
      at = next;
    }
    await settled(runs.map((run) => this.file.write(slicePieces(pieces, run.offset - offset, run.sizeBytes), run.at)));
    this.#mark(offset, sizeBytes);
  }

  /** The cluster for a place on the disk; a new one if there is none yet. */
  #place(offset: number): number {
    const { page, entry } = this.#findOrMake(offset);
    if (page.cluster(entry) === 0) {
      this.#dataClusters++;
      page.set(entry, this.#free.pop() ?? this.#end++, 0, page.zero(entry));
    }
    return page.cluster(entry);
  }

  /** The granules have been written. */
  #mark(offset: number, sizeBytes: number): void {
    for (let at = offset; at < offset + sizeBytes;) {
      const next = Math.min(offset + sizeBytes, at - at % CLUSTER_BYTES + CLUSTER_BYTES);
      const { page, entry } = this.#findOrMake(at);
      const bits = granuleBits(at % CLUSTER_BYTES, next - at);
      assert(page.cluster(entry) !== 0, 'what is being written keeps its cluster');
      const present = page.present(entry) | bits;
      const zero = page.zero(entry) & ~bits;
      if (present !== page.present(entry) || zero !== page.zero(entry)) page.set(entry, page.cluster(entry), present, zero);
      at = next;
    }
  }

  /** The granules become zero; a cluster of which nothing is left becomes free. */
  async discard(offset: number, sizeBytes: number): Promise<boolean> {
    assert(offset % GRANULE_BYTES === 0, 'discard whole granules');
    await this.#begin();
    const isLowest = this.#header.backing === undefined;
    for (let at = offset; at < offset + sizeBytes;) {
      const next = Math.min(offset + sizeBytes, at - at % CLUSTER_BYTES + CLUSTER_BYTES);
      const { page: known } = this.#find(at);
      // Of what nobody ever wrote, and nothing lies below, there is nothing to note.
      if (known !== undefined || !isLowest) this.#discardIn(at, granuleBits(at % CLUSTER_BYTES, next - at), isLowest);
      at = next;
    }
    return true;
  }

  #discardIn(offset: number, bits: number, isLowest: boolean): void {
    const { page, entry } = this.#findOrMake(offset);
    const before = page.present(entry);
    const cluster = page.cluster(entry);
    const present = before & ~bits;
    const zero = isLowest ? 0 : page.zero(entry) | bits;
    if (present === before && zero === page.zero(entry)) return;
    // A cluster whose first write is under way is not touched.
    const isFreed = cluster !== 0 && before !== 0 && present === 0;
    if (isFreed) {
      this.#freed.push(cluster);
      this.#dataClusters--;
    }
    page.set(entry, isFreed ? 0 : cluster, present, zero);
  }

  async resize(sizeBytes: number): Promise<void> {
    checkSize(this.file.path, sizeBytes);
    await this.#begin();
    const before = this.sizeBytes;
    // What was cut off once must not come back, nor show what lies below, when the disk grows again.
    if (sizeBytes < before) {
      const start = Math.ceil(sizeBytes / GRANULE_BYTES) * GRANULE_BYTES;
      const end = Math.ceil(before / GRANULE_BYTES) * GRANULE_BYTES;
      if (start < end) await this.discard(start, end - start);
    }
    await this.flush();
    await this.#writeHeader({ sizeBytes });
  }

  /** It lies on something else from now on, which has the same contents. */
  async setBacking(backing: BackingReference): Promise<void> {
    await this.#writeHeader({ backing });
  }

  // ---- the threads that serve a disk's ring -----------------------------------------------------------------------

  /** Other threads may read the map. @returns the page where they find it; 0: there is no room for that */
  share(maps: MapPages): number {
    this.#shared ??= new SharedMap(maps, this.#map.values());
    return this.#shared.headFor(maps, this.sizeBytes);
  }

  /** Whether what is written need not be announced in the file any more. */
  get isBegun(): boolean {
    return this.#hasBegun;
  }

  /** From now on another thread writes to the file and notes it in the map, which is shared; until `takeBack`. */
  lendMap(): void {
    this.#shared!.lend(this.#end, this.#free, this.file.sizeBytes);
  }

  takeBack(): void {
    const { end, newClusters, fileBytes, pages } = this.#shared!.takeBack(this.#free);
    this.#end = end;
    this.#dataClusters += newClusters;
    this.file.grown(fileBytes);
    for (const page of pages) this.#map.set(page.index, page);
  }

  // ---- making it last ---------------------------------------------------------------------------------------------

  /** Whoever knows the layer as it was must not take it for the same any more. */
  #begin(): Promise<void> {
    assert(this.file.isWritable, 'the layer is open for writing');
    return this.#begun ??= this.#announce();
  }
  async #announce(): Promise<void> {
    await this.#writeHeader({ isClean: false, generation: this.#header.generation + 1 });
    this.#hasBegun = true;
  }

  async #writeHeader(changes: Partial<LayerHeader>): Promise<void> {
    const header = { ...this.#header, ...changes };
    const sequence = ++this.#headerSequence;
    this.#header = header;
    using buffer = takeBuffer(PAGE_BYTES);
    buffer.bytes.set(encodeHeader({ header, sequence }));
    await this.file.write([buffer.bytes], (sequence % 2) * PAGE_BYTES);
    await this.file.sync();
  }

  flush(): Promise<void> {
    // One flush at a time; who asks meanwhile waits for the next one, which all of them share.
    if (this.#flushing === undefined) return this.#startFlush();
    return this.#nextFlush ??= this.#flushing.catch(() => {}).then(() => {
      this.#nextFlush = undefined;
      return this.#startFlush();
    });
  }

  #startFlush(): Promise<void> {
    const flushing = this.#flush().finally(() => { this.#flushing = undefined; });
    this.#flushing = flushing;
    return flushing;
  }

  async #flush(): Promise<void> {
    const dirty = [...this.#map.values()].filter((page) => page.isDirty);
    for (const page of dirty) if (page.offset === 0) await this.#givePlace(page);
    const freed = this.#freed;
    this.#freed = [];
    const pages = [...dirty, ...this.#directory.filter((page) => page?.isDirty)];
    const images = pages.map((page) => {
      page.isDirty = false;
      page.sequence++;
      return { at: page.offset + (page.sequence % 2) * PAGE_BYTES, bytes: page.encode(this.#header.uuid) };
    });
    try {
      await this.file.sync();
      await settled(images.map(({ at, bytes }) => this.#writePage(bytes, at)));
      await this.file.sync();
      this.#free.push(...freed);
    } catch (error) {
      // The next attempt must go to the same slots: what is in the others is all there is for sure.
      for (const page of pages) {
        page.isDirty = true;
        page.sequence--;
      }
      this.#freed.push(...freed);
      throw error;
    }
  }

  async #writePage(page: Uint8Array, offset: number): Promise<void> {
    using buffer = takeBuffer(PAGE_BYTES);
    buffer.bytes.set(page);
    await this.file.write([buffer.bytes], offset);
  }

  /** Two empty slots for a map page, and an entry of the directory that names them. */
  async #givePlace(page: EntryPage): Promise<void> {
    if (this.#pairs.length === 0) {
      const cluster = this.#end++;
      using buffer = takeBuffer(CLUSTER_BYTES);
      // There may be something from before a crash.
      buffer.bytes.fill(0);
      await this.file.write([buffer.bytes], cluster * CLUSTER_BYTES);
      for (let at = CLUSTER_BYTES - PAIR_BYTES; at >= 0; at -= PAIR_BYTES) this.#pairs.push(cluster * CLUSTER_BYTES + at);
    }
    page.offset = this.#pairs.pop()!;
    const index = Math.floor(page.index / ENTRIES_PER_PAGE);
    this.#directory[index] ??= new EntryPage(PAGE_KIND.directory, index, DIRECTORY_OFFSET + index * PAIR_BYTES);
    this.#directory[index].setPlace(page.index % ENTRIES_PER_PAGE, page.offset);
  }

  /** What was flushed stays; what was not, too, if it can. */
  async close(): Promise<void> {
    try {
      if (this.#begun !== undefined) {
        await this.flush();
        await this.#giveBackEnd();
        await this.#writeHeader({ isClean: true });
      }
    } finally {
      await this.abandon();
    }
  }

  async abandon(): Promise<void> {
    await this.file.close();
    this.#shared?.end();
    this.#shared = undefined;
  }

  /** Free clusters at the end of the file are cut off. */
  async #giveBackEnd(): Promise<void> {
    const free = new Set(this.#free);
    let end = this.#end;
    while (free.has(end - 1)) end--;
    if (end === this.#end) return;
    this.#free = this.#free.filter((cluster) => cluster < end);
    this.#end = end;
    await this.file.truncate(end * CLUSTER_BYTES);
  }
}

function checkSize(path: string, sizeBytes: number): void {
  if (sizeBytes > 0 && sizeBytes % 512 === 0 && sizeBytes <= LAYER_SIZE_MAX_BYTES) return;
  throw diskError('SIZE', path, `its size must be a multiple of 512 bytes, and at most ${LAYER_SIZE_MAX_BYTES}`);
}

/** Bits of the granules that a part of a cluster touches. */
function granuleBits(offset: number, sizeBytes: number): number {
  const first = Math.floor(offset / GRANULE_BYTES);
  const end = Math.ceil((offset + sizeBytes) / GRANULE_BYTES);
  return ((2 ** end - 1) & ~(2 ** first - 1)) & ALL_GRANULES;
}

/** Waits for all, also when one fails: their memory is in use until then. */
export async function settled(work: readonly Promise<void>[]): Promise<void> {
  const only = work[0];
  if (only !== undefined && work.length === 1) return only;
  for (const result of await Promise.allSettled(work)) if (result.status === 'rejected') throw result.reason;
}
