// What the translator's thread and the pCPUs' threads send each other. Hot records go one way, parcels of compiled
// regions the other: the modules to everybody, the places that they are for to who asked.
//
// A message is counted in machine memory after it has been sent to all, and taken in only when it has been counted. So
// whoever sees the count has the message in its queue; and no record names a region before a thread that has its module
// has put it there, with the module in all queues.

import type { CodePage } from '../decode-cache.ts';
import type { PackedRegions } from './known-regions.ts';

/** A place that is hot. */
export interface HotPlace {
  readonly record: number;
  /** Pages of code that the vCPU could go to from there: how many pages away each is, and the address of its records, in turn. */
  readonly neighbours: Int32Array;
  /** It has been hot for long: calls from there are to be followed. */
  readonly followsCalls: boolean;
}

/** A region's number is to stand at a place, if the page is still the same. */
export interface RegionEntry {
  readonly page: CodePage;
  /** Places of all its instructions in the page. */
  readonly indices: readonly number[];
  /** Pages of which it is known what is in them. */
  readonly contents: readonly { readonly page: CodePage; readonly content: bigint }[];
  readonly tableIndex: number;
}

export interface RegionParcel {
  readonly module: WebAssembly.Module | undefined;
  readonly entries: readonly RegionEntry[];
  /** The module's are to be entered wherever they are found. */
  readonly known?: PackedRegions;
}

/**
 * The table is full, and all regions go: their numbers will be used again. Whoever gets this empties its table; and the
 * first one empties the decode cache, so that no record names one. For that, all vCPUs are stopped, and before a thread
 * runs one again it takes in what is in its queue, this message with it. So none takes a number that a record got
 * afterwards for one of its old regions.
 */
export interface RegionReset {
  /** Counts the resets, from 1; DecodeCache.knowsRegionEpoch says whether the records have followed. */
  readonly epoch: number;
}

export type RegionMessage = RegionParcel | RegionReset;
