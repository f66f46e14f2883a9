// How a disk in layers lies in memory that the threads which serve its ring share (lanes/lent-chain.ts): pages of 4 KiB in one
// array, numbered from 1; 0 is none. All words are u32.
//
//   chain ──► head of a layer ──► tables ──► map pages          a level of the chain without a head is a raw file
//    levels     what the lane may     508 pages    508 entries, each for a cluster of 64 KiB of the disk
//    from top   use for new clusters  each
//
//   entry   │ cluster of the file; 0: none │ 16 bits: granules that are there │ 16 bits: granules that are zero │
//
// A map page has the entries of a page in the file (devices/block/layer-format.ts), and a word that says that it has been
// changed since that one was written.

export const GRANULE_BYTES = 4096;
export const CLUSTER_BYTES = 65536;
export const GRANULES_PER_CLUSTER = CLUSTER_BYTES / GRANULE_BYTES;
export const ALL_GRANULES = 2 ** GRANULES_PER_CLUSTER - 1;
export const ENTRIES_PER_PAGE = 508;
/** Of the disk that a map page describes. */
export const MAP_PAGE_SPAN_BYTES = ENTRIES_PER_PAGE * CLUSTER_BYTES;
/** Pages of the directory, and tables here: as many pages of the map each as a page has entries. */
export const TABLES_MAX = 512;

export const SHARED_PAGE_BYTES = 4096;
export const SHARED_PAGE_WORDS = SHARED_PAGE_BYTES / 4;

/** Words of a map page behind its entries. */
export const MAP_PAGE_WORD = { dirty: 2 * ENTRIES_PER_PAGE } as const;

/** In a table: the page is in the host's memory only. */
export const NOT_SHARED = 0xffffffff;

/**
 * Words of a layer's head. A new cluster is one of `free`, the last of so many, or else the one at `end`, which was never used;
 * with `hasMoreFree`, the host has more that should be used first. A map page that there is none of yet is taken from the end of
 * `blanks`, and noted in `made` as its index and its page. `fileGranules`: how far the file has been written, in granules.
 */
export const LAYER_HEAD = {
  end: 0, freeCount: 1, hasMoreFree: 2, fileGranules: 3, newClusters: 4, blankCount: 5, madeCount: 6,
  blanks: 8, made: 24, free: 64, tables: 512,
} as const;
export const BLANKS_MAX = LAYER_HEAD.made - LAYER_HEAD.blanks;
export const FREE_LENT_MAX = 256;

/** Words of a chain, and of each of its levels, the topmost first: descriptor, head, and the size as a double. */
export const CHAIN = { depth: 0, levels: 4 } as const;
export const CHAIN_LEVEL = { fd: 0, head: 1, sizeBytes: 2, words: 4 } as const;
export const CHAIN_LEVELS_MAX = (SHARED_PAGE_WORDS - CHAIN.levels) / CHAIN_LEVEL.words;
