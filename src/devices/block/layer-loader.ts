// Reads a layer file's records into memory and judges them. Whatever is in the file, the answer is a layer that holds
// together or a ZazenError: every place lies in the file, no two entries have the same cluster, no map page is read twice.

import { takeBuffer } from '../../lanes/buffers.ts';
import type { BlockFile } from './block-file.ts';
import { diskError } from './errors.ts';
import {
  CLUSTER_BYTES, DIRECTORY_OFFSET, ENTRIES_PER_PAGE, FIRST_CLUSTER, GRANULE_BYTES, MAP_PAGE_SPAN_BYTES, PAGE_KIND,
  PAIR_BYTES, decodeHeader, decodePage,
} from './layer-format.ts';
import type { EntryPage, LayerHeader, PageKind } from './layer-format.ts';

export interface LoadedLayer {
  readonly header: LayerHeader;
  readonly headerSequence: number;
  /** By index; where there is none, none is needed. */
  readonly directory: EntryPage[];
  /** By index. */
  readonly map: Map<number, EntryPage>;
  /** First cluster behind all that are used. */
  readonly end: number;
  /** Clusters before that one that nobody uses. */
  readonly free: number[];
  readonly dataClusters: number;
}

/** @throws ZazenError ZAZEN_DISK_FORMAT, _DAMAGED; what reading throws */
export async function loadLayer(file: BlockFile): Promise<LoadedLayer> {
  // With the directory of all but huge disks, in one request.
  const start = await readBytes(file, 0, DIRECTORY_OFFSET + PAIR_BYTES);
  const { header, sequence } = decodeHeader(start.subarray(0, PAIR_BYTES), file.path);
  // A directory that is cut off would be read as an empty one, and so would the disk.
  if (file.sizeBytes < FIRST_CLUSTER * CLUSTER_BYTES) throw damaged(file, 'it ends within its directory');
  const clusters = new ClusterUse(file);
  const load = (kind: PageKind, index: number, slots: Uint8Array, offset: number): EntryPage => {
    const page = decodePage(slots, kind, index, offset, header.uuid, header.isClean);
    if (page === undefined) throw damaged(file, `the record at byte ${offset} is damaged`);
    return page;
  };
  const mapPages = Math.ceil(header.sizeBytes / MAP_PAGE_SPAN_BYTES);
  const pairs = Math.ceil(mapPages / ENTRIES_PER_PAGE);
  const slots = pairs === 1 ? start.subarray(DIRECTORY_OFFSET) : await readBytes(file, DIRECTORY_OFFSET, pairs * PAIR_BYTES);
  const directory = Array.from({ length: pairs }, (_, index) => load(PAGE_KIND.directory, index,
    slots.subarray(index * PAIR_BYTES, (index + 1) * PAIR_BYTES), DIRECTORY_OFFSET + index * PAIR_BYTES));
  const map = new Map<number, EntryPage>();
  for (const [offset, index] of placesIn(file, directory)) {
    clusters.useForMap(offset);
    map.set(index, load(PAGE_KIND.map, index, await clusters.pairAt(offset), offset));
  }
  let dataClusters = 0;
  for (const page of map.values()) dataClusters += useClusters(page, clusters);
  return { header, headerSequence: sequence, directory, map, ...clusters.summary(), dataClusters };
}

/** Where map pages are, with their indices, in the order of the file. */
function placesIn(file: BlockFile, directory: readonly EntryPage[]): [number, number][] {
  const places: [number, number][] = [];
  const seen = new Set<number>();
  for (const page of directory) {
    for (const entry of page.used()) {
      const offset = page.place(entry);
      if (offset === 0) continue;
      if (seen.has(offset)) throw damaged(file, 'two entries of the directory have the same place');
      seen.add(offset);
      places.push([offset, page.index * ENTRIES_PER_PAGE + entry]);
    }
  }
  return places.toSorted(([a], [b]) => a - b);
}

function useClusters(page: EntryPage, clusters: ClusterUse): number {
  let count = 0;
  for (const entry of page.used()) {
    const cluster = page.cluster(entry);
    if (cluster !== 0) {
      clusters.useForData(cluster, 32 - Math.clz32(page.present(entry)));
      count++;
    }
    if ((cluster === 0) !== (page.present(entry) === 0) || (page.present(entry) & page.zero(entry)) !== 0) {
      throw damaged(clusters.file, `entry ${entry} of map page ${page.index} contradicts itself`);
    }
  }
  return count;
}

const USE = { none: 0, data: 1, map: 2 } as const;

class ClusterUse {
  readonly file: BlockFile;
  readonly #uses: Uint8Array;
  #cluster: { number: number; bytes: Uint8Array } | undefined;

  constructor(file: BlockFile) {
    this.file = file;
    this.#uses = new Uint8Array(Math.ceil(file.sizeBytes / CLUSTER_BYTES));
    this.#uses.fill(USE.map, 0, FIRST_CLUSTER);
  }

  useForMap(offset: number): void {
    const cluster = Math.floor(offset / CLUSTER_BYTES);
    if (cluster < FIRST_CLUSTER || cluster >= this.#uses.length) throw damaged(this.file, `byte ${offset} is no place for a map page`);
    this.#uses[cluster] = USE.map;
  }

  /** @param granules that must be in the file */
  useForData(cluster: number, granules: number): void {
    if (!(cluster * CLUSTER_BYTES + granules * GRANULE_BYTES <= this.file.sizeBytes)) {
      throw damaged(this.file, `it ends before its cluster ${cluster}`);
    }
    if (this.#uses[cluster] !== USE.none) throw damaged(this.file, `cluster ${cluster} is used twice`);
    this.#uses[cluster] = USE.data;
  }

  /** Ascending offsets, so that a cluster is read once. */
  async pairAt(offset: number): Promise<Uint8Array> {
    const number = Math.floor(offset / CLUSTER_BYTES);
    if (this.#cluster?.number !== number) {
      this.#cluster = { number, bytes: await readBytes(this.file, number * CLUSTER_BYTES, CLUSTER_BYTES) };
    }
    const at = offset % CLUSTER_BYTES;
    return this.#cluster!.bytes.subarray(at, at + PAIR_BYTES);
  }

  summary(): { end: number; free: number[] } {
    let end = this.#uses.length;
    while (end > FIRST_CLUSTER && this.#uses[end - 1] === USE.none) end--;
    const free: number[] = [];
    for (let cluster = end - 1; cluster >= FIRST_CLUSTER; cluster--) if (this.#uses[cluster] === USE.none) free.push(cluster);
    return { end, free };
  }
}

async function readBytes(file: BlockFile, offset: number, sizeBytes: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(sizeBytes);
  const STEP_BYTES = 4 * 2 ** 20;
  for (let at = 0; at < sizeBytes; at += STEP_BYTES) {
    using buffer = takeBuffer(Math.min(STEP_BYTES, sizeBytes - at));
    await file.read([buffer.bytes], offset + at);
    bytes.set(buffer.bytes, at);
  }
  return bytes;
}

const damaged = (file: BlockFile, words: string) => diskError('DAMAGED', file.path, words);
